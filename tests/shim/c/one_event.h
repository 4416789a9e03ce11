/* epoll_ctl() and epoll_wait() for one descriptor at a time. */
#ifndef BERTHA_TEST_ONE_EVENT_H
#define BERTHA_TEST_ONE_EVENT_H

#include <sys/epoll.h>

#include "common.h"

static inline int change(int op, int set, int fd, unsigned events) {
  struct epoll_event e = {.events = events, .data.fd = fd};
  return epoll_ctl(set, op, fd, &e);
}

static inline int add(int set, int fd, unsigned events) {
  return change(EPOLL_CTL_ADD, set, fd, events);
}

/* The events that the set tells of `fd`; 0: none. */
static inline unsigned told(int set, int fd, int ms) {
  struct epoll_event e = {0};
  int n = epoll_wait(set, &e, 1, ms);
  MUST(n >= 0 && (n == 0 || e.data.fd == fd));
  return n == 1 ? e.events : 0;
}

#endif
