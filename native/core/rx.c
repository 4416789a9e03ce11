/* Bytes in: from the kernel until the producer switched, from the ring, from the kernel again. */
#include <limits.h>
#include <string.h>
#include <sys/ioctl.h>

#include <linux/sockios.h>

#include "abroad.h"
#include "conn.h"
#include "copy.h"
#include "unixpair.h"
#include "wait.h"

int iov_window(struct iovec *to, int max, const struct iovec *from, int count, size_t skip, size_t cap) {
  int n = 0;
  for (int i = 0; i < count && cap > 0 && n < max; i++) {
    if (skip >= from[i].iov_len) {
      skip -= from[i].iov_len;
      continue;
    }
    size_t part = from[i].iov_len - skip;
    to[n].iov_base = (uint8_t *)from[i].iov_base + skip;
    to[n].iov_len = part < cap ? part : cap;
    cap -= to[n].iov_len;
    skip = 0;
    n++;
  }
  return n;
}

/* Of what is there. */
static ssize_t kernel_recv(int fd, const struct iovec *iov, int count, int flags) {
  struct msghdr msg = {.msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = (size_t)count};
  ssize_t n = QUIET(recvmsg)(fd, &msg, flags);
  return n >= 0 ? n : -errno;
}

void conn_kernel_cancelled(void *p) {
  const struct kernel_sleep *s = p;
  conn_kernel_awake(s->conn, s->life);
}

/* Until there is a byte, or something else to be told; it is only looked at.  `life`: conn_kernel_sleep()'s. */
static ssize_t await_byte(struct conn *c, int fd, uint32_t life, size_t size, int flags) {
  char byte;
  struct iovec one = {&byte, size};
  struct msghdr msg = {.msg_iov = &one, .msg_iovlen = 1};
  struct kernel_sleep s = {c, life};
  flags |= MSG_PEEK;
  ssize_t n = flags & MSG_DONTWAIT ? QUIET(recvmsg)(fd, &msg, flags)
                                   : sleep_recvmsg(fd, &msg, flags, conn_kernel_cancelled, &s);
  return n >= 0 ? n : -errno;
}

/* A call that has bytes to tell of leaves the error that ended it to the next one.  What says nothing of the connection is
 * not kept. */
void conn_keep_error(struct conn *c, ssize_t n) {
  if (LIKELY(n >= 0) || n == -EAGAIN || n == -EINTR || n == -EBADF || n == -EINPROGRESS || n == OWN_LOCK ||
      n == -EPIPE || n == -ENOMEM || n == -EFAULT ||
      (conn_kind(c) != BERTHA_CONN_SHM && conn_kind(c) != BERTHA_CONN_UNIX &&
       !(conn_flags(c) & CONN_DGRAM))) {
    return;
  }
  bool abroad = abroad_enter(c);
  c->error = (int32_t)-n;
  abroad_leave(c, abroad);
}

/* Of what the kernel holds, only the bytes before the producer's switch are data; the rest are bell bytes, or (if it
 * has come back from the ring meanwhile) data of a later time.  While the switch is not known yet: look first (this is
 * where it may block), then ask for the switch, then take no more than belongs here. */
static ssize_t take_before(struct conn *c, int fd, const struct iovec *iov, int count, size_t skip,
                           int flags) {
  struct bertha_direction *d = conn_rx(c);
  uint32_t life = conn_life(c);
  uint64_t switch_at = atomic_load_explicit(&d->switch_at, memory_order_acquire);
  uint64_t krx = atomic_load(&c->krx);
  if (krx >= switch_at) {
    return -EINPROGRESS;
  }
  struct iovec part[IOV_PARTS];
  bool known = switch_at != UINT64_MAX;
  int parts = iov_window(part, IOV_PARTS, iov, count, skip, known ? switch_at - krx : SSIZE_MAX);
  int look = flags & (MSG_DONTWAIT | MSG_PEEK | MSG_TRUNC);
  ssize_t n = kernel_recv(fd, part, parts, known ? look : look | MSG_PEEK);
  if (UNLIKELY(conn_closed(c, fd, life))) {
    return known || n <= 0 ? n : -EBADF;
  }
  if (n <= 0) {
    bool moved = atomic_load_explicit(&d->switch_at, memory_order_acquire) != switch_at;
    return moved && (n == 0 || n == -EAGAIN) ? -EINPROGRESS : n;
  }
  if (!known) {
    switch_at = atomic_load_explicit(&d->switch_at, memory_order_acquire);
    n = (uint64_t)n < switch_at - krx ? n : (ssize_t)(switch_at - krx);
    if (n == 0) {
      return -EINPROGRESS;
    }
    if (!(flags & MSG_PEEK)) {
      parts = iov_window(part, IOV_PARTS, iov, count, skip, (size_t)n);
      n = kernel_recv(fd, part, parts, MSG_DONTWAIT | (flags & MSG_TRUNC));
      if (n == -EAGAIN) {
        return -EINPROGRESS; /* another thread has taken what both had seen */
      }
    }
  }
  if (n > 0 && !(flags & MSG_PEEK)) {
    atomic_fetch_add(&c->krx, (uint64_t)n);
    count_bytes(&c->info.rx_bytes, (uint64_t)n);
  }
  return n;
}

static ssize_t recv_before(struct conn *c, int fd, const struct iovec *iov, int count, size_t skip,
                           int flags) {
  if (!bertha_lock(&c->rx_lock)) {
    return OWN_LOCK;
  }
  ssize_t n = take_before(c, fd, iov, count, skip, (flags & (MSG_PEEK | MSG_TRUNC)) | MSG_DONTWAIT);
  if (n == -EINPROGRESS && atomic_load(&c->krx) >= atomic_load(&conn_rx(c)->switch_at)) {
    c->rx_phase = PHASE_RING;
  }
  bertha_unlock(&c->rx_lock);
  if (n == -ECONNRESET && conn_ended_in_order(c)) {
    conn_set_flag(c, CONN_RST);
    n = 0;
  }
  if (n == 0) {
    conn_set_flag(c, CONN_FIN);
  }
  return n;
}

/* Every index is masked: whatever the other side writes into the slot, we stay within this slot's memory. */
ssize_t ring_read(struct conn *c, const struct iovec *iov, int count, size_t skip, int flags) {
  bool peek = flags & MSG_PEEK;
  bool discard = flags & MSG_TRUNC; /* tcp(7): the bytes are thrown away */
  struct bertha_direction *d = conn_rx(c);
  uint64_t tail = atomic_load_explicit(&d->tail, memory_order_acquire);
  uint64_t head = c->rx_head;
  uint64_t used = tail - head;
  if (used == 0) {
    return 0;
  }
  uint32_t size = atomic_load_explicit(&d->size, memory_order_relaxed);
  uint64_t base = atomic_load_explicit(&d->base, memory_order_relaxed);
  if (!ring_is_sound(c, size, used)) {
    conn_broken(c);
    return -ECONNRESET;
  }
  size_t taken = 0;
  for (int i = 0; i < count && used > 0; i++) {
    if (skip >= iov[i].iov_len) {
      skip -= iov[i].iov_len;
      continue;
    }
    uint8_t *to = (uint8_t *)iov[i].iov_base + skip;
    size_t part = iov[i].iov_len - skip;
    skip = 0;
    part = part < used ? part : (size_t)used;
    uint32_t at = (uint32_t)(head - base) & (size - 1);
    size_t first = part < size - at ? part : size - at;
    if (!discard) {
      copy_out(to, c->rx_mem + at, first);
      copy_out(to + first, c->rx_mem, part - first);
    }
    head += part;
    used -= part;
    taken += part;
  }
  if (!peek) {
    __atomic_store_n(&c->rx_head, head, __ATOMIC_RELAXED); /* others look at it */
    atomic_store_explicit(&d->head, head, memory_order_release);
  }
  return (ssize_t)taken;
}

/* Those that lie before what comes after the ring.  1, or as recv(): there is nothing behind them yet. */
static ssize_t skip_bells(struct conn *c, int fd) {
  uint32_t bells = atomic_load_explicit(&conn_rx(c)->bells, memory_order_acquire);
  while (c->bells_seen < bells) {
    char junk[16];
    size_t left = bells - c->bells_seen;
    ssize_t n = QUIET(recv)(fd, junk, left < sizeof junk ? left : sizeof junk, MSG_DONTWAIT);
    if (n <= 0) {
      return n == 0 ? 0 : -errno;
    }
    c->bells_seen += (uint32_t)n;
  }
  return 1;
}

/* Urgent data has brought the stream back to the kernel: a read that has got something stops at its mark (tcp(7)). */
static bool kernel_at_mark(const struct conn *c, int fd) {
  int is = 0;
  return conn_kind(c) == BERTHA_CONN_SHM &&
         atomic_load_explicit(&conn_rx(c)->ring_end, memory_order_acquire) != UINT64_MAX &&
         REAL(ioctl)(fd, SIOCATMARK, &is) == 0 && is;
}

bool conn_before_mark(struct conn *c, int fd) {
  struct bertha_direction *d = conn_rx(c);
  bool before = true;
  bool abroad = abroad_enter(c);
  if (bertha_lock(&c->rx_lock)) {
    bool ring = c->rx_phase == PHASE_RING ||
                (c->rx_phase == PHASE_BEFORE && atomic_load(&c->krx) == atomic_load(&d->switch_at));
    if (ring && atomic_load_explicit(&d->ring_end, memory_order_acquire) == c->rx_head) {
      c->rx_phase = PHASE_AFTER;
      conn_low_water_back(c, fd);
      ring = false;
    }
    before = ring || (c->rx_phase == PHASE_AFTER && skip_bells(c, fd) <= 0);
    bertha_unlock(&c->rx_lock);
  }
  abroad_leave(c, abroad);
  return before;
}

/* 0 where there are `skip` bytes: the read is over. */
static ssize_t recv_after(struct conn *c, int fd, const struct iovec *iov, int count, size_t skip,
                          int flags) {
  ssize_t past = skip_bells(c, fd);
  if (past <= 0) {
    return past;
  }
  if (skip > 0 && kernel_at_mark(c, fd)) {
    return 0;
  }
  struct iovec part[IOV_PARTS];
  int parts = iov_window(part, IOV_PARTS, iov, count, skip, SSIZE_MAX);
  ssize_t n = kernel_recv(fd, part, parts, (flags & (MSG_PEEK | MSG_TRUNC)) | MSG_DONTWAIT);
  if (n > 0 && !(flags & MSG_PEEK)) {
    count_bytes(&c->info.rx_bytes, (uint64_t)n);
  }
  return n;
}

/* One try at the ring: > 0, 0 at the end, -EAGAIN, another -errno, or -EINPROGRESS: the phase has changed. */
static ssize_t recv_ring(struct conn *c, int fd, const struct iovec *iov, int count, size_t skip, int flags) {
  struct bertha_direction *d = conn_rx(c);
  bool fin = conn_flags(c) & CONN_FIN; /* before the look at the ring: what it holds was written earlier */
  if (!bertha_lock(&c->rx_lock)) {
    return OWN_LOCK;
  }
  if (UNLIKELY(conn_of(fd) != c)) { /* closed by another thread meanwhile */
    bertha_unlock(&c->rx_lock);
    return -EBADF;
  }
  if (UNLIKELY(conn_asks_back(c))) {
    ask_no_more(c);
  }
  ssize_t n = ring_read(c, iov, count, skip, flags);
  if (n > 0) {
    bool wanted = false;
    if (!(flags & MSG_PEEK)) {
      count_bytes(&c->info.rx_bytes, (uint64_t)n);
      atomic_thread_fence(memory_order_seq_cst);
      wanted = atomic_load_explicit(&d->space_wanted, memory_order_relaxed) &&
               atomic_exchange(&d->space_wanted, 0);
      if (UNLIKELY(atomic_load_explicit(&d->bell_out, memory_order_relaxed) || atomic_load(&c->bell_debt)) &&
          atomic_load(&d->tail) == c->rx_head) {
        bell_settle(c, fd);
      }
    }
    bertha_unlock(&c->rx_lock);
    conn_set_flag(c, CONN_LAST_RECV_DATA);
    if (UNLIKELY(conn_borrows(c)) && borrow_unread(c)) {
      borrow_in(c, false);
    }
    if (wanted) {
      signal_space(c, fd);
    }
    return n;
  }
  if (n == 0 && atomic_load_explicit(&d->ring_end, memory_order_acquire) == c->rx_head) {
    c->rx_phase = PHASE_AFTER;
    conn_low_water_back(c, fd);
    n = -EINPROGRESS;
  }
  bertha_unlock(&c->rx_lock);
  if (n < 0) {
    return n;
  }
  if (UNLIKELY(conn_borrows(c)) && borrow_in(c, false)) {
    return -EINPROGRESS;
  }
  if (conn_flags(c) & CONN_RD_SHUT) {
    return 0;
  }
  if (fin) { /* a reset may have come after the FIN: it is reported once (tcp(7)) */
    conn_look_at_kernel(c, fd);
    return -conn_take_error(c);
  }
  int error = conn_take_error(c);
  if (error != 0) {
    return -error;
  }
  /* Whether the kernel's half has ended costs a system call to know.  Not asked directly after data: a
   * program that reads until EAGAIN would pay it for each message; the producer's `closed` tells of an
   * orderly end, and any wait asks the kernel anyway. */
  if ((conn_flags(c) & CONN_LAST_RECV_DATA) && !atomic_load_explicit(&d->closed, memory_order_acquire)) {
    conn_clear_flag(c, CONN_LAST_RECV_DATA);
    return -EAGAIN;
  }
  return conn_look_at_kernel(c, fd) ? -EINPROGRESS : -EAGAIN;
}

/* At the end of one carrier's bytes the next one's may be waiting: a short read must mean that nothing is left. */
static bool more_elsewhere(const struct conn *c) {
  struct bertha_direction *d = conn_rx(c);
  if (c->rx_phase == PHASE_BEFORE) {
    return atomic_load(&c->krx) == atomic_load_explicit(&d->switch_at, memory_order_acquire);
  }
  return c->rx_phase == PHASE_RING && atomic_load_explicit(&d->ring_end, memory_order_acquire) == c->rx_head;
}

ssize_t conn_recv(struct conn *c, int fd, const struct iovec *iov, int count, int flags) {
  size_t want = iov_bytes(iov, count);
  size_t got = 0;
  bool patient = !(flags & MSG_DONTWAIT) && !(conn_flags(c) & CONN_NONBLOCK);
  size_t least = (flags & MSG_WAITALL) && !(flags & MSG_PEEK) ? want : 1;
  if ((size_t)c->rcv_lowat > least && !(flags & MSG_PEEK)) {
    least = (size_t)c->rcv_lowat < want ? (size_t)c->rcv_lowat : want;
  }
  int64_t deadline = patient && c->rcv_timeout_ns > 0 ? bertha_now_ns() + c->rcv_timeout_ns : -1;
  for (;;) {
    bool abroad = abroad_enter(c);
    ssize_t n = c->rx_phase == PHASE_RING     ? recv_ring(c, fd, iov, count, got, flags)
                : c->rx_phase == PHASE_BEFORE ? recv_before(c, fd, iov, count, got, flags)
                                              : recv_after(c, fd, iov, count, got, flags);
    abroad_leave(c, abroad);
    if (n == -EINPROGRESS) {
      continue;
    }
    if (n > 0) {
      got += (size_t)n;
      if (got == want || (flags & MSG_PEEK) || (got >= least && !more_elsewhere(c))) {
        return (ssize_t)got;
      }
      continue;
    }
    if (got > 0 && (got >= least || n != -EAGAIN)) {
      conn_keep_error(c, n);
      return (ssize_t)got;
    }
    if (n != -EAGAIN || !patient) {
      return got > 0 ? (ssize_t)got : n;
    }
    n = wait_conn(c, fd, POLLIN, deadline);
    if (n < 0) {
      return got > 0 ? (ssize_t)got : n;
    }
  }
}

/* Sleeps without the lock until the kernel has something, and takes it with the lock: several threads may read here, and
 * only one of them may judge how much of it is data. */
static ssize_t wait_and_take(struct conn *c, int fd, uint32_t life, const struct iovec *iov, int count,
                             int flags) {
  bool patient = !(flags & MSG_DONTWAIT) && !(conn_flags(c) & CONN_NONBLOCK);
  uint64_t switch_at = atomic_load_explicit(&conn_rx(c)->switch_at, memory_order_acquire);
  if (patient && atomic_load(&c->krx) < switch_at) {
    ssize_t n = await_byte(c, fd, life, 1, 0);
    if (UNLIKELY(conn_closed(c, fd, life))) {
      return n <= 0 ? n : -EBADF;
    }
    if (n <= 0) {
      bool moved = atomic_load_explicit(&conn_rx(c)->switch_at, memory_order_acquire) != switch_at;
      return moved && (n == 0 || n == -EAGAIN) ? -EINPROGRESS : n;
    }
  }
  if (!bertha_lock(&c->rx_lock)) {
    return OWN_LOCK;
  }
  ssize_t n = take_before(c, fd, iov, count, 0, flags | MSG_DONTWAIT);
  bertha_unlock(&c->rx_lock);
  return n == -EAGAIN && patient ? -EINPROGRESS : n; /* another thread was quicker */
}

/* May block in the kernel: then the other end must ring there, which `kernel_waiters` sees to.  A blocked MSG_WAITALL
 * would count bell bytes as data and wait on: the caller loops. */
ssize_t recv_kernel_part(struct conn *c, int fd, const struct iovec *iov, int count, int flags) {
  uint32_t life = conn_kernel_sleep(c);
  ssize_t n = -EINPROGRESS;
  if (atomic_load(&c->info.kind) != BERTHA_CONN_SHM) {
    n = wait_and_take(c, fd, life, iov, count, flags & ~MSG_WAITALL);
  }
  conn_kernel_awake(c, life);
  return n;
}

/* There is a first byte: a claim, if there is one, is there too.  False: a signal handler under its thread's own lock. */
static bool claimed_or_plain(struct conn *c, int fd) {
  if (!conn_ripe(c, fd) && conn_kind(c) == BERTHA_CONN_MAYBE) {
    if (!bertha_lock(&c->rx_lock)) {
      return false;
    }
    if (conn_kind(c) == BERTHA_CONN_MAYBE) {
      conn_make_plain(c, conn_untied_reason(c)); /* it sent without a claim */
    }
    bertha_unlock(&c->rx_lock);
  }
  return true;
}

/* The first bytes, if they are there: nothing but data can come before the tie, and that needs the lock that we hold.
 * A thread that would wait tries seldom where it found nothing the last time: its look would be a call too many. */
static ssize_t recv_first(struct conn *c, int fd, const struct iovec *iov, int count, int flags) {
  enum { SELDOM = 16 };
  bool patient = !(flags & MSG_DONTWAIT) && !(conn_flags(c) & CONN_NONBLOCK);
  struct listener *listener = listener_of(c);
  if (listener == NULL) {
    return -EINPROGRESS;
  }
  _Atomic uint8_t *late = &listener->late;
  uint8_t skip = patient ? atomic_load_explicit(late, memory_order_relaxed) : 0;
  if (skip > 0) {
    atomic_store_explicit(late, skip - 1, memory_order_relaxed);
  }
  if (skip > 0 || (patient && c->rcv_lowat > 1) ||
      (flags & ~(MSG_DONTWAIT | MSG_NOSIGNAL | MSG_WAITALL)) != 0) {
    return -EINPROGRESS;
  }
  if (!bertha_lock(&c->rx_lock)) {
    return OWN_LOCK;
  }
  ssize_t n = -EINPROGRESS;
  if (conn_kind(c) == BERTHA_CONN_MAYBE && conn_of(fd) == c) {
    n = kernel_recv(fd, iov, count, MSG_DONTWAIT);
    if (n > 0) {
      atomic_fetch_add(&c->krx, (uint64_t)n);
      count_bytes(&c->info.rx_bytes, (uint64_t)n);
    }
  }
  bertha_unlock(&c->rx_lock);
  if (n > 0) {
    claimed_or_plain(c, fd);
  } else if (n == -EAGAIN && patient) {
    atomic_store_explicit(late, SELDOM, memory_order_relaxed);
    n = -EINPROGRESS;
  }
  return n;
}

/* The server until it sees the claim. */
static ssize_t recv_maybe(struct conn *c, int fd, const struct iovec *iov, int count, int flags) {
  ssize_t first = recv_first(c, fd, iov, count, flags);
  if (first != -EINPROGRESS || conn_kind(c) != BERTHA_CONN_MAYBE) {
    return first;
  }
  uint32_t life = conn_kernel_sleep(c);
  /* Counted first, looked at afterwards: another thread that ties the connection looks at the count, to tell the other end
   * whether to ring on the kernel's connection. */
  if (atomic_load(&c->info.kind) != BERTHA_CONN_MAYBE) {
    conn_kernel_awake(c, life);
    return -EINPROGRESS;
  }
  ssize_t n = await_byte(c, fd, life, iov_bytes(iov, count) > 0, flags & MSG_DONTWAIT);
  conn_kernel_awake(c, life);
  if (n <= 0 || UNLIKELY(conn_closed(c, fd, life))) {
    conn_refresh_watch(c);
    /* the end of the kernel's half is not that of a ring, or a unix socket, which came meanwhile */
    uint32_t now = conn_kind(c);
    bool elsewhere = now == BERTHA_CONN_SHM || now == BERTHA_CONN_UNIX;
    return n == 0 && elsewhere && !conn_closed(c, fd, life) ? -EINPROGRESS : n;
  }
  /* Only looked at, because another thread may have taken the claim meanwhile, and then the byte may be a bell. */
  if (!claimed_or_plain(c, fd)) {
    return OWN_LOCK;
  }
  conn_refresh_watch(c);
  return -EINPROGRESS;
}

/* The server ties itself before it switches: one that says it has switched and is not there lies, and we would look for
 * ever. */
static bool switched_untied(struct conn *c, int fd) {
  if (atomic_load(&c->krx) < atomic_load_explicit(&conn_rx(c)->switch_at, memory_order_acquire) ||
      conn_ripe(c, fd) || conn_kind(c) != BERTHA_CONN_CLAIMED) {
    return false;
  }
  return BERTHA_SLOT_STATE(atomic_load(&c->slot->state)) != BERTHA_SLOT_ATTACHED ||
         c->link->plan.implementation != BERTHA_IMPL_SHM;
}

ssize_t recv_once(struct conn *c, int fd, const struct iovec *iov, int count, int flags, bool *whole) {
  int64_t deadline = -1;
  for (;;) {
    *whole = true;
    if (conn_ripe(c, fd)) {
      return conn_recv(c, fd, iov, count, flags);
    }
    uint32_t kind = conn_kind(c);
    ssize_t n = -EINPROGRESS;
    if (kind == BERTHA_CONN_CLAIMED) {
      bool patient = !(flags & MSG_DONTWAIT) && !(conn_flags(c) & CONN_NONBLOCK);
      if (patient && atomic_load(&c->ktx) != 0 && c->link->plan.implementation == BERTHA_IMPL_SHM) {
        wait_claimed(c);
        if (conn_ripe(c, fd)) {
          continue;
        }
      }
      int waited = 1;
      if (patient && c->link->plan.implementation == BERTHA_IMPL_UNIX) {
        deadline = deadline < 0 && c->rcv_timeout_ns > 0 ? bertha_now_ns() + c->rcv_timeout_ns : deadline;
        waited = unix_wait(c, fd, deadline);
        conn_ripe(c, fd);
        if (waited < 0) {
          return waited;
        }
        if (conn_kind(c) != BERTHA_CONN_CLAIMED) {
          continue;
        }
      }
      n = recv_kernel_part(c, fd, iov, count, waited == 0 ? flags | MSG_DONTWAIT : flags);
      n = n == -EAGAIN && waited == 0 ? -EINPROGRESS : n;
      *whole = false;
      if (n == -EINPROGRESS && switched_untied(c, fd)) {
        if (unix_letter_waits(c)) {
          if (!patient || (deadline >= 0 && bertha_now_ns() > deadline)) {
            return -EAGAIN;
          }
          QUIET(nap)(1000000);
          continue;
        }
        conn_broken(c);
        return -ECONNRESET;
      }
    } else if (kind == BERTHA_CONN_MAYBE) {
      n = recv_maybe(c, fd, iov, count, flags);
      *whole = false;
    } else if (kind == BERTHA_CONN_UNIX) {
      *whole = (conn_flags(c) & CONN_CARRIED) ||
               atomic_load(&c->krx) == atomic_load_explicit(&conn_rx(c)->switch_at, memory_order_acquire);
      n = unix_recv(c, fd, iov, count, flags);
    } else if (kind != BERTHA_CONN_SHM) {
      struct msghdr msg = {.msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = (size_t)count};
      n = REAL(recvmsg)(fd, &msg, flags);
      n = n >= 0 ? n : -errno;
      if (n > 0 && !(flags & MSG_PEEK)) {
        count_bytes(&c->info.rx_bytes, (uint64_t)n);
      }
    }
    if (n != -EINPROGRESS) {
      return n;
    }
  }
}

ssize_t stream_recv(struct conn *c, int fd, const struct iovec *iov, int count, int flags) {
  CANCELLATION_POINT();
  if (UNLIKELY(iov_bytes(iov, count) == 0)) {
    return look_for_nothing(c, fd, flags);
  }
  if (UNLIKELY((flags & MSG_PEEK) && ((flags & MSG_WAITALL) || c->rcv_lowat > 1) && !(flags & MSG_DONTWAIT) &&
               !(conn_flags(c) & CONN_NONBLOCK))) {
    return look_patiently(c, fd, iov, count, flags);
  }
  bool before = conn_kind(c) == BERTHA_CONN_SHM;
  bool whole;
  ssize_t n = recv_once(c, fd, iov, count, flags, &whole);
  n = UNLIKELY(n == OWN_LOCK) ? -EAGAIN : n;
  uint32_t now = conn_kind(c);
  if (n > 0 && !before && (now == BERTHA_CONN_SHM || now == BERTHA_CONN_UNIX) &&
      !(flags & (MSG_PEEK | MSG_WAITALL)) && (size_t)n < iov_bytes(iov, count) && !kernel_at_mark(c, fd)) {
    /* The tie came with these bytes: what is in the ring, or in the unix socket, belongs to this read. */
    struct iovec rest[IOV_PARTS];
    int parts = iov_window(rest, IOV_PARTS, iov, count, (size_t)n, SSIZE_MAX);
    ssize_t more = now == BERTHA_CONN_SHM ? conn_recv(c, fd, rest, parts, flags | MSG_DONTWAIT)
                                          : unix_recv(c, fd, rest, parts, flags | MSG_DONTWAIT);
    conn_keep_error(c, more);
    return more > 0 ? n + more : n;
  }
  bool all =
      (flags & MSG_WAITALL) && !(flags & (MSG_PEEK | MSG_DONTWAIT)) && !(conn_flags(c) & CONN_NONBLOCK);
  if (LIKELY(!all) || n <= 0 || whole) { /* a part only: a timeout, a signal or the end has cut it short */
    return n;
  }
  size_t got = (size_t)n; /* the connection may have changed its carrier on the way */
  size_t want = iov_bytes(iov, count);
  while (got < want && !whole) {
    struct iovec part[IOV_PARTS];
    int parts = iov_window(part, IOV_PARTS, iov, count, got, SSIZE_MAX);
    n = recv_once(c, fd, part, parts, flags, &whole);
    if (n <= 0) {
      conn_keep_error(c, n);
      break;
    }
    got += (size_t)n;
  }
  return (ssize_t)got;
}
