/* server PORT [two|turns|within]: echoes, with one epoll set, until all its connections have ended; two: each connection
 *   is in a second set, which is never waited for; turns: each is in two sets, which are waited for in turn; within: they
 *   are in a set within the one that is waited for.
 * client PORT CONNECTIONS ROUNDS: requests and answers of 64 bytes, in each round one on every connection; says "ok" and
 * holds the connections until its standard input ends. */
#include "common.h"

#include <sys/epoll.h>

#define MOST 256
#define SIZE 64

static void add(int set, int fd, uint32_t which) {
  struct epoll_event event = {.events = EPOLLIN, .data.u32 = which};
  MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event) == 0);
}

/* What is within the set, if there is nothing else. */
static int wait_for(int set, int inner, struct epoll_event *events) {
  int n = epoll_wait(set, events, MOST, -1);
  if (n == 1 && events[0].data.u32 == (uint32_t)inner) {
    n = epoll_wait(inner, events, MOST, 0);
  }
  return n;
}

static void serve(int port, const char *scene) {
  struct epoll_event events[MOST];
  char data[4096];
  int listener = listen_on(port), open = 0, turn = 0;
  int one = strcmp(scene, "one") == 0, turns = strcmp(scene, "turns") == 0;
  int within = strcmp(scene, "within") == 0;
  int sets[2] = {epoll_create1(0), epoll_create1(0)};
  for (int i = 0; i < (turns ? 2 : 1); i++) {
    add(sets[i], listener, (uint32_t)listener);
  }
  if (within) {
    add(sets[0], sets[1], (uint32_t)sets[1]);
  }
  do {
    turn ^= turns;
    int n = wait_for(sets[turn], within ? sets[1] : -1, events);
    MUST(n > 0 || within);
    for (int i = 0; i < n; i++) {
      int fd = (int)events[i].data.u32;
      if (within && fd == sets[1]) {
        continue;
      }
      if (fd == listener) {
        int got = accept(listener, NULL, NULL);
        MUST(got >= 0);
        for (int k = within; k < (one ? 1 : 2); k++) {
          add(sets[k], got, (uint32_t)got);
        }
        open++;
        continue;
      }
      ssize_t got = recv(fd, data, sizeof data, 0);
      if (got <= 0) {
        close(fd);
        open--;
      } else {
        MUST(send(fd, data, (size_t)got, MSG_NOSIGNAL) == got);
      }
    }
  } while (open > 0);
}

static void ask(int port, int count, int rounds) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  struct epoll_event events[MOST];
  int fds[MOST], set = epoll_create1(0);
  size_t missing[MOST];
  char data[SIZE] = "";
  for (int i = 0; i < count; i++) {
    fds[i] = socket(AF_INET, SOCK_STREAM, 0);
    MUST(connect(fds[i], (struct sockaddr *)&at, sizeof at) == 0);
    add(set, fds[i], (uint32_t)i);
  }
  for (int round = 0; round < rounds; round++) {
    for (int i = 0; i < count; i++) {
      missing[i] = SIZE;
      MUST(send(fds[i], data, SIZE, MSG_NOSIGNAL) == SIZE);
    }
    for (int open = count; open > 0;) {
      int n = epoll_wait(set, events, MOST, 20000);
      MUST(n > 0);
      for (int i = 0; i < n; i++) {
        uint32_t which = events[i].data.u32;
        ssize_t got = recv(fds[which], data, missing[which], 0);
        MUST(got > 0);
        missing[which] -= (size_t)got;
        open -= missing[which] == 0;
      }
    }
  }
  MUST(write(1, "ok\n", 3) == 3);
  while (read(0, data, SIZE) > 0) {
  }
}

int main(int argc, char **argv) {
  if (argc >= 3 && strcmp(argv[1], "server") == 0) {
    serve(atoi(argv[2]), argc > 3 ? argv[3] : "one");
    return 0;
  }
  MUST(argc == 5 && strcmp(argv[1], "client") == 0 && atoi(argv[3]) <= MOST);
  ask(atoi(argv[2]), atoi(argv[3]), atoi(argv[4]));
  return 0;
}
