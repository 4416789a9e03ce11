/* Waiting for one connection: look, spin while that pays, sleep with a bell within reach. */
#include <sys/epoll.h>

#include "conn.h"
#include "trim.h"
#include "waiter.h"

/* By memory alone: no system call. */
static inline bool quick_look(struct conn *c, short want) {
  if (want & POLLIN) {
    struct bertha_direction *d = conn_rx(c);
    if (c->rx_phase == PHASE_RING ? atomic_load_explicit(&d->tail, memory_order_acquire) != conn_rx_head(c)
                                  : atomic_load_explicit(&d->switch_at, memory_order_acquire) != UINT64_MAX) {
      return true;
    }
  }
  if (want & POLLOUT) {
    uint64_t used = c->tx_tail - atomic_load_explicit(&conn_tx(c)->head, memory_order_acquire);
    uint64_t size = c->tx_bound != 0 && c->tx_bound < c->tx_size ? c->tx_bound : c->tx_size;
    return used == 0 || used < size - size / 8;
  }
  return false;
}

static bool look_often(struct conn *c, short want) {
  for (int i = 0; i < LOOKS_PER_CLOCK; i++) {
    if (quick_look(c, want)) {
      return true;
    }
    bertha_pause();
  }
  return false;
}

/* How long it took, as of the last look at the clock; -1: not within the budget. */
static int64_t spin_on(struct spinner *s, struct conn *c, short want, int64_t begin, int64_t budget) {
  for (int64_t now = begin, last = begin; now - begin < budget; last = now, now = bertha_now_ns()) {
    if (now - last > SPIN_GAP_NS) {
      spin_lost_processor(s);
    }
    if (look_often(c, want)) {
      return now - begin;
    }
  }
  return -1;
}

/* Which handlers were installed without SA_RESTART: a recv() interrupted by one of those returns EINTR, by
 * another goes on (signal(7)).  We cannot ask which one ran, so a mix returns EINTR. */
static _Atomic uint64_t interrupting;

void wait_note_signal(int number, const struct sigaction *action) {
  if (number < 1 || number > 64) {
    return;
  }
  uint64_t bit = (uint64_t)1 << (number - 1);
  bool handler = action->sa_handler != SIG_DFL && action->sa_handler != SIG_IGN;
  if (handler && !(action->sa_flags & SA_RESTART)) {
    atomic_fetch_or(&interrupting, bit);
  } else {
    atomic_fetch_and(&interrupting, ~bit);
  }
}

bool wait_is_interrupted(void) {
  return atomic_load(&interrupting) != 0;
}

int wait_two(struct pollfd fds[2], int64_t deadline, void (*undo)(void *), void *arg) {
  for (;;) {
    int64_t left = deadline >= 0 ? deadline - bertha_now_ns() : 0;
    if (left < 0) {
      return -EAGAIN;
    }
    struct timespec timeout = {left / 1000000000, left % 1000000000};
    int n = sleep_ppoll(fds, 2, deadline >= 0 ? &timeout : NULL, NULL, undo, arg);
    if (n != 0 && (n > 0 || errno != EINTR || deadline >= 0 || atomic_load(&interrupting) != 0)) {
      return n > 0 ? n : -errno;
    }
  }
}

/* An armed entry among the link's sleepers, and where the connection names it. */
struct armed {
  struct bertha_sleeper *sleeper;
  _Atomic uint16_t *place;
  uint32_t index;              /* 0: none */
  struct kernel_sleep watched; /* instead of that */
};

static void disarm(void *p) {
  struct armed *a = p;
  if (a->watched.conn != NULL) {
    conn_kernel_awake(a->watched.conn, a->watched.life);
  }
  if (a->index != 0) {
    atomic_store(&a->sleeper->armed, 0);
    uint16_t mine = (uint16_t)a->index; /* another thread may have come since we were rung */
    atomic_compare_exchange_strong(a->place, &mine, 0);
  }
}

static int wait_levels(struct waiter *w, struct pollfd p[2], int64_t ns, struct armed *armed) {
  struct timespec timeout = {ns / 1000000000, ns % 1000000000};
  int n = sleep_ppoll(p, w->bell_fd >= 0 ? 2 : 1, ns >= 0 ? &timeout : NULL, NULL, disarm, armed);
  if (n > 0 && w->bell_fd >= 0 && p[1].revents != 0) {
    w->bell_full = true;
  }
  return n;
}

/* Epoll's bits have poll's values (epoll_ctl(2)). */
static int wait_edges(struct waiter *w, struct pollfd p[2], struct armed *armed) {
  struct epoll_event e[2];
  int n = sleep_epoll(w->edges.set, e, 2, -1, NULL, disarm, armed);
  for (int i = 0; i < n; i++) {
    p[e[i].data.u64 == 1 ? 0 : 1].revents |= (short)e[i].events;
  }
  return n;
}

static int sleep_on(struct waiter *w, struct conn *c, int fd, short want, int64_t deadline, uint32_t life) {
  struct link *l = c->link;
  struct bertha_watch *watch = &c->slot->watch[c->side];
  waiter_want_bell(w, want & POLLOUT);
  waiter_empty_bell(w);
  uint32_t index = waiter_sleeper(w, l);
  _Atomic uint16_t *place = want & POLLOUT ? &watch->tx : &watch->rx;
  struct bertha_sleeper *s = &l->sleepers[c->side][index];
  if (index != 0) {
    uint16_t other = atomic_load(place);
    if (sleeper_elsewhere(c, other, index)) {
      index = 0; /* another thread sleeps on this very thing */
    } else {
      atomic_store(place, (uint16_t)index);
      sleeper_arm(s);
    }
  }
  bool byte = index == 0 && (want & POLLIN); /* as for anybody who waits in the kernel */
  struct armed armed = {.sleeper = s, .place = place, .index = index};
  if (byte) {
    armed.watched = (struct kernel_sleep){c, conn_kernel_sleep(c)};
    conn_watch_kernel(c);
  }
  atomic_thread_fence(memory_order_seq_cst);
  borrow_end(c); /* by a set: it would not be told */
  int result = 0;
  if (!conn_events_any(c, fd, want)) {
    uint32_t flags = conn_flags(c);
    struct pollfd p[2] = {{.fd = fd}, {.fd = w->bell_fd, .events = POLLIN}};
    if (!(flags & CONN_FIN)) {
      p[0].events = want & POLLIN ? POLLIN | POLLRDHUP : POLLRDHUP;
    }
    /* A carrier has no bell but the byte, which one that waits for space must leave to one that waits for data. */
    bool carried = (want & POLLOUT) && (flags & CONN_CARRIED);
    bool bell = (index != 0 ? w->bell != 0 || (want & POLLIN) : byte) && !carried;
    int64_t now = deadline >= 0 || !bell ? bertha_now_ns() : 0;
    int64_t ns = deadline >= 0 ? (deadline > now ? deadline - now : 0) : -1;
    if (want & POLLOUT) { /* whatever becomes of the bell or of the other end: look again */
      now = bertha_now_ns();
      ns = at_most(deadline, now, SPACE_MS * 1000000);
      ns = ns > 0 ? ns : 0;
      if (flags & CONN_FIN) {
        bell_on_connection(c, fd); /* if the other end is dead, and not just half closed, this finds out */
      }
    }
    if (!bell) {
      ns = at_most(deadline, now, NO_BELL_MS * 1000000);
      ns = ns > 0 ? ns : 0;
    }
    ns = trim_before_sleep(ns);
    bool lasting = c->rx_phase == PHASE_RING && !(flags & (CONN_FIN | CONN_RST));
    bool edges = bell && index != 0 && ns < 0 && w->bell != 0 && lasting && waiter_edges(w, c, fd, life);
    int n = edges ? wait_edges(w, p, &armed) : wait_levels(w, p, ns, &armed);
    if (n < 0) {
      result = -errno;
    } else if (UNLIKELY(conn_closed(c, fd, life))) {
      result = -EBADF;
    } else if (n > 0) {
      if (p[0].revents & (POLLERR | POLLHUP)) {
        conn_set_flag(c, CONN_RST);
      }
      if (p[0].revents & POLLRDHUP) {
        conn_set_flag(c, CONN_FIN);
      }
      if (p[0].revents != 0 && c->rx_phase == PHASE_RING) {
        conn_look_at_kernel(c, fd);
      }
    }
  }
  disarm(&armed);
  return result;
}

int wait_conn(struct conn *c, int fd, short want, int64_t deadline) {
  struct waiter *w = waiter_get();
  if (w == NULL) {
    return -ENOMEM;
  }
  uint32_t life = conn_life(c);
  borrow_end(c);
  int64_t bound = same_processor(c->link) ? 0 : link_spin_bound(c->link);
  if (bound > 0 && w->spin.score >= 0 && look_often(c, want)) { /* sooner than the clock can be asked twice */
    spin_learn(&w->spin, 0, bound);
    return 0;
  }
  int64_t begin = bound > 0 ? bertha_now_ns() : 0;
  int64_t budget = bound > 0 ? spin_budget(&w->spin, begin, bound) : 0;
  if (budget > 0) {
    int64_t most = deadline >= 0 && deadline - begin < budget ? deadline - begin : budget;
    int64_t took = spin_on(&w->spin, c, want, begin, most);
    if (took >= 0) {
      spin_learn(&w->spin, took, bound);
      return 0;
    }
  }
  bool found = false;
  int result = 0;
  while (!found) {
    if (deadline >= 0 && bertha_now_ns() >= deadline) {
      result = -EAGAIN;
      break;
    }
    result = sleep_on(w, c, fd, want, deadline, life);
    if (result == -EINTR && deadline < 0 && atomic_load(&interrupting) == 0) {
      result = 0;
    }
    if (result != 0) {
      break;
    }
    if (conn_closed(c, fd, life)) {
      result = -EBADF;
      break;
    }
    found = conn_events_any(c, fd, want) != 0;
  }
  if (bound > 0) {
    spin_learn(&w->spin, bertha_now_ns() - begin, bound);
  }
  return result;
}

/* The server has to be woken by the kernel to accept, which takes longer than an answer on a ring does. */
enum { FIRST_ANSWER = 3 };

bool wait_switch(struct conn *c) {
  struct waiter *w = waiter_get();
  struct link *l = c->link;
  int64_t bound = FIRST_ANSWER * link_spin_bound(l);
  bool known = atomic_load_explicit(&l->sleepers[1 - l->side][0].owner, memory_order_relaxed) != 0;
  if (w == NULL || bound == 0 || !known || same_processor(l)) {
    return false;
  }
  int64_t begin = bertha_now_ns();
  int64_t now = begin;
  int64_t budget = spin_budget(&w->first, begin, bound);
  struct bertha_direction *d = conn_rx(c);
  bool found = false;
  while (!found && now - begin < budget) {
    for (int i = 0; i < LOOKS_PER_CLOCK && !found; i++) {
      found = atomic_load_explicit(&d->switch_at, memory_order_acquire) != UINT64_MAX;
      bertha_pause();
    }
    now = bertha_now_ns();
  }
  if (budget > 0) {
    spin_learn(&w->first, found ? 0 : 2 * bound, bound);
  }
  return found;
}

void wait_claimed(struct conn *c) {
  conn_unwatch(c); /* the server need not pay for a byte that nobody waits for */
  wait_switch(c);
  conn_watch_kernel(c);
  atomic_thread_fence(memory_order_seq_cst);
  conn_refresh_watch(c); /* where another thread has tied it meanwhile */
}
