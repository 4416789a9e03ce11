/* What holds of a connection just now, as the rings and the kernel's half together say. */
#include "abroad.h"
#include "conn.h"

static short kernel_poll(int fd, short want) {
  struct pollfd p = {.fd = fd, .events = want};
  int saved = errno;
  int n = QUIET(poll)(&p, 1, 0);
  errno = saved;
  return n > 0 ? p.revents : 0;
}

static bool ring_filled(const struct conn *c) {
  return atomic_load_explicit(&conn_rx(c)->tail, memory_order_acquire) != conn_rx_head(c);
}

/* SO_RCVLOWAT, as far as the ring can ever hold that much (the kernel bounds it by its buffer). */
static bool enough_filled(const struct conn *c, bool low_water) {
  struct bertha_direction *d = conn_rx(c);
  if (LIKELY(!low_water || c->rcv_lowat <= 1)) {
    return true;
  }
  uint64_t used = atomic_load_explicit(&d->tail, memory_order_acquire) - conn_rx_head(c);
  return used >= (uint64_t)c->rcv_lowat || used >= atomic_load(&d->size) / 2 ||
         atomic_load_explicit(&d->ring_end, memory_order_acquire) != UINT64_MAX;
}

static short rx_events(struct conn *c, int fd, bool low_water) {
  struct bertha_direction *d = conn_rx(c);
  for (;;) {
    uint64_t switch_at = atomic_load_explicit(&d->switch_at, memory_order_acquire);
    bool ring =
        c->rx_phase == PHASE_RING || (c->rx_phase == PHASE_BEFORE && atomic_load(&c->krx) == switch_at);
    if (ring) {
      if (ring_filled(c)) {
        return enough_filled(c, low_water) ? POLLIN : 0;
      }
      if (atomic_load_explicit(&d->ring_end, memory_order_acquire) != conn_rx_head(c)) {
        return 0;
      }
      /* bell bytes that are yet to be skipped may make this POLLIN a false alarm, as the kernel's may be */
      return kernel_poll(fd, POLLIN | POLLRDHUP);
    }
    short r = kernel_poll(fd, POLLIN | POLLRDHUP);
    if (atomic_load_explicit(&d->switch_at, memory_order_acquire) == switch_at) {
      return r;
    }
  }
}

static short tx_events(struct conn *c, int fd) {
  /* Before the switch the ring is empty, but the switch itself waits for room in the kernel. */
  if (c->tx_phase == PHASE_AFTER || (c->tx_phase == PHASE_BEFORE && atomic_load(&c->ktx) != 0)) {
    return kernel_poll(fd, POLLOUT);
  }
  if (conn_flags(c) & CONN_WR_SHUT) {
    return POLLOUT;
  }
  struct bertha_direction *d = conn_tx(c);
  uint64_t size = ring_bound(c);
  uint64_t enough = size / 8; /* worth waking up for */
  if (c->tx_tail - c->tx_head < size / 2) {
    return POLLOUT; /* as of the last look at the consumer's end, which can only have gone on */
  }
  for (int looks = 0; looks < 2; looks++) {
    uint64_t used = c->tx_tail - atomic_load_explicit(&d->head, memory_order_acquire);
    if (used > c->tx_size || (used < size && size - used >= enough)) {
      return POLLOUT; /* nonsense counts as writable: the send then tells */
    }
    conn_want_space(c);
  }
  return 0;
}

static short events_now(struct conn *c, int fd, short want, bool low_water) {
  uint32_t flags = conn_flags(c);
  short r = 0;
  if (UNLIKELY(flags & (CONN_RST | CONN_BROKEN))) {
    r = kernel_poll(fd, POLLIN | POLLOUT | POLLRDHUP);
  }
  if (want & (POLLIN | POLLRDNORM | POLLRDHUP)) {
    r |= rx_events(c, fd, low_water);
  }
  if (flags & (CONN_FIN | CONN_RD_SHUT)) {
    r |= POLLIN | POLLRDHUP;
    if (flags & CONN_WR_SHUT) {
      r |= POLLHUP;
    }
  }
  if (c->error != 0) {
    r |= POLLIN | POLLERR | POLLHUP;
  }
  if (want & (POLLOUT | POLLWRNORM)) {
    r |= tx_events(c, fd);
  }
  if (want & POLLPRI) {
    r |= kernel_poll(fd, POLLPRI);
  }
  if (r & POLLIN) {
    r |= POLLRDNORM;
  }
  if (r & POLLOUT) {
    r |= POLLWRNORM;
  }
  return (short)(r & (want | POLLERR | POLLHUP));
}

static short events(struct conn *c, int fd, short want, bool low_water) {
  bool abroad = abroad_enter(c);
  short r = events_now(c, fd, want, low_water);
  if (!(r & POLLIN) && UNLIKELY(conn_asked_back(c))) {
    conn_give_back(c, fd);
  }
  abroad_leave(c, abroad);
  return r;
}

short conn_events(struct conn *c, int fd, short want) {
  return events(c, fd, want, true);
}

short conn_events_any(struct conn *c, int fd, short want) {
  return events(c, fd, want, false);
}

/* Epoll's bits have poll's values (epoll_ctl(2)). */
void conn_kernel_events(struct conn *c, uint32_t events) {
  if (events & EPOLLRDHUP) {
    conn_set_flag(c, CONN_FIN);
  }
  if (events & (EPOLLERR | EPOLLHUP)) {
    conn_set_flag(c, CONN_RST);
  }
}

static bool all_was_read(const struct conn *c) {
  return c->tx_phase == PHASE_RING && atomic_load(&conn_tx(c)->head) == c->tx_tail;
}

bool conn_ended_in_order(const struct conn *c) {
  return atomic_load(&conn_rx(c)->closed) == 1 && all_was_read(c);
}

/* Nothing of what TCP would call unread is in the kernel where the other end is killed: it ends in order, as a living end
 * does that sends no more, which has said so in the ring.  A byte on the connection tells the two apart: one that nobody
 * has any more is answered with a reset.  With the rx lock held. */
static void probe_end(struct conn *c, int fd) {
  uint32_t flags = conn_flags(c);
  if (LIKELY(atomic_load(&conn_rx(c)->closed) != 0) || c->tx_phase != PHASE_RING || all_was_read(c) ||
      (flags & (CONN_PROBED | CONN_RD_SHUT | CONN_WR_SHUT | CONN_RST | CONN_CUT))) {
    return;
  }
  conn_set_flag(c, CONN_PROBED);
  bell_on_connection(c, fd);
  if (kernel_poll(fd, 0) & (POLLERR | POLLHUP)) {
    c->error = ECONNRESET;
    conn_set_flag(c, CONN_RST);
  }
}

/* The ring was found empty: has the kernel's half ended, or is there a bell byte to take off? */
static bool look_at_kernel(struct conn *c, int fd) {
  struct bertha_direction *d = conn_rx(c);
  bool learnt = false;
  if (!bertha_lock(&c->rx_lock)) {
    return false;
  }
  int saved = errno;
  for (int looks = 0; looks < 4; looks++) {
    char byte;
    ssize_t n = QUIET(recv)(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    if (n == 0) {
      conn_set_flag(c, CONN_FIN);
      /* A carrier says in the ring that the stream has ended; one that has not is dead, or reset the connection. */
      if (UNLIKELY((conn_flags(c) & (CONN_CARRIED | CONN_CUT | CONN_RD_SHUT)) == CONN_CARRIED) &&
          c->side == BERTHA_SIDE_CLIENT && c->rx_phase == PHASE_RING && atomic_load(&d->closed) != 1) {
        conn_set_flag(c, CONN_CUT);
        c->error = ECONNRESET;
      }
      probe_end(c, fd);
      learnt = true;
      break;
    }
    if (n < 0) {
      if (errno == ECONNRESET && conn_ended_in_order(c)) {
        conn_set_flag(c, CONN_FIN | CONN_RST);
        learnt = true;
      } else if (errno != EAGAIN && errno != EINTR) {
        c->error = errno;
        conn_set_flag(c, CONN_RST);
        learnt = true;
      }
      break;
    }
    if (ring_filled(c) || atomic_load_explicit(&d->ring_end, memory_order_acquire) == conn_rx_head(c)) {
      learnt = true;
      break;
    }
    if (atomic_load(&d->bell_out) || atomic_load(&c->bell_debt)) {
      bell_settle(c, fd);
    } else {
      bell_take_byte(c, fd); /* nobody announced it: while the ring is in use it can only be a bell */
    }
    learnt = ring_filled(c);
    if (learnt) {
      break;
    }
  }
  errno = saved;
  bertha_unlock(&c->rx_lock);
  return learnt;
}

bool conn_look_at_kernel(struct conn *c, int fd) {
  bool abroad = abroad_enter(c);
  bool learnt = look_at_kernel(c, fd);
  abroad_leave(c, abroad);
  return learnt;
}

/* What FIONREAD would say, without the kernel's share. */
size_t conn_readable_bytes(struct conn *c) {
  if (c->rx_phase == PHASE_AFTER) {
    return 0;
  }
  uint64_t used = atomic_load_explicit(&conn_rx(c)->tail, memory_order_acquire) - c->rx_head;
  return used <= c->link->ring_max ? (size_t)used : 0;
}
