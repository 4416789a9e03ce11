/* epoll: sets without connections on rings are the kernel's alone. */
#include "../core/local.h"
#include "calls.h"

BERTHA_EXPORT int epoll_create(int size) {
  int fd = descriptor_fresh(REAL(epoll_create)(size));
  eset_created(fd);
  local_set_created(fd);
  return fd;
}

BERTHA_EXPORT int epoll_create1(int flags) {
  int fd = descriptor_fresh(REAL(epoll_create1)(flags));
  eset_created(fd);
  local_set_created(fd);
  return fd;
}

static int local_ctl(int epfd, int op, int fd, struct epoll_event *event) {
  int result = REAL(epoll_ctl)(epfd, op, fd, event);
  if (result == 0 && !bertha_in_forked_stranger()) {
    local_registered(epfd, op, fd, event);
  }
  return result;
}

BERTHA_EXPORT int epoll_ctl(int epfd, int op, int fd, struct epoll_event *event) {
  const struct conn *c = conn_of(fd);
  if (UNLIKELY(c != NULL && (conn_flags(c) & CONN_LOCAL))) {
    return local_ctl(epfd, op, fd, event);
  }
  if (UNLIKELY((unsigned)fd < BERTHA_FDS && dgram_states[fd] != DGRAM_NOT)) {
    local_never(fd, true); /* a set has it that we keep no books of */
  }
  /* Jumps: a return after a system call is one that the processor has not foreseen. */
  if (c == NULL ? eset_entry(fd) == 0 && eset_of(epfd) == NULL
                : conn_kind(c) == BERTHA_CONN_PLAIN && !eset_serves(epfd, fd)) {
    return REAL(epoll_ctl)(epfd, op, fd, event);
  }
  if (bertha_in_forked_stranger()) {
    return REAL(epoll_ctl)(epfd, op, fd, event);
  }
  bool set = c == NULL && eset_entry(fd) != 0;
  if (set) {
    local_set_watched(fd);
  }
  ssize_t result = eset_ctl(epfd, op, fd, event);
  if (set && result == 0 && UNLIKELY(local_in_sets())) {
    local_set_within(fd, op != EPOLL_CTL_DEL ? epfd : -1, event);
  }
  return (int)errno_result(result);
}

static int wait_in(int epfd, struct epoll_event *events, int max, int64_t ns, const sigset_t *mask) {
  struct eset *s = ns != 0 ? eset_to_sleep_in(epfd) : eset_of(epfd);
  if (s != NULL) {
    return eset_wait(s, events, max, ns, mask);
  }
  struct timespec t = {ns / 1000000000, ns % 1000000000};
  int n = bertha_real()->epoll_pwait2 != NULL
              ? REAL(epoll_pwait2)(epfd, events, max, ns >= 0 ? &t : NULL, mask)
              : REAL(epoll_pwait)(epfd, events, max, ns < 0 ? -1 : (int)((ns + 999999) / 1000000), mask);
  return n >= 0 ? n : -errno;
}

static inline bool is_local(int max) {
  return UNLIKELY(local_in_sets()) && max > 0 && !bertha_in_forked_stranger();
}

BERTHA_EXPORT int epoll_wait(int epfd, struct epoll_event *events, int max, int timeout) {
  if (is_local(max)) {
    return (int)errno_result(
        local_epoll(epfd, events, max, timeout < 0 ? -1 : (int64_t)timeout * 1000000, NULL, wait_in));
  }
  struct eset *s = timeout != 0 ? eset_to_sleep_in(epfd) : eset_of(epfd);
  if (LIKELY(s == NULL)) {
    return REAL(epoll_wait)(epfd, events, max, timeout);
  }
  return (int)errno_result(eset_wait(s, events, max, timeout < 0 ? -1 : (int64_t)timeout * 1000000, NULL));
}

BERTHA_EXPORT int epoll_pwait(int epfd, struct epoll_event *events, int max, int timeout,
                              const sigset_t *mask) {
  if (is_local(max)) {
    return (int)errno_result(
        local_epoll(epfd, events, max, timeout < 0 ? -1 : (int64_t)timeout * 1000000, mask, wait_in));
  }
  struct eset *s = timeout != 0 ? eset_to_sleep_in(epfd) : eset_of(epfd);
  if (LIKELY(s == NULL)) {
    return REAL(epoll_pwait)(epfd, events, max, timeout, mask);
  }
  return (int)errno_result(eset_wait(s, events, max, timeout < 0 ? -1 : (int64_t)timeout * 1000000, mask));
}

BERTHA_EXPORT int epoll_pwait2(int epfd, struct epoll_event *events, int max, const struct timespec *timeout,
                               const sigset_t *mask) {
  if (is_local(max)) {
    int64_t ns = time_ns(timeout);
    return (int)errno_result(ns == -EINVAL ? ns : local_epoll(epfd, events, max, ns, mask, wait_in));
  }
  struct eset *s = timeout == NULL || timeout->tv_sec != 0 || timeout->tv_nsec != 0 ? eset_to_sleep_in(epfd)
                                                                                    : eset_of(epfd);
  if (LIKELY(s == NULL)) {
    return REAL(epoll_pwait2)(epfd, events, max, timeout, mask);
  }
  int64_t ns = time_ns(timeout);
  return (int)errno_result(ns == -EINVAL ? ns : eset_wait(s, events, max, ns, mask));
}
