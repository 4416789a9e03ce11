/* close, dup and their like: which descriptor is which connection. */
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <sys/resource.h>
#include <unistd.h>

#include "../core/abroad.h"
#include "../core/agentc.h"
#include "../core/local.h"
#include "../core/guard.h"
#include "../core/stdfile.h"
#include "calls.h"

/* The books only; the kernel's close is the caller's.  `gone`: it has been closed already, and the number may be
 * another file's.  Returns the connection if this was its last descriptor in this family of processes:
 * conn_after_close() is then due. */
static struct conn *forget_at(int fd, bool gone) {
  eset_forget(fd);
  int kernel = gone ? -1 : fd;
  struct conn *c = conn_of(fd);
  if (c == NULL) {
    return NULL;
  }
  bool last = atomic_load(&c->info.refs) == 1;
  if (last && !abroad_give_up(c)) { /* those who handed it to us go on with it */
    conn_forget(fd);
    stdfile_follow(fd);
    conn_free(c);
    return NULL;
  }
  if (last) {
    connlog_write(c, unix_tcp_fd(c, kernel));
    guard_last_close(c, kernel);
  } else if (UNLIKELY(conn_flags(c) & CONN_LOCAL)) {
    local_forgotten(c, fd, !gone);
  }
  conn_forget(fd);
  stdfile_follow(fd);
  if (unix_stands(c)) {
    unix_forget(c);
  }
  if (atomic_fetch_sub(&c->info.refs, 1) != 1) {
    return NULL;
  }
  if (!last) { /* another process has closed its own since we looked */
    if (!abroad_give_up(c)) {
      conn_free(c);
      return NULL;
    }
    connlog_write(c, kernel);
  }
  conn_last_close(c, kernel);
  return c;
}

struct conn *descriptor_forget(int fd) {
  return forget_at(fd, false);
}

/* The kernel has just given this number to somebody: what we know of it was closed by a call that we do not see. */
void descriptor_stale(int fd) {
  if (bertha_is_hidden(fd) || bertha_in_forked_stranger()) {
    return;
  }
  int saved = errno;
  conn_books_begin();
  struct conn *last = forget_at(fd, true);
  conn_books_end();
  if (last != NULL) {
    conn_after_close(last);
  }
  errno = saved;
}

/* A vfork child is about to close this number or to give it to another socket: what stood there in its parent, whose books it
 * shares, can be found at the child's other numbers by its cookie alone (core/handover.c). */
static void leaves(int fd) {
  struct conn *c = conn_of(fd);
  if (c != NULL) {
    conn_cookie(c, fd);
  }
}

BERTHA_EXPORT int close(int fd) {
  if (LIKELY(!tracked(fd))) {
    dgram_made(fd, false); /* or what a later dup() puts there would be taken for a UDP socket of ours */
    return REAL(close)(fd);
  }
  if (bertha_is_hidden(fd)) { /* a daemon that closes everything means its own */
    errno = EBADF;
    return -1;
  }
  if (bertha_in_forked_stranger()) {
    leaves(fd);
    return REAL(close)(fd);
  }
  CANCELLATION_POINT();
  int saved = errno;
  conn_cancel_hold();
  conn_books_begin();
  struct conn *last = descriptor_forget(fd);
  errno = saved;
  int result = QUIET(close)(fd);
  saved = errno;
  conn_books_end();
  if (last != NULL) {
    conn_after_close(last);
  }
  conn_cancel_release();
  errno = saved;
  return result;
}

static void share(int from, int to) {
  struct conn *c = conn_of(from);
  descriptor_fresh(to);
  if (c != NULL && (unsigned)to < BERTHA_FDS) {
    atomic_fetch_add(&c->info.refs, 1);
    conn_track(to, c);
    stdfile_follow(to);
  } else if (tracked(from)) {
    eset_dup(from, to);
    local_set_created(to);
    local_set_watched(from);
    local_set_watched(to);
    if (UNLIKELY(local_in_sets())) {
      local_set_within(from, to, NULL);
    }
  }
}

BERTHA_EXPORT int dup(int fd) {
  bool ours = tracked(fd) && !bertha_in_forked_stranger();
  if (LIKELY(!ours)) {
    return descriptor_fresh(REAL(dup)(fd));
  }
  conn_books_begin();
  int to = REAL(dup)(fd);
  if (to >= 0) {
    share(fd, to);
  }
  conn_books_end();
  return to;
}

static bool within_limit(int fd) { /* which may have been lowered since */
  struct rlimit limit;
  return getrlimit(RLIMIT_NOFILE, &limit) != 0 || (rlim_t)fd < limit.rlim_cur;
}

static int dup_onto(int from, int to, int flags, bool three) {
  bool ours = (tracked(from) || tracked(to)) && from != to;
  struct conn *last = NULL;
  if (UNLIKELY(ours) && bertha_in_forked_stranger()) {
    leaves(to);
    ours = false;
  }
  if (LIKELY(!ours) || (flags & ~O_CLOEXEC) != 0) { /* EINVAL, and nothing is closed */
    return three ? REAL(dup3)(from, to, flags) : REAL(dup2)(from, to);
  }
  conn_books_begin();
  bool was_hidden = tracked(to) && bertha_is_hidden(to);
  if (tracked(to)) {
    if (was_hidden) {
      if (bertha_unhide(to) != 0) {
        conn_books_end();
        return -1;
      }
    } else if (REAL(fcntl)(from, F_GETFD) >= 0 &&
               within_limit(to)) { /* otherwise `to` stays open (dup2(2)) */
      last = descriptor_forget(to);
    }
  }
  int result = three ? REAL(dup3)(from, to, flags) : REAL(dup2)(from, to);
  int saved = errno;
  if (UNLIKELY(was_hidden)) {
    links_hold_again();
  }
  if (result >= 0) {
    share(from, to);
  }
  conn_books_end();
  if (last != NULL) {
    conn_after_close(last);
  }
  errno = saved;
  return result;
}

BERTHA_EXPORT int dup2(int from, int to) {
  return dup_onto(from, to, 0, false);
}

BERTHA_EXPORT int dup3(int from, int to, int flags) {
  return dup_onto(from, to, flags, true);
}

BERTHA_EXPORT int close_range(unsigned int first, unsigned int last, int flags) {
  if (bertha.fds == NULL || bertha.max_fd <= first || (flags & 4 /* CLOSE_RANGE_CLOEXEC */)) {
    return REAL(close_range)(first, last, flags);
  }
  if (first > last) {
    errno = EINVAL;
    return -1;
  }
  unsigned int from = first;
  for (unsigned int fd = first; fd <= last && fd < bertha.max_fd; fd++) {
    if (!tracked((int)fd)) {
      continue;
    }
    if (fd > from && REAL(close_range)(from, fd - 1, flags) != 0) {
      return -1;
    }
    if (!bertha_is_hidden((int)fd)) {
      close((int)fd);
    }
    from = fd + 1;
  }
  return from > last ? 0 : REAL(close_range)(from, last, flags);
}

BERTHA_EXPORT void closefrom(int first) {
  close_range(first < 0 ? 0 : (unsigned)first, ~0u, 0);
}

static int fcntl_dup(int (*real)(int, int, ...), int fd, int op, void *argument) {
  conn_books_begin();
  int result = real(fd, op, argument);
  if (result >= 0) {
    share(fd, result);
  }
  conn_books_end();
  return result;
}

static int fcntl_common(int (*real)(int, int, ...), int fd, int op, void *argument) {
  if (UNLIKELY(op == F_DUPFD || op == F_DUPFD_CLOEXEC) && tracked(fd) && !bertha_in_forked_stranger()) {
    return fcntl_dup(real, fd, op, argument);
  }
  if (op == F_DUPFD || op == F_DUPFD_CLOEXEC) {
    return descriptor_fresh(real(fd, op, argument));
  }
  struct conn *c = conn_of(fd);
  if (UNLIKELY(c != NULL) && op == F_SETFL && ((intptr_t)argument & O_ASYNC)) {
    unix_signals(c, fd);
    local_kernels(c);
  }
  int result = real(fd, op, argument);
  if (result < 0 || c == NULL) {
    return result;
  }
  if (op == F_SETFL) {
    if ((intptr_t)argument & O_ASYNC) {
      conn_stay_in_kernel(c, fd, BERTHA_WHY_KERNEL_ASKED); /* SIGIO comes from there alone */
    }
    if ((intptr_t)argument & O_NONBLOCK) {
      conn_set_flag(c, CONN_NONBLOCK);
    } else {
      conn_clear_flag(c, CONN_NONBLOCK);
    }
    if (conn_kind(c) == BERTHA_CONN_UNIX) {
      unix_nonblock(c, (intptr_t)argument & O_NONBLOCK);
    }
  }
  return result;
}

BERTHA_EXPORT int fcntl(int fd, int op, ...) {
  va_list args;
  va_start(args, op);
  void *argument = va_arg(args, void *);
  va_end(args);
  return fcntl_common(REAL(fcntl), fd, op, argument);
}

BERTHA_EXPORT int fcntl64(int fd, int op, ...) {
  va_list args;
  va_start(args, op);
  void *argument = va_arg(args, void *);
  va_end(args);
  return fcntl_common(bertha_real()->fcntl64 != NULL ? REAL(fcntl64) : REAL(fcntl), fd, op, argument);
}
