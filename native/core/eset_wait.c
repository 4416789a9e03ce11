/* epoll_wait: the rings first, the kernel now and then, asleep in the kernel when there is nothing. */
#include "conn.h"
#include "eset_members.h"
#include "trim.h"
#include "unixpair.h"

enum {
  BELL_AFTER = 16,
  KERNEL_EVENTS = 512,
  LOOKS =
      8, /* of those between two looks at the clock, with the lock held; the others leave it to other threads */
  LOOK_LINKS = 4,
  LOOKS_PER_CLOCK = 16,
  NO_BELL_MS = 1,
  STARVED_MS = 20,
  LATELY = 64
};
/* How often a set that is kept busy by its rings asks the kernel: seldomer while that has nothing to say. */
#define KERNEL_EVERY_NS 50000
#define KERNEL_SELDOM_NS 400000

#define ENDS (CONN_FIN | CONN_RST)
#define POLL_BITS (EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | EPOLLRDNORM | EPOLLWRNORM)

/* With the lock held: what one word of a link's map of slots has, up to `max` events; only of the slots in `part`. */
static int collect_word(struct eset *s, struct slink *k, unsigned i, uint64_t part,
                        struct epoll_event *events, int max) {
  int n = 0;
  uint64_t changed = share_take(k, i);
  if (changed != 0) {
    k->busy = s->turns;
  }
  uint64_t todo = (changed | k->pending[i]) & k->mask[i];
  k->pending[i] = todo;
  todo &= part;
  while (todo != 0 && n < max) {
    unsigned bit = (unsigned)__builtin_ctzll(todo);
    todo &= todo - 1;
    int fd = k->fd[i * 64 + bit];
    struct reg *r = &s->regs[fd];
    struct conn *c = conn_by_index(r->conn - 1);
    r->ends = conn_flags(c) & ENDS;
    uint32_t ready = (uint16_t)conn_events(c, fd, (short)(r->events & POLL_BITS));
    ready &= r->events | EPOLLERR | EPOLLHUP;
    if (UNLIKELY((r->events & EPOLLOUT) && c->tx_phase != PHASE_RING && !r->kernel_out)) {
      struct epoll_event e = {.events = eset_sticky(r->events) | EPOLLOUT, .data.u64 = reg_data(r, fd)};
      r->kernel_out = REAL(epoll_ctl)(s->epfd, EPOLL_CTL_MOD, fd, &e) == 0; /* it is the kernel's room */
    }
    bool starves = (r->events & EPOLLOUT) && !(ready & EPOLLOUT);
    if (starves) {
      s->starved = true;
      if (conn_flags(c) & CONN_FIN) {
        bell_on_connection(c, fd);
      }
    }
    r->ready = ready;
    /* One that waits for space is looked at again: who makes room may have no way to ring (our bell was known to an agent
     * that has ended, and the other end has shut down the connection that would carry a byte). */
    bool again = ready == 0 && starves && c->tx_phase == PHASE_RING;
    if (!again && (ready == 0 || (r->events & (EPOLLET | EPOLLONESHOT)))) {
      k->pending[i] &= ~((uint64_t)1 << bit);
    }
    if (ready != 0) {
      events[n].events = ready;
      events[n++].data.u64 = r->data;
      if (r->events & EPOLLONESHOT) {
        k->mask[i] &= ~((uint64_t)1 << bit);
      }
      k->cursor = i * 64 + bit + 1;
    }
  }
  return n;
}

/* With the lock held: what the rings have, up to `max` events.  Each link goes on behind the slot that it last told of:
 * where more is ready than the program takes at a time, everybody's turn comes. */
static int collect(struct eset *s, struct epoll_event *events, int max) {
  int n = 0;
  for (struct slink *k = s->slinks; k != NULL && n < max; k = k->next) {
    unsigned words = (k->link->slot_count + 63) / 64;
    unsigned first = k->cursor < k->link->slot_count ? k->cursor : 0;
    uint64_t before = ((uint64_t)1 << (first % 64)) - 1; /* of the first word: looked at last */
    if (k->count == 0) {
      continue;
    }
    for (unsigned step = 0; step <= words && n < max; step++) {
      uint64_t part = step == 0 ? ~before : step == words ? before : UINT64_MAX;
      if (part != 0) {
        n += collect_word(s, k, (first / 64 + step) % words, part, events + n, max - n);
      }
    }
  }
  return n;
}

/* By memory alone, with the lock held: whether a look would find something.  A few links at most: it is done between pauses. */
static bool changed(const struct eset *s) {
  unsigned links = 0;
  for (const struct slink *k = s->slinks; k != NULL && links < LOOK_LINKS; k = k->next) {
    const struct link *l = k->link;
    if (k->count == 0) {
      continue;
    }
    links++;
    for (unsigned i = 0, words = (l->slot_count + 63) / 64; i < words; i++) {
      if (slink_changed(k, i)) {
        return true;
      }
    }
  }
  return false;
}

/* So that under steady load the first links and slots of a set do not keep the others waiting. */
static void rotate(struct eset *s) {
  struct slink *first = s->slinks;
  if (first != NULL && first->next != NULL) {
    struct slink *last = first;
    while (last->next != NULL) {
      last = last->next;
    }
    s->slinks = first->next;
    first->next = NULL;
    last->next = first;
  }
}

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
  conn_kernel_events(c, seen);
  uint32_t ready = (uint16_t)conn_events(c, fd, (short)(r->events & POLL_BITS));
  if (ready == 0 && c->rx_phase == PHASE_RING && (seen & EPOLLIN) && conn_look_at_kernel(c, fd)) {
    ready = (uint16_t)conn_events(c, fd, (short)(r->events & POLL_BITS));
  }
  return (ready & (r->events | EPOLLERR | EPOLLHUP)) | (seen & EPOLLPRI);
}

static bool edge_only(const struct reg *r) {
  return (r->events & (EPOLLET | EPOLLONESHOT)) == EPOLLET;
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
  bool first = r->first;
  r->first = 0;
  bool in = (events & EPOLLIN) && c->rx_phase != PHASE_RING && !(first && (r->ready & EPOLLIN));
  bool wanted = !(r->ready & EPOLLOUT) || (conn_flags(c) & CONN_TX_SHORT);
  bool out = (events & EPOLLOUT) && c->tx_phase != PHASE_RING && wanted;
  if (out && !shared) { /* else another set has to be told, too */
    conn_clear_flag(c, CONN_TX_SHORT);
  }
  return in || out;
}

/* What the kernel reported: our own registrations are taken note of, the program's passed on.  `from` and
 * `to` may be the same.  Does not need the lock for members that the kernel serves. */
static int sort_out(struct eset *s, const struct epoll_event *from, int count, struct epoll_event *to) {
  int n = 0;
  for (int i = 0; i < count; i++) {
    struct epoll_event e = from[i];
    if ((e.data.u64 & 0xffffffff00000000u) != eset_magic || eset_magic == 0) {
      to[n++] = e;
      continue;
    }
    uint32_t fd = (uint32_t)e.data.u64 & (ESET_FDS - 1);
    struct reg *r = (uint32_t)e.data.u64 != ESET_BELL ? &s->regs[fd] : NULL;
    if (r == NULL || reg_data(r, (int)fd) != e.data.u64 || r->state == REG_NONE || r->state == REG_OFF) {
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
    if ((e.events & EPOLLIN) && c->rx_phase == PHASE_RING) {
      news |= conn_look_at_kernel(c, (int)fd) && !shared;
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
    if (news && (r->slink->mask[c->slot_index / 64] >> (c->slot_index % 64) & 1)) {
      slink_mark(r->slink, c->slot_index);
    }
  }
  return n;
}

static int kernel_wait(struct eset *s, struct epoll_event *events, int max, int64_t ns, const sigset_t *mask,
                       void (*undo)(void *)) {
  int n = ns == 0 && mask == NULL ? QUIET(epoll_look)(s->epfd, events, max)
                                  : sleep_epoll(s->epfd, events, max, ns, mask, undo, s);
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
static int look(struct eset *s, struct epoll_event *events, int max, bool kernel) {
  int n = 0;
  s->rings_turn ^= kernel;
  if (kernel && max == 1 && s->rings_turn) {
    n = collect(s, events, 1);
    kernel = n == 0;
  }
  if (kernel) {
    struct epoll_event seen[64];
    int room = max > 1 ? max / 2 : 1;
    int got = kernel_wait(s, seen, room < 64 ? room : 64, 0, NULL, nothing);
    int64_t twice = s->kernel_every < KERNEL_SELDOM_NS ? 2 * s->kernel_every : KERNEL_SELDOM_NS;
    s->kernel_every = got == 0 && s->kernel_every >= KERNEL_EVERY_NS ? twice : KERNEL_EVERY_NS;
    n = got > 0 ? sort_out(s, seen, got, events) : 0;
  }
  return n < max ? n + collect(s, events + n, max - n) : n;
}

static void want_bell(struct eset *s) {
  bool now = s->starved || s->byte_left || atomic_load(&s->sharing) || atomic_load(&s->asleep) != 0;
  if (s->bell != 0 || (!now && ++s->sleeps % BELL_AFTER != 0)) {
    return;
  }
  int fd;
  uint32_t bell = bell_create(&fd);
  if (bell == 0) {
    return;
  }
  /* edge-triggered and never read: every ring is an event, and costs its sleeper no further call */
  struct epoll_event e = {.events = EPOLLIN | EPOLLET, .data.u64 = eset_magic | ESET_BELL};
  if (REAL(epoll_ctl)(s->epfd, EPOLL_CTL_ADD, fd, &e) != 0) {
    extern void bertha_close_hidden(int);
    bertha_close_hidden(fd);
    return;
  }
  s->bell = bell;
  s->bell_fd = fd;
  for (struct slink *k = s->slinks; k != NULL; k = k->next) {
    atomic_store(&k->link->sleepers[k->link->side][k->sleeper].bell, bell);
  }
}

static void set_armed(struct eset *s, uint32_t value) {
  for (struct slink *k = s->slinks; k != NULL; k = k->next) {
    if (k->count > 0) {
      _Atomic uint32_t *armed = &k->link->sleepers[k->link->side][k->sleeper].armed;
      if (value != 0) {
        sleeper_arm(&k->link->sleepers[k->link->side][k->sleeper]);
      } else if (atomic_load_explicit(armed, memory_order_relaxed) != 0) {
        atomic_store(armed, 0);
      }
    }
  }
}

/* Awake again. */
static void woken(struct eset *s) {
  if (LIKELY(atomic_load_explicit(&s->asleep, memory_order_relaxed) == 0)) {
    set_armed(s, 0);
  }
}

/* Cancelled in its sleep. */
static void no_more_asleep(void *p) {
  struct eset *s = p;
  atomic_fetch_sub(&s->asleep, 1);
  if (bertha_lock(&s->lock)) {
    woken(s);
    bertha_unlock(&s->lock);
  }
}

/* What this thread leaves behind is for one that sleeps in the same set, as in the kernel; and their bell stays
 * armed for what comes while we are busy.  With the lock held. */
void eset_pass_on(struct eset *s) {
  if (LIKELY(atomic_load(&s->asleep) == 0) || s->ring_count == 0) {
    return;
  }
  int saved = errno;
  want_bell(s);
  set_armed(s, 1);
  atomic_thread_fence(memory_order_seq_cst);
  bool more = false;
  for (struct slink *k = s->slinks; k != NULL; k = k->next) {
    for (unsigned i = 0; k->count > 0 && i < (k->link->slot_count + 63) / 64; i++) {
      more |= (k->pending[i] & k->mask[i]) != 0 || slink_changed(k, i);
    }
  }
  uint64_t one = 1;
  if (more && s->bell_fd >= 0 && QUIET(write)(s->bell_fd, &one, sizeof one) < 0) {
    errno = saved;
  }
  errno = saved;
}

/* Bytes that were left for other sets: until the ring is drained there is no other byte, and who has no way to ring our bell
 * (a carrier; its agent has ended) has no way to tell us of more. */
static bool bytes_left(struct eset *s) {
  bool left = false;
  for (struct slink *k = s->slinks; k != NULL && UNLIKELY(atomic_load(&s->sharing)); k = k->next) {
    left |= k->count > 0 && share_byte_left(k);
  }
  return left;
}

/* It is those that have talked lately that we wait for: that an idle one was last on another processor says nothing. */
static int64_t spin_bound(struct eset *s) {
  int64_t bound = 0;
  bool lately = false;
  for (struct slink *k = s->slinks; k != NULL; k = k->next) {
    lately |= k->count > 0 && s->turns - k->busy < LATELY;
  }
  for (struct slink *k = s->slinks; k != NULL; k = k->next) {
    if (k->count > 0 && (!lately || s->turns - k->busy < LATELY) && !same_processor(k->link)) {
      int64_t b = link_spin_bound(k->link);
      bound = b > bound ? b : bound;
    }
  }
  return bound;
}

/* Counted among the sleepers while no member was on a ring: the kernel's wait, but for connections that come to the
 * rings while we sleep. */
static int wait_kernel_only(struct eset *s, struct epoll_event *events, int max, int64_t timeout_ns,
                            const sigset_t *mask) {
  int64_t begin = timeout_ns > 0 ? bertha_now_ns() : 0;
  for (;;) {
    int64_t left = timeout_ns;
    if (timeout_ns > 0) {
      left -= bertha_now_ns() - begin;
      left = left > 0 ? left : 0;
    }
    int n = kernel_wait(s, events, max, left, mask, no_more_asleep);
    atomic_fetch_sub(&s->asleep, 1);
    if (n <= 0) {
      return n;
    }
    bool locked = bertha_lock(&s->lock); /* another thread may be bringing one to the rings */
    int kept = sort_out(s, events, n, events);
    if (locked) {
      eset_pass_on(s);
      bertha_unlock(&s->lock);
    }
    if (kept > 0 || timeout_ns == 0) {
      return kept;
    }
    locked = bertha_lock(&s->lock);
    eset_upgrade_queued(s);
    bool rings = s->ring_count > 0; /* a bell only: its connection is on a ring now */
    if (!rings) {
      atomic_fetch_add(&s->asleep, 1);
    }
    if (locked) {
      bertha_unlock(&s->lock);
    }
    if (rings) {
      return eset_wait(s, events, max, timeout_ns < 0 ? -1 : left, mask);
    }
    if (s->plain) {
      QUIET(nap)(100000); /* a full ring looks writable to the kernel */
    }
  }
}

int eset_wait(struct eset *s, struct epoll_event *events, int max, int64_t timeout_ns, const sigset_t *mask) {
  CANCELLATION_POINT();
  if (max <= 0 || !bertha_lock(&s->lock)) {
    return kernel_wait(s, events, max, timeout_ns, mask, nothing);
  }
  if (s->inherited) {
    eset_adopt(s);
  }
  eset_upgrade_queued(s);
  if (s->ring_count == 0) {
    atomic_fetch_add(&s->asleep, 1);
    bertha_unlock(&s->lock);
    return wait_kernel_only(s, events, max, timeout_ns, mask);
  }
  int64_t begin = bertha_now_ns();
  int64_t now = begin;
  int64_t deadline = timeout_ns >= 0 ? begin + timeout_ns : -1;
  int64_t bound = 0;
  int64_t spin_end = begin;
  bool waited = false;
  int n;
  rotate(s);
  s->turns++;
  for (;;) {
    bool ask_kernel = now - s->kernel_seen >= s->kernel_every;
    n = look(s, events, max, ask_kernel);
    if (ask_kernel) {
      s->kernel_seen = now;
    }
    if (n != 0) {
      break;
    }
    if (!waited) {
      waited = true;
      bound = timeout_ns == 0 ? 0 : spin_bound(s);
      spin_end = begin + spin_budget(&s->spin, begin, bound);
    }
    if (timeout_ns == 0) {
      n = ask_kernel ? 0 : look(s, events, max, true);
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
        found = changed(s);
      }
      bertha_unlock(&s->lock); /* epoll_ctl of another thread gets in */
      for (int i = LOOKS; i < LOOKS_PER_CLOCK && !found; i++) {
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
        n = look(s, events, max, true);
        n = n == 0 && let_signals_in(s, mask) ? -EINTR : n;
        break;
      }
      continue;
    }
    want_bell(s);
    set_armed(s, 1);
    atomic_thread_fence(memory_order_seq_cst);
    n = collect(s, events, max);
    if (n != 0) {
      woken(s);
      break;
    }
    int64_t ns = -1;
    if (deadline >= 0) {
      now = bertha_now_ns();
      ns = deadline > now ? deadline - now : 0;
    }
    bool left = bytes_left(s);
    bool sharing = atomic_load(&s->sharing);
    if (s->starved || left || ((s->byte_left || sharing) && s->bell == 0)) {
      int64_t cap = (s->bell != 0 ? STARVED_MS : NO_BELL_MS) * (int64_t)1000000;
      ns = ns >= 0 && ns < cap ? ns : cap;
      s->starved = false;
    }
    ns = trim_before_sleep(ns);
    int room = max < KERNEL_EVENTS ? max : KERNEL_EVENTS;
    struct epoll_event seen[KERNEL_EVENTS];
    atomic_fetch_add(&s->asleep, 1);
    bertha_unlock(&s->lock);
    int got = kernel_wait(s, seen, room, ns, mask, no_more_asleep);
    atomic_fetch_sub(&s->asleep, 1);
    if (!bertha_lock(&s->lock)) {
      return -EINTR;
    }
    woken(s);
    if (got < 0) {
      n = sharing ? collect(s, events, max) : 0; /* what one of several was rung for (EPOLLEXCLUSIVE) */
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
    if (n < max) {
      n += collect(s, events + n, max - n);
    }
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
