/* The first requests of a connection by `unix`, while the TCP socket is still behind the descriptor.
 *
 * Many connections are over after a request or two, and to exchange the descriptor costs more than those.  A process of one
 * thread that does nothing but send and receive by calls that block can do without: it looks at both sockets until it knows
 * that all comes by the unix socket, and then uses that one by its own number. */
#include "conn.h"
#include "unixends.h"
#include "unixpair.h"
#include "wait.h"

enum { STAYS = 32 };

/* Several threads, processes or descriptors may each wait in their own way: then the byte on the connection wakes all. */
static bool alone_with_it(const struct conn *c) {
  extern char __libc_single_threaded __attribute__((weak)); /* glibc 2.32 */
  return &__libc_single_threaded != NULL && __libc_single_threaded && atomic_load(&c->info.refs) == 1 &&
         atomic_load(&c->kernel_waiters) == 0 && atomic_load(&c->kernel_regs) == 0;
}

/* Many connections are over after a request or two: one that is only sent to and received from, by calls that block, does
 * without the exchange until it has shown that it stays. */
bool unix_stays_there(const struct conn *c) {
  struct ends *e = ends_of(c);
  return e != NULL && !e->swapped && c->rcv_timeout_ns == 0 && c->snd_timeout_ns == 0 && alone_with_it(c) &&
         ++e->requests < STAYS;
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
    struct pollfd p[2] = {{.fd = fd, .events = POLLIN}, {.fd = e->unix_fd, .events = POLLIN}};
    n = wait_two(p, deadline, ring_again, kernel);
    e->deaf = n > 0 && (p[1].revents & (POLLHUP | POLLERR)) != 0;
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

ssize_t unix_first_recv(struct conn *c, int fd, void *to, size_t size, int flags) {
  struct ends *e = ends_of(c);
  if (e == NULL || e->swapped || e->unix_fd <= 0 || (conn_flags(c) & (CONN_CARRIED | CONN_NONBLOCK)) ||
      (flags & ~(MSG_NOSIGNAL | MSG_WAITALL)) != 0 ||
      atomic_load(&c->krx) != atomic_load_explicit(&conn_rx(c)->switch_at, memory_order_acquire) ||
      !unix_stays_there(c)) {
    return UNIX_ELSEWHERE;
  }
  uint32_t life = conn_kernel_sleep(c); /* a signal handler may come upon the connection */
  ssize_t n = REAL(recv)(e->unix_fd, to, size, flags);
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
  atomic_fetch_add(&c->kernel_sends, 1);
  ssize_t n = REAL(send)(e->unix_fd, from, size, flags);
  atomic_fetch_sub(&c->kernel_sends, 1);
  if (n > 0) {
    count_bytes(&c->info.tx_bytes, (uint64_t)n);
  }
  return n;
}
