/* poll and select, by way of wait_fds(). */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "../core/local.h"
#include "../core/waiter.h"
#include "calls.h"

/* glibc declares that poll only writes to its array; we read it first. */
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

/* wait_fds(), and datagrams that pass by memory. */
static int wait_all(struct pollfd *fds, nfds_t count, int64_t ns, const sigset_t *mask) {
  bool local = UNLIKELY(atomic_load_explicit(&local_count, memory_order_relaxed) != 0) &&
               local_polled(fds, count) && !bertha_in_forked_stranger();
  return local ? local_poll(fds, count, ns, mask) : wait_fds(fds, count, ns, mask);
}

static bool is_local(int fd) {
  const struct conn *c =
      UNLIKELY(atomic_load_explicit(&local_count, memory_order_relaxed) != 0) ? conn_of(fd) : NULL;
  return UNLIKELY(c != NULL) && (conn_flags(c) & CONN_LOCAL);
}

static bool any_of_ours(const struct pollfd *fds, nfds_t count) {
  if (bertha.fds == NULL) {
    return false;
  }
  for (nfds_t i = 0; i < count; i++) {
    if ((unsigned)fds[i].fd < bertha.max_fd &&
        (stream_of(fds[i].fd) != NULL || is_local(fds[i].fd) ||
         atomic_load_explicit(&bertha.fds[fds[i].fd].set, memory_order_relaxed))) {
      return true;
    }
  }
  return false;
}

BERTHA_EXPORT int poll(struct pollfd *fds, nfds_t count, int timeout) {
  if (LIKELY(!any_of_ours(fds, count))) {
    return REAL(poll)(fds, count, timeout);
  }
  return (int)errno_result(wait_all(fds, count, timeout < 0 ? -1 : (int64_t)timeout * 1000000, NULL));
}

BERTHA_EXPORT int ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout,
                        const sigset_t *mask) {
  if (LIKELY(!any_of_ours(fds, count))) {
    return REAL(ppoll)(fds, count, timeout, mask);
  }
  int64_t ns = time_ns(timeout);
  return (int)errno_result(ns == -EINVAL ? ns : wait_all(fds, count, ns, mask));
}

__attribute__((noreturn)) void __chk_fail(void);
BERTHA_EXPORT int __poll_chk(struct pollfd *fds, nfds_t count, int timeout, size_t size);
BERTHA_EXPORT int __ppoll_chk(struct pollfd *fds, nfds_t count, const struct timespec *timeout,
                              const sigset_t *mask, size_t size);

int __poll_chk(struct pollfd *fds, nfds_t count, int timeout, size_t size) {
  if (size / sizeof *fds < count) {
    __chk_fail();
  }
  return poll(fds, count, timeout);
}

int __ppoll_chk(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask,
                size_t size) {
  if (size / sizeof *fds < count) {
    __chk_fail();
  }
  return ppoll(fds, count, timeout, mask);
}

/* A set may have more bits than fd_set, by a program's own allocation. */
typedef unsigned long word;
enum { WORD_BITS = 8 * sizeof(word), STACK_FDS = 64 };

static bool in_set(int fd, const fd_set *set) {
  return set != NULL && (((const word *)(const void *)set)[fd / WORD_BITS] >> (fd % WORD_BITS) & 1);
}

static void take_out(int fd, fd_set *set) {
  ((word *)(void *)set)[fd / WORD_BITS] &= ~((word)1 << (fd % WORD_BITS));
}

/* Some programs say all the descriptors that there may be: the kernel looks no further than its own table is long. */
static int looked_at(int n) {
  char text[2048];
  int fd = n > FD_SETSIZE ? QUIET(open)("/proc/self/status", O_RDONLY | O_CLOEXEC, 0) : -1;
  if (fd < 0) {
    return n < FD_SETSIZE ? n : FD_SETSIZE;
  }
  ssize_t size = QUIET(read)(fd, text, sizeof text - 1);
  QUIET(close)(fd);
  text[size > 0 ? size : 0] = '\0';
  const char *line = strstr(text, "FDSize:");
  long there = line != NULL ? strtol(line + strlen("FDSize:"), NULL, 10) : FD_SETSIZE;
  return there < n ? (int)there : n;
}

static bool select_has_ours(int n, const fd_set *r, const fd_set *w, const fd_set *e) {
  if (bertha.fds == NULL || n <= 0) {
    return false;
  }
  for (int fd = 0; fd < n && (uint32_t)fd < bertha.max_fd; fd++) {
    if (fd < FD_SETSIZE ? (in_set(fd, r) || in_set(fd, w) || in_set(fd, e)) &&
                              (stream_of(fd) != NULL || is_local(fd) ||
                               atomic_load_explicit(&bertha.fds[fd].set, memory_order_relaxed))
                        : (stream_of(fd) != NULL || is_local(fd)) && fd < looked_at(n) &&
                              (in_set(fd, r) || in_set(fd, w) || in_set(fd, e))) {
      return true;
    }
  }
  return false;
}

/* Cancelled, it leaves nothing behind. */
static __attribute__((noinline)) int wait_or_leave(struct waiter_room *room, struct pollfd *p, nfds_t count,
                                                   int64_t ns, const sigset_t *mask) {
  int n;
  pthread_cleanup_push(waiter_room_back, room);
  n = wait_all(p, count, ns, mask);
  pthread_cleanup_pop(0);
  return n;
}

/* How many bits of the three sets are true; `take`: the others are taken out.  ~fd: of a descriptor that is not asked about any
 * more. */
static int selected(const struct pollfd *p, nfds_t count, fd_set *r, fd_set *w, fd_set *e, bool take) {
  static const short means[3] = {POLLIN | POLLRDNORM | POLLHUP | POLLERR, POLLOUT | POLLWRNORM | POLLERR,
                                 POLLPRI};
  fd_set *sets[3] = {r, w, e};
  int bits = 0;
  for (nfds_t i = 0; i < count; i++) {
    int fd = p[i].fd >= 0 ? p[i].fd : ~p[i].fd;
    short got = p[i].fd >= 0 ? p[i].revents : 0;
    for (int k = 0; k < 3; k++) {
      if (!in_set(fd, sets[k])) {
        continue;
      }
      bits += (got & (means[k] | (take ? 0 : POLLNVAL))) != 0;
      if (take && !(got & means[k])) {
        take_out(fd, sets[k]);
      }
    }
  }
  return bits;
}

/* select()'s three sets in poll()'s terms (select(2), "Correspondence between select() and poll()"). */
static int select_by_poll(int n, fd_set *r, fd_set *w, fd_set *e, int64_t ns, const sigset_t *mask) {
  struct pollfd space[STACK_FDS];
  struct pollfd *p = space;
  struct waiter_room room = {0};
  n = looked_at(n);
  nfds_t most = 0;
  for (int fd = 0; fd < n; fd++) {
    most += in_set(fd, r) || in_set(fd, w) || in_set(fd, e);
  }
  if (most > STACK_FDS) {
    room = waiter_room(most * sizeof *p);
    p = room.at;
    if (p == NULL) {
      return -ENOMEM;
    }
  }
  nfds_t count = 0;
  for (int fd = 0; fd < n && count < most; fd++) {
    short events = 0;
    events |= in_set(fd, r) ? POLLIN | POLLRDNORM : 0;
    events |= in_set(fd, w) ? POLLOUT | POLLWRNORM : 0;
    events |= in_set(fd, e) ? POLLPRI : 0;
    if (events != 0) {
      p[count++] = (struct pollfd){.fd = fd, .events = events};
    }
  }
  int64_t begin = ns > 0 ? bertha_now_ns() : 0;
  int result = wait_or_leave(&room, p, count, ns, mask);
  while (result > 0 && selected(p, count, r, w, e, false) == 0) {
    for (nfds_t i = 0; i < count;
         i++) { /* poll(2) tells of ends unasked: who asks for neither data nor space waits on */
      p[i].fd = p[i].revents != 0 ? ~p[i].fd : p[i].fd;
    }
    int64_t left = ns > 0 ? ns - (bertha_now_ns() - begin) : ns;
    result = wait_or_leave(&room, p, count, ns > 0 && left < 0 ? 0 : left, mask);
  }
  for (nfds_t i = 0; result >= 0 && i < count; i++) {
    if (p[i].revents & POLLNVAL) {
      result = -EBADF;
    }
  }
  if (result >= 0) {
    result = selected(p, count, r, w, e, true);
  }
  waiter_room_back(&room);
  return result;
}

BERTHA_EXPORT int select(int n, fd_set *r, fd_set *w, fd_set *e, struct timeval *timeout) {
  if (LIKELY(!select_has_ours(n, r, w, e))) {
    return REAL(select)(n, r, w, e, timeout);
  }
  int64_t ns = -1;
  if (timeout != NULL) { /* more than a second's worth of microseconds is allowed (select(2), "Errors") */
    bool bad = timeout->tv_sec < 0 || timeout->tv_usec < 0;
    struct timespec t = {timeout->tv_sec, timeout->tv_usec % 1000000 * 1000};
    ns = bad ? -EINVAL : time_ns(&t) + timeout->tv_usec / 1000000 % INT32_MAX * 1000000000;
  }
  if (ns == -EINVAL) {
    return (int)errno_result(ns);
  }
  int64_t begin = bertha_now_ns();
  int result = select_by_poll(n, r, w, e, ns, NULL);
  if (timeout != NULL) { /* Linux leaves the time not slept, whatever the result (select(2)) */
    int64_t left = ns - (bertha_now_ns() - begin);
    left = left > 0 ? left : 0;
    timeout->tv_sec = left / 1000000000;
    timeout->tv_usec = left % 1000000000 / 1000;
  }
  return (int)errno_result(result);
}

BERTHA_EXPORT int pselect(int n, fd_set *r, fd_set *w, fd_set *e, const struct timespec *timeout,
                          const sigset_t *mask) {
  if (LIKELY(!select_has_ours(n, r, w, e))) {
    return REAL(pselect)(n, r, w, e, timeout, mask);
  }
  int64_t ns = time_ns(timeout);
  return (int)errno_result(ns == -EINVAL ? ns : select_by_poll(n, r, w, e, ns, mask));
}
