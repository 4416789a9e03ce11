/* sendfile: from the file straight into the ring.
 *
 * The connection is held for as long as a copy from memory takes, and not while a disk is waited for. */
#include <limits.h>
#include <sys/stat.h>

#include "../core/abroad.h"
#include "../core/wait.h"
#include "calls.h"

#define NOWAIT 8 /* RWF_NOWAIT */
enum { WARM = 16384, WAITS = 3 };

/* -EAGAIN: nothing in memory just now. */
static ssize_t read_now(int in, void *to, size_t size, const off64_t *offset, bool whatever_it_takes) {
  struct iovec part = {to, size};
  ssize_t n = REAL(preadv64v2)(in, &part, 1, offset != NULL ? *offset : -1, whatever_it_takes ? 0 : NOWAIT);
  if (n < 0 && (errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL)) { /* a file system without it */
    n = offset != NULL ? pread64(in, to, size, *offset) : REAL(read)(in, to, size);
  }
  return n >= 0 ? n : errno == EISDIR ? -EINVAL : -errno; /* what sendfile says of a directory */
}

static bool is_file(int in) {
  struct stat st;
  return fstat(in, &st) == 0 && (S_ISREG(st.st_mode) || S_ISBLK(st.st_mode));
}

static bool has_no_pages(int in) { /* sendfile(2): EINVAL */
  struct stat st;
  return fstat(in, &st) == 0 && (S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode));
}

/* Until there is something to read: of a file, by reading it to nowhere. */
static int wait_for_input(int in, const off64_t *offset, bool file) {
  if (file) {
    char nowhere[WARM];
    off64_t at = offset != NULL ? *offset : lseek64(in, 0, SEEK_CUR);
    ssize_t n = at >= 0 ? pread64(in, nowhere, sizeof nowhere, at) : -1;
    return n >= 0 ? 0 : -errno;
  }
  struct pollfd p = {.fd = in, .events = POLLIN};
  if (REAL(fcntl)(in, 3 /* F_GETFL */) & SOCK_NONBLOCK) {
    return REAL(poll)(&p, 1, 0) > 0 ? 0 : -EAGAIN;
  }
  return REAL(poll)(&p, 1, -1) > 0 ? 0 : -errno;
}

/* -EOPNOTSUPP: the kernel's own sendfile will do. */
static ssize_t sendfile_ring(struct conn *c, int out, int in, off64_t *offset, size_t count) {
  bool patient = !(conn_flags(c) & CONN_NONBLOCK);
  int64_t deadline = patient && c->snd_timeout_ns > 0 ? bertha_now_ns() + c->snd_timeout_ns : -1;
  size_t sent = 0;
  int waits = 0;
  count = count < SSIZE_MAX / 2 ? count : SSIZE_MAX / 2;
  if (offset != NULL && *offset < 0) { /* which preadv2(2) takes for "where the file is" */
    return -EINVAL;
  }
  if (offset == NULL &&
      has_no_pages(in)) { /* with an offset, reading there says ESPIPE as the kernel would */
    return -EINVAL;
  }
  if (conn_flags(c) & (CONN_FIN | CONN_WR_SHUT | CONN_RST)) { /* the kernel knows what to answer */
    int verdict = REAL(send)(out, "", 0, 0) < 0 ? -errno : 0;
    if (verdict != 0) {
      return verdict;
    }
  }
  while (sent < count) {
    size_t room = count - sent;
    int error;
    uint8_t *to = tx_reserve(c, out, &room, &error);
    if (to == NULL && error == ENOTCONN) {
      return sent > 0 ? (ssize_t)sent : -EOPNOTSUPP;
    }
    if (to == NULL && (error != EAGAIN || !patient)) {
      return sent > 0 ? (ssize_t)sent : error == -OWN_LOCK ? -EAGAIN : -error;
    }
    if (to == NULL) {
      int waited = wait_conn(c, out, POLLOUT, deadline);
      if (waited < 0) {
        return sent > 0 ? (ssize_t)sent : waited;
      }
      continue;
    }
    int before = cancellation_off(); /* we have the connection's lock */
    ssize_t n = read_now(in, to, room, offset, waits >= WAITS);
    tx_commit(c, out, n > 0 ? (size_t)n : 0);
    cancellation_back(before);
    if (n == -EAGAIN) {
      bool file = is_file(in);
      n = sent > 0 && !file ? 0
                            : wait_for_input(in, offset, file); /* of a device, what there is goes first */
      if (n == 0 && (sent == 0 || file)) {
        waits += file;
        continue;
      }
    }
    waits = 0;
    if (n <= 0) {
      return sent > 0 || n == 0 ? (ssize_t)sent : n;
    }
    sent += (size_t)n;
    if (offset != NULL) {
      *offset += n;
    }
  }
  return (ssize_t)sent;
}

static ssize_t sendfile_unix(struct conn *c, int out, int in, off64_t *offset, size_t count) {
  struct unix_tx t;
  int to = unix_tx_begin(c, out, &t);
  ssize_t n = to >= 0 ? REAL(sendfile64)(to, in, offset, count) : -1;
  int saved = to >= 0 ? errno : EAGAIN;
  unix_tx_end(c, &t, n);
  errno = saved;
  return n;
}

static ssize_t sendfile_any(int out, int in, off64_t *offset, size_t count) {
  struct conn *c = stream_of(out);
  bool counted = false;
  struct tx_kernel k;
  if (c == NULL) {
    local_sends(out);
  }
  if (c != NULL) {
    conn_ripe(c, out); /* what goes to a carrier may go by a ring */
  }
  while (c != NULL && !counted && conn_kind(c) != BERTHA_CONN_UNIX) {
    if (conn_ripe(c, out)) {
      ssize_t n = sendfile_ring(c, out, in, offset, count);
      if (n != -EOPNOTSUPP) {
        return errno_result(n);
      }
    }
    counted = tx_kernel_begin(c, out, &k);
  }
  ssize_t n = c != NULL && !counted ? sendfile_unix(c, out, in, offset, count)
                                    : REAL(sendfile64)(out, in, offset, count);
  if (counted) {
    int saved = errno;
    if (LIKELY(conn_life(c) == k.life)) {
      tx_cut_short(c, out); /* or the file has ended: then an edge too many is no harm */
    }
    tx_kernel_end(c, &k, n);
    errno = saved;
  }
  plain_count(out, n, true);
  return n;
}

BERTHA_EXPORT ssize_t sendfile(int out, int in, off_t *offset, size_t count) {
  off64_t at = offset != NULL ? *offset : 0;
  ssize_t n = sendfile_any(out, in, offset != NULL ? &at : NULL, count);
  if (offset != NULL) {
    *offset = (off_t)at;
  }
  return n;
}

BERTHA_EXPORT ssize_t sendfile64(int out, int in, off64_t *offset, size_t count) {
  return sendfile_any(out, in, offset, count);
}
