/* Leaving a ring at once, with nothing left in it: for a program that will know of no ring.
 *
 * The consumer stops reading, says so in `want_kernel`, and wakes the producer.  As soon as that calls us, or looks what
 * there is in a wait of ours, it sends what lies unread by the kernel's connection, before anything newer, and ends the
 * ring where the consumer stopped.  From then on the kernel's connection is all there is, in both directions, for whoever
 * has its descriptor.  A producer that does not answer (it computes, or sleeps elsewhere) is not waited for for long:
 * the ring then stays, and a relay reads it (relay.h). */
#include "abroad.h"
#include "conn.h"
#include "relay.h"

#include <string.h>
#include <sys/syscall.h>

#define PATIENCE_NS 100000000
#define LOOK_NS 20000

/* ---- the producer -------------------------------------------------------------------------------- */

/* Must go at once: a part in the kernel and a part in the ring would be nobody's. */
static bool kernel_has_room(int fd, size_t bytes) {
  int space = 0, queued = 0;
  socklen_t size = sizeof space;
  return bytes == 0 || (REAL(getsockopt)(fd, SOL_SOCKET, SO_SNDBUF, &space, &size) == 0 &&
                        REAL(ioctl)(fd, 0x5411 /* SIOCOUTQ */, &queued) == 0 && space / 2 > queued &&
                        (size_t)(space / 2 - queued) >= bytes);
}

/* The room was there: what the kernel did not take after all, it takes as its queue moves on. */
static void send_all(int fd, struct iovec *part) {
  struct msghdr msg = {.msg_iov = part, .msg_iovlen = 2};
  while (part[0].iov_len + part[1].iov_len > 0) {
    ssize_t n = QUIET(sendmsg)(fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    if (n < 0 && (errno != EAGAIN || QUIET(poll)(&p, 1, 1000) < 1)) {
      REAL(shutdown)(fd, SHUT_RDWR); /* an end that both see, never a gap */
      return;
    }
    for (int i = 0; i < 2 && n > 0; i++) {
      size_t gone = (size_t)n < part[i].iov_len ? (size_t)n : part[i].iov_len;
      part[i].iov_base = (uint8_t *)part[i].iov_base + gone;
      part[i].iov_len -= gone;
      n -= (ssize_t)gone;
    }
  }
}

void tx_give_back(struct conn *c, int fd) {
  struct bertha_direction *d = conn_tx(c);
  uint32_t asked = BERTHA_WANT_ALL_BACK;
  if (!atomic_compare_exchange_strong(&d->want_kernel, &asked, BERTHA_WANT_GIVING)) {
    return;
  }
  int saved = errno;
  uint64_t head = atomic_load_explicit(&d->head, memory_order_acquire);
  uint64_t used = c->tx_tail - head;
  /* Where the ring has ended, bytes of a later time lie in the kernel already. */
  bool open = used == 0 || (c->tx_phase != PHASE_AFTER && !(conn_flags(c) & (CONN_WR_SHUT | CONN_RST)));
  bool good = used <= c->tx_size && open && tx_kernel_sends(c) == 0 && kernel_has_room(fd, (size_t)used);
  if (good && c->tx_phase == PHASE_BEFORE) {
    atomic_store_explicit(&d->switch_at, atomic_load(&c->ktx), memory_order_release);
    c->tx_phase = PHASE_RING;
  }
  if (good && c->tx_phase == PHASE_RING) {
    if (used > 0) {
      uint32_t at = (uint32_t)(head - c->tx_base) & (c->tx_size - 1);
      size_t first = used < c->tx_size - at ? (size_t)used : c->tx_size - at;
      struct iovec part[2] = {{c->tx_mem + at, first}, {c->tx_mem, (size_t)used - first}};
      send_all(fd, part);
    }
    c->tx_tail = head;
    atomic_store_explicit(&d->tail, head, memory_order_release);
    tx_to_kernel(c);
  }
  atomic_store(&d->want_kernel, good ? BERTHA_WANT_KERNEL : BERTHA_WANT_ALL_BACK);
  errno = saved;
}

void conn_give_back(struct conn *c, int fd) {
  if (conn_of(fd) == c && bertha_lock(&c->tx_lock)) {
    tx_give_back(c, fd);
    bertha_unlock(&c->tx_lock);
  }
}

/* ---- the consumer -------------------------------------------------------------------------------- */

static bool ended(const struct conn *c) {
  return c->rx_phase == PHASE_AFTER ||
         atomic_load_explicit(&conn_rx(c)->ring_end, memory_order_acquire) == c->rx_head;
}

/* Bytes before the switch that are still in the kernel have the bells behind them, where we cannot take them off. */
static bool bells_are_within(const struct conn *c) {
  struct bertha_direction *d = conn_rx(c);
  return c->rx_phase == PHASE_BEFORE && atomic_load(&c->krx) != atomic_load(&d->switch_at) &&
         atomic_load(&d->bells) != 0;
}

static bool take_bells(struct conn *c, int fd, int64_t until) {
  while (c->bells_seen < atomic_load_explicit(&conn_rx(c)->bells, memory_order_acquire)) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    if (!bell_take_byte(c, fd) && (bertha_now_ns() > until || QUIET(poll)(&p, 1, 1) < 0)) {
      return false;
    }
  }
  return true;
}

/* After its end the producer can give nothing back, and writes nothing any more. */
static bool producer_gone(int fd) {
  struct pollfd p = {.fd = fd, .events = POLLRDHUP};
  return QUIET(poll)(&p, 1, 0) > 0;
}

static bool ask(struct conn *c, int fd, int64_t until) {
  struct bertha_direction *d = conn_rx(c);
  atomic_store(&d->want_kernel, BERTHA_WANT_ALL_BACK);
  atomic_thread_fence(memory_order_seq_cst);
  borrow_end(c);
  signal_data(c, fd);
  signal_space(c, fd);
  /* A producer that has never used its ring, and never will, has no end of it to tell of. */
  while (!ended(c) && atomic_load(&d->want_kernel) != BERTHA_WANT_KERNEL) {
    bool gone = producer_gone(fd); /* before the look at the ring */
    int64_t now = bertha_now_ns();
    uint32_t asked = BERTHA_WANT_ALL_BACK;
    if ((gone || now > until) && atomic_compare_exchange_strong(&d->want_kernel, &asked, BERTHA_WANT_RING)) {
      return gone && (atomic_load(&d->switch_at) == UINT64_MAX
                          ? atomic_load(&d->bells) == 0
                          : atomic_load_explicit(&d->tail, memory_order_acquire) == c->rx_head);
    }
    if (gone && asked == BERTHA_WANT_GIVING && now > until) {
      break; /* killed while it gave: its end comes early, and without a gap */
    }
    if (conn_asked_back(c)) {
      conn_give_back(c, fd); /* the other end leaves at the same time */
    }
    struct timespec moment = {0, LOOK_NS};
    REAL(syscall)(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &moment, NULL);
  }
  return true;
}

/* Who asks has the rx lock for as long as that lasts: it is ours, so that one was killed, and we go on reading.  An answer
 * that has begun is waited for, if it is one: the word alone is the peer's to write. */
void ask_no_more(struct conn *c) {
  struct bertha_direction *d = conn_rx(c);
  uint32_t asked = BERTHA_WANT_ALL_BACK;
  if (!atomic_compare_exchange_strong(&d->want_kernel, &asked, BERTHA_WANT_RING)) {
    int64_t until = bertha_now_ns() + PATIENCE_NS;
    while (atomic_load(&d->want_kernel) == BERTHA_WANT_GIVING && bertha_now_ns() < until) {
      QUIET(nap)(LOOK_NS);
    }
    asked = BERTHA_WANT_GIVING;
    atomic_compare_exchange_strong(&d->want_kernel, &asked, BERTHA_WANT_RING);
  }
}

static bool take_back(struct conn *c, int fd) {
  int64_t until = bertha_now_ns() + PATIENCE_NS;
  if (!bertha_lock(&c->rx_lock)) {
    return false;
  }
  bool back = conn_flags(c) & CONN_BACK; /* by another process, for which we have waited */
  if (!back && !bells_are_within(c) && (ended(c) || ask(c, fd, until)) &&
      !bells_are_within(c)) { /* one more may have been rung meanwhile */
    c->rx_phase = PHASE_AFTER;
    conn_low_water_back(c, fd);
    back = take_bells(c, fd, until + PATIENCE_NS);
  }
  if (back) {
    conn_set_flag(c, CONN_BACK);
  }
  bertha_unlock(&c->rx_lock);
  return back;
}

bool conn_take_back(struct conn *c, int fd, uint32_t why) {
  if (conn_flags(c) &
      CONN_BACK) { /* by another of its descriptors; bytes before the switch may still lie in the kernel */
    return true;
  }
  if (UNLIKELY(conn_flags(c) & CONN_RELAYED)) {
    relay_await(c, fd);
  }
  int saved = errno;
  bool abroad = abroad_enter(c);
  bool back = take_back(c, fd);
  abroad_leave(c, abroad);
  if (back) {
    conn_leave_ring(c, why);
  }
  errno = saved;
  return back;
}
