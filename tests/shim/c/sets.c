/* sets SCENE: one connection in several epoll sets, as Linux has it: each set is told by itself. */
#include "pair.h"

#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/wait.h>

enum { MOST = 30, WAITERS = 2 };

static int from, to, sets[MOST];

static int change(int op, int set, int fd, unsigned events) {
  struct epoll_event e = {.events = events, .data.fd = fd};
  return epoll_ctl(set, op, fd, &e);
}

static int add(int set, int fd, unsigned events) {
  return change(EPOLL_CTL_ADD, set, fd, events);
}

/* The events that the set tells of `fd`; 0: none. */
static unsigned told(int set, int fd, int ms) {
  struct epoll_event e = {0};
  int n = epoll_wait(set, &e, 1, ms);
  MUST(n >= 0 && (n == 0 || e.data.fd == fd));
  return n == 1 ? e.events : 0;
}

static void tell(const char *text) {
  MUST(write(from, text, strlen(text)) == (ssize_t)strlen(text));
}

static void take(size_t size) {
  char text[64];
  MUST(read(to, text, size) == (ssize_t)size);
}

static void levels(void) {
  MUST(add(sets[0], to, EPOLLIN) == 0 && add(sets[1], to, EPOLLIN) == 0);
  MUST(add(sets[1], to, EPOLLIN) == -1 && errno == EEXIST);
  for (int i = 0; i < 5; i++) {
    MUST(told(sets[0], to, 0) == 0 && told(sets[1], to, 0) == 0);
    tell("hello");
    MUST(told(sets[i % 2], to, 10000) == EPOLLIN && told(sets[(i + 1) % 2], to, 0) == EPOLLIN);
    take(2);
    MUST(told(sets[0], to, 0) == EPOLLIN && told(sets[1], to, 0) == EPOLLIN);
    take(3);
  }
  tell("hello");
  MUST(add(sets[2], to, EPOLLIN) == 0 && told(sets[2], to, 10000) == EPOLLIN); /* what is there already */
  MUST(change(EPOLL_CTL_DEL, sets[0], to, 0) == 0 && told(sets[0], to, 0) == 0);
  MUST(change(EPOLL_CTL_DEL, sets[0], to, 0) == -1 && errno == ENOENT);
  MUST(told(sets[1], to, 0) == EPOLLIN && told(sets[2], to, 0) == EPOLLIN);
  MUST(add(sets[0], to, EPOLLIN | EPOLLOUT) == 0 && told(sets[0], to, 0) == (EPOLLIN | EPOLLOUT));
  MUST(change(EPOLL_CTL_MOD, sets[1], to, EPOLLOUT) == 0 && told(sets[1], to, 0) == EPOLLOUT);
  take(5);
  MUST(told(sets[0], to, 0) == EPOLLOUT && told(sets[2], to, 0) == 0);
  close(sets[0]);
  MUST(change(EPOLL_CTL_DEL, sets[1], to, 0) == 0); /* alone again */
  tell("hello");
  MUST(told(sets[2], to, 10000) == EPOLLIN && told(sets[1], to, 0) == 0);
}

static void edges(void) {
  MUST(add(sets[0], to, EPOLLIN | EPOLLET) == 0 && add(sets[1], to, EPOLLIN | EPOLLET) == 0);
  MUST(add(sets[2], to, EPOLLIN) == 0);
  for (int i = 0; i < 5; i++) {
    MUST(told(sets[0], to, 0) == 0 && told(sets[1], to, 0) == 0);
    tell("hello");
    MUST(told(sets[0], to, 10000) == EPOLLIN && told(sets[0], to, 0) == 0);
    MUST(told(sets[2], to, 0) == EPOLLIN && told(sets[2], to, 0) == EPOLLIN);
    if (i % 2 == 0) { /* more of it, before the other one has been asked: one edge */
      tell("again");
      MUST(told(sets[0], to, 10000) == EPOLLIN);
      take(5);
    }
    MUST(told(sets[1], to, 10000) == EPOLLIN && told(sets[1], to, 0) == 0);
    take(5);
    MUST(told(sets[2], to, 0) == 0);
    tell("lost");
    take(4); /* read before anybody was told */
  }
}

static void one_shot(void) {
  MUST(add(sets[0], to, EPOLLIN | EPOLLONESHOT) == 0 && add(sets[1], to, EPOLLIN) == 0);
  for (int i = 0; i < 5; i++) {
    tell("hello");
    MUST(told(sets[1], to, 10000) == EPOLLIN);
    MUST(told(sets[0], to, 0) == EPOLLIN && told(sets[0], to, 0) == 0);
    tell("again");
    MUST(told(sets[0], to, 0) == 0 && told(sets[1], to, 0) == EPOLLIN);
    take(5);
    MUST(change(EPOLL_CTL_MOD, sets[0], to, EPOLLIN | EPOLLONESHOT) == 0);
    MUST(told(sets[0], to, 0) == EPOLLIN && told(sets[0], to, 0) == 0);
    take(5);
    MUST(change(EPOLL_CTL_MOD, sets[0], to, EPOLLIN | EPOLLONESHOT) == 0 && told(sets[0], to, 0) == 0);
  }
}

static void many(void) {
  for (int i = 0; i < MOST; i++) {
    MUST(add(sets[i], to, i % 2 ? EPOLLIN : EPOLLIN | EPOLLET) == 0);
  }
  for (int turn = 0; turn < 3; turn++) {
    tell("hello");
    for (int i = 0; i < MOST; i++) {
      MUST(told(sets[i], to, 10000) == EPOLLIN);
    }
    take(5);
    for (int i = 0; i < MOST; i++) {
      MUST(told(sets[i], to, 0) == 0);
    }
  }
}

static void duplicate(void) {
  int copy = dup(to);
  MUST(add(sets[0], to, EPOLLIN) == 0 && add(sets[1], copy, EPOLLIN) == 0);
  for (int i = 0; i < 3; i++) {
    tell("hello");
    MUST(told(sets[1], copy, 10000) == EPOLLIN && told(sets[0], to, 0) == EPOLLIN);
    take(5);
    MUST(told(sets[1], copy, 0) == 0 && told(sets[0], to, 0) == 0);
  }
  close(copy);
  tell("hello"); /* its registration lives on with the open file */
  MUST(told(sets[1], copy, 10000) == EPOLLIN && told(sets[0], to, 0) == EPOLLIN);
}

static void ends(int reset) {
  for (int i = 0; i < 2; i++) {
    MUST(add(sets[i], to, EPOLLIN | EPOLLRDHUP) == 0 && told(sets[i], to, 0) == 0);
  }
  MUST(add(sets[2], to, EPOLLIN | EPOLLRDHUP | EPOLLET) == 0);
  if (reset) {
    reset_by(from);
  } else {
    close(from);
  }
  for (int i = 0; i < 3; i++) {
    MUST((told(sets[i], to, 10000) & (EPOLLIN | EPOLLRDHUP)) == (EPOLLIN | EPOLLRDHUP));
  }
  MUST(told(sets[2], to, 0) == 0);
  close(to); /* gone from all of them */
  for (int i = 0; i < 3; i++) {
    MUST(told(sets[i], to, 0) == 0);
  }
}

/* ---- threads ------------------------------------------------------------------------------------- */

static volatile int tids[WAITERS];
static pthread_barrier_t all;

enum { ROUNDS = 60 };

/* Nothing is read before both have been told. */
static void *sleeps(void *argument) {
  int me = (int)(intptr_t)argument;
  tids[me] = gettid();
  for (int i = 0; i < ROUNDS; i++) {
    MUST(told(sets[me], to, 15000) == EPOLLIN);
    pthread_barrier_wait(&all);
    pthread_barrier_wait(&all); /* it has been read */
  }
  return NULL;
}

static void start(pthread_t *threads, void *(*what)(void *)) {
  for (intptr_t i = 0; i < WAITERS; i++) {
    MUST(pthread_create(&threads[i], NULL, what, (void *)i) == 0);
  }
}

static void finish(pthread_t *threads) {
  for (int i = 0; i < WAITERS; i++) {
    MUST(pthread_join(threads[i], NULL) == 0);
  }
}

static void both_asleep(void) {
  pthread_t threads[WAITERS];
  MUST(pthread_barrier_init(&all, NULL, WAITERS + 1) == 0);
  MUST(add(sets[0], to, EPOLLIN) == 0 && add(sets[1], to, EPOLLIN | EPOLLET) == 0);
  start(threads, sleeps);
  for (int i = 0; i < ROUNDS; i++) {
    wait_until_asleep(&tids[0]);
    wait_until_asleep(&tids[1]);
    tell("x");
    pthread_barrier_wait(&all);
    take(1);
    pthread_barrier_wait(&all);
  }
  finish(threads);
}

/* Each takes what it gets, and the next message comes when that has been taken: whoever is left asleep holds it up. */
static void *takes(void *argument) {
  int me = (int)(intptr_t)argument;
  char text[8];
  for (;;) {
    unsigned events = told(sets[me], to, 15000);
    MUST(events != 0);
    for (ssize_t n; (n = recv(to, text, sizeof text, MSG_DONTWAIT)) > 0;) {
      MUST(send(to, text, (size_t)n, MSG_NOSIGNAL) == n);
    }
    if (events & EPOLLRDHUP) {
      return NULL;
    }
  }
}

static void takers(unsigned events, int count) {
  pthread_t threads[WAITERS];
  char text[8];
  for (int i = 0; i < WAITERS; i++) {
    MUST(add(sets[i], to, events) == 0);
  }
  start(threads, takes);
  for (int i = 0; i < count; i++) {
    struct pollfd p = {from, POLLIN, 0};
    tell("x");
    MUST(poll(&p, 1, 15000) == 1 && read(from, text, 1) == 1);
    if (i % 500 == 0) {
      usleep(3000);
    }
  }
  for (int i = 0; i < WAITERS; i++) { /* EPOLLRDHUP does not go with EPOLLEXCLUSIVE */
    change(EPOLL_CTL_DEL, sets[i], to, 0);
    MUST(add(sets[i], to, EPOLLIN | EPOLLRDHUP) == 0);
  }
  MUST(shutdown(from, SHUT_WR) == 0);
  finish(threads);
}

/* One of them comes and goes while the other one waits. */
static atomic_int over;

static void *comes_and_goes(void *unused) {
  while (!over) {
    MUST(add(sets[2], to, EPOLLIN) == 0);
    told(sets[2], to, 0);
    sched_yield();
    MUST(change(EPOLL_CTL_DEL, sets[2], to, 0) == 0);
  }
  return unused;
}

static void changing(void) {
  pthread_t thread;
  MUST(pthread_create(&thread, NULL, comes_and_goes, NULL) == 0);
  takers(EPOLLIN, 3000);
  over = 1;
  MUST(pthread_join(thread, NULL) == 0);
}

static void *fills(void *argument) {
  int me = (int)(intptr_t)argument;
  tids[me] = gettid();
  MUST(told(sets[me], to, 15000) & EPOLLOUT);
  return NULL;
}

static void space(void) {
  static char block[65536];
  pthread_t threads[WAITERS];
  while (send(to, block, sizeof block, MSG_DONTWAIT) > 0) {
  }
  for (int i = 0; i < WAITERS; i++) {
    MUST(add(sets[i], to, EPOLLOUT) == 0 && told(sets[i], to, 0) == 0);
  }
  start(threads, fills);
  wait_until_asleep(&tids[0]);
  wait_until_asleep(&tids[1]);
  while (recv(from, block, sizeof block, MSG_DONTWAIT) > 0) {
  }
  finish(threads);
}

/* A child has a set of its own for what its parent waits for, too. */
static void child(void) {
  MUST(add(sets[0], to, EPOLLIN) == 0 && add(sets[1], to, EPOLLIN) == 0);
  tell("x");
  MUST(told(sets[0], to, 10000) == EPOLLIN && told(sets[1], to, 10000) == EPOLLIN);
  take(1);
  pid_t pid = fork();
  MUST(pid >= 0);
  if (pid == 0) {
    int own = epoll_create1(0);
    MUST(add(own, to, EPOLLIN) == 0);
    MUST(told(own, to, 10000) == EPOLLIN);
    take(1);
    tell("y");
    _exit(0);
  }
  tell("x");
  int status;
  MUST(waitpid(pid, &status, 0) == pid && status == 0);
  MUST(told(sets[0], to, 10000) == EPOLLIN && told(sets[1], to, 10000) == EPOLLIN);
  take(1);
}

/* The parent's sets, which nobody but the child waits for from now on. */
static void second_life(void) {
  MUST(add(sets[0], to, EPOLLIN) == 0 && add(sets[1], to, EPOLLIN) == 0);
  pid_t pid = fork();
  MUST(pid >= 0);
  if (pid != 0) {
    int status;
    MUST(waitpid(pid, &status, 0) == pid && status == 0);
    return;
  }
  for (int i = 0; i < 3; i++) {
    tell("hello");
    MUST(told(sets[i % 2], to, 10000) == EPOLLIN && told(sets[(i + 1) % 2], to, 10000) == EPOLLIN);
    take(5);
    MUST(told(sets[0], to, 0) == 0 && told(sets[1], to, 0) == 0);
  }
  close(from);
  close(to);
  exit(0);
}

int main(int argc, char **argv) {
  MUST(argc == 2);
  const char *scene = argv[1];
  pair_make(&from, &to);
  for (int i = 0; i < MOST; i++) {
    sets[i] = epoll_create1(EPOLL_CLOEXEC);
  }
  if (strcmp(scene, "levels") == 0) {
    levels();
  } else if (strcmp(scene, "edges") == 0) {
    edges();
  } else if (strcmp(scene, "one-shot") == 0) {
    one_shot();
  } else if (strcmp(scene, "many") == 0) {
    many();
  } else if (strcmp(scene, "duplicate") == 0) {
    duplicate();
  } else if (strcmp(scene, "end") == 0) {
    ends(0);
  } else if (strcmp(scene, "reset") == 0) {
    ends(1);
  } else if (strcmp(scene, "both-asleep") == 0) {
    both_asleep();
  } else if (strcmp(scene, "takers") == 0) {
    takers(EPOLLIN, 10000);
  } else if (strcmp(scene, "takers-by-edges") == 0) {
    takers(EPOLLIN | EPOLLET, 10000);
  } else if (strcmp(scene, "takers-exclusive") == 0) {
    takers(EPOLLIN | EPOLLEXCLUSIVE, 10000);
  } else if (strcmp(scene, "changing") == 0) {
    changing();
  } else if (strcmp(scene, "space") == 0) {
    space();
  } else if (strcmp(scene, "child") == 0) {
    child();
  } else {
    second_life();
  }
  printf("ok\n");
  return 0;
}
