/* bare CPU CPU [--requests N] [--warmup W]: what a round trip of 64 B costs where there is nothing but the machine.
 * bare CPU CPU --pieces N: the same of pieces of 128 KiB in one direction, copied into shared memory and out of it, by
 * whichever of four ways is the quickest (a quarter of the pieces each).
 *
 * Two processes and a cache line for each direction, which has the message and its number.  On two processors each looks at
 * the other's line until it changes; on one each sleeps in futex(2) and wakes the other.  No ring, no socket, no
 * readiness: no socket's replacement takes less.  Prints a JSON object: p50 and p99, microseconds, or rate, pieces a
 * second.
 */
#include "common.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif
#include <linux/futex.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>

enum { MESSAGE = 60, PIECE = 128 * 1024, SLOTS = 8 };

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

static void await(_Atomic uint32_t *word, uint32_t least, int sleeps) {
  uint32_t there;
  while ((int32_t)((there = atomic_load_explicit(word, memory_order_acquire)) - least) < 0) {
    if (sleeps) {
      syscall(SYS_futex, word, FUTEX_WAIT, there, NULL, NULL, 0);
    } else {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
  }
}

static void advance(_Atomic uint32_t *word, uint32_t to, int sleeps) {
  atomic_store_explicit(word, to, memory_order_release);
  if (sleeps) {
    syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
  }
}

static void put(struct line *l, uint32_t number, const char *message, int sleeps) {
  memcpy(l->message, message, MESSAGE);
  advance(&l->number, number, sleeps);
}

static void get(struct line *l, uint32_t number, char *message, int sleeps) {
  await(&l->number, number, sleeps);
  memcpy(message, l->message, MESSAGE);
}

/* Two processes from here on, each on its processor; true in the new one, which ends with the first. */
static int part(size_t here, size_t there) {
  pid_t child = fork();
  if (child < 0) {
    fail("fork");
  }
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
  }
  pin(child == 0 ? there : here);
  return child == 0;
}

static int ascending(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return (x > y) - (x < y);
}

/* The ways that core/copy.c chooses among, without it: what it reaches is compared with these.  Which is the quickest depends on the
 * processor, and on how near the two are to one another. */
typedef void copier(char *to, const char *from);

static void by_memcpy(char *to, const char *from) {
  memcpy(to, from, PIECE);
}

static void by_vectors(char *to, const char *from) {
  size_t part = 2048;
  __asm__("" : "+r"(part)); /* of a size that it knows the compiler makes `rep movsq` by itself */
  for (size_t at = 0; at < PIECE; at += part) {
    memcpy(to + at, from + at, part);
  }
}

static void around_caches(char *to, const char *from) {
#ifdef __SSE2__
  for (size_t at = 0; at < PIECE; at += sizeof(__m128i)) {
    _mm_stream_si128((void *)(to + at), _mm_loadu_si128((const void *)(from + at)));
  }
  _mm_sfence();
#else
  by_vectors(to, from);
#endif
}

/* On one processor each goes on until the ring is full, or empty, and only then wakes the other. */
static double bulk(size_t here, size_t there, uint32_t pieces, copier *in, copier *out) {
  int sleeps = here == there;
  uint32_t wakes = sleeps ? SLOTS : 1;
  char *ring = mmap(NULL, SLOTS * PIECE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  struct line *words = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  char *own = aligned_alloc(4096, PIECE);
  if (ring == MAP_FAILED || words == MAP_FAILED || own == NULL) {
    fail("memory");
  }
  memset(own, 1, PIECE);
  pieces -= pieces % SLOTS;
  if (part(here, there)) {
    for (uint32_t i = 0; i < pieces; i++) {
      await(&words[0].number, i + 1, sleeps);
      out(own, ring + (size_t)(i % SLOTS) * PIECE);
      if ((i + 1) % wakes == 0) {
        advance(&words[1].number, i + 1, sleeps);
      }
    }
    _exit(own[PIECE - 1] == 1 ? 0 : 1);
  }
  uint64_t begin = now_ns();
  for (uint32_t i = 0; i < pieces; i++) {
    await(&words[1].number, i < SLOTS ? 0 : i + 1 - SLOTS, sleeps);
    in(ring + (size_t)(i % SLOTS) * PIECE, own);
    if ((i + 1) % wakes == 0) {
      advance(&words[0].number, i + 1, sleeps);
    }
  }
  await(&words[1].number, pieces, sleeps);
  return pieces / ((double)(now_ns() - begin) / 1e9);
}

static double quickest(size_t here, size_t there, uint32_t pieces) {
  copier *const ways[][2] = {{by_memcpy, by_memcpy},
                             {by_vectors, by_vectors},
                             {around_caches, by_vectors},
                             {around_caches, by_memcpy}};
  const uint32_t count = sizeof ways / sizeof *ways;
  double best = 0;
  for (uint32_t i = 0; i < count; i++) {
    double rate = bulk(here, there, pieces / count, ways[i][0], ways[i][1]);
    best = rate > best ? rate : best;
  }
  return best;
}

int main(int argc, char **argv) {
  if (argc < 3) {
    errno = EINVAL;
    fail("bare CPU CPU [--requests N] [--warmup W] [--pieces N]");
  }
  size_t here = (size_t)atoi(argv[1]), there = (size_t)atoi(argv[2]);
  size_t requests = number(argc, argv, "--requests", "20000"),
         warmup = number(argc, argv, "--warmup", "2000");
  size_t pieces = number(argc, argv, "--pieces", "0");
  if (pieces > 0) {
    printf("{\"rate\": %.1f}\n", quickest(here, there, (uint32_t)pieces));
    return 0;
  }
  int sleeps = here == there;
  struct line *line = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  uint64_t *took = calloc(requests, sizeof *took);
  if (line == MAP_FAILED || took == NULL || requests == 0) {
    fail("memory");
  }
  char message[MESSAGE] = "question";
  if (part(here, there)) {
    for (uint32_t i = 1; i <= warmup + requests; i++) {
      get(&line[0], i, message, sleeps);
      put(&line[1], i, message, sleeps);
    }
    _exit(0);
  }
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
