/* churn ROUNDS: connections that are in sets of several threads, which come and go, while each message has to be answered.
 *
 * Each connection is for good in the set of one of two threads, who answer by levels or by edges, one of them by way of an
 * outer set.  Two more threads add it to sets of theirs, change it and take it out again, in every way, and answer what they
 * are told of. */
#include "pair.h"

#include <stdatomic.h>
#include <sys/epoll.h>

enum { CONNECTIONS = 8, THREADS = 4, NESTED = 1, FIRST_GUEST = 2, CLOSES = 3, EVENTS = 8 };

static int from[CONNECTIONS], to[CONNECTIONS], sets[THREADS], outer;
static atomic_int over;
static __thread unsigned seed;

static unsigned any(unsigned below) {
  return (unsigned)rand_r(&seed) % below;
}

static int change(int op, int set, int fd, unsigned events) {
  struct epoll_event e = {.events = events, .data.fd = fd};
  return epoll_ctl(set, op, fd, &e);
}

static void answer(int fd) {
  char text[64];
  ssize_t n;
  while ((n = recv(fd, text, sizeof text, MSG_DONTWAIT)) > 0) {
    MUST(send(fd, text, (size_t)n, MSG_NOSIGNAL) == n);
  }
}

/* Some of it fails, as on Linux: what is there already, what is not there any more. */
static void be_a_guest(int me) {
  static const unsigned how[] = {EPOLLIN, EPOLLIN | EPOLLET, EPOLLIN | EPOLLONESHOT, EPOLLIN | EPOLLEXCLUSIVE,
                                 EPOLLIN | EPOLLOUT | EPOLLET};
  static const int ops[] = {EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD};
  for (int i = 0; i < 3; i++) {
    change(ops[any(3)], sets[me], to[any(CONNECTIONS)], how[any(5)]);
  }
  if (me == CLOSES && any(50) == 0) {
    close(sets[me]);
    sets[me] = epoll_create1(EPOLL_CLOEXEC);
  } else if (me != CLOSES && any(20) == 0) {
    change(any(2) ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, outer, sets[me], EPOLLIN);
  }
}

static void *work(void *argument) {
  int me = (int)(intptr_t)argument;
  struct epoll_event e[EVENTS];
  seed = (unsigned)me + 7;
  while (!over) {
    int ms = me >= FIRST_GUEST ? (int)any(3) : me == NESTED ? 0 : 20000;
    MUST(me != NESTED || epoll_wait(outer, e, EVENTS, 20000) > 0);
    int n = epoll_wait(sets[me], e, EVENTS, ms);
    MUST(n > 0 || (n == 0 && me != 0));
    for (int i = 0; i < n; i++) {
      answer(e[i].data.fd);
      if (me >= FIRST_GUEST) {
        change(EPOLL_CTL_MOD, sets[me], e[i].data.fd, EPOLLIN | EPOLLONESHOT);
      }
    }
    if (me >= FIRST_GUEST) {
      be_a_guest(me);
    }
  }
  return NULL;
}

static void ask(int rounds) {
  char byte = 'x';
  seed = 1;
  for (int round = 0; round < rounds; round++) {
    unsigned first = any(CONNECTIONS), count = 1 + any(3);
    for (unsigned i = 0; i < count; i++) {
      MUST(write(from[(first + i) % CONNECTIONS], &byte, 1) == 1);
    }
    for (unsigned i = 0; i < count; i++) {
      struct pollfd p = {from[(first + i) % CONNECTIONS], POLLIN, 0};
      MUST(poll(&p, 1, 10000) == 1 && read(p.fd, &byte, 1) == 1);
    }
    if (round % 100 == 0) {
      usleep(2000); /* so that they go to sleep */
    }
  }
}

int main(int argc, char **argv) {
  pthread_t threads[THREADS];
  MUST(argc == 2);
  outer = epoll_create1(EPOLL_CLOEXEC);
  for (int i = 0; i < THREADS; i++) {
    sets[i] = epoll_create1(EPOLL_CLOEXEC);
  }
  MUST(change(EPOLL_CTL_ADD, outer, sets[NESTED], EPOLLIN) == 0);
  for (int i = 0; i < CONNECTIONS; i++) {
    pair_make(&from[i], &to[i]);
    MUST(change(EPOLL_CTL_ADD, sets[i % FIRST_GUEST], to[i], i & 2 ? EPOLLIN : EPOLLIN | EPOLLET) == 0);
  }
  for (intptr_t i = 0; i < THREADS; i++) {
    MUST(pthread_create(&threads[i], NULL, work, (void *)i) == 0);
  }
  ask(atoi(argv[1]));
  over = 1;
  for (int i = 0; i < CONNECTIONS; i++) { /* so that all wake up: a byte could be read by guests alone */
    MUST(shutdown(from[i], SHUT_WR) == 0);
  }
  for (int i = 0; i < THREADS; i++) {
    MUST(pthread_join(threads[i], NULL) == 0);
  }
  printf("ok\n");
  return 0;
}
