/* What is not quite an end: connect() to AF_UNSPEC dissolves a connection, and the socket is used again (connect(2)); an
 * exec closes what is close-on-exec, unless it fails. */
#include "abroad.h"
#include "conn.h"
#include "connlog.h"
#include "eset.h"
#include "orphans.h"
#include "guard.h"
#include "unixpair.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>

static uint32_t own_descriptors(const struct conn *c) {
  uint32_t n = 0;
  for (uint32_t fd = 0; fd < bertha.max_fd; fd++) {
    n += conn_of((int)fd) == c;
  }
  return n;
}

enum { CARRIER_MS = 1000 };

/* Its carrier has a descriptor of the very socket, which it would read from and reset when it is another connection's.  It is
 * told of the end by the kernel, as we are of its own: its end of the pair is closed after the socket. */
static void await_carrier(int fd) {
  struct pollfd pair = {.fd = fd, .events = 0};
  QUIET(poll)(&pair, 1, CARRIER_MS);
}

bool conn_came_to_nothing(struct conn *c, int fd) {
  uint32_t kind = conn_kind(c);
  bool carried = kind == BERTHA_CONN_UNIX && (conn_flags(c) & CONN_CARRIED) && !unix_swapped(c);
  if (c->info.role != BERTHA_SIDE_CLIENT || (conn_flags(c) & CONN_DGRAM) ||
      (kind != BERTHA_CONN_PLAIN && kind != BERTHA_CONN_CLAIMED && !carried)) {
    return false;
  }
  uint8_t state; /* tcp_info's first */
  socklen_t size = sizeof state;
  return REAL(getsockopt)(fd, IPPROTO_TCP, TCP_INFO, &state, &size) == 0 && state == TCP_CLOSE &&
         (carried || (!conn_ripe(c, fd) && conn_kind(c) == kind)); /* else there may be something to read */
}

void conn_dissolved(struct conn *c, int fd) {
  uint32_t kind = conn_kind(c);
  uint32_t own = own_descriptors(c);
  if (kind == BERTHA_CONN_FREE || kind == BERTHA_CONN_SOCKET || kind == BERTHA_CONN_LISTENER ||
      (conn_flags(c) & CONN_DGRAM)) {
    return;
  }
  bool shared = c->home != NULL || atomic_load(&c->info.refs) != own;
  struct conn *fresh = conn_new(fd, BERTHA_CONN_SOCKET);
  if (fresh == NULL) {
    return;
  }
  conn_set_flag(fresh, conn_flags(c) & (CONN_NONBLOCK | CONN_NODELAY_SET | CONN_NODELAY_KNOWN |
                                        CONN_LINGER_0 | CONN_KERNELS));
  if (UNLIKELY(conn_flags(c) & CONN_KERNELS)) {
    conn_set_flag(fresh, CONN_NO_ATTACH);
    fresh->info.reason = BERTHA_WHY_KERNEL_ASKED;
  } else if (UNLIKELY(shared)) {
    /* What the others have is of the earlier one: for what comes the kernel's socket is all there is. */
    conn_set_flag(fresh, CONN_NO_ATTACH);
    fresh->info.reason = BERTHA_WHY_INHERITED;
  }
  fresh->rcv_timeout_ns = c->rcv_timeout_ns;
  fresh->snd_timeout_ns = c->snd_timeout_ns;
  fresh->rcv_lowat = c->rcv_lowat;
  atomic_store(&fresh->info.refs, own);
  if (kind == BERTHA_CONN_SHM ||
      (kind == BERTHA_CONN_UNIX && c->slot != NULL)) { /* the kernel has reset it */
    atomic_store_explicit(&conn_tx(c)->closed, 2, memory_order_release);
  }
  if (unix_stands(c)) {
    if (shared && !(conn_flags(c) & CONN_CARRIED)) { /* the others' copies would keep the unix socket alive */
      unix_shutdown(c, fd, SHUT_RDWR);
    }
    if (conn_flags(c) & CONN_CARRIED) {
      await_carrier(fd);
      guard_lift(c, unix_tcp_fd(c, fd));
    }
    unix_undo(c);
  }
  if (!shared) {
    connlog_write(c, fd);
  }
  conn_books_begin();
  for (uint32_t i = 0; i < bertha.max_fd; i++) {
    if (conn_of((int)i) == c) {
      eset_forget((int)i);
      conn_track((int)i, fresh);
    }
  }
  conn_books_end();
  if (!shared) {
    atomic_store(&c->info.refs, 0);
    conn_after_close(c);
    return;
  }
  unix_drop(c); /* an end that was to go with a claim */
  orphans_not_mine(c);
  for (; own > 0; own--) {
    conn_release(c, fd);
  }
}

/* As close() does it, but for the kernel's part, and for what could not be taken back: the record stays, and if this was the
 * last descriptor, it waits for this process's end (conn_new). */
void conn_leave(struct conn *c, int fd) {
  orphans_not_mine(c); /* or what is left would look like a dead process's: the other ones' */
  if (atomic_fetch_sub(&c->info.refs, 1) != 1) {
    return;
  }
  connlog_write(c, unix_tcp_fd(c, fd));
  atomic_store(&c->next_free, (uint32_t)bertha.pid);
  conn_set_flag(c, CONN_LEFT);
  conn_last_close(c, fd);
}

void conn_stay(struct conn *c, int fd) {
  orphans_mine(c, fd);
  if (atomic_fetch_add(&c->info.refs, 1) != 0 || !(conn_flags(c) & CONN_LEFT)) {
    return;
  }
  conn_clear_flag(c, CONN_LEFT | CONN_LOGGED); /* there is another line at its end */
  uint32_t kind = conn_kind(c);
  if ((kind == BERTHA_CONN_SHM || kind == BERTHA_CONN_UNIX) && c->slot != NULL) {
    atomic_store(&conn_tx(c)->closed, conn_flags(c) & CONN_WR_SHUT ? 1 : 0);
  }
  if (kind == BERTHA_CONN_SHM) {
    atomic_store(&conn_rx(c)->bell_out, 0); /* it may be rung again */
    if (!(conn_flags(c) & CONN_LINGER_0)) {
      struct linger none = {.l_onoff = 0};
      REAL(setsockopt)(fd, SOL_SOCKET, SO_LINGER, &none, sizeof none);
    }
  }
}
