/* Receives that take nothing: of no bytes, and looks that want all of what they ask for. */
#include "conn.h"
#include "unixpair.h"
#include "wait.h"

ssize_t look_for_nothing(struct conn *c, int fd, int flags) {
  bool patient = !(flags & MSG_DONTWAIT) && !(conn_flags(c) & CONN_NONBLOCK);
  char byte;
  struct iovec one = {&byte, 1};
  bool whole;
  ssize_t n = recv_once(c, fd, &one, 1, (flags & MSG_DONTWAIT) | MSG_PEEK, &whole);
  n = n == OWN_LOCK ? -EAGAIN : n;
  return n > 0 || (n == -EAGAIN && patient) ? 0 : n;
}

/* What can be looked at beyond the `seen` bytes that the kernel has; the same number: nothing. */
static size_t look_on(struct conn *c, const struct iovec *iov, int count, size_t seen) {
  uint32_t kind = conn_kind(c);
  bool mixed = (kind == BERTHA_CONN_SHM && c->rx_phase == PHASE_BEFORE) ||
               (kind == BERTHA_CONN_UNIX && !unix_swapped(c) && !(conn_flags(c) & CONN_CARRIED));
  if (LIKELY(!mixed) || atomic_load(&c->krx) + seen != atomic_load(&conn_rx(c)->switch_at) ||
      !bertha_lock(&c->rx_lock)) {
    return seen;
  }
  ssize_t n = kind == BERTHA_CONN_UNIX      ? unix_look(c, iov, count, seen)
              : c->rx_phase == PHASE_BEFORE ? ring_read(c, iov, count, seen, MSG_PEEK)
                                            : 0;
  bertha_unlock(&c->rx_lock);
  return seen + (n > 0 ? (size_t)n : 0);
}

/* The producer waits for us to read, or goes on elsewhere than where we have looked: no more can be seen at once. */
static bool seen_all(struct conn *c) {
  if (conn_kind(c) != BERTHA_CONN_SHM || c->rx_phase == PHASE_AFTER) {
    return false;
  }
  const struct bertha_direction *d = conn_rx(c);
  return atomic_load(&d->space_wanted) || atomic_load(&d->ring_end) != UINT64_MAX ||
         conn_readable_bytes(c) >= atomic_load(&d->size);
}

static void nothing(void *unused) {
  (void)unused;
}

enum { FIRST_NAP_NS = 50000, LONGEST_NAP_NS = 5000000 };

/* No bell tells of more than something, so the clock does: who asks for this expects the rest at once. */
ssize_t look_patiently(struct conn *c, int fd, const struct iovec *iov, int count, int flags) {
  size_t want = iov_bytes(iov, count);
  want = (flags & MSG_WAITALL) || want < (size_t)c->rcv_lowat ? want : (size_t)c->rcv_lowat;
  int64_t deadline = c->rcv_timeout_ns > 0 ? bertha_now_ns() + c->rcv_timeout_ns : -1;
  bool ended = false;
  for (long nap = FIRST_NAP_NS;; nap = nap < LONGEST_NAP_NS ? 2 * nap : LONGEST_NAP_NS) {
    bool whole;
    ssize_t n = recv_once(c, fd, iov, count, flags & ~MSG_WAITALL, &whole);
    if (n <= 0) {
      return n == OWN_LOCK ? -EAGAIN : n;
    }
    n = (ssize_t)look_on(c, iov, count, (size_t)n);
    if ((size_t)n >= want || ended || seen_all(c) || (deadline >= 0 && bertha_now_ns() >= deadline)) {
      return n;
    }
    uint32_t life = conn_life(c);
    struct pollfd p = {.fd = fd, .events = POLLRDHUP};
    struct timespec t = {0, nap};
    int polled = sleep_ppoll(&p, 1, &t, NULL, nothing, NULL);
    if (polled < 0 || conn_closed(c, fd, life)) {
      return n;
    }
    ended = polled > 0; /* one more look */
  }
}
