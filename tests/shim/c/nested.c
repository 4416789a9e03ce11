/* nested SCENE: an epoll set that is waited for by another set, or by poll; it may get its members before or after that. */
#include "pair.h"

#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>

static int outer, inner, from, to;

static int add(int set, int fd) {
  struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
  return epoll_ctl(set, EPOLL_CTL_ADD, fd, &e);
}

static int waits(int set, int fd, int ms) {
  struct epoll_event e;
  int n = epoll_wait(set, &e, 1, ms);
  MUST(n <= 0 || e.data.fd == fd);
  return n;
}

static void tell(const char *text) {
  MUST(write(from, text, strlen(text)) == (ssize_t)strlen(text));
}

/* One message after the other: each is told of, and nothing once it is read. */
static void talk(void) {
  char text[16];
  for (int i = 0; i < 5; i++) {
    MUST(waits(inner, to, 0) == 0 && waits(outer, inner, 0) == 0);
    tell("hello");
    MUST(waits(outer, inner, 10000) == 1);
    MUST(waits(inner, to, 0) == 1);
    MUST(waits(outer, inner, 0) == 1);
    MUST(read(to, text, sizeof text) == 5);
  }
}

static void told_of_what_is_there(void) {
  char text[16];
  MUST(waits(outer, inner, 10000) == 1 && waits(inner, to, 0) == 1);
  struct pollfd p = {inner, POLLIN, 0};
  MUST(poll(&p, 1, 0) == 1 && p.revents == POLLIN);
  MUST(read(to, text, 2) == 2);
  MUST(waits(outer, inner, 10000) == 1 && waits(inner, to, 0) == 1);
  MUST(read(to, text, sizeof text) == 3);
}

static volatile int tid;

static void *polls(void *unused) {
  struct pollfd p = {inner, POLLIN, 0};
  tid = gettid();
  MUST(poll(&p, 1, 15000) == 1);
  return unused;
}

static void a_thread_polls(void) {
  pthread_t thread;
  MUST(pthread_create(&thread, NULL, polls, NULL) == 0);
  wait_until_asleep(&tid);
  MUST(add(inner, to) == 0);
  tell("hello");
  MUST(pthread_join(thread, NULL) == 0);
}

int main(int argc, char **argv) {
  MUST(argc == 2);
  const char *scene = argv[1];
  pair_make(&from, &to);
  outer = epoll_create1(EPOLL_CLOEXEC);
  inner = epoll_create(1);
  if (strcmp(scene, "thread") == 0) {
    a_thread_polls();
  } else if (strcmp(scene, "members-first") == 0) {
    MUST(add(inner, to) == 0 && waits(inner, to, 0) == 0 && add(outer, inner) == 0);
    talk();
  } else if (strcmp(scene, "set-first") == 0) {
    MUST(add(outer, inner) == 0 && add(inner, to) == 0);
    talk();
  } else if (strcmp(scene, "duplicate") == 0) {
    int copy = dup(inner);
    MUST(add(outer, copy) == 0 && add(inner, to) == 0);
    tell("hello");
    MUST(waits(outer, copy, 10000) == 1 && waits(inner, to, 0) == 1);
  } else if (strcmp(scene, "data-first") == 0) { /* before the member came */
    MUST(add(outer, inner) == 0);
    tell("hello");
    MUST(add(inner, to) == 0);
    told_of_what_is_there();
    talk();
  } else if (strcmp(scene, "data-before-watch") == 0) {
    MUST(add(inner, to) == 0);
    tell("hello");
    MUST(add(outer, inner) == 0);
    told_of_what_is_there();
    talk();
  } else if (strcmp(scene, "left-and-back") == 0) {
    MUST(add(outer, inner) == 0 && add(inner, to) == 0);
    talk();
    MUST(epoll_ctl(inner, EPOLL_CTL_DEL, to, NULL) == 0);
    tell("hello");
    MUST(waits(outer, inner, 0) == 0 && add(inner, to) == 0);
    told_of_what_is_there();
    talk();
  } else { /* in both sets */
    MUST(add(inner, to) == 0);
    tell("hello");
    MUST(add(outer, to) == 0);
    MUST(waits(outer, to, 10000) == 1 && waits(inner, to, 10000) == 1);
  }
  printf("ok\n");
  return 0;
}
