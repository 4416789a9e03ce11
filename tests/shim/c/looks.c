/* PORT FIRST: looks at a message with MSG_PEEK | MSG_WAITALL, as TCP does: until all of it is there, or the end.  The
 * client sends its parts when told; with FIRST it sends the first one before it hears anything, by the kernel. */
#include "common.h"

#include <time.h>

static int fd;

static void tell(const char *what) {
  MUST(send(fd, what, 1, 0) == 1);
}

static void look(ssize_t want, ssize_t expected, const char *text) {
  char got[32] = "";
  ssize_t n = recv(fd, got, (size_t)want, MSG_PEEK | MSG_WAITALL);
  if (n != expected || memcmp(got, text, (size_t)n) != 0) {
    fprintf(stderr, "looked for %zd, saw %zd: '%.*s'\n", want, n, (int)n, got);
    _exit(9);
  }
}

/* A look waits for as much as SO_RCVLOWAT says; here in vain. */
static void low_water(int mark, ssize_t expected) {
  char got[32];
  struct timespec begin, end;
  int one = 1;
  MUST(setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &mark, sizeof mark) == 0);
  clock_gettime(CLOCK_MONOTONIC, &begin);
  MUST(recv(fd, got, sizeof got, MSG_PEEK) == expected);
  clock_gettime(CLOCK_MONOTONIC, &end);
  MUST((end.tv_sec - begin.tv_sec) * 1000 + (end.tv_nsec - begin.tv_nsec) / 1000000 >= 40);
  MUST(recv(fd, got, (size_t)expected, MSG_PEEK) == expected);
  MUST(setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof one) == 0);
}

/* More than a ring holds: what it holds is there to be seen, and the rest comes when that is read. */
static void too_much(void) {
  static char all[4 << 20];
  for (int i = 0; i < 3;
       i++) { /* until all goes by the ring: the kernel would wait for what it has no room for */
    tell("*");
    MUST(recv(fd, all, 1, 0) == 1);
  }
  ssize_t n = recv(fd, all, sizeof all, MSG_PEEK | MSG_WAITALL);
  MUST(n >= 4096 && n <= (ssize_t)sizeof all);
  MUST(recv(fd, all, sizeof all, MSG_WAITALL) == (ssize_t)sizeof all && recv(fd, all, 1, 0) == 0);
}

int main(int argc, char **argv) {
  MUST(argc == 3);
  char got[32];
  int listening = listen_on(atoi(argv[1]));
  fd = accept(listening, NULL, NULL);
  if (strcmp(argv[2], "first") == 0) {
    look(4, 4, "head"); /* sent while nobody was there */
  }
  if (strcmp(argv[2], "much") == 0) {
    too_much();
    return 0;
  }
  tell("*"); /* "head", "er" and, after a while, "body!" */
  look(11, 11, "headerbody!");
  MUST(recv(fd, got, 6, MSG_WAITALL) == 6 && memcmp(got, "header", 6) == 0);
  look(5, 5, "body!");
  MUST(recv(fd, got, 16, MSG_PEEK) == 5); /* nobody waits */
  MUST(recv(fd, got, 16, MSG_PEEK | MSG_WAITALL | MSG_DONTWAIT) == 5);
  struct timeval soon = {.tv_usec = 50000};
  MUST(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &soon, sizeof soon) == 0);
  look(6, 5, "body!");
  low_water(6, 5);
  soon.tv_usec = 0;
  MUST(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &soon, sizeof soon) == 0);
  tell("e"); /* "end", and the end */
  look(16, 8, "body!end");
  MUST(recv(fd, got, 16, 0) == 8 && recv(fd, got, 16, MSG_PEEK | MSG_WAITALL) == 0);
  return 0;
}
