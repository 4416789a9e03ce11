/* Latency of requests: ping TARGET --size N --connections C --requests R --out FILE [--nodelay 1] [--warmup W]
 *
 * On each of C connections, one after the other: socket and connect (timed together), then R requests of N
 * bytes, each timed from before its send until its answer of N bytes is whole.  FILE receives, for every
 * connection, 1 + R integers of 64 bits: nanoseconds of the set-up, then of each request.  W requests on
 * each connection are made first and not written.
 *
 * Prints one JSON object: wall_ns and cpu_ns (this process) of everything.
 */
#include "common.h"

int main(int argc, char **argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: ping TARGET [--size N] [--connections C] [--requests R] [--out FILE]\n");
    return 2;
  }
  struct target t = parse_target(argv[1]);
  size_t size = number(argc, argv, "--size", "64");
  size_t connections = number(argc, argv, "--connections", "1");
  size_t requests = number(argc, argv, "--requests", "3");
  size_t warmup = number(argc, argv, "--warmup", "0");
  int nodelay = (int)number(argc, argv, "--nodelay", "0");
  const char *out = option(argc, argv, "--out", NULL);
  char *buf = malloc(size + 1);
  uint64_t *times = calloc(connections * (1 + requests), sizeof *times);
  if (buf == NULL || times == NULL) {
    fail("malloc");
  }
  memset(buf, 'x', size);

  uint64_t *slot = times;
  uint64_t begin = now_ns();
  uint64_t begin_cpu = cpu_ns();
  for (size_t c = 0; c < connections; c++) {
    uint64_t before = now_ns();
    int fd = open_to(&t, nodelay);
    *slot++ = now_ns() - before;
    for (size_t r = 0; r < warmup + requests; r++) {
      before = now_ns();
      send_all(fd, buf, size);
      if (!recv_all(fd, buf, size)) {
        fprintf(stderr, "recv: the peer closed instead of answering\n");
        return 1;
      }
      uint64_t took = now_ns() - before;
      if (r >= warmup) {
        *slot++ = took;
      }
    }
    close(fd);
  }
  uint64_t wall = now_ns() - begin;
  uint64_t cpu = cpu_ns() - begin_cpu;

  if (out != NULL) {
    FILE *f = fopen(out, "wb");
    if (f == NULL ||
        fwrite(times, sizeof *times, connections * (1 + requests), f) != connections * (1 + requests) ||
        fclose(f) != 0) {
      fail(out);
    }
  }
  printf("{\"wall_ns\": %llu, \"cpu_ns\": %llu}\n", (unsigned long long)wall, (unsigned long long)cpu);
  return 0;
}
