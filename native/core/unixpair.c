#include "unixpair.h"

#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/time.h>

#include "agentc.h"
#include "carried.h"
#include "conn.h"
#include "eset.h"
#include "unixends.h"
#include "unixmail.h"

extern void bertha_close_hidden(int fd);

bool unix_swapped(const struct conn *c) {
  return unix_ends != NULL && unix_ends[conn_index(c)].swapped;
}

int unix_tcp_fd(const struct conn *c, int fd) {
  return unix_swapped(c) ? unix_ends[conn_index(c)].tcp_fd : fd;
}

void unix_shutdown(struct conn *c, int fd, int how) {
  struct ends *e = ends_of(c);
  if (e != NULL && bertha_lock(&c->rx_lock)) { /* not in the middle of the exchange */
    if (e->swapped || e->unix_fd > 0) {
      REAL(shutdown)(e->swapped ? fd : e->unix_fd, how);
    }
    bertha_unlock(&c->rx_lock);
  }
}

void unix_nonblock(struct conn *c, bool on) {
  struct ends *e = ends_of(c);
  if (e != NULL && e->unix_fd > 0 && !e->swapped) {
    int flags = REAL(fcntl)(e->unix_fd, F_GETFL);
    REAL(fcntl)(e->unix_fd, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK);
  }
}

static void set_timeout(int fd, int option, int64_t ns) {
  if (ns > 0) {
    struct timeval t = {ns / 1000000000, ns % 1000000000 / 1000};
    if (ns < 1000) {
      t.tv_sec = -1; /* not at all, which 0 would not mean */
    }
    REAL(setsockopt)(fd, SOL_SOCKET, option, &t, sizeof t);
  }
}

/* With the tx lock held. */
static bool switch_tx(struct conn *c) {
  if (c->tx_phase == PHASE_BEFORE && atomic_load(&c->kernel_sends) == 0) {
    atomic_store_explicit(&conn_tx(c)->switch_at, atomic_load(&c->ktx), memory_order_release);
    c->tx_phase = PHASE_RING;
    return true;
  }
  return false;
}

/* Who waits for both sockets (unix_wait) needs no byte on the one. */
static bool must_be_rung(const struct conn *c, const struct ends *e) {
  atomic_thread_fence(memory_order_seq_cst); /* the switch has been published */
  bool same_end = c->side == BERTHA_SIDE_CLIENT || e->number != 0;
  return !same_end || atomic_load(&c->slot->watch[1 - c->side].kernel);
}

/* With the tx lock held: true when this direction has left TCP, and nobody is about to use TCP for it any more. */
static bool tx_gone(struct conn *c, struct ends *e, int fd) {
  if (switch_tx(c)) {
    unix_shut_as_told(c, e->unix_fd);
    if (must_be_rung(c, e)) {
      bell_on_connection(c, fd); /* the other end may be reading TCP */
    }
  }
  return c->tx_phase != PHASE_BEFORE;
}

static void exchange_one(const struct ends *e, int fd) {
  int flags = REAL(fcntl)(fd, F_GETFD);
  eset_swap(fd, true);
  REAL(dup3)(e->unix_fd, fd, flags & FD_CLOEXEC ? O_CLOEXEC : 0);
  eset_swap(fd, false);
}

static void exchange_all(const struct conn *c, const struct ends *e) {
  for (uint32_t i = 0; i < bertha.max_fd; i++) { /* its duplicates as well */
    if (conn_of((int)i) == c) {
      exchange_one(e, (int)i);
    }
  }
}

/* The TCP socket goes beneath, to the number that is kept for it; that may be beyond a limit that was lowered since. */
static int put_beneath(struct ends *e, int fd) {
  if (e->tcp_fd > 0 && REAL(dup3)(fd, e->tcp_fd, O_CLOEXEC) != e->tcp_fd) {
    bertha_close_hidden(e->tcp_fd);
    e->tcp_fd = -1;
  }
  return e->tcp_fd > 0 ? e->tcp_fd : bertha_hidden_copy(fd);
}

/* With the rx lock held: the unix socket takes the TCP socket's place. */
static void exchange(struct conn *c, struct ends *e, int fd) {
  bool still = conn_still_begin();
  int hidden = e->swapped || conn_of(fd) != c ? -1 : put_beneath(e, fd);
  if (hidden >= 0) {
    e->tcp_fd = hidden;
    set_timeout(e->unix_fd, SO_RCVTIMEO, c->rcv_timeout_ns);
    set_timeout(e->unix_fd, SO_SNDTIMEO, c->snd_timeout_ns);
    unix_shut_as_told(c, e->unix_fd);
    exchange_all(c, e);
    atomic_store(&e->swapped, true);
    /* Who has read the number before is counted in; then it is closed with the connection. */
    if (atomic_load(&c->kernel_waiters) == 0 && atomic_load(&c->kernel_sends) == 0) {
      bertha_close_hidden(e->unix_fd);
      e->unix_fd = -1;
    }
  }
  conn_still_end(still);
}

bool unix_put(struct conn *c, int fd, int end) {
  struct ends *e = ends_of(c);
  if (e == NULL) {
    bertha_close_hidden(end);
    return false;
  }
  *e = (struct ends){.unix_fd = end, .tcp_fd = -1};
  int flags = REAL(fcntl)(end, F_GETFL);
  if (conn_flags(c) & CONN_NONBLOCK) {
    REAL(fcntl)(end, F_SETFL, flags | O_NONBLOCK);
  }
  exchange(c, e, fd);
  if (!e->swapped) {
    bertha_close_hidden(end);
    *e = (struct ends){0};
  }
  return e->swapped;
}

void unix_replace(struct conn *c, int end) {
  struct ends e = {.unix_fd = end};
  if (conn_flags(c) & CONN_NONBLOCK) {
    REAL(fcntl)(end, F_SETFL, REAL(fcntl)(end, F_GETFL) | O_NONBLOCK);
  }
  set_timeout(end, SO_RCVTIMEO, c->rcv_timeout_ns);
  set_timeout(end, SO_SNDTIMEO, c->snd_timeout_ns);
  bool still = conn_still_begin();
  exchange_all(c, &e);
  conn_still_end(still);
  QUIET(close)(end);
}

/* Its connection has been dissolved: the TCP socket is all that the descriptor stands for. */
void unix_undo(struct conn *c) {
  struct ends *e = ends_of(c);
  if (e == NULL) {
    return;
  }
  struct ends tcp = {.unix_fd = e->tcp_fd};
  bool still = conn_still_begin();
  for (uint32_t i = 0; e->swapped && i < bertha.max_fd; i++) {
    if (conn_of((int)i) == c) {
      exchange_one(&tcp, (int)i);
      int flags = REAL(fcntl)((int)i, F_GETFL);
      REAL(fcntl)((int)i, F_SETFL, conn_flags(c) & CONN_NONBLOCK ? flags | O_NONBLOCK : flags & ~O_NONBLOCK);
    }
  }
  conn_still_end(still);
  unix_drop(c);
}

bool unix_settle(struct conn *c, int fd) {
  struct ends *e = ends_of(c);
  if (e->swapped) {
    return true;
  }
  if (conn_flags(c) & CONN_CARRIED) {
    return carried_settle(c, fd);
  }
  uint64_t switch_at = atomic_load_explicit(&conn_rx(c)->switch_at, memory_order_acquire);
  if (atomic_load(&c->krx) != switch_at) {
    return false;
  }
  if (!bertha_lock(&c->tx_lock)) {
    return false;
  }
  bool gone = tx_gone(c, e, fd);
  bertha_unlock(&c->tx_lock);
  /* Not waited for: who holds it may be exchanging, and so be waiting for the epoll set that we hold. */
  uint32_t nobody = 0;
  if (!gone || atomic_load(&c->kernel_waiters) != 0 ||
      !atomic_compare_exchange_strong(&c->rx_lock, &nobody, bertha_tid())) {
    return false;
  }
  exchange(c, e, fd);
  bertha_unlock(&c->rx_lock);
  return e->swapped;
}

void unix_hears_no_more(struct conn *c) {
  if (c->slot != NULL && !(conn_flags(c) & CONN_CARRIED)) {
    atomic_store(&conn_rx(c)->want_kernel, BERTHA_WANT_KERNEL);
  }
}

/* To nowhere, while the other end is there and sends: otherwise the kernel knows what to answer. */
static bool sends_to_nowhere(const struct conn *c, int fd) {
  const struct ends *e = ends_of(c);
  struct pollfd p = {.fd = e != NULL && !e->swapped && e->unix_fd > 0 ? e->unix_fd : fd};
  return !(conn_flags(c) & CONN_WR_SHUT) && REAL(poll)(&p, 1, 0) == 0;
}

/* SIGIO is a file's own affair: of the one that stays, with the owner that the other one was given. */
void unix_signals(struct conn *c, int fd) {
  if (conn_kind(c) != BERTHA_CONN_UNIX || unix_swapped(c) || !unix_settle(c, fd)) {
    return;
  }
  struct f_owner_ex owner;
  int tcp = unix_tcp_fd(c, fd);
  if (REAL(fcntl)(tcp, F_GETOWN_EX, &owner) == 0 && owner.pid != 0) {
    REAL(fcntl)(fd, F_SETOWN_EX, &owner);
  }
  int number = REAL(fcntl)(tcp, F_GETSIG);
  if (number > 0) {
    REAL(fcntl)(fd, F_SETSIG, number);
  }
}

static ssize_t message(ssize_t n) {
  return n >= 0 ? n : -errno;
}

int unix_tx_begin(struct conn *c, int fd, struct unix_tx *t) {
  struct ends *e = ends_of(c);
  *t = (struct unix_tx){.life = conn_life(c)};
  if (conn_flags(c) & CONN_CARRIED) {
    carried_settle(c, fd);
    return fd;
  }
  if (c->snd_timeout_ns > 0) { /* the exchange brings it to the other socket */
    unix_settle(c, fd);
  }
  if (e->swapped) {
    return fd;
  }
  if (!bertha_lock(&c->tx_lock)) {
    return -1;
  }
  t->tcp = !tx_gone(c, e, fd);
  /* Counted in, so that no other thread switches while these bytes are on their way to TCP, and an exchange does not
   * close the other socket under us. */
  atomic_fetch_add(&c->kernel_sends, 1);
  int to = t->tcp ? fd : e->unix_fd;
  t->counted = t->tcp || !e->swapped;
  if (!t->counted) {
    atomic_fetch_sub(&c->kernel_sends, 1);
    to = fd;
  }
  bertha_unlock(&c->tx_lock);
  return to;
}

void unix_tx_end(struct conn *c, const struct unix_tx *t, ssize_t sent) {
  if (!t->counted || conn_life(c) != t->life) {
    return;
  }
  if (t->tcp && sent > 0) {
    atomic_fetch_add(&c->ktx, (uint64_t)sent);
  }
  atomic_fetch_sub(&c->kernel_sends, 1);
}

ssize_t unix_send(struct conn *c, int fd, const struct iovec *iov, int count, int flags) {
  struct msghdr msg = {.msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = (size_t)count};
  struct unix_tx t;
  if ((conn_flags(c) & CONN_CARRIED) && !unix_swapped(c)) { /* not a byte goes by TCP itself */
    ssize_t n = carried_await(c, fd, flags, c->snd_timeout_ns);
    if (n < 0) {
      return n;
    }
    if (n == 0) {
      struct msghdr nothing = {.msg_iovlen = 0};
      n = message(REAL(sendmsg)(fd, &nothing, flags));
      return n < 0 ? n : -EAGAIN;
    }
    if (conn_kind(c) == BERTHA_CONN_SHM) {
      return conn_send(c, fd, iov, count, flags);
    }
  }
  if (UNLIKELY(unix_unheard(c)) && c->tx_phase != PHASE_BEFORE && sends_to_nowhere(c, fd)) {
    count_bytes(&c->info.tx_bytes, iov_bytes(iov, count));
    return (ssize_t)iov_bytes(iov, count);
  }
  int to = unix_tx_begin(c, fd, &t);
  if (count == 1 && to >= 0 && !t.tcp) { /* the way that the next ones take, which warms it */
    ssize_t n = unix_first_send(c, iov->iov_base, iov->iov_len, flags);
    if (n != UNIX_ELSEWHERE) {
      unix_tx_end(c, &t, n);
      return message(n);
    }
  }
  ssize_t n = to >= 0 ? message(REAL(sendmsg)(to, &msg, flags)) : -EAGAIN; /* as kernel_send() in tx.c */
  unix_tx_end(c, &t, n);
  if (n > 0 && conn_life(c) == t.life) {
    count_bytes(&c->info.tx_bytes, (uint64_t)n);
  }
  return n;
}

/* A unix socket has no reset of its own but that of unread data: who closes says so in the slot. */
void unix_last_close(struct conn *c) {
  if (c->slot != NULL && (conn_flags(c) & (CONN_LINGER_0 | CONN_CARRIED)) == CONN_LINGER_0) {
    atomic_store_explicit(&conn_tx(c)->closed, 2, memory_order_release);
  }
}

bool unix_was_reset(struct conn *c) {
  if (conn_kind(c) == BERTHA_CONN_UNIX &&
      conn_take_error(c) != 0) { /* came behind a part that was told of (rx.c) */
    return true;
  }
  if (conn_kind(c) == BERTHA_CONN_UNIX && (conn_flags(c) & CONN_CARRIED)) {
    return carried_cut(c);
  }
  if (c->slot == NULL || conn_kind(c) != BERTHA_CONN_UNIX ||
      (conn_flags(c) & (CONN_CARRIED | CONN_RST | CONN_RD_SHUT)) ||
      atomic_load_explicit(&conn_rx(c)->closed, memory_order_acquire) != 2) {
    return false;
  }
  conn_set_flag(c, CONN_RST); /* told once */
  return true;
}

ssize_t unix_discard(int fd, size_t want, int flags) {
  char junk[4096];
  size_t done = 0;
  if (flags & MSG_PEEK) { /* how much there is, if somebody has to wait for it then for a first byte */
    int there = 0;
    ssize_t n = REAL(recv)(fd, junk, want > 0, flags & ~MSG_TRUNC);
    if (n <= 0 || REAL(ioctl)(fd, FIONREAD, &there) != 0) {
      return message(n);
    }
    return (size_t)there < want ? (ssize_t)there : (ssize_t)want;
  }
  while (done < want) {
    size_t part = want - done < sizeof junk ? want - done : sizeof junk;
    ssize_t n = message(REAL(recv)(
        fd, junk, part, (flags & ~MSG_TRUNC) | (done > 0 && !(flags & MSG_WAITALL) ? MSG_DONTWAIT : 0)));
    if (n <= 0) {
      return done > 0 ? (ssize_t)done : n;
    }
    done += (size_t)n;
  }
  return (ssize_t)done;
}

/* What there is in the unix socket before it has taken the descriptor's place. */
static ssize_t take_there(struct conn *c, int fd, struct msghdr *msg, int flags) {
  uint32_t life = conn_kernel_sleep(c);
  struct kernel_sleep sleep = {c, life};
  int from = unix_swapped(c) ? fd : ends_of(c)->unix_fd;
  ssize_t n = UNLIKELY(flags & MSG_TRUNC)
                  ? unix_discard(from, iov_bytes(msg->msg_iov, (int)msg->msg_iovlen), flags)
                  : message(sleep_recvmsg(from, msg, flags, conn_kernel_cancelled, &sleep));
  if (UNLIKELY(n == 0) && !conn_closed(c, fd, life) && unix_was_reset(c)) {
    n = -ECONNRESET;
  }
  conn_kernel_awake(c, life);
  if (n > 0 && !(flags & MSG_PEEK)) {
    count_bytes(&c->info.rx_bytes, (uint64_t)n);
  }
  return n;
}

ssize_t unix_look(struct conn *c, const struct iovec *iov, int count, size_t skip) {
  const struct ends *e = ends_of(c);
  struct iovec part[IOV_PARTS];
  int parts = iov_window(part, IOV_PARTS, iov, count, skip, SSIZE_MAX);
  struct msghdr msg = {.msg_iov = part, .msg_iovlen = (size_t)parts};
  return e != NULL && !e->swapped && e->unix_fd > 0 && parts > 0
             ? QUIET(recvmsg)(e->unix_fd, &msg, MSG_PEEK | MSG_DONTWAIT)
             : 0;
}

ssize_t unix_recv(struct conn *c, int fd, const struct iovec *iov, int count, int flags) {
  bool patient = !(flags & MSG_DONTWAIT) && !(conn_flags(c) & CONN_NONBLOCK);
  int64_t deadline = patient && c->rcv_timeout_ns > 0 ? bertha_now_ns() + c->rcv_timeout_ns : -1;
  for (;;) {
    struct msghdr msg = {.msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = (size_t)count};
    if (conn_flags(c) & CONN_CARRIED) {
      ssize_t n = unix_swapped(c) ? 1 : carried_await(c, fd, flags, c->rcv_timeout_ns);
      if (n < 0) {
        return n;
      }
      flags |= n == 0 ? MSG_DONTWAIT : 0; /* its error, or its end */
      if (conn_kind(c) == BERTHA_CONN_SHM) {
        return -EINPROGRESS;
      }
      n = UNLIKELY(flags & MSG_TRUNC) ? unix_discard(fd, iov_bytes(iov, count), flags)
                                      : message(REAL(recvmsg)(fd, &msg, flags));
      if (UNLIKELY(n == 0) && unix_was_reset(c)) {
        n = -ECONNRESET;
      }
      if (n > 0 && !(flags & MSG_PEEK)) {
        count_bytes(&c->info.rx_bytes, (uint64_t)n);
      }
      return n;
    }
    uint64_t switch_at = atomic_load_explicit(&conn_rx(c)->switch_at, memory_order_acquire);
    if (atomic_load(&c->krx) == switch_at) {
      if (count == 1) {
        ssize_t n = unix_first_recv(c, fd, iov->iov_base, iov->iov_len, flags);
        if (n != UNIX_ELSEWHERE) {
          return message(n);
        }
      }
      if (!(patient && unix_stays_there(c))) {
        unix_settle(c, fd);
      }
      return take_there(c, fd, &msg, flags);
    }
    int waited = patient ? unix_wait(c, fd, deadline) : 1;
    if (waited < 0) {
      return waited;
    }
    ssize_t n = recv_kernel_part(c, fd, iov, count, waited == 0 ? flags | MSG_DONTWAIT : flags);
    if (n > 0 && atomic_load(&c->krx) == atomic_load(&conn_rx(c)->switch_at) &&
        !(patient && unix_stays_there(c))) {
      unix_settle(c, fd); /* nothing comes on TCP any more to tell of it */
    }
    if (n != -EINPROGRESS && (n != -EAGAIN || waited != 0)) {
      return n;
    }
  }
}

int unix_unread(struct conn *c, int fd) {
  int tcp = 0, there = 0;
  if (unix_settle(c, fd)) {
    return REAL(ioctl)(fd, FIONREAD, &there) == 0 ? there : 0;
  }
  uint64_t before = atomic_load_explicit(&conn_rx(c)->switch_at, memory_order_acquire) - atomic_load(&c->krx);
  if (REAL(ioctl)(fd, FIONREAD, &tcp) == 0 && (uint64_t)tcp > before) {
    tcp = (int)before; /* the rest is a bell */
  }
  struct ends *e = ends_of(c);
  if (e != NULL && e->unix_fd > 0 && REAL(ioctl)(e->unix_fd, FIONREAD, &there) != 0) {
    there = 0;
  }
  return tcp + there;
}

void unix_forget(struct conn *c) {
  struct ends *e = ends_of(c);
  for (uint32_t i = 0; i < bertha.max_fd; i++) {
    if (conn_of((int)i) == c) {
      return;
    }
  }
  bool swapped = e->swapped;
  unix_drop(c);
  if (!swapped) {
    unix_closed(c);
  }
}

void unix_closed(struct conn *c) {
  bool accepted_here = c->side == BERTHA_SIDE_SERVER && c->info.pid == (uint32_t)bertha.pid;
  if (accepted_here && !(conn_flags(c) & CONN_CARRIED) && c->link != NULL &&
      !atomic_load_explicit(&c->link->header->dead, memory_order_relaxed)) {
    spares_fill(c->link);
  }
}
