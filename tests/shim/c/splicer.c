/* Serves one connection by splice alone: everything that comes goes back, by way of a pipe. */
#include "common.h"

#include <fcntl.h>
#include <poll.h>

static int pair[2];

/* Blocking, as a relay does it. */
static void relay(int fd) {
  for (;;) {
    ssize_t n = splice(fd, NULL, pair[1], NULL, 1 << 16, SPLICE_F_MOVE);
    MUST(n >= 0);
    if (n == 0) {
      break;
    }
    while (n > 0) {
      ssize_t k = splice(pair[0], NULL, fd, NULL, (size_t)n, SPLICE_F_MOVE);
      MUST(k > 0);
      n -= k;
    }
  }
}

/* Without waiting, as a proxy does it: the pipe is full at times, and so is the connection. */
static void proxy(int fd) {
  ssize_t in_pipe = 0;
  int ended = 0;
  MUST(fcntl(fd, F_SETFL, O_NONBLOCK) == 0);
  while (!ended || in_pipe > 0) {
    ssize_t n = ended ? 0 : splice(fd, NULL, pair[1], NULL, 1 << 20, SPLICE_F_NONBLOCK);
    MUST(n >= 0 || errno == EAGAIN);
    ended |= n == 0;
    in_pipe += n > 0 ? n : 0;
    ssize_t k = in_pipe > 0 ? splice(pair[0], NULL, fd, NULL, (size_t)in_pipe, SPLICE_F_NONBLOCK) : -1;
    MUST(k > 0 || in_pipe == 0 || errno == EAGAIN);
    in_pipe -= k > 0 ? k : 0;
    if (n <= 0 && k <= 0 && !ended) {
      struct pollfd p = {.fd = fd, .events = in_pipe > 0 ? POLLOUT : POLLIN};
      MUST(poll(&p, 1, 10000) == 1);
    }
  }
}

/* What splice says when it cannot. */
static void wrong(int fd) {
  loff_t at = 0;
  char byte;
  MUST(splice(fd, &at, pair[1], NULL, 1, 0) == -1 && errno == EINVAL);
  MUST(splice(pair[0], &at, fd, NULL, 1, 0) == -1 && errno == ESPIPE);
  MUST(splice(fd, NULL, fd, NULL, 1, 0) == -1 && errno == EINVAL);
  MUST(splice(pair[0], NULL, fd, NULL, 1, SPLICE_F_NONBLOCK) == -1 && errno == EAGAIN);
  while (read(fd, &byte, 1) == 1) {
  }
  MUST(splice(fd, NULL, pair[1], NULL, 1, 0) == 0);
  MUST(write(pair[1], "end", 3) == 3 && close(pair[1]) == 0);
  MUST(splice(pair[0], NULL, fd, NULL, 100, 0) == 3);
  MUST(splice(pair[0], NULL, fd, NULL, 100, 0) == 0);
}

int main(int argc, char **argv) {
  MUST(argc == 3 && pipe(pair) == 0);
  int listening = listen_on(atoi(argv[1]));
  int fd = accept(listening, NULL, NULL);
  MUST(fd >= 0 && write(fd, "*", 1) == 1);
  if (strcmp(argv[2], "relay") == 0) {
    relay(fd);
  } else if (strcmp(argv[2], "proxy") == 0) {
    proxy(fd);
  } else {
    wrong(fd);
  }
  close(fd);
  return 0;
}
