/* The first requests of a connection by `unix`, while the TCP socket is still behind the descriptor.
 *
 * Many connections are over after a request or two, and to exchange the descriptor costs more than those.  A process of one
 * thread that does nothing but send and receive by calls that block can do without: it looks at both sockets until it knows
 * that all comes by the unix socket, and then uses that one by its own number. */
#include "conn.h"
#include "unixends.h"
#include "unixpair.h"
#include "waiter.h"

enum { STAYS = 31 };

/* Several threads, processes or descriptors may each wait in their own way: then the byte on the connection wakes all. */
static bool alone_with_it(const struct conn *c) {
  extern char __libc_single_threaded __attribute__((weak)); /* glibc 2.32 */
  return &__libc_single_threaded != NULL && __libc_single_threaded && atomic_load(&c->info.refs) == 1 &&
         atomic_load(&c->kernel_waiters) == 0 && atomic_load(&c->kernel_regs) == 0;
}

/* Its receiver looks a while before it sleeps, and that pays: the kernel's own call behind the exchange would not. */
static bool spinning_pays(const struct conn *c) {
  const struct waiter *w = waiter_get();
  return w != NULL && c->link != NULL && w->spin.score >= 0 && link_spin_bound(c->link) > 0 &&
         !same_processor(c->link);
}

/* Many connections are over after a request or two: one that is only sent to and received from, by calls that block, does
 * without the exchange until it has shown that it stays. */
bool unix_stays_there(const struct conn *c) {
  struct ends *e = ends_of(c);
  if (e == NULL || e->swapped || c->rcv_timeout_ns != 0 || c->snd_timeout_ns != 0 || !alone_with_it(c)) {
    return false;
  }
  if (e->requests < STAYS) {
    e->requests++;
    return true;
  }
  return spinning_pays(c);
}

/* Asleep, a process of one thread sends nothing: where the server ties itself meanwhile, it need not look at TCP for what
 * comes next, which is a call less for the second request. */
static void give_promise(struct conn *c, const struct ends *e) {
  if (conn_kind(c) == BERTHA_CONN_CLAIMED && e->number != 0 && atomic_load(&c->kernel_sends) == 0) {
    atomic_store(&c->slot->promise, atomic_load(&c->ktx) + 1);
  }
}

static void ring_again(void *kernel) {
  atomic_store((_Atomic uint16_t *)kernel, 1);
}

int unix_wait(struct conn *c, int fd, int64_t deadline) {
  struct ends *e = ends_of(c);
  if (e == NULL || e->unix_fd <= 0 || e->swapped || e->deaf || (conn_flags(c) & CONN_CARRIED) ||
      !alone_with_it(c)) {
    return 1;
  }
  _Atomic uint16_t *kernel = &c->slot->watch[c->side].kernel;
  _Atomic uint64_t *switch_at = &conn_rx(c)->switch_at;
  int n = 1;
  atomic_store(kernel, 0);
  atomic_thread_fence(
      memory_order_seq_cst); /* the other end publishes its switch, and then looks whether to ring */
  if (atomic_load(switch_at) == UINT64_MAX) {
    give_promise(c, e);
    if (conn_kind(c) != BERTHA_CONN_CLAIMED || deadline >= 0 || !wait_switch(c)) {
      struct pollfd p[2] = {{.fd = fd, .events = POLLIN}, {.fd = e->unix_fd, .events = POLLIN}};
      n = wait_two(p, deadline, ring_again, kernel);
      e->deaf = n > 0 && (p[1].revents & (POLLHUP | POLLERR)) != 0;
      e->readable = n > 0 && (p[1].revents & POLLIN) != 0;
    }
  }
  atomic_store(kernel, 1);
  atomic_thread_fence(memory_order_seq_cst);
  return n > 0 || atomic_load(switch_at) != UINT64_MAX ? 0 : n;
}

void unix_hold_to(struct conn *c) {
  struct ends *e = ends_of(c);
  uint64_t promise = atomic_load(&c->slot->promise);
  if (e != NULL && e->number != 0 && promise != 0 && (promise & BERTHA_PROMISE_TAKEN) == 0 &&
      atomic_compare_exchange_strong(&c->slot->promise, &promise, promise | BERTHA_PROMISE_TAKEN)) {
    atomic_store_explicit(&conn_rx(c)->switch_at, promise - 1, memory_order_release);
  }
}

bool unix_take_back(struct conn *c) {
  uint64_t promise = atomic_load_explicit(&c->slot->promise, memory_order_relaxed);
  return LIKELY(promise == 0) || ((promise & BERTHA_PROMISE_TAKEN) == 0 &&
                                  atomic_compare_exchange_strong(&c->slot->promise, &promise, 0));
}

/* Who sleeps within recv() is also woken when the other end takes what was sent to it (unix_write_space() of Linux wakes all
 * that sleep at the socket), only to sleep again: on one processor two switches within each request.  poll() is woken by what
 * it asks for alone.  On two processors that wake-up does no harm: it has the idle one awake when the answer comes. */
static ssize_t sleep_for_bytes(struct conn *c, const struct ends *e, uint32_t life) {
  struct kernel_sleep s = {c, life};
  struct pollfd p[2] = {{.fd = e->unix_fd, .events = POLLIN}, {.fd = -1}};
  int n = wait_two(p, -1, conn_kernel_cancelled, &s);
  return n < 0 ? n : 0;
}

/* On one processor who was put aside by the wake-up of its own answer finds the next request there when it goes on, and who
 * waits for an answer never does: each thread learns whether a look before the sleep pays.  -EAGAIN: nothing was there. */
enum { LOOK_BEST = 4, LOOK_FAILED = 3 };
static ssize_t look_once(struct waiter *w, const struct ends *e, void *to, size_t size) {
  if (w->look < 0) {
    w->look++;
    return -EAGAIN;
  }
  ssize_t n = QUIET(recv)(e->unix_fd, to, size, MSG_DONTWAIT);
  if (n < 0 && errno == EAGAIN) {
    w->look -= LOOK_FAILED;
    return -EAGAIN;
  }
  w->look += w->look < LOOK_BEST;
  return n >= 0 ? n : -errno;
}

/* Looks for a while; -EAGAIN: nothing came. */
static ssize_t look_for_bytes(const struct ends *e, void *to, size_t size, struct spinner *spin,
                              int64_t begin, int64_t budget) {
  for (int64_t now = begin, before; now - begin < budget;) {
    ssize_t n = QUIET(recv)(e->unix_fd, to, size, MSG_DONTWAIT);
    if (n >= 0 || errno != EAGAIN) {
      return n >= 0 ? n : -errno;
    }
    before = now;
    now = bertha_now_ns();
    if (now - before > SPIN_GAP_NS) {
      spin_lost_processor(spin);
      break;
    }
  }
  return -EAGAIN;
}

static ssize_t patient_recv(struct conn *c, struct ends *e, void *to, size_t size, int flags, uint32_t life) {
  struct waiter *w = waiter_get();
  bool same = same_processor(c->link), readable = e->readable;
  e->readable = false;
  int64_t bound = same || w == NULL || (flags & MSG_WAITALL) ? 0 : link_spin_bound(c->link);
  int64_t begin = bound > 0 ? bertha_now_ns() : 0;
  int64_t budget = bound > 0 ? spin_budget(&w->spin, begin, bound) : 0;
  if (same && !readable && w != NULL && !(flags & MSG_WAITALL)) {
    ssize_t there = look_once(w, e, to, size);
    if (there != -EAGAIN) {
      return there;
    }
  }
  ssize_t n = budget > 0          ? look_for_bytes(e, to, size, &w->spin, begin, budget)
              : same && !readable ? sleep_for_bytes(c, e, life)
                                  : 0;
  if (n == -EAGAIN || (n == 0 && budget == 0)) {
    n = REAL(recv)(e->unix_fd, to, size, flags);
    n = n >= 0 ? n : -errno;
  }
  if (bound > 0) {
    spin_learn(&w->spin, bertha_now_ns() - begin, bound);
  }
  return n;
}

ssize_t unix_first_recv(struct conn *c, int fd, void *to, size_t size, int flags) {
  struct ends *e = ends_of(c);
  if (e == NULL || e->swapped || e->unix_fd <= 0 || (conn_flags(c) & (CONN_CARRIED | CONN_NONBLOCK)) ||
      (flags & ~(MSG_NOSIGNAL | MSG_WAITALL)) != 0 ||
      atomic_load(&c->krx) != atomic_load_explicit(&conn_rx(c)->switch_at, memory_order_acquire) ||
      !unix_stays_there(c)) {
    return UNIX_ELSEWHERE;
  }
  uint32_t life = conn_kernel_sleep(c); /* a signal handler may come upon the connection */
  ssize_t n = patient_recv(c, e, to, size, flags, life);
  if (UNLIKELY(n < 0)) {
    errno = (int)-n;
    n = -1;
  }
  if (UNLIKELY(n == 0) && !conn_closed(c, fd, life) && unix_was_reset(c)) {
    errno = ECONNRESET;
    n = -1;
  }
  conn_kernel_awake(c, life);
  if (n > 0) {
    count_bytes(&c->info.rx_bytes, (uint64_t)n);
  }
  return n;
}

ssize_t unix_first_send(struct conn *c, const void *from, size_t size, int flags) {
  struct ends *e = ends_of(c);
  if (e == NULL || e->swapped || e->unix_fd <= 0 || c->tx_phase != PHASE_RING ||
      (conn_flags(c) & CONN_CARRIED) || c->snd_timeout_ns != 0 || !alone_with_it(c) || unix_unheard(c)) {
    return UNIX_ELSEWHERE;
  }
  uint32_t life = conn_life(c);
  atomic_fetch_add(&c->kernel_sends, 1);
  ssize_t n = REAL(send)(e->unix_fd, from, size, flags);
  if (UNLIKELY(conn_life(c) != life)) { /* closed by another thread meanwhile */
    return n;
  }
  atomic_fetch_sub(&c->kernel_sends, 1);
  if (n > 0) {
    count_bytes(&c->info.tx_bytes, (uint64_t)n);
  }
  return n;
}
