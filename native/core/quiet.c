/* Sleeps in which a thread may be cancelled.  Functions of their own, with little else in them: a handler that is pushed
 * here costs a setjmp, and forbids the compiler to keep what the caller has in registers. */
#include "quiet.h"

#include <stdatomic.h>
#include <stdbool.h>

int sleep_ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask,
                void (*undo)(void *), void *arg) {
  int n;
  pthread_cleanup_push(undo, arg);
  n = REAL(ppoll)(fds, count, timeout, mask);
  pthread_cleanup_pop(0);
  return n;
}

static int epoll_ns(int epfd, struct epoll_event *events, int max, int64_t ns, const sigset_t *mask) {
  struct timespec timeout = {ns / 1000000000, ns % 1000000000};
  static _Atomic bool no_pwait2;
  if (bertha_real()->epoll_pwait2 != NULL && !atomic_load(&no_pwait2)) {
    int n = REAL(epoll_pwait2)(epfd, events, max, ns >= 0 ? &timeout : NULL, mask);
    if (n >= 0 || errno != ENOSYS) {
      return n;
    }
    atomic_store(&no_pwait2, true);
  }
  int64_t ms = ns < 0 ? -1 : (ns + 999999) / 1000000;
  return REAL(epoll_pwait)(epfd, events, max, ms > 0x7fffffff ? 0x7fffffff : (int)ms, mask);
}

int sleep_epoll(int epfd, struct epoll_event *events, int max, int64_t ns, const sigset_t *mask,
                void (*undo)(void *), void *arg) {
  int n;
  pthread_cleanup_push(undo, arg);
  n = epoll_ns(epfd, events, max, ns, mask);
  pthread_cleanup_pop(0);
  return n;
}

ssize_t sleep_recvmsg(int fd, struct msghdr *msg, int flags, void (*undo)(void *), void *arg) {
  ssize_t n;
  pthread_cleanup_push(undo, arg);
  n = REAL(recvmsg)(fd, msg, flags);
  pthread_cleanup_pop(0);
  return n;
}
