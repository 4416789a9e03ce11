/* splice: between a pipe and a connection on a ring, where the kernel cannot.
 *
 * Into the ring, the bytes are read from the pipe straight to their place.  Out of it, they are looked at, written to
 * the pipe, and taken off as far as they were written, so that none is lost however the pipe answers. */
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "../core/abroad.h"
#include "../core/wait.h"
#include "calls.h"

enum { CHUNK = 16384 };
#define NOWAIT 8 /* RWF_NOWAIT */

static bool is_pipe(int fd) {
  struct stat st;
  return fstat(fd, &st) == 0 && S_ISFIFO(st.st_mode);
}

static bool pipe_blocks(int fd, unsigned flags) {
  return !(flags & SPLICE_F_NONBLOCK) && !(REAL(fcntl)(fd, F_GETFL) & O_NONBLOCK);
}

/* Old kernels do not know RWF_NOWAIT of a pipe: asked first, it has the bytes, unless somebody else takes them. */
static ssize_t pipe_read(int fd, void *to, size_t size) {
  struct iovec part = {to, size};
  ssize_t n = REAL(preadv2)(fd, &part, 1, -1, NOWAIT);
  if (n < 0 && (errno == EOPNOTSUPP || errno == EINVAL || errno == ENOSYS)) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    int there = REAL(poll)(&p, 1, 0);
    if (there <= 0) {
      errno = EAGAIN;
      return -1;
    }
    return REAL(read)(fd, to, size);
  }
  return n;
}

/* A pipe that polls writable takes PIPE_BUF bytes without waiting. */
static ssize_t pipe_write(int fd, const void *from, size_t size) {
  struct iovec part = {(void *)(uintptr_t)from, size};
  ssize_t n = REAL(pwritev2)(fd, &part, 1, -1, NOWAIT);
  if (n < 0 && (errno == EOPNOTSUPP || errno == EINVAL || errno == ENOSYS)) {
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    if (REAL(poll)(&p, 1, 0) <= 0) {
      errno = EAGAIN;
      return -1;
    }
    return REAL(write)(fd, from, size < PIPE_BUF ? size : PIPE_BUF);
  }
  return n;
}

/* 0: the pipe has ended; -EOPNOTSUPP: the kernel's own splice will do. */
static ssize_t from_pipe(struct conn *c, int pipe, int fd, size_t size, unsigned flags) {
  bool patient_pipe = pipe_blocks(pipe, flags);
  bool patient = !(flags & SPLICE_F_NONBLOCK) && !(conn_flags(c) & CONN_NONBLOCK);
  int64_t deadline = patient && c->snd_timeout_ns > 0 ? bertha_now_ns() + c->snd_timeout_ns : -1;
  size_t done = 0;
  if (conn_flags(c) & (CONN_FIN | CONN_WR_SHUT | CONN_RST)) { /* the kernel knows what to answer */
    if (REAL(send)(fd, "", 0, 0) < 0) {
      return -errno;
    }
  }
  while (done < size) {
    struct pollfd p = {.fd = pipe, .events = POLLIN};
    int there = REAL(poll)(&p, 1, done == 0 && patient_pipe ? -1 : 0);
    if (there < 0) {
      return done > 0 ? (ssize_t)done : -errno;
    }
    if (there == 0) {
      return done > 0 ? (ssize_t)done : -EAGAIN;
    }
    size_t room = size - done;
    int error;
    uint8_t *to = tx_reserve(c, fd, &room, &error);
    if (to == NULL) {
      if (error == ENOTCONN) {
        return done > 0 ? (ssize_t)done : -EOPNOTSUPP;
      }
      int waited = error == EAGAIN && patient ? wait_conn(c, fd, POLLOUT, deadline) : -error;
      if (waited < 0) {
        return done > 0 ? (ssize_t)done : waited == OWN_LOCK ? -EAGAIN : waited;
      }
      continue;
    }
    int before = cancellation_off(); /* we have the connection's lock */
    ssize_t n = pipe_read(pipe, to, room);
    int saved = errno;
    tx_commit(c, fd, n > 0 ? (size_t)n : 0);
    cancellation_back(before);
    if (n == 0 || (n < 0 && saved != EAGAIN)) {
      return done > 0 || n == 0 ? (ssize_t)done : -saved;
    }
    done += n > 0 ? (size_t)n : 0;
  }
  return (ssize_t)done;
}

static ssize_t to_pipe(struct conn *c, int fd, int pipe, size_t size, unsigned flags) {
  bool patient_pipe = pipe_blocks(pipe, flags);
  uint8_t space[CHUNK];
  size_t done = 0;
  while (done < size) {
    struct pollfd p = {.fd = pipe, .events = POLLOUT};
    int ready = REAL(poll)(&p, 1, done == 0 && patient_pipe ? -1 : 0);
    if (ready <= 0) {
      return done > 0 ? (ssize_t)done : ready == 0 ? -EAGAIN : -errno;
    }
    struct iovec part = {space, size - done < CHUNK ? size - done : CHUNK};
    bool wait = done == 0 && !(flags & SPLICE_F_NONBLOCK);
    ssize_t n = stream_recv(c, fd, &part, 1, MSG_PEEK | (wait ? 0 : MSG_DONTWAIT));
    if (n <= 0) {
      return done > 0 ? (ssize_t)done : n;
    }
    n = pipe_write(pipe, space, (size_t)n);
    if (n < 0) {
      return done > 0 ? (ssize_t)done : -errno;
    }
    part = (struct iovec){space, (size_t)n};
    ssize_t taken = stream_recv(c, fd, &part, 1, MSG_DONTWAIT);
    if (taken < n) { /* another thread reads as well: the kernel would have served one of us */
      return done > 0 ? (ssize_t)done : n;
    }
    done += (size_t)n;
  }
  return (ssize_t)done;
}

/* Where the kernel carries this direction just now, and in what state the connection is not to change meanwhile. */
static ssize_t kernel_splice(struct conn *to, int in, int out, size_t size, unsigned flags,
                             const struct tx_kernel *counted) {
  ssize_t n;
  if (counted != NULL) {
    n = REAL(splice)(in, NULL, out, NULL, size, flags);
    int saved = errno;
    if (LIKELY(conn_life(to) == counted->life)) {
      tx_cut_short(to, out); /* or the pipe is empty: then an edge too many is no harm */
    }
    tx_kernel_end(to, counted, n);
    errno = saved;
  } else {
    struct unix_tx t;
    int end = unix_tx_begin(to, out, &t);
    n = end >= 0 ? REAL(splice)(in, NULL, end, NULL, size, flags) : -1;
    int saved = end >= 0 ? errno : EAGAIN;
    unix_tx_end(to, &t, n);
    errno = saved;
  }
  plain_count(out, n, true);
  return n;
}

BERTHA_EXPORT ssize_t splice(int in, off64_t *in_at, int out, off64_t *out_at, size_t size, unsigned flags) {
  struct conn *from = stream_of(in);
  struct conn *to = stream_of(out);
  if (LIKELY(from == NULL && to == NULL) || in_at != NULL || out_at != NULL || size == 0) {
    if (to == NULL) {
      local_sends(out);
    }
    ssize_t n = REAL(splice)(in, in_at, out, out_at, size, flags);
    plain_count(out, n, true);
    plain_count(in, n, false);
    return n;
  }
  size = size < SSIZE_MAX / 2 ? size : SSIZE_MAX / 2;
  if (to != NULL && is_pipe(in)) {
    bool counted = false;
    struct tx_kernel k;
    conn_ripe(to, out); /* what goes to a carrier may go by a ring */
    while (!counted && conn_kind(to) != BERTHA_CONN_UNIX) {
      if (conn_ripe(to, out)) {
        ssize_t n = from_pipe(to, in, out, size, flags);
        if (n != -EOPNOTSUPP) {
          return errno_result(n);
        }
      }
      counted = tx_kernel_begin(to, out, &k);
    }
    return kernel_splice(to, in, out, size, flags, counted ? &k : NULL);
  }
  if (from != NULL &&
      is_pipe(out)) { /* by our own reading in every state but plain: it knows where bytes end */
    return errno_result(to_pipe(from, in, out, size, flags));
  }
  return REAL(splice)(in, NULL, out, NULL, size, flags);
}
