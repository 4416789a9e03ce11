/* Latency of requests: ping TARGET --size N --connections C --requests R --out FILE [--nodelay 1] [--warmup W]
 *                          [--think-us T] [--processes P] [--server-first 1]
 *
 * On each of C connections, one after the other: socket and connect (timed together), then R requests of N
 * bytes, each timed from before its send until its answer of N bytes is whole.  FILE receives, for every
 * connection, 1 + R integers of 64 bits: nanoseconds of the set-up, then of each request.  W requests on
 * each connection are made first and not written.  With T > 0 it sleeps T microseconds before each request;
 * with P > 1 as many processes do all this at once, and FILE has the one's times behind the other's.
 * With --server-first 1 the first request of a connection is none: the server greets with N bytes.
 *
 * Prints one JSON object: wall_ns and cpu_ns (of all its processes) of everything.
 */
#include "common.h"

#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

static void think(size_t us) {
  struct timespec t = {(time_t)(us / 1000000), (long)(us % 1000000) * 1000};
  while (nanosleep(&t, &t) != 0 && errno == EINTR) {
  }
}

struct work {
  struct target target;
  size_t size, connections, requests, warmup, think_us;
  int nodelay, server_first;
};

static void converse(const struct work *w, uint64_t *slot) {
  char *buf = malloc(w->size + 1);
  if (buf == NULL) {
    fail("malloc");
  }
  memset(buf, 'x', w->size);
  for (size_t c = 0; c < w->connections; c++) {
    uint64_t before = now_ns();
    int fd = open_to(&w->target, w->nodelay);
    *slot++ = now_ns() - before;
    for (size_t r = 0; r < w->warmup + w->requests; r++) {
      if (w->think_us > 0) {
        think(w->think_us);
      }
      before = now_ns();
      if (r > 0 || !w->server_first) {
        send_all(fd, buf, w->size);
      }
      if (!recv_all(fd, buf, w->size)) {
        fprintf(stderr, "recv: the peer closed instead of answering\n");
        exit(1);
      }
      uint64_t took = now_ns() - before;
      if (r >= w->warmup) {
        *slot++ = took;
      }
    }
    close(fd);
  }
  free(buf);
}

/* Processor time of the children that have been waited for. */
static uint64_t children_ns(void) {
  struct rusage u;
  getrusage(RUSAGE_CHILDREN, &u);
  return (uint64_t)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000000000u +
         (uint64_t)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1000u;
}

int main(int argc, char **argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: ping TARGET [--size N] [--connections C] [--requests R] [--out FILE]\n");
    return 2;
  }
  struct work w = {
      .target = parse_target(argv[1]),
      .size = number(argc, argv, "--size", "64"),
      .connections = number(argc, argv, "--connections", "1"),
      .requests = number(argc, argv, "--requests", "3"),
      .warmup = number(argc, argv, "--warmup", "0"),
      .think_us = number(argc, argv, "--think-us", "0"),
      .nodelay = (int)number(argc, argv, "--nodelay", "0"),
      .server_first = (int)number(argc, argv, "--server-first", "0"),
  };
  size_t processes = number(argc, argv, "--processes", "1");
  const char *out = option(argc, argv, "--out", NULL);
  size_t each = w.connections * (1 + w.requests);
  size_t count = each * processes;
  uint64_t *times =
      mmap(NULL, count * sizeof *times, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (times == MAP_FAILED) {
    fail("mmap");
  }
  memset(times, 0, count * sizeof *times);
  prctl(PR_SET_TIMERSLACK, 1); /* the kernel's usual 50 us would drown a thought of 20 */

  uint64_t begin = now_ns();
  uint64_t begin_cpu = cpu_ns();
  for (size_t p = 1; p < processes; p++) {
    pid_t child = fork();
    if (child < 0) {
      fail("fork");
    }
    if (child == 0) {
      converse(&w, times + p * each);
      exit(0);
    }
  }
  converse(&w, times);
  for (size_t p = 1; p < processes; p++) {
    int status = 0;
    if (wait(&status) < 0 || status != 0) {
      fprintf(stderr, "one of the processes failed\n");
      return 1;
    }
  }
  uint64_t wall = now_ns() - begin;
  uint64_t cpu = cpu_ns() - begin_cpu + children_ns();

  if (out != NULL) {
    FILE *f = fopen(out, "wb");
    if (f == NULL || fwrite(times, sizeof *times, count, f) != count || fclose(f) != 0) {
      fail(out);
    }
  }
  printf("{\"wall_ns\": %llu, \"cpu_ns\": %llu}\n", (unsigned long long)wall, (unsigned long long)cpu);
  return 0;
}
