/* Cancellation (pthreads(7)).
 *
 * The calls that we take over are cancellation points, and so are most of the C library's calls that we make meanwhile.  A
 * thread that ended in one of those would leave a lock held, a byte counted that was not sent, a sleeper never rung.  So
 * the shim calls the kernel by QUIET(...), which is no cancellation point; a call ends its thread at its beginning
 * (CANCELLATION_POINT), or while it sleeps, by one of the sleep_...() below, which undo what waited for the sleeper. */
#ifndef BERTHA_QUIET_H
#define BERTHA_QUIET_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <time.h>

#include "real.h"

#define QUIET(name) quiet_##name
#define CANCELLATION_POINT() pthread_testcancel()

static inline ssize_t quiet_read(int fd, void *to, size_t n) {
  return REAL(syscall)(SYS_read, (long)fd, to, n);
}
static inline ssize_t quiet_write(int fd, const void *from, size_t n) {
  return REAL(syscall)(SYS_write, (long)fd, from, n);
}
static inline ssize_t quiet_recv(int fd, void *to, size_t n, int flags) {
  return REAL(syscall)(SYS_recvfrom, (long)fd, to, n, (long)flags, NULL, NULL);
}
static inline ssize_t quiet_send(int fd, const void *from, size_t n, int flags) {
  return REAL(syscall)(SYS_sendto, (long)fd, from, n, (long)flags, NULL, 0L);
}
static inline ssize_t quiet_recvmsg(int fd, struct msghdr *msg, int flags) {
  return REAL(syscall)(SYS_recvmsg, (long)fd, msg, (long)flags);
}
static inline ssize_t quiet_sendmsg(int fd, const struct msghdr *msg, int flags) {
  return REAL(syscall)(SYS_sendmsg, (long)fd, msg, (long)flags);
}
#ifdef SYS_preadv2
/* At the file's own position; the upper half of it has no meaning on 64-bit machines. */
static inline ssize_t quiet_readv2(int fd, const struct iovec *iov, int count, int flags) {
  return REAL(syscall)(SYS_preadv2, (long)fd, iov, (long)count, -1L, -1L, (long)flags);
}
#else
static inline ssize_t quiet_readv2(int fd, const struct iovec *iov, int count, int flags) {
  return REAL(preadv2)(fd, iov, count, -1, flags);
}
#endif
/* The thread sanitizer has to see it: else it takes the descriptor's next owner for one who shares it with the last. */
static inline int quiet_close(int fd) {
#ifdef __SANITIZE_THREAD__
  int before;
  pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before);
  int result = REAL(close)(fd);
  pthread_setcancelstate(before, NULL);
  return result;
#else
  return (int)REAL(syscall)(SYS_close, (long)fd);
#endif
}
static inline int quiet_connect(int fd, const struct sockaddr *to, socklen_t size) {
  return (int)REAL(syscall)(SYS_connect, (long)fd, to, (long)size);
}
static inline int quiet_accept4(int fd, struct sockaddr *from, socklen_t *size, int flags) {
  return (int)REAL(syscall)(SYS_accept4, (long)fd, from, size, (long)flags);
}
static inline int quiet_open(const char *path, int flags, mode_t mode) {
  return (int)REAL(syscall)(SYS_openat, (long)AT_FDCWD, path, (long)flags, (long)mode);
}
static inline int quiet_poll(struct pollfd *fds, nfds_t count, int ms) {
  struct timespec t = {ms / 1000, (long)(ms % 1000) * 1000000};
  return (int)REAL(syscall)(SYS_ppoll, fds, (long)count, ms >= 0 ? &t : NULL, NULL, 8L);
}
static inline int quiet_epoll_look(int epfd, struct epoll_event *events, int max) {
  return (int)REAL(syscall)(SYS_epoll_pwait, (long)epfd, events, (long)max, 0L, NULL, 8L);
}
static inline void quiet_nap(long ns) {
  struct timespec t = {0, ns};
  REAL(syscall)(SYS_clock_nanosleep, (long)CLOCK_MONOTONIC, 0L, &t, NULL);
}

/* quiet.c.  `undo(arg)`, if the thread is cancelled meanwhile; otherwise the caller does the same. */
int sleep_ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask,
                void (*undo)(void *), void *arg);
int sleep_epoll(int epfd, struct epoll_event *events, int max, int64_t ns, const sigset_t *mask,
                void (*undo)(void *), void *arg);
ssize_t sleep_recvmsg(int fd, struct msghdr *msg, int flags, void (*undo)(void *), void *arg);

/* Around what cannot be made of the calls above. */
static inline int cancellation_off(void) {
  int before;
  pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before);
  return before;
}
static inline void cancellation_back(int before) {
  pthread_setcancelstate(before, NULL);
}

#endif
