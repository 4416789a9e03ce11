/* bare CPU CPU [--requests N] [--warmup W]: what a round trip of 64 B costs where there is nothing but the machine.
 *
 * Two processes and a cache line for each direction, which has the message and its number.  On two processors each looks at
 * the other's line until it changes; on one each sleeps in futex(2) and wakes the other.  No ring, no socket, no
 * readiness: no socket's replacement takes less.  Prints a JSON object: p50 and p99, microseconds.
 */
#include "common.h"

#include <linux/futex.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>

enum { MESSAGE = 60 };

struct line {
  _Alignas(64) _Atomic uint32_t number;
  char message[MESSAGE];
};

static void pin(size_t cpu) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  if (sched_setaffinity(0, sizeof one, &one) != 0) {
    fail("sched_setaffinity");
  }
}

static void put(struct line *l, uint32_t number, const char *message, int sleeps) {
  memcpy(l->message, message, MESSAGE);
  atomic_store_explicit(&l->number, number, memory_order_release);
  if (sleeps) {
    syscall(SYS_futex, &l->number, FUTEX_WAKE, 1, NULL, NULL, 0);
  }
}

static void get(struct line *l, uint32_t number, char *message, int sleeps) {
  uint32_t there;
  while ((there = atomic_load_explicit(&l->number, memory_order_acquire)) != number) {
    if (sleeps) {
      syscall(SYS_futex, &l->number, FUTEX_WAIT, there, NULL, NULL, 0);
    } else {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
  }
  memcpy(message, l->message, MESSAGE);
}

static int ascending(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return (x > y) - (x < y);
}

int main(int argc, char **argv) {
  if (argc < 3) {
    errno = EINVAL;
    fail("bare CPU CPU [--requests N] [--warmup W]");
  }
  size_t here = (size_t)atoi(argv[1]), there = (size_t)atoi(argv[2]);
  size_t requests = number(argc, argv, "--requests", "20000"),
         warmup = number(argc, argv, "--warmup", "2000");
  int sleeps = here == there;
  struct line *line = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  uint64_t *took = calloc(requests, sizeof *took);
  if (line == MAP_FAILED || took == NULL || requests == 0) {
    fail("memory");
  }
  char message[MESSAGE] = "question";
  pid_t child = fork();
  if (child < 0) {
    fail("fork");
  }
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    pin(there);
    for (uint32_t i = 1; i <= warmup + requests; i++) {
      get(&line[0], i, message, sleeps);
      put(&line[1], i, message, sleeps);
    }
    _exit(0);
  }
  pin(here);
  for (uint32_t i = 1; i <= warmup + requests; i++) {
    uint64_t begin = now_ns();
    put(&line[0], i, message, sleeps);
    get(&line[1], i, message, sleeps);
    if (i > warmup) {
      took[i - warmup - 1] = now_ns() - begin;
    }
  }
  qsort(took, requests, sizeof *took, ascending);
  printf("{\"p50\": %.3f, \"p99\": %.3f}\n", (double)took[requests / 2] / 1000,
         (double)took[requests * 99 / 100] / 1000);
  return 0;
}
