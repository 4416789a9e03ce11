/* What the rings have for an epoll set.
 *
 * Its cost follows those that talk: a link that had nothing for LATELY waits is cold, and while the warm ones have
 * something it is looked at only now and then, as often as the kernel's members are at most.  When they have nothing, all
 * are looked at. */
#include "conn.h"
#include "eset_members.h"
#include "eset_wait.h"

enum { LOOK_LINKS = 4, LATELY = 64 };

/* With EPOLLET, what wakes depends on what was asked for, as in the kernel: data wakes who asked for input, room who asked for
 * output and has lacked it, an end everybody.  Who is woken is then told of all that holds.  The counts are read before what they
 * count is looked at. */
bool eset_news(struct reg *r, struct conn *c) {
  uint32_t wanted = atomic_load_explicit(&c->room_wanted, memory_order_acquire);
  uint64_t tail = atomic_load_explicit(&conn_rx(c)->tail, memory_order_acquire);
  uint32_t ends = conn_flags(c) & ENDS;
  uint32_t shuts = atomic_load_explicit(&c->shuts, memory_order_relaxed);
  r->fresh |= shuts != r->shuts || (tail != r->tail && (r->events & EPOLL_DATA)) ||
              (wanted != r->wanted && (r->events & EPOLL_ROOM)) || (ends & ~r->ends) != 0;
  r->tail = tail;
  r->wanted = wanted;
  r->shuts = shuts;
  r->taken = atomic_load_explicit(&c->info.rx_bytes, memory_order_relaxed);
  r->ends = ends;
  return r->fresh;
}

/* What holds of one member, as far as it was asked for; it is pending no longer if nothing does, and would if it were
 * looked at again. */
static uint32_t judge(struct eset *s, struct slink *k, uint32_t slot) {
  int fd = k->fd[slot];
  struct reg *r = &s->regs[fd];
  struct conn *c = conn_by_index(r->conn - 1);
  if (UNLIKELY(k->link->loans != NULL)) {
    borrow_look(s, fd, c);
  }
  bool news = eset_news(r, c) || !edge_only(r);
  uint32_t ready = (uint16_t)conn_events(c, fd, (short)(r->events & POLL_BITS));
  ready &= r->events | EPOLLERR | EPOLLHUP;
  bool starves = (r->events & EPOLLOUT) && !(ready & EPOLLOUT);
  if (starves) {
    eset_kernels_room(s, fd, c);
    s->starved = true;
    if (conn_flags(c) & CONN_FIN) {
      bell_on_connection(c, fd);
    }
  }
  if (UNLIKELY((ready & ~r->ready) != 0)) { /* whatever has brought that about */
    r->fresh = 1;
    news = true;
  }
  r->ready = ready;
  ready = news ? ready : 0;
  /* One that waits for space is looked at again: who makes room may have no way to ring (our bell was known to an agent
     * that has ended, and the other end has shut down the connection that would carry a byte). */
  bool again = starves && c->tx_phase == PHASE_RING;
  if (ready == 0 && !again) {
    k->pending[slot / 64] &= ~((uint64_t)1 << (slot % 64));
  }
  return ready;
}

/* The members in one word of a link's map of slots that are to be looked at. */
static uint64_t to_look_at(struct eset *s, struct slink *k, unsigned i) {
  uint64_t changed = share_take(k, i);
  if (changed != 0) {
    k->busy = s->turns;
    s->news++;
  }
  k->pending[i] = (changed | k->pending[i]) & k->mask[i];
  return k->pending[i];
}

/* With the lock held: what one word of a link's map of slots has, up to `max` events; only of the slots in `part`. */
static int collect_word(struct eset *s, struct slink *k, unsigned i, uint64_t part,
                        struct epoll_event *events, int max) {
  int n = 0;
  for (uint64_t todo = to_look_at(s, k, i) & part; todo != 0 && n < max; todo &= todo - 1) {
    uint32_t slot = i * 64 + (unsigned)__builtin_ctzll(todo);
    uint64_t bit = todo & -todo;
    uint32_t ready = judge(s, k, slot);
    struct reg *r = &s->regs[k->fd[slot]];
    if (ready == 0) {
      continue;
    }
    events[n].events = ready;
    events[n++].data.u64 = r->data;
    if (r->events & (EPOLLET | EPOLLONESHOT)) {
      k->pending[i] &= ~bit;
      r->fresh = 0;
    }
    if (r->events & EPOLLONESHOT) {
      k->mask[i] &= ~bit;
    }
    k->cursor = slot + 1;
  }
  return n;
}

/* Each link goes on behind the slot that it last told of: where more is ready than the program takes at a time, everybody's
 * turn comes. */
static int collect_link(struct eset *s, struct slink *k, struct epoll_event *events, int max) {
  unsigned words = k->words;
  unsigned first = k->cursor < words * 64 ? k->cursor : 0;
  uint64_t before = ((uint64_t)1 << (first % 64)) - 1; /* of the first word: looked at last */
  int n = 0;
  for (unsigned step = 0; words > 0 && step <= words && n < max; step++) {
    uint64_t part = step == 0 ? ~before : step == words ? before : UINT64_MAX;
    if (part != 0) {
      n += collect_word(s, k, (first / 64 + step) % words, part, events + n, max - n);
    }
  }
  if (n > 0) {
    k->busy = s->turns;
  }
  return n;
}

/* Those that have something are to be warm; `found`: not yet, or they would be looked at again in the same look. */
static int collect_cold(struct eset *s, struct epoll_event *events, int max, struct slink **found) {
  int n = 0;
  for (struct slink *k = s->slinks; k != NULL && n < max; k = k->next) {
    int got = k->warm ? 0 : collect_link(s, k, events + n, max - n);
    if (got > 0) {
      k->next_warm = *found;
      *found = k;
      n += got;
    }
  }
  return n;
}

static int collect_warm(struct eset *s, struct epoll_event *events, int max) {
  int n = 0;
  for (struct slink **at = &s->warm; *at != NULL && n < max;) {
    struct slink *k = *at;
    n += collect_link(s, k, events + n, max - n);
    if (UNLIKELY(s->turns - k->busy > LATELY) && s->slink_count > LOOK_LINKS) {
      k->warm = false;
      *at = k->next_warm;
    } else {
      at = &k->next_warm;
    }
  }
  return n;
}

/* With the lock held.  The cold ones first, if at all: the others may have more than `max` every time. */
int eset_collect(struct eset *s, struct epoll_event *events, int max, bool all) {
  struct slink *found = NULL;
  bool inner_first = s->inner_count > 0 && (s->inner_turn & 1);
  int n = inner_first ? nest_collect(s, events, max) : 0;
  n += all ? collect_cold(s, events + n, max - n, &found) : 0;
  n += collect_warm(s, events + n, max - n);
  if (n == 0 && !all) {
    n = collect_cold(s, events, max, &found);
  }
  while (found != NULL) {
    struct slink *k = found;
    found = k->next_warm;
    slink_warm(k);
  }
  if (UNLIKELY(s->inner_count > 0) && !inner_first) {
    n += nest_collect(s, events + n, max - n);
  }
  return n;
}

/* With the lock held: whether there is anything, for a set that this one is in.  It stays to be told of. */
bool eset_peek(struct eset *s) {
  bool ready = false;
  for (struct slink *k = s->slinks; k != NULL; k = k->next) {
    for (unsigned i = 0; i < k->words; i++) {
      for (uint64_t todo = to_look_at(s, k, i); todo != 0 && !ready; todo &= todo - 1) {
        ready = judge(s, k, i * 64 + (unsigned)__builtin_ctzll(todo)) != 0;
      }
    }
  }
  return ready;
}

/* By memory alone, with the lock held: whether a look would find something.  A few links at most: it is done between pauses. */
bool eset_changed(const struct eset *s) {
  unsigned links = 0;
  for (const struct slink *k = s->warm; k != NULL && links < LOOK_LINKS; k = k->next_warm) {
    if (k->count == 0) {
      continue;
    }
    links++;
    for (unsigned i = 0; i < k->words; i++) {
      if (slink_changed(k, i)) {
        return true;
      }
    }
  }
  return false;
}

/* So that under steady load the first links and slots of a set do not keep the others waiting. */
void eset_rotate(struct eset *s) {
  struct slink *first = s->warm;
  if (first != NULL && first->next_warm != NULL) {
    struct slink *last = first;
    while (last->next_warm != NULL) {
      last = last->next_warm;
    }
    s->warm = first->next_warm;
    first->next_warm = NULL;
    last->next_warm = first;
  }
}

/* It is those that have talked lately that we wait for: that an idle one was last on another processor says nothing. */
int64_t eset_spin_bound(struct eset *s) {
  int64_t bound = 0;
  bool lately = false;
  uint32_t borrowed = atomic_load_explicit(&s->borrowed, memory_order_relaxed);
  if (UNLIKELY(borrowed > 0) && borrowed >= atomic_load(&s->ring_count)) {
    return 0; /* what comes to those the kernel tells */
  }
  for (struct slink *k = s->warm; k != NULL; k = k->next_warm) {
    lately |= k->count > 0 && s->turns - k->busy < LATELY;
  }
  for (struct slink *k = lately ? s->warm : s->slinks; k != NULL; k = lately ? k->next_warm : k->next) {
    if (k->count > 0 && (!lately || s->turns - k->busy < LATELY) && !same_processor(k->link)) {
      int64_t b = link_spin_bound(k->link);
      bound = b > bound ? b : bound;
    }
  }
  if (UNLIKELY(s->inner_count > 0)) {
    int64_t inner = nest_spin_bound(s);
    bound = inner > bound ? inner : bound;
  }
  return bound;
}
