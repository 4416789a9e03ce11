/* `exchanged ROUNDS`: while a unix socket takes a connection's place, another thread makes duplicates of it, or closes some, whose
 * numbers other files get at once.  All that is open at the end is what it should be. */
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/stat.h>

#include "pair.h"

enum { DUPLICATES = 300 };

static int client, server;
static int fds[DUPLICATES];
static atomic_int count; /* of what the other thread has done */
static atomic_bool enough;

static void *close_some(void *none) {
  for (int i = DUPLICATES - 1; i >= 0;
       i--) { /* the other way than one that goes through them all from the first */
    MUST(close(fds[i]) == 0);
    fds[i] = open("/dev/null", O_RDONLY);
    MUST(fds[i] >= 0);
    count++;
  }
  return none;
}

static void *make_some(void *none) {
  for (int i = 0; i < DUPLICATES && !enough; i++) {
    fds[i] = i % 2 ? dup(client) : fcntl(client, F_DUPFD_CLOEXEC, 3);
    MUST(fds[i] >= 0);
    count++;
  }
  return none;
}

static bool hears(int fd) {
  char byte = 'y';
  struct pollfd p = {.fd = fd, .events = POLLIN};
  MUST(write(server, &byte, 1) == 1);
  return poll(&p, 1, 2000) == 1 && recv(fd, &byte, 1, MSG_DONTWAIT) == 1;
}

static bool ended(void) { /* nobody has another descriptor of its other end */
  char bytes[DUPLICATES];
  struct pollfd p = {.fd = server, .events = POLLIN};
  return poll(&p, 1, 2000) == 1 && recv(server, bytes, sizeof bytes, MSG_DONTWAIT) == 0;
}

static bool is_file(int fd) {
  struct stat is;
  MUST(fstat(fd, &is) == 0);
  return S_ISCHR(is.st_mode);
}

/* How many descriptors are another file than they should be. */
static int one_round(int listener, const struct sockaddr_in *at, bool closes) {
  char byte = 'x';
  int wrong = 0;
  pthread_t thread;
  count = 0;
  enough = false;
  client = socket(AF_INET, SOCK_STREAM, 0);
  MUST(connect(client, (const struct sockaddr *)at, sizeof *at) == 0);
  server = accept(listener, NULL, NULL);
  MUST(server >= 0 && write(client, &byte, 1) == 1 && read(server, &byte, 1) == 1);
  for (int i = 0; closes && i < DUPLICATES; i++) {
    fds[i] = dup(client);
    MUST(fds[i] >= 0);
  }
  MUST(write(server, &byte, 1) == 1);
  MUST(pthread_create(&thread, NULL, closes ? close_some : make_some, NULL) == 0);
  while (count < 5) {
  }
  MUST(read(client, &byte, 1) == 1); /* the exchange */
  enough = true;
  MUST(pthread_join(thread, NULL) == 0);
  for (int i = 0; i < count; i++) {
    wrong += !(closes ? is_file(fds[i]) : hears(fds[i]));
    close(fds[i]);
  }
  wrong += !hears(client);
  close(client);
  wrong += !ended();
  close(server);
  return wrong;
}

int main(int argc, char **argv) {
  struct sockaddr_in at;
  int listener = pair_listener(&at);
  int wrong = 0;
  MUST(argc == 2);
  for (int i = atoi(argv[1]); i > 0; i--) {
    wrong += one_round(listener, &at, i % 2);
  }
  printf("wrong: %d\n", wrong);
  return 0;
}
