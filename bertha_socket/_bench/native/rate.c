/* Rate of set-up: rate TARGET --count N [--window W] [--size S] [--nodelay 1]
 *
 * Makes N connections, W at a time: connect, with S > 0 a request of S bytes and its answer, then read
 * until the server (mode `once`) has closed, then close.  That the server closes first proves that it has
 * accepted, bounds what waits in its backlog, and leaves the closed connections' ports to us.
 *
 * Prints one JSON object: connections, wall_ns, cpu_ns (this process).
 */
#include "common.h"

static void finish(int fd, char *buf, size_t size) {
  if (size > 0 && !recv_all(fd, buf, size)) {
    fprintf(stderr, "recv: the peer closed instead of answering\n");
    exit(1);
  }
  if (recv_all(fd, buf, 1)) {
    fprintf(stderr, "recv: more than was asked for\n");
    exit(1);
  }
  close(fd);
}

int main(int argc, char **argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: rate TARGET [--count N] [--window W] [--size S]\n");
    return 2;
  }
  struct target t = parse_target(argv[1]);
  size_t count = number(argc, argv, "--count", "1000");
  size_t window = number(argc, argv, "--window", "1");
  size_t size = number(argc, argv, "--size", "0");
  int nodelay = (int)number(argc, argv, "--nodelay", "0");
  char *buf = calloc(1, size + 1);
  int *fds = calloc(window, sizeof *fds);
  if (buf == NULL || fds == NULL || window == 0) {
    fail("calloc");
  }

  /* The first connection between two processes may have to ask somebody; it is not counted. */
  int first = open_to(&t, nodelay);
  if (size > 0) {
    send_all(first, buf, size);
  }
  finish(first, buf, size);

  uint64_t begin = now_ns();
  uint64_t begin_cpu = cpu_ns();
  for (size_t i = 0; i < count + window; i++) {
    size_t at = i % window;
    if (i >= window && i - window < count) {
      finish(fds[at], buf, size);
    }
    if (i < count) {
      fds[at] = open_to(&t, nodelay);
      if (size > 0) {
        send_all(fds[at], buf, size);
      }
    }
  }
  uint64_t wall = now_ns() - begin;
  uint64_t cpu = cpu_ns() - begin_cpu;
  printf("{\"connections\": %zu, \"wall_ns\": %llu, \"cpu_ns\": %llu}\n", count, (unsigned long long)wall,
         (unsigned long long)cpu);
  return 0;
}
