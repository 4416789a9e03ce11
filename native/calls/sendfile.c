/* sendfile: from the file straight into the ring. */
#include <limits.h>

#include "../core/abroad.h"
#include "../core/wait.h"
#include "calls.h"

/* -EOPNOTSUPP: the kernel's own sendfile will do. */
static ssize_t sendfile_ring(struct conn *c, int out, int in, off64_t *offset, size_t count) {
  bool patient = !(conn_flags(c) & CONN_NONBLOCK);
  int64_t deadline = patient && c->snd_timeout_ns > 0 ? bertha_now_ns() + c->snd_timeout_ns : -1;
  size_t sent = 0;
  count = count < SSIZE_MAX / 2 ? count : SSIZE_MAX / 2;
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
      return sent > 0 ? (ssize_t)sent : -error;
    }
    if (to == NULL) {
      int waited = wait_conn(c, out, POLLOUT, deadline);
      if (waited < 0) {
        return sent > 0 ? (ssize_t)sent : waited;
      }
      continue;
    }
    ssize_t n = offset != NULL ? pread64(in, to, room, *offset) : REAL(read)(in, to, room);
    int saved = errno;
    tx_commit(c, out, n > 0 ? (size_t)n : 0);
    if (n <= 0) {
      return sent > 0 || n == 0 ? (ssize_t)sent : -saved;
    }
    sent += (size_t)n;
    if (offset != NULL) {
      *offset += n;
    }
  }
  return (ssize_t)sent;
}

static ssize_t sendfile_any(int out, int in, off64_t *offset, size_t count) {
  struct conn *c = stream_of(out);
  if (c != NULL && conn_ripe(c, out)) {
    ssize_t n = sendfile_ring(c, out, in, offset, count);
    if (n != -EOPNOTSUPP) {
      return errno_result(n);
    }
  }
  if (c != NULL && conn_kind(c) == BERTHA_CONN_UNIX) {
    int to = unix_tx_fd(c, out);
    if (to != out) {
      ssize_t n = REAL(sendfile64)(to, in, offset, count);
      plain_count(out, n, true);
      return n;
    }
  }
  if (c != NULL) {
    atomic_fetch_add(&c->kernel_sends, 1);
    abroad_kernel_send(c, 1, 0);
  }
  ssize_t n = REAL(sendfile64)(out, in, offset, count);
  if (c != NULL) {
    if (n > 0) {
      atomic_fetch_add(&c->ktx, (uint64_t)n);
    }
    conn_set_flag(c, CONN_TX_SHORT); /* or the file has ended: then an edge too many is no harm */
    atomic_fetch_sub(&c->kernel_sends, 1);
    abroad_kernel_send(c, -1, n > 0 ? (uint64_t)n : 0);
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
