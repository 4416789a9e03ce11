/* One process with many threads: askers TARGET --threads T --milliseconds M [--size N]
 *
 * Each of T threads has a connection of its own, sends N bytes and waits for as many, by blocking calls.
 * Prints one JSON object: requests, wall_ns, cpu_ns (of the process).
 */
#include "common.h"

#include <pthread.h>

static struct target target;
static size_t size;
static uint64_t duration, end;
static pthread_barrier_t ready;

static void *ask(void *argument) {
  size_t *done = argument;
  char *buf = calloc(1, size + 1);
  int fd = open_to(&target, 1);
  if (buf == NULL) {
    fail("calloc");
  }
  send_all(fd, buf, size); /* everybody's connection is up before the clock runs */
  if (!recv_all(fd, buf, size)) {
    fprintf(stderr, "recv: the server closed a connection\n");
    exit(1);
  }
  pthread_barrier_wait(&ready);
  pthread_barrier_wait(&ready);
  while (now_ns() < end) {
    send_all(fd, buf, size);
    if (!recv_all(fd, buf, size)) {
      fprintf(stderr, "recv: the server closed a connection\n");
      exit(1);
    }
    ++*done;
  }
  close(fd);
  free(buf);
  return NULL;
}

int main(int argc, char **argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: askers TARGET --threads T --milliseconds M [--size N]\n");
    return 2;
  }
  target = parse_target(argv[1]);
  size = number(argc, argv, "--size", "64");
  size_t threads = number(argc, argv, "--threads", "50");
  duration = (uint64_t)number(argc, argv, "--milliseconds", "1000") * 1000000u;
  pthread_t *all = calloc(threads, sizeof *all);
  size_t *done = calloc(threads * 16, sizeof *done); /* a cache line or more apart */
  if (all == NULL || done == NULL || pthread_barrier_init(&ready, NULL, (unsigned)threads + 1) != 0) {
    fail("askers");
  }
  for (size_t i = 0; i < threads; i++) {
    if (pthread_create(&all[i], NULL, ask, &done[i * 16]) != 0) {
      fail("pthread_create");
    }
  }
  pthread_barrier_wait(&ready);
  uint64_t begin = now_ns(), begin_cpu = cpu_ns();
  end = begin + duration;
  pthread_barrier_wait(&ready);
  size_t sum = 0;
  for (size_t i = 0; i < threads; i++) {
    pthread_join(all[i], NULL);
    sum += done[i * 16];
  }
  printf("{\"requests\": %zu, \"wall_ns\": %llu, \"cpu_ns\": %llu}\n", sum,
         (unsigned long long)(now_ns() - begin), (unsigned long long)(cpu_ns() - begin_cpu));
  return 0;
}
