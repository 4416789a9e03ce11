/* within SCENE: a set within a set, as Linux has it: the outer one tells of the inner one, by levels and by edges, whoever
 * waits for which, and whoever comes and goes meanwhile. */
#include "pair.h"

#include <sys/epoll.h>
#include <sys/wait.h>

enum { INNERS = 3, ROUNDS = 60 };

static int outer, inner[INNERS], from[INNERS], to[INNERS];

static int change(int op, int set, int fd, unsigned events) {
  struct epoll_event e = {.events = events, .data.fd = fd};
  return epoll_ctl(set, op, fd, &e);
}

static int add(int set, int fd, unsigned events) {
  return change(EPOLL_CTL_ADD, set, fd, events);
}

static unsigned told(int set, int fd, int ms) {
  struct epoll_event e = {0};
  int n = epoll_wait(set, &e, 1, ms);
  MUST(n >= 0 && (n == 0 || e.data.fd == fd));
  return n == 1 ? e.events : 0;
}

static void tell(int i, const char *text) {
  MUST(write(from[i], text, strlen(text)) == (ssize_t)strlen(text));
}

static void take(int i, size_t size) {
  char text[64];
  MUST(read(to[i], text, size) == (ssize_t)size);
}

static void make(unsigned outside, unsigned inside) {
  for (int i = 0; i < INNERS; i++) {
    MUST(add(inner[i], to[i], inside) == 0 && add(outer, inner[i], outside) == 0);
  }
}

static void levels(void) {
  struct epoll_event e[4];
  make(EPOLLIN, EPOLLIN);
  MUST(add(outer, inner[0], EPOLLIN) == -1 && errno == EEXIST);
  MUST(add(outer, outer, EPOLLIN) == -1 && errno == EINVAL);
  MUST(add(inner[0], outer, EPOLLIN) == -1 && errno == ELOOP);
  for (int round = 0; round < 5; round++) {
    MUST(epoll_wait(outer, e, 4, 0) == 0);
    for (int i = 0; i < INNERS; i++) {
      tell(i, "hello");
    }
    MUST(epoll_wait(outer, e, 4, 10000) == INNERS && epoll_wait(outer, e, 4, 0) == INNERS);
    for (int i = 0; i < INNERS; i++) {
      MUST(told(inner[i], to[i], 0) == EPOLLIN);
      take(i, 5);
    }
  }
  int ends[2];
  MUST(pipe(ends) == 0 && add(inner[1], ends[0], EPOLLIN) == 0 && epoll_wait(outer, e, 4, 0) == 0);
  MUST(write(ends[1], "x", 1) == 1 && told(outer, inner[1], 10000) == EPOLLIN);
  MUST(told(inner[1], ends[0], 0) == EPOLLIN && read(ends[0], e, 1) == 1 && epoll_wait(outer, e, 4, 0) == 0);
  tell(2, "x");
  MUST(told(outer, inner[2], 10000) == EPOLLIN && change(EPOLL_CTL_MOD, outer, inner[2], 0) == 0);
  MUST(epoll_wait(outer, e, 4, 0) == 0 && change(EPOLL_CTL_MOD, outer, inner[2], EPOLLIN) == 0);
  MUST(told(outer, inner[2], 0) == EPOLLIN && change(EPOLL_CTL_DEL, inner[2], to[2], 0) == 0);
  MUST(epoll_wait(outer, e, 4, 0) == 0 && add(inner[2], to[2], EPOLLIN) == 0);
  MUST(told(outer, inner[2], 0) == EPOLLIN && change(EPOLL_CTL_DEL, outer, inner[2], 0) == 0);
  MUST(epoll_wait(outer, e, 4, 0) == 0 && told(inner[2], to[2], 0) == EPOLLIN);
  MUST(change(EPOLL_CTL_DEL, outer, inner[2], 0) == -1 && errno == ENOENT);
  tell(0, "x");
  MUST(told(outer, inner[0], 10000) == EPOLLIN && close(inner[0]) == 0 && epoll_wait(outer, e, 4, 0) == 0);
  inner[0] = epoll_create1(EPOLL_CLOEXEC); /* the same number, perhaps */
  MUST(add(outer, inner[0], EPOLLIN) == 0 && add(inner[0], to[0], EPOLLIN) == 0);
  MUST(told(outer, inner[0], 0) == EPOLLIN);
}

static void edges(unsigned inside) {
  make(EPOLLIN | EPOLLET, inside);
  for (int round = 0; round < 5; round++) {
    MUST(told(outer, 0, 0) == 0);
    tell(0, "hello");
    MUST(told(outer, inner[0], 10000) == EPOLLIN && told(outer, 0, 0) == 0);
    tell(0, "again");
    MUST(told(outer, inner[0], 10000) == EPOLLIN && told(outer, 0, 0) == 0);
    MUST(told(inner[0], to[0], 0) == EPOLLIN);
    take(0, 10);
    MUST(told(inner[0], to[0], 0) == 0 && told(outer, 0, 0) == 0);
    tell(1, "lost");
    take(1, 4); /* read before anybody was told */
    MUST(told(inner[1], to[1], 0) == 0 && told(outer, 0, 0) == 0);
  }
  tell(2, "x");
  MUST(told(outer, inner[2], 10000) == EPOLLIN);
  MUST(change(EPOLL_CTL_MOD, outer, inner[2], EPOLLIN | EPOLLET) == 0);
  MUST(told(outer, inner[2], 0) == EPOLLIN && told(outer, 0, 0) == 0);
}

static void one_shot(void) {
  MUST(add(inner[0], to[0], EPOLLIN) == 0 && add(outer, inner[0], EPOLLIN) == 0);
  tell(0, "x");
  MUST(told(outer, inner[0], 10000) == EPOLLIN);
  MUST(change(EPOLL_CTL_MOD, outer, inner[0], EPOLLIN | EPOLLONESHOT) == 0);
  MUST(told(outer, inner[0], 10000) == EPOLLIN && told(outer, 0, 0) == 0);
  take(0, 1);
  MUST(told(inner[0], 0, 0) == 0);
  MUST(change(EPOLL_CTL_MOD, outer, inner[0], EPOLLIN | EPOLLONESHOT) == 0 && told(outer, 0, 0) == 0);
  tell(0, "x");
  MUST(told(outer, inner[0], 10000) == EPOLLIN);
}

/* More levels than are looked at, and one that is in two outer sets. */
static void deep(void) {
  int other = epoll_create1(0);
  MUST(add(inner[0], to[0], EPOLLIN) == 0 && add(inner[1], inner[0], EPOLLIN) == 0);
  MUST(add(outer, inner[1], EPOLLIN) == 0 && add(other, inner[0], EPOLLIN) == 0);
  for (int round = 0; round < 3; round++) {
    tell(0, "x");
    MUST(told(outer, inner[1], 10000) == EPOLLIN && told(other, inner[0], 10000) == EPOLLIN);
    MUST(told(inner[1], inner[0], 0) == EPOLLIN && told(inner[0], to[0], 0) == EPOLLIN);
    take(0, 1);
    MUST(told(inner[0], 0, 0) == 0 && told(inner[1], 0, 0) == 0 && told(outer, 0, 0) == 0);
    MUST(told(other, 0, 0) == 0);
  }
}

static void two_outers(void) {
  int other = epoll_create1(0);
  MUST(add(inner[0], to[0], EPOLLIN) == 0 && add(outer, inner[0], EPOLLIN) == 0);
  MUST(add(other, inner[0], EPOLLIN | EPOLLET) == 0 && told(other, 0, 0) == 0);
  for (int round = 0; round < 3; round++) {
    tell(0, "x");
    MUST(told(outer, inner[0], 10000) == EPOLLIN);
    MUST(told(other, inner[0], 10000) == EPOLLIN && told(other, 0, 0) == 0);
    MUST(told(inner[0], to[0], 0) == EPOLLIN);
    take(0, 1);
    MUST(told(outer, 0, 0) == 0);
  }
  struct pollfd p = {outer, POLLIN, 0}; /* from now on only the kernel can tell */
  MUST(poll(&p, 1, 0) == 0);
  tell(0, "x");
  MUST(poll(&p, 1, 10000) == 1 && told(outer, inner[0], 0) == EPOLLIN);
  MUST(told(other, inner[0], 10000) == EPOLLIN);
}

static void duplicates(void) {
  int copy = dup(inner[0]);
  MUST(add(inner[0], to[0], EPOLLIN) == 0 && add(outer, inner[0], EPOLLIN) == 0 && close(inner[0]) == 0);
  for (int round = 0; round < 3; round++) { /* the registration is the open file's */
    tell(0, "x");
    MUST(told(outer, inner[0], 10000) == EPOLLIN && told(copy, to[0], 0) == EPOLLIN);
    take(0, 1);
    MUST(told(copy, 0, 0) == 0 && told(outer, 0, 0) == 0);
  }
}

/* ---- threads ------------------------------------------------------------------------------------- */

static volatile int tids[2];
static pthread_barrier_t both;

static void *sleeps_outside(void *unused) {
  tids[0] = gettid();
  for (int i = 0; i < ROUNDS; i++) {
    MUST(told(outer, inner[i % INNERS], 15000) == EPOLLIN);
    pthread_barrier_wait(&both);
    pthread_barrier_wait(&both);
  }
  return unused;
}

static void *sleeps_inside(void *unused) {
  tids[1] = gettid();
  for (int i = 0; i < ROUNDS; i++) {
    MUST(told(inner[0], to[0], 15000) == EPOLLIN);
    pthread_barrier_wait(&both);
    pthread_barrier_wait(&both);
  }
  return unused;
}

static void asleep(unsigned outside) {
  pthread_t thread;
  MUST(pthread_barrier_init(&both, NULL, 2) == 0);
  make(outside, EPOLLIN);
  MUST(pthread_create(&thread, NULL, sleeps_outside, NULL) == 0);
  for (int i = 0; i < ROUNDS; i++) {
    wait_until_asleep(&tids[0]);
    tell(i % INNERS, "x");
    pthread_barrier_wait(&both);
    MUST(told(inner[i % INNERS], to[i % INNERS], 0) == EPOLLIN);
    take(i % INNERS, 1);
    MUST(told(inner[i % INNERS], 0, 0) == 0);
    pthread_barrier_wait(&both);
  }
  MUST(pthread_join(thread, NULL) == 0);
}

static void *outside_first(void *unused) {
  tids[0] = gettid();
  for (int i = 0; i < ROUNDS; i++) {
    MUST(told(outer, inner[0], 15000) == EPOLLIN);
    pthread_barrier_wait(&both);
    pthread_barrier_wait(&both);
  }
  return unused;
}

/* One sleeps in the inner set, one in the outer one: both are told. */
static void inside_and_outside(void) {
  pthread_t threads[2];
  MUST(pthread_barrier_init(&both, NULL, 3) == 0);
  MUST(add(inner[0], to[0], EPOLLIN) == 0 && add(outer, inner[0], EPOLLIN) == 0);
  MUST(pthread_create(&threads[0], NULL, outside_first, NULL) == 0);
  MUST(pthread_create(&threads[1], NULL, sleeps_inside, NULL) == 0);
  for (int i = 0; i < ROUNDS; i++) {
    wait_until_asleep(&tids[0]);
    wait_until_asleep(&tids[1]);
    tell(0, "x");
    pthread_barrier_wait(&both);
    take(0, 1);
    pthread_barrier_wait(&both);
  }
  MUST(pthread_join(threads[0], NULL) == 0 && pthread_join(threads[1], NULL) == 0);
}

static void *once(void *unused) {
  tids[0] = gettid();
  MUST(told(outer, inner[0], 15000) == EPOLLIN);
  return unused;
}

static void *once_again(void *unused) {
  tids[0] = gettid();
  MUST(told(outer, inner[1], 15000) == EPOLLIN);
  return unused;
}

/* A thread sleeps in the outer set while the inner one gets a member, or the outer one gets an inner one. */
static void comes_late(void) {
  pthread_t thread;
  MUST(add(outer, inner[0], EPOLLIN) == 0 && pthread_create(&thread, NULL, once, NULL) == 0);
  wait_until_asleep(&tids[0]);
  MUST(add(inner[0], to[0], EPOLLIN) == 0);
  tell(0, "x");
  MUST(pthread_join(thread, NULL) == 0);
  take(0, 1);
  tids[0] = 0;
  MUST(told(inner[0], 0, 0) == 0 && add(inner[1], to[1], EPOLLIN) == 0);
  MUST(pthread_create(&thread, NULL, once_again, NULL) == 0);
  wait_until_asleep(&tids[0]);
  MUST(add(outer, inner[1], EPOLLIN) == 0);
  tell(1, "x");
  MUST(pthread_join(thread, NULL) == 0);
}

/* Those who take what they find, by the outer set or by the inner one; whoever is left asleep holds the next message up. */
static void *takes(void *argument) {
  int set = *(int *)argument;
  char text[8];
  for (;;) {
    struct epoll_event e;
    MUST(epoll_wait(set, &e, 1, 15000) == 1);
    if (set == outer && epoll_wait(e.data.fd, &e, 1, 0) != 1) {
      continue; /* somebody else was quicker */
    }
    ssize_t n = recv(e.data.fd, text, sizeof text, MSG_DONTWAIT);
    if (n == 0) {
      return NULL;
    }
    MUST(n <= 0 || send(e.data.fd, text, (size_t)n, MSG_NOSIGNAL) == n);
  }
}

static void takers(int with_inside) {
  pthread_t threads[3];
  int *sets[3] = {&outer, &outer, &inner[0]};
  char text[8];
  make(EPOLLIN, EPOLLIN);
  for (int i = 0; i < 2 + with_inside; i++) {
    MUST(pthread_create(&threads[i], NULL, takes, sets[i]) == 0);
  }
  for (int i = 0; i < 6000; i++) {
    int which = with_inside ? 0 : i % INNERS;
    struct pollfd p = {from[which], POLLIN, 0};
    tell(which, "x");
    MUST(poll(&p, 1, 15000) == 1 && read(from[which], text, 1) == 1);
    if (i % 500 == 0) {
      usleep(3000);
    }
  }
  MUST(shutdown(from[0], SHUT_WR) == 0); /* which nobody takes away from the others */
  for (int i = 0; i < 2 + with_inside; i++) {
    MUST(pthread_join(threads[i], NULL) == 0);
  }
}

/* The parent's sets, which nobody but the child waits for from now on. */
static void second_life(void) {
  make(EPOLLIN, EPOLLIN);
  tell(0, "x");
  MUST(told(outer, inner[0], 10000) == EPOLLIN);
  take(0, 1);
  pid_t pid = fork();
  MUST(pid >= 0);
  if (pid != 0) {
    int status;
    MUST(waitpid(pid, &status, 0) == pid && status == 0);
    return;
  }
  for (int i = 0; i < 6; i++) {
    int which = i % INNERS;
    tell(which, "hello");
    MUST(told(outer, inner[which], 10000) == EPOLLIN && told(inner[which], to[which], 0) == EPOLLIN);
    take(which, 5);
    MUST(told(inner[which], 0, 0) == 0 && told(outer, 0, 0) == 0);
  }
  exit(0);
}

int main(int argc, char **argv) {
  MUST(argc == 2);
  const char *scene = argv[1];
  outer = epoll_create1(EPOLL_CLOEXEC);
  for (int i = 0; i < INNERS; i++) {
    pair_make(&from[i], &to[i]);
    inner[i] = epoll_create1(EPOLL_CLOEXEC);
  }
  if (strcmp(scene, "levels") == 0) {
    levels();
  } else if (strcmp(scene, "edges") == 0) {
    edges(EPOLLIN);
  } else if (strcmp(scene, "edges-both") == 0) {
    edges(EPOLLIN | EPOLLET);
  } else if (strcmp(scene, "one-shot") == 0) {
    one_shot();
  } else if (strcmp(scene, "deep") == 0) {
    deep();
  } else if (strcmp(scene, "two-outers") == 0) {
    two_outers();
  } else if (strcmp(scene, "duplicates") == 0) {
    duplicates();
  } else if (strcmp(scene, "asleep") == 0) {
    asleep(EPOLLIN);
  } else if (strcmp(scene, "asleep-by-edges") == 0) {
    asleep(EPOLLIN | EPOLLET);
  } else if (strcmp(scene, "inside-and-outside") == 0) {
    inside_and_outside();
  } else if (strcmp(scene, "comes-late") == 0) {
    comes_late();
  } else if (strcmp(scene, "takers") == 0) {
    takers(0);
  } else if (strcmp(scene, "takers-inside") == 0) {
    takers(1);
  } else {
    second_life();
  }
  printf("ok\n");
  return 0;
}
