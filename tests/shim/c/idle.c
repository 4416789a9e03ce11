/* idle SCENE: threads that are blocked in recv cost no processor time and no descriptors.
 *
 * own: each on its connection; shared: all on one; bells: few descriptors are left. */
#include "pair.h"

#include <pthread.h>
#include <sys/resource.h>

enum { MOST = 300, ROUNDS = 40 };

static int from[MOST], to[MOST];

static void *serves(void *fd) {
  char byte;
  while (read(*(int *)fd, &byte, 1) == 1) {
    MUST(write(*(int *)fd, &byte, 1) == 1);
  }
  return NULL;
}

static void talk(int i) {
  char byte;
  MUST(write(from[i], "x", 1) == 1 && read(from[i], &byte, 1) == 1);
}

/* How often this process's threads have gone to sleep within a third of a second. */
static long sleeps(void) {
  struct rusage before, after;
  getrusage(RUSAGE_SELF, &before);
  usleep(333333);
  getrusage(RUSAGE_SELF, &after);
  return after.ru_nvcsw - before.ru_nvcsw;
}

int main(int argc, char **argv) {
  MUST(argc == 2);
  int count = strcmp(argv[1], "own") == 0 ? 280 : strcmp(argv[1], "shared") == 0 ? 20 : 100;
  int connections = strcmp(argv[1], "shared") == 0 ? 1 : count;
  pthread_attr_t small;
  pthread_t threads[MOST];
  struct rlimit limit = {connections == 100 ? 256 : 1024, 1024};
  MUST(setrlimit(RLIMIT_NOFILE, &limit) == 0);
  MUST(pthread_attr_init(&small) == 0 && pthread_attr_setstacksize(&small, 65536) == 0);
  for (int i = 0; i < count; i++) {
    if (i < connections) {
      pair_make(&from[i], &to[i]);
    }
    MUST(pthread_create(&threads[i], &small, serves, &to[i < connections ? i : 0]) == 0);
    for (int k = 0; k < (connections == 100 ? ROUNDS : 1); k++) {
      talk(i < connections ? i : 0);
    }
  }
  usleep(200000);
  MUST(sleeps() < 1000); /* by the clock, each would make 300 */
  for (int k = 0; k < 3; k++) {
    for (int i = 0; i < connections; i++) {
      talk(i);
    }
  }
  for (int i = 0; i < connections; i++) {
    close(from[i]);
  }
  for (int i = 0; i < count; i++) {
    MUST(pthread_join(threads[i], NULL) == 0);
  }
  printf("ok\n");
  return 0;
}
