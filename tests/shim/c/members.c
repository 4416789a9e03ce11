/* members: what becomes of an epoll set's member that is closed while a duplicate of it lives, and EPOLLEXCLUSIVE. */
#include "pair.h"

#include <sys/epoll.h>

static int add(int set, int fd, unsigned events) {
  struct epoll_event e = {.events = events, .data.fd = fd};
  return epoll_ctl(set, EPOLL_CTL_ADD, fd, &e);
}

static int modify(int set, int fd, unsigned events) {
  struct epoll_event e = {.events = events, .data.fd = fd};
  return epoll_ctl(set, EPOLL_CTL_MOD, fd, &e);
}

static int told(int set, int fd, int ms) {
  struct epoll_event e[4];
  int n = epoll_wait(set, e, 4, ms);
  for (int i = 0; i < n; i++) {
    MUST(fd == 0 || e[i].data.fd == fd);
  }
  return n;
}

/* epoll(7), question 6: the registration is the open file's, and stays until its last descriptor is closed. */
static void closed_one(void) {
  int from, to;
  char text[16];
  pair_make(&from, &to);
  int set = epoll_create1(EPOLL_CLOEXEC);
  MUST(add(set, to, EPOLLIN) == 0 && told(set, 0, 0) == 0);
  int copy = dup(to);
  MUST(close(to) == 0 && told(set, 0, 0) == 0);
  for (int i = 0; i < 3; i++) {
    MUST(write(from, "hello", 5) == 5 && told(set, to, 10000) == 1);
    MUST(read(copy, text, sizeof text) == 5 && told(set, 0, 0) == 0);
  }
  MUST(epoll_ctl(set, EPOLL_CTL_DEL, to, NULL) == -1 && errno == EBADF);
  MUST(add(set, copy, EPOLLIN) == 0);
  MUST(write(from, "hello", 5) == 5);
  for (int n = 0; n < 2;) { /* both are told of, perhaps not in one call */
    n = told(set, 0, 10000);
    MUST(n > 0);
  }
  MUST(read(copy, text, sizeof text) == 5 && told(set, 0, 0) == 0);
  MUST(write(from, "hello", 5) == 5 && close(copy) == 0 && told(set, 0, 0) == 0);
  close(from);
  close(set);
}

static void exclusive(void) {
  int from, to;
  char text[16];
  pair_make(&from, &to);
  int set = epoll_create1(EPOLL_CLOEXEC);
  int other = epoll_create1(EPOLL_CLOEXEC);
  static const unsigned with[] = {EPOLLONESHOT, EPOLLRDHUP, EPOLLPRI};
  for (unsigned i = 0; i < sizeof with / sizeof *with; i++) {
    MUST(add(set, to, EPOLLIN | EPOLLEXCLUSIVE | with[i]) == -1 && errno == EINVAL);
  }
  MUST(add(set, other, EPOLLIN | EPOLLEXCLUSIVE) == -1 && errno == EINVAL);
  MUST(add(set, to, EPOLLIN) == 0);
  MUST(modify(set, to, EPOLLIN | EPOLLEXCLUSIVE) == -1 && errno == EINVAL);
  MUST(modify(set, to, EPOLLIN | EPOLLET) == 0);
  MUST(epoll_ctl(set, EPOLL_CTL_DEL, to, NULL) == 0);
  MUST(add(set, to, EPOLLIN | EPOLLEXCLUSIVE) == 0);
  MUST(add(set, to, EPOLLIN | EPOLLEXCLUSIVE) == -1 && errno == EEXIST);
  MUST(modify(set, to, EPOLLIN) == -1 && errno == EINVAL);
  MUST(write(from, "hello", 5) == 5 && told(set, to, 10000) == 1);
  MUST(add(other, to, EPOLLIN | EPOLLEXCLUSIVE) ==
       0); /* in two sets: the kernel serves it, with what it was added with */
  MUST(told(other, to, 10000) == 1 && told(set, to, 10000) == 1);
  MUST(read(to, text, sizeof text) == 5);
  MUST(told(other, 0, 0) == 0 && told(set, 0, 0) == 0);
  MUST(write(from, "hello", 5) == 5 && told(set, to, 10000) == 1);
  MUST(epoll_ctl(set, EPOLL_CTL_DEL, to, NULL) == 0 && epoll_ctl(other, EPOLL_CTL_DEL, to, NULL) == 0);
  MUST(epoll_ctl(set, EPOLL_CTL_DEL, to, NULL) == -1 && errno == ENOENT);
  MUST(modify(set, to, EPOLLIN | EPOLLEXCLUSIVE) == -1 && errno == EINVAL);
}

int main(int argc, char **argv) {
  MUST(argc == 2);
  if (strcmp(argv[1], "closed") == 0) {
    closed_one();
  } else {
    exclusive();
  }
  printf("ok\n");
  return 0;
}
