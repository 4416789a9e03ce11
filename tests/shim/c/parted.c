/* parted SCENE: a member that is taken out of an epoll set, and put in again, here or elsewhere; each time a thread that sleeps
 * there has to be woken by what comes (core/eset_parted.c). */
#include "pair.h"

#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { WAKE_MS = 10000 };

struct sleep {
  int set, told;
  volatile int tid;
  pthread_t thread;
};

static void add(int set, int fd, unsigned events) {
  struct epoll_event e = {.events = EPOLLIN | events, .data.fd = fd};
  MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &e) == 0);
}

static void take_out(int set, int fd) {
  MUST(epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL) == 0);
}

static int told(int set, int ms) {
  struct epoll_event e;
  int n = epoll_wait(set, &e, 1, ms);
  MUST(n >= 0);
  return n == 1 ? e.data.fd : -1;
}

static void *sleeps(void *p) {
  struct sleep *s = p;
  s->tid = (int)syscall(SYS_gettid);
  s->told = told(s->set, WAKE_MS);
  return NULL;
}

static void fall_asleep(struct sleep *s, int set) {
  *s = (struct sleep){.set = set};
  MUST(pthread_create(&s->thread, NULL, sleeps, s) == 0);
  wait_until_asleep(&s->tid);
}

static void wakes(struct sleep *s, int fd) {
  MUST(pthread_join(s->thread, NULL) == 0);
  MUST(s->told == fd);
}

static void drain(int fd) {
  char text[16];
  MUST(read(fd, text, sizeof text) == 5);
}

/* What is written to `from` wakes a thread that sleeps in the set, which is told of `to`. */
static void is_heard(int set, int from, int to) {
  struct sleep s;
  fall_asleep(&s, set);
  MUST(write(from, "hello", 5) == 5);
  wakes(&s, to);
  drain(to);
}

/* Taken out, and in again before anybody has slept. */
static void in_again(int set, int from, int to) {
  for (int i = 0; i < 20; i++) {
    take_out(set, to);
    MUST(told(set, 0) == -1);
    add(set, to, 0);
    if (i % 5 == 0) {
      is_heard(set, from, to);
    }
  }
  take_out(set, to);
  MUST(write(from, "hello", 5) == 5 && told(set, 0) == -1);
  add(set, to, 0);
  MUST(told(set, 0) == to);
  drain(to);
  static const unsigned other[] = {EPOLLEXCLUSIVE, EPOLLONESHOT, EPOLLET, 0};
  for (unsigned i = 0; i < sizeof other / sizeof *other; i++) {
    take_out(set, to);
    add(set, to, other[i]);
    is_heard(set, from, to);
  }
}

/* How often that thread has gone to sleep. */
static long sleeps_of(int tid) {
  static const char what[] = "voluntary_ctxt_switches:";
  char path[64], line[256];
  long count = -1;
  snprintf(path, sizeof path, "/proc/self/task/%d/status", tid);
  FILE *f = fopen(path, "r");
  while (f != NULL && count < 0 && fgets(line, sizeof line, f) != NULL) {
    count = strncmp(line, what, sizeof what - 1) == 0 ? atol(line + sizeof what - 1) : -1;
  }
  MUST(count >= 0 && fclose(f) == 0);
  return count;
}

/* Who sleeps is not woken for what is out of the set; once it is in again, it is told of. */
static void out_while_asleep(int set, int from, int to) {
  int other_from, other_to;
  struct sleep s;
  pair_make(&other_from, &other_to);
  add(set, other_to, 0);
  for (int i = 0; i < 20; i++) { /* until it has a bell, which wakes each time */
    is_heard(set, from, to);
  }
  take_out(set, to);
  fall_asleep(&s, set);
  long before = sleeps_of(s.tid);
  for (int i = 0; i < 20; i++) {
    MUST(write(from, "hello", 5) == 5);
    drain(to);
    moment(5);
  }
  MUST(sleeps_of(s.tid) - before <= 5);
  MUST(write(from, "hello", 5) == 5);
  add(set, to, 0);
  wakes(&s, to);
  drain(to);
  is_heard(set, other_from, other_to);
}

static void in_another_set(int set, int from, int to) {
  int other = epoll_create1(EPOLL_CLOEXEC);
  struct sleep here, there;
  for (int i = 0; i < 5; i++) {
    take_out(set, to);
    add(other, to, 0);
    is_heard(other, from, to);
    add(set, to, 0);
    fall_asleep(&here, set);
    fall_asleep(&there, other);
    MUST(write(from, "hello", 5) == 5);
    wakes(&here, to);
    wakes(&there, to);
    drain(to);
    take_out(other, to);
    is_heard(set, from, to);
  }
  close(other);
}

static void by_a_copy(int set, int from, int to) {
  take_out(set, to);
  int copy = dup(to);
  add(set, copy, 0);
  is_heard(set, from, copy);
  take_out(set, copy);
  add(set, to, 0);
  is_heard(set, from, to);
  add(set, copy, 0);
  MUST(close(to) == 0 && write(from, "hello", 5) == 5 && told(set, WAKE_MS) >= 0);
  drain(copy);
}

/* The slot and the number are another connection's afterwards. */
static void closed(int set, int from, int to) {
  for (int i = 0; i < 5; i++) {
    take_out(set, to);
    MUST(close(from) == 0 && close(to) == 0);
    pair_make(&from, &to);
    add(set, to, 0);
    is_heard(set, from, to);
  }
  take_out(set, to);
  MUST(close(set) == 0);
  set = epoll_create1(EPOLL_CLOEXEC);
  add(set, to, 0);
  is_heard(set, from, to);
}

/* A child waits for it in a set of its own, then the parent in the old one. */
static void by_a_child(int set, int from, int to) {
  for (int i = 0; i < 3; i++) {
    int up[2];
    char byte;
    take_out(set, to);
    MUST(pipe(up) == 0);
    pid_t child = fork();
    if (child == 0) {
      int own = epoll_create1(EPOLL_CLOEXEC);
      add(own, to, 0);
      MUST(write(up[1], "x", 1) == 1 && told(own, WAKE_MS) == to);
      drain(to);
      _exit(0);
    }
    int status;
    MUST(read(up[0], &byte, 1) == 1);
    moment(50);
    MUST(write(from, "hello", 5) == 5 && waitpid(child, &status, 0) == child && status == 0);
    close(up[0]);
    close(up[1]);
    add(set, to, 0);
    is_heard(set, from, to);
  }
}

static const struct {
  const char *name;
  void (*run)(int set, int from, int to);
} scenes[] = {{"again", in_again}, {"asleep", out_while_asleep}, {"another", in_another_set},
              {"copy", by_a_copy}, {"closed", closed},           {"child", by_a_child}};

int main(int argc, char **argv) {
  int from, to;
  pair_make(&from, &to);
  int set = epoll_create1(EPOLL_CLOEXEC);
  add(set, to, 0);
  is_heard(set, from, to);
  for (unsigned i = 0; argc > 1 && i < sizeof scenes / sizeof *scenes; i++) {
    if (strcmp(scenes[i].name, argv[1]) == 0) {
      scenes[i].run(set, from, to);
      puts("ok");
      return 0;
    }
  }
  return 2;
}
