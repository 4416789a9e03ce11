/* Waits with select() for a connection whose number is above FD_SETSIZE, in sets of its own making. */
#undef _FORTIFY_SOURCE /* whose check knows of no other sets than fd_set */
#include "common.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/select.h>

enum { NUMBER = 2000, BITS = 4096, WORD = 8 * sizeof(unsigned long) };

static unsigned long set[BITS / WORD];

static int ready(int fd, int n, long ms) {
  struct timeval t = {ms / 1000, ms % 1000 * 1000};
  memset(set, 0, sizeof set);
  set[fd / WORD] |= 1ul << (fd % WORD);
  int got = select(n, (fd_set *)set, NULL, NULL, &t);
  MUST(got >= 0 && got == (int)(set[fd / WORD] >> (fd % WORD) & 1));
  return got;
}

int main(int argc, char **argv) {
  struct rlimit limit;
  char data[16];
  MUST(argc == 2 && getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_max > NUMBER);
  limit.rlim_cur = limit.rlim_max < BITS ? limit.rlim_max : BITS;
  MUST(setrlimit(RLIMIT_NOFILE, &limit) == 0);
  int listening = listen_on(atoi(argv[1]));
  int low = accept(listening, NULL, NULL);
  int fd = fcntl(low, F_DUPFD, NUMBER);
  MUST(fd >= NUMBER && close(low) == 0);
  MUST(recv(fd, data, 1, 0) == 1);
  for (int i = 0; i < 9; i++) {
    int n = i % 2 != 0 ? fd + 1 : (int)limit.rlim_cur; /* also: all that there may be */
    MUST(!ready(fd, n, i % 3 == 0 ? 0 : 20));
    MUST(send(fd, "2", 1, 0) == 1);
    MUST(ready(fd, n, 10000));
    MUST(recv(fd, data, sizeof data, 0) == 2);
  }
  MUST(send(fd, "0", 1, 0) == 1 && ready(fd, fd + 1, 10000) && recv(fd, data, 1, 0) == 0);
  puts("ok");
  return 0;
}
