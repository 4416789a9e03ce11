/* epoll_wait: the rings first, the kernel now and then, asleep in the kernel when there is nothing. */
#include "conn.h"
#include "eset_members.h"
#include "eset_wait.h"
#include "trim.h"
#include "unixpair.h"

enum {
  KERNEL_EVENTS = 512,
  LOOKS = 8, /* between two at the clock, with the lock held */
  /* After so many of those the lock is open for so long that a thread which waits for it sees that; what comes is not. */
  OPEN_EVERY = 4,
  PAUSES_OPEN = 8,
};
/* How often a set that is kept busy by its rings asks the kernel: seldomer while that has nothing to say. */
#define KERNEL_EVERY_NS 50000
#define KERNEL_SELDOM_NS 400000

/* The kernel serves this registration, but its connection may be on a ring (or come to it): what the kernel
 * saw may be a bell byte, and its room for output is not ours. */
static uint32_t judged(struct reg *r, int fd, uint32_t seen) {
  struct conn *c = conn_of(fd);
  if (c == NULL || conn_index(c) + 1 != r->conn) {
    return seen;
  }
  if (conn_kind(c) == BERTHA_CONN_CLAIMED) {
    conn_ripe(c, fd);
  }
  if (conn_kind(c) == BERTHA_CONN_UNIX && !unix_swapped(c) && unix_settle(c, fd) &&
      conn_kind(c) == BERTHA_CONN_UNIX) {
    struct pollfd p = {.fd = fd, .events = (short)(r->events & POLL_BITS)};
    return QUIET(poll)(&p, 1, 0) > 0 ? (uint16_t)p.revents : 0;
  }
  if (conn_kind(c) != BERTHA_CONN_SHM) {
    return seen;
  }
  if (edge_only(r)) {
    bell_told(c, fd); /* before the look: what it does not see rings */
  }
  conn_kernel_events(c, seen);
  uint32_t ready = (uint16_t)conn_events(c, fd, (short)(r->events & POLL_BITS));
  if (ready == 0 && c->rx_phase == PHASE_RING && (seen & EPOLLIN) && conn_look_at_kernel(c, fd)) {
    ready = (uint16_t)conn_events(c, fd, (short)(r->events & POLL_BITS));
  }
  return (ready & (r->events | EPOLLERR | EPOLLHUP)) | (seen & EPOLLPRI);
}

/* The kernel's one shot went at what was nothing, or what was lent is no longer needed. */
static void ask_again(struct eset *s, struct reg *r, int fd) {
  bool taken = bertha_lock(&s->lock); /* or this thread has it */
  if (r->state == REG_KERNEL) {
    r->fired = 0;
    struct epoll_event e = eset_kernel_event(r, fd);
    if (edge_only(r)) { /* it has had its edge */
      e.events = r->events;
      r->lent = 0;
    }
    eset_kernel_mod(s, fd, &e);
  }
  if (taken) {
    bertha_unlock(&s->lock);
  }
}

/* Does the kernel's edge tell the program of something that it has not been told?  Where the kernel carries a direction,
 * its edges are the program's, but for the first, which answers our own registration. */
static bool kernel_news(struct reg *r, struct conn *c, uint32_t events, bool shared) {
  bool first = r->first && r->taken == atomic_load_explicit(&c->info.rx_bytes, memory_order_relaxed);
  r->first = 0;
  bool in = (events & EPOLLIN) && c->rx_phase != PHASE_RING && !(first && (r->ready & EPOLLIN));
  in = in && (r->events & EPOLL_DATA);
  bool lacked = conn_flags(c) & CONN_TX_SHORT; /* it may have come to the ring since */
  bool out = (events & EPOLLOUT) && (lacked || (c->tx_phase != PHASE_RING && !(r->ready & EPOLLOUT)));
  if (out && !shared) { /* else another set has to be told, too */
    conn_clear_flag(c, CONN_TX_SHORT);
  }
  return in || out;
}

/* What comes from now on comes by the kernel. */
static bool ring_over(const struct conn *c) {
  return atomic_load_explicit(&conn_rx(c)->ring_end, memory_order_acquire) == conn_rx_head(c);
}

/* Its TCP socket has something: what that is comes into the ring, and is found there. */
static void borrowed_came(struct eset *s, const struct epoll_event *e) {
  int fd = (int)((uint32_t)e->data.u64 & (ESET_FDS - 1));
  const struct reg *r = &s->regs[fd];
  if ((r->state == REG_RING || r->state == REG_OFF) && eset_borrowed_data(r, fd) == e->data.u64) {
    struct conn *c = conn_by_index(r->conn - 1);
    if (conn_borrows(c)) {
      borrow_in(c, (e->events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0);
    }
  }
}

/* What the kernel reported: our own registrations are taken note of, the program's passed on.  `from` and
 * `to` may be the same.  Does not need the lock for members that the kernel serves. */
static int sort_out(struct eset *s, const struct epoll_event *from, int count, struct epoll_event *to) {
  int n = 0;
  for (int i = 0; i < count; i++) {
    struct epoll_event e = from[i];
    if (UNLIKELY((e.data.u64 & 0xffffffff00000000u) == (eset_magic | ESET_BORROWED)) && eset_magic != 0) {
      borrowed_came(s, &e);
      continue;
    }
    if ((e.data.u64 & 0xffffffff00000000u) != eset_magic || eset_magic == 0) {
      to[n++] = e;
      continue;
    }
    uint32_t fd = (uint32_t)e.data.u64 & (ESET_FDS - 1);
    struct reg *r = (uint32_t)e.data.u64 != ESET_BELL ? &s->regs[fd] : NULL;
    if (r == NULL || reg_data(r, (int)fd) != e.data.u64 || r->state == REG_NONE) {
      continue;
    }
    if (UNLIKELY(e.events & EPOLLOUT) && (r->state == REG_RING || r->state == REG_OFF)) {
      kin_kicked(s, (int)fd);
    }
    if (r->state == REG_OFF) { /* an end that comes meanwhile comes once */
      struct conn *off = conn_of((int)fd);
      if (off != NULL && conn_index(off) + 1 == r->conn) {
        conn_kernel_events(off, e.events);
      }
      continue;
    }
    if (r->state == REG_SET) {
      e.events = nest_judge(r, e.events);
      e.data.u64 = r->data;
      if (e.events != 0) {
        to[n++] = e;
      }
      continue;
    }
    if (r->state != REG_RING) {
      if (r->fired) {
        continue;
      }
      r->fired = (r->events & EPOLLONESHOT) != 0;
      e.events = r->state == REG_KERNEL ? judged(r, (int)fd, e.events) : e.events;
      if (r->lent) { /* by a connection that may have left its ring meanwhile */
        e.events &= r->events | EPOLLERR | EPOLLHUP;
      }
      e.data.u64 = r->data;
      r->ready |= e.events;
      if (e.events != 0) {
        to[n++] = e;
      }
      bool done = e.events == 0 ? r->lent || (r->events & EPOLLONESHOT) : r->lent && edge_only(r);
      if (done) {
        ask_again(s, r, (int)fd);
      }
      continue;
    }
    struct conn *c = conn_by_index(r->conn - 1);
    bool shared = atomic_load(&c->slot->watch[c->side].more) != 0;
    uint32_t before = conn_flags(c);
    conn_kernel_events(c, e.events);
    bool news = !shared && conn_flags(c) != before;
    news = news || kernel_news(r, c, e.events, shared);
    bool look = false;
    if ((e.events & EPOLLIN) && c->rx_phase == PHASE_RING) {
      look = conn_look_at_kernel(c, (int)fd) && !shared;
      news |=
          look && ring_over(c); /* else the ring knows what is new: the byte may be for what was told of */
    }
    if (shared) { /* another set may have taken note of the end before, or told this one */
      news |= (conn_flags(c) & ENDS & ~r->ends) != 0;
    }
    if ((e.events & EPOLLIN) && !bell_clear(c, (int)fd)) {
      s->byte_left |= !shared;
      r->slink->byte_left[c->slot_index / 64] |= (uint64_t)1 << (c->slot_index % 64);
    }
    if ((e.events & EPOLLPRI) && (r->events & EPOLLPRI)) {
      to[n].events = EPOLLPRI;
      to[n++].data.u64 = r->data;
    }
    /* A bell byte, or the first edge of our own registration, is no event of the program's. */
    if ((news || look) && (r->slink->mask[c->slot_index / 64] >> (c->slot_index % 64) & 1)) {
      (news ? slink_mark : slink_look)(r->slink, c->slot_index);
    }
  }
  return n;
}

static int kernel_wait(const struct eset *s, struct epoll_event *events, int max, int64_t ns,
                       const sigset_t *mask, void (*undo)(void *), void *arg) {
  int n = ns == 0 && mask == NULL ? QUIET(epoll_look)(s->epfd, events, max)
                                  : sleep_epoll(s->epfd, events, max, ns, mask, undo, arg);
  return n >= 0 ? n : -errno;
}

static void nothing(void *s) {
  (void)s;
}

/* Signals that the program lets in for the length of this wait: a handler may do whatever it likes, so without the lock. */
static bool let_signals_in(struct eset *s, const sigset_t *mask) {
  struct timespec none = {0, 0};
  if (LIKELY(mask == NULL)) {
    return false;
  }
  bertha_unlock(&s->lock);
  bool came = REAL(ppoll)(NULL, 0, &none, mask) < 0 && errno == EINTR;
  return !bertha_lock(&s->lock) || came;
}

/* Rings and the kernel, without waiting.  With the lock held.  The kernel first, and for half of what the program takes:
 * neither side's descriptors, if they are ready all the time, may keep the other's from being told of. */
static int look(struct eset *s, struct epoll_event *events, int max, bool kernel, bool all) {
  int n = 0;
  s->rings_turn ^= kernel;
  if (kernel && max == 1 && s->rings_turn) {
    n = eset_collect(s, events, 1, all);
    kernel = n == 0;
  }
  if (kernel) {
    struct epoll_event seen[64];
    int room = max > 1 ? max / 2 : 1;
    int got = kernel_wait(s, seen, room < 64 ? room : 64, 0, NULL, nothing, NULL);
    int64_t twice = s->kernel_every < KERNEL_SELDOM_NS ? 2 * s->kernel_every : KERNEL_SELDOM_NS;
    s->kernel_every = got == 0 && s->kernel_every >= KERNEL_EVERY_NS ? twice : KERNEL_EVERY_NS;
    n = got > 0 ? sort_out(s, seen, got, events) : 0;
  }
  return n + eset_collect(s, events + n, max - n, all);
}

/* With the lock held: counted among the sleepers from here on, of its inner sets as well. */
static void fall_asleep(struct eset *s, struct nap *nap) {
  nap->set = s;
  nap->count = 0;
  nap->kicked = s->kicked != 0;
  if (UNLIKELY(s->inner_count > 0)) {
    nest_asleep(s, nap);
  }
  nap->deep = !s->kin;
  s->deep += nap->deep;
  atomic_fetch_add(&s->asleep, 1);
}

/* Asleep, without the lock. */
static int sleep_in_kernel(const struct eset *s, struct epoll_event *events, int max, int64_t ns,
                           const sigset_t *mask, struct nap *nap) {
  return LIKELY(!nap->kicked) ? kernel_wait(s, events, max, ns, mask, eset_no_more_asleep, nap)
                              : kin_sleep(s, events, max, ns, mask, eset_no_more_asleep, nap);
}

static bool has_rings(const struct eset *s) {
  return s->ring_count > 0 || (s->inner_count > 0 && nest_has_rings(s));
}

static int64_t time_left(int64_t timeout_ns, int64_t begin) {
  if (timeout_ns <= 0) {
    return timeout_ns;
  }
  int64_t left = timeout_ns - (bertha_now_ns() - begin);
  return left > 0 ? left : 0;
}

/* With the lock held.  Counted among the sleepers while no member was on a ring: the kernel's wait, but for connections that
 * come to the rings while we sleep; then what was not waited of the time is left. */
static int wait_kernel_only(struct eset *s, struct epoll_event *events, int max, int64_t timeout_ns,
                            int64_t *left, const sigset_t *mask) {
  int64_t begin = timeout_ns > 0 ? bertha_now_ns() : 0;
  *left = timeout_ns;
  for (;;) {
    struct nap nap;
    fall_asleep(s, &nap);
    if (nap.count > 0 && nest_has_rings(s)) { /* since we looked */
      atomic_fetch_sub(&s->asleep, 1);
      nest_awake(&nap);
      return 0;
    }
    bertha_unlock(&s->lock);
    int n = sleep_in_kernel(s, events, max, *left, mask, &nap);
    atomic_fetch_sub(&s->asleep, 1);
    bertha_lock(&s->lock); /* another thread may be bringing one to the rings */
    nest_awake(&nap);
    kin_enter(s);
    if (n > 0) {
      n = sort_out(s, events, n, events);
      nest_all_told(s);
      eset_pass_on(s);
    } else if (n == 0 && !nap.kicked) {
      *left = 0;
    }
    if (n != 0 || *left == 0) {
      return n;
    }
    eset_upgrade_queued(s);
    *left = time_left(timeout_ns, begin);
    if (*left == 0 || has_rings(s)) { /* a bell only: its connection is on a ring now */
      return 0;
    }
    if (s->plain) {
      bertha_unlock(&s->lock);
      QUIET(nap)(100000); /* a full ring looks writable to the kernel */
      bertha_lock(&s->lock);
    }
  }
}

int eset_wait(struct eset *s, struct epoll_event *events, int max, int64_t timeout_ns, const sigset_t *mask) {
  CANCELLATION_POINT();
  if (max <= 0 || !bertha_lock(&s->lock)) {
    return kernel_wait(s, events, max, timeout_ns, mask, nothing, NULL);
  }
  if (s->inherited) {
    eset_adopt(s);
  }
  kin_enter(s);
  eset_upgrade_queued(s);
  if (!has_rings(s)) {
    int64_t left;
    int kept = wait_kernel_only(s, events, max, timeout_ns, &left, mask);
    if (kept != 0 || left == 0 || !has_rings(s)) {
      bertha_unlock(&s->lock);
      return kept;
    }
    timeout_ns = left;
  }
  int64_t begin = bertha_now_ns();
  int64_t now = begin;
  int64_t deadline = timeout_ns >= 0 ? begin + timeout_ns : -1;
  int64_t bound = 0;
  int64_t spin_end = begin;
  bool waited = false;
  bool at_once = false;
  unsigned spins = 0;
  int n;
  eset_rotate(s);
  s->turns++;
  for (;;) {
    bool ask_kernel = now - s->kernel_seen >= s->kernel_every;
    bool all = now - s->all_seen >= KERNEL_EVERY_NS;
    n = look(s, events, max, ask_kernel, all);
    if (ask_kernel) {
      s->kernel_seen = now;
    }
    if (all) {
      s->all_seen = now;
    }
    if (n != 0) {
      break;
    }
    if (!waited) {
      waited = true;
      bound = timeout_ns == 0 ? 0 : eset_spin_bound(s);
      spin_end = begin + spin_budget(&s->spin, begin, bound);
    }
    if (timeout_ns == 0) {
      n = ask_kernel ? 0 : look(s, events, max, true, true);
      break;
    }
    if (now < spin_end) {
      if (ask_kernel &&
          let_signals_in(s, mask)) { /* a spin that always finds something must not keep them out */
        n = -EINTR;
        break;
      }
      bool found = false;
      for (int i = 0; i < LOOKS && !found; i++) {
        bertha_pause();
        found = eset_changed(s) || (s->inner_count > 0 && nest_changed(s));
      }
      if (found && !at_once) {
        at_once = true; /* without the clock: but it may be nothing, and then that has to be seen to go on */
        continue;
      }
      at_once = false;
      bertha_unlock(&s->lock); /* epoll_ctl of another thread gets in */
      bool open = ++spins % OPEN_EVERY == 0;
      for (int i = 0; open && i < PAUSES_OPEN; i++) {
        bertha_pause();
      }
      int64_t last = now;
      now = bertha_now_ns();
      if (!bertha_lock(&s->lock)) {
        return -EINTR;
      }
      if (now - last > SPIN_GAP_NS) {
        spin_lost_processor(&s->spin);
      }
      if (deadline >= 0 && now >= deadline) {
        n = look(s, events, max, true, true);
        n = n == 0 && let_signals_in(s, mask) ? -EINTR : n;
        break;
      }
      continue;
    }
    kin_enter(s);
    eset_want_bell(s);
    eset_set_armed(s, 1);
    struct nap nap;
    fall_asleep(s, &nap);
    atomic_thread_fence(memory_order_seq_cst);
    n = eset_collect(s, events, max, true);
    bool kin_came = kin_news(s);
    if (n != 0 || UNLIKELY(kin_came)) {
      atomic_fetch_sub(&s->asleep, 1);
      eset_woken(s);
      nest_awake(&nap);
      if (n != 0) {
        break;
      }
      continue;
    }
    int64_t ns = -1;
    if (deadline >= 0) {
      now = bertha_now_ns();
      ns = deadline > now ? deadline - now : 0;
    }
    int64_t cap = eset_sleep_cap(s);
    cap = UNLIKELY(nap.count > 0) ? nest_sleep_cap(&nap, cap) : cap;
    ns = trim_before_sleep(cap < 0 || (ns >= 0 && ns < cap) ? ns : cap);
    int room = max < KERNEL_EVENTS ? max : KERNEL_EVENTS;
    struct epoll_event seen[KERNEL_EVENTS];
    bool sharing = atomic_load(&s->sharing);
    bertha_unlock(&s->lock);
    int got = sleep_in_kernel(s, seen, room, ns, mask, &nap);
    atomic_fetch_sub(&s->asleep, 1);
    if (!bertha_lock(&s->lock)) {
      return -EINTR;
    }
    eset_woken(s);
    nest_awake(&nap);
    kin_enter(s);
    if (got < 0) {
      n = sharing ? eset_collect(s, events, max, true)
                  : 0; /* what one of several was rung for (EPOLLEXCLUSIVE) */
      n = n > 0 ? n : got;
      break;
    }
    now = bertha_now_ns();
    s->kernel_seen = now;
    s->kernel_every = KERNEL_EVERY_NS;
    n = sort_out(s, seen, got, events);
    if (n == 0) { /* otherwise a member that has just come to the rings would be reported twice */
      eset_upgrade_queued(s);
    }
    n += eset_collect(s, events + n, max - n, true);
    if (n != 0 || (deadline >= 0 && now >= deadline)) {
      break;
    }
  }
  eset_pass_on(s);
  bertha_unlock(&s->lock);
  if (waited && bound > 0) {
    spin_learn(&s->spin, bertha_now_ns() - begin, bound);
  }
  return n;
}
