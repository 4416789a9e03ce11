/* kin SCENE [EVENTS [own]]: an epoll set that a process and its forked child both wait in, at the same time or one after the
 * other.  own: the child closes it and waits in one of its own. */
#include "one_event.h"
#include "pair.h"

#include <stdbool.h>
#include <sys/wait.h>

enum { ROUNDS = 20, THREADS = 2 };
static const double soon = 2;

static int from, to, set, outer = -1;
static int tokens[2], answers[2];
static unsigned events = EPOLLIN;
static bool own;
static volatile int waiter; /* who has to be asleep first */

/* What the set tells of `to`, by way of the outer one if there is one.  That one may be woken by the other process's bell, once. */
static unsigned seen(int ms) {
  unsigned events_seen = 0;
  for (int i = 0; outer >= 0 && events_seen == 0 && told(outer, set, ms) != 0; i++) {
    MUST(i < 3);
    events_seen = told(set, to, 0);
  }
  return outer >= 0 ? events_seen : told(set, to, ms);
}

static void tell(const char *text) {
  MUST(write(from, text, strlen(text)) == (ssize_t)strlen(text));
}

static void put(int *pipes) {
  MUST(write(pipes[1], "t", 1) == 1);
}

static void get(int *pipes) {
  char c;
  MUST(read(pipes[0], &c, 1) == 1);
}

static void *tells(void *unused) {
  wait_until_asleep(&waiter);
  tell("x");
  return unused;
}

static void *drains(void *unused) {
  static char block[65536];
  wait_until_asleep(&waiter);
  while (recv(from, block, sizeof block, MSG_DONTWAIT) > 0) {
  }
  return unused;
}

static void again(void) {
  if (events & EPOLLONESHOT) {
    MUST(change(EPOLL_CTL_MOD, set, to, events) == 0);
  }
}

/* Something comes while this thread sleeps in the set. */
static void asleep(void *(*what)(void *), unsigned expected) {
  pthread_t thread;
  char c;
  waiter = gettid();
  double begin = seconds();
  MUST(pthread_create(&thread, NULL, what, NULL) == 0);
  MUST(seen(20000) & expected);
  MUST(seconds() - begin < soon);
  MUST(pthread_join(thread, NULL) == 0);
  if (expected == EPOLLIN) {
    MUST(read(to, &c, 1) == 1);
  }
  again();
}

static void rounds(int count) {
  for (int i = 0; i < count; i++) {
    asleep(tells, EPOLLIN);
  }
}

static void at_once(void) {
  char c;
  tell("x");
  MUST(seen(20000) & EPOLLIN);
  MUST(read(to, &c, 1) == 1);
  again();
}

static void ends(int number) {
  _exit(number - SIGTERM);
}

static pid_t child_that(void (*what)(void)) {
  pid_t pid = fork();
  MUST(pid >= 0);
  if (pid == 0) {
    signal(SIGTERM, ends);
    if (own) {
      close(set);
      set = epoll_create1(EPOLL_CLOEXEC);
      MUST(add(set, to, events) == 0);
    }
    what();
    _exit(0);
  }
  return pid;
}

static void ended(pid_t pid) {
  int status;
  MUST(waitpid(pid, &status, 0) == pid && (status == 0 || status == SIGKILL));
}

static void stopped(pid_t pid, int by) {
  MUST(kill(pid, by) == 0);
  ended(pid);
}

static void uses(void) {
  for (int i = 0; i < 3; i++) {
    at_once();
  }
}

static void uses_and_stays(void) {
  uses();
  put(tokens);
  pause();
}

static void sleeps_in_it(void) {
  uses();
  put(tokens);
  seen(-1);
}

static void gone(void) {
  rounds(3);
  ended(child_that(uses));
  rounds(5);
  ended(child_that(uses));
  rounds(5);
}

static void stays(void) {
  pid_t child = child_that(uses_and_stays);
  get(tokens);
  rounds(10);
  stopped(child, SIGTERM);
  rounds(5);
}

static void ends_asleep(int by) {
  for (int i = 0; i < 3; i++) {
    pid_t child = child_that(sleeps_in_it);
    get(tokens);
    moment(30);
    stopped(child, by);
    rounds(5);
  }
}

static void stopped_asleep(void) {
  ends_asleep(SIGTERM);
}

static void killed_asleep(void) {
  ends_asleep(SIGKILL);
}

static void space(void) {
  static char block[65536];
  events = EPOLLIN | EPOLLOUT | (events & EPOLLET);
  MUST(change(EPOLL_CTL_MOD, set, to, events) == 0);
  ended(child_that(uses));
  while (send(to, block, sizeof block, MSG_DONTWAIT) > 0) {
  }
  while (seen(0) & EPOLLOUT) {
  }
  asleep(drains, EPOLLOUT);
}

/* ---- the parent is asleep when the child comes --------------------------------------------------- */

static volatile int asleep_now[THREADS];

static void waits_for_the_parent(void) {
  get(tokens);
  MUST(seen(0) == 0); /* and takes with it whatever the kernel had for the parent */
}

static pid_t visitor;

static void *lets_it_look(void *unused) {
  wait_until_asleep(&waiter);
  put(tokens);
  ended(visitor);
  moment(20);
  tell("x");
  return unused;
}

static void parent_asleep(void) {
  for (int i = 0; i < ROUNDS; i++) {
    visitor = child_that(waits_for_the_parent);
    asleep(lets_it_look, EPOLLIN);
    rounds(2);
  }
}

static void *sleeps(void *argument) {
  asleep_now[(intptr_t)argument] = gettid();
  double begin = seconds();
  MUST(seen(20000) & EPOLLIN);
  MUST(seconds() - begin < soon);
  return NULL;
}

static void threads_asleep(void) {
  pthread_t threads[THREADS];
  char c;
  for (int i = 0; i < ROUNDS; i++) {
    visitor = child_that(waits_for_the_parent);
    for (intptr_t k = 0; k < THREADS; k++) {
      asleep_now[k] = 0;
      MUST(pthread_create(&threads[k], NULL, sleeps, (void *)k) == 0);
    }
    for (int k = 0; k < THREADS; k++) {
      wait_until_asleep(&asleep_now[k]);
    }
    put(tokens);
    ended(visitor);
    moment(20);
    tell("x");
    for (int k = 0; k < THREADS; k++) {
      MUST(pthread_join(threads[k], NULL) == 0);
    }
    MUST(read(to, &c, 1) == 1);
  }
}

/* ---- both wait ----------------------------------------------------------------------------------- */

static void is_told_too(void) {
  for (int i = 0; i < ROUNDS; i++) {
    MUST(seen(20000) & EPOLLIN);
    put(answers);
    get(tokens); /* it has been read */
  }
}

static void both(void) {
  pid_t child = child_that(is_told_too);
  pthread_t thread;
  char c;
  waiter = gettid();
  for (int i = 0; i < ROUNDS; i++) {
    double begin = seconds();
    MUST(pthread_create(&thread, NULL, tells, NULL) == 0);
    MUST(seen(20000) & EPOLLIN);
    get(answers);
    MUST(seconds() - begin < soon);
    MUST(pthread_join(thread, NULL) == 0);
    MUST(read(to, &c, 1) == 1);
    put(tokens);
  }
  ended(child);
  rounds(3);
}

static void takes_its_turn(void) {
  for (int i = 0; i < ROUNDS; i++) {
    get(tokens);
    rounds(1);
    put(answers);
  }
}

static void comes_second(void) {
  MUST(change(EPOLL_CTL_DEL, set, to, 0) == 0);
  for (int i = 0; i < 3; i++) {
    pid_t child = child_that(takes_its_turn);
    put(tokens);
    get(answers);
    MUST(add(set, to, events) == 0);
    rounds(1);
    for (int k = 1; k < ROUNDS; k++) {
      put(tokens);
      get(answers);
      rounds(1);
    }
    ended(child);
    rounds(3);
    MUST(change(EPOLL_CTL_DEL, set, to, 0) == 0);
  }
}

static void in_turn(void) {
  pid_t child = child_that(takes_its_turn);
  for (int i = 0; i < ROUNDS; i++) {
    rounds(1);
    put(tokens);
    get(answers);
  }
  ended(child);
  rounds(3);
}

/* Whoever is told takes it, and the next one comes when it has been answered. */
static void takes(void) {
  char text[8];
  for (;;) {
    MUST(seen(20000) != 0);
    ssize_t n;
    while ((n = recv(to, text, sizeof text, MSG_DONTWAIT)) > 0) {
      MUST(send(to, text, (size_t)n, MSG_NOSIGNAL) == n);
    }
    again();
    if (n == 0) {
      return;
    }
  }
}

static void *in_thread(void *unused) {
  takes();
  return unused;
}

static void takers(void) {
  pid_t child = child_that(takes);
  bool one_shot = events & EPOLLONESHOT;
  pthread_t thread;
  char c;
  MUST(pthread_create(&thread, NULL, in_thread, NULL) == 0);
  for (int i = 0; i < 3000; i++) {
    struct pollfd p = {from, POLLIN, 0};
    if (i == 2000 && !one_shot) { /* or it may end between the shot and the next epoll_ctl */
      stopped(child, SIGTERM);
    }
    double begin = seconds();
    tell("x");
    MUST(poll(&p, 1, 20000) == 1 && read(from, &c, 1) == 1);
    MUST(seconds() - begin < soon);
    if (i % 100 == 0) {
      usleep(8000);
    }
  }
  MUST(shutdown(from, SHUT_WR) == 0);
  MUST(pthread_join(thread, NULL) == 0);
  if (one_shot) {
    ended(child);
  }
}

int main(int argc, char **argv) {
  MUST(argc >= 2 && argc <= 4);
  const char *scene = argv[1], *how = argc >= 3 ? argv[2] : "level";
  own = argc == 4 && strcmp(argv[3], "own") == 0;
  events |= strcmp(how, "edge") == 0 ? EPOLLET : strcmp(how, "one-shot") == 0 ? EPOLLONESHOT : 0;
  pair_make(&from, &to);
  set = epoll_create1(EPOLL_CLOEXEC);
  MUST(pipe(tokens) == 0 && pipe(answers) == 0);
  MUST(add(set, to, events) == 0);
  if (strcmp(how, "within") == 0) {
    outer = epoll_create1(EPOLL_CLOEXEC);
    MUST(add(outer, set, EPOLLIN) == 0);
  }
  at_once();
  static const struct {
    const char *name;
    void (*what)(void);
  } scenes[] = {{"gone", gone},
                {"stays", stays},
                {"stopped-asleep", stopped_asleep},
                {"killed-asleep", killed_asleep},
                {"space", space},
                {"parent-asleep", parent_asleep},
                {"threads-asleep", threads_asleep},
                {"both", both},
                {"in-turn", in_turn},
                {"comes-second", comes_second},
                {"takers", takers}};
  for (size_t i = 0; i < sizeof scenes / sizeof *scenes; i++) {
    if (strcmp(scene, scenes[i].name) == 0) {
      scenes[i].what();
      printf("ok\n");
      return 0;
    }
  }
  return 2;
}
