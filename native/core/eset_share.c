/* A connection in several epoll sets of one process.
 *
 * The link has one map of changed slots, and who looks there first takes the bit.  For a slot that is in several sets
 * (`shared` of the link) the one who takes it hands it on to the others, in their `told`; both under the link's `sets_lock`,
 * so that who finds itself told looks at the ring after the bit was taken: a producer that has seen the bit still set, and
 * set none, is looked at by all of them.  Handing on comes before taking: who is about to sleep and does not find the bit in
 * the map any more finds it in its `told`.
 *
 * To be woken is each set's own affair: the slot names all their sleepers (struct bertha_watch), and the other end rings
 * each that is armed.  A bell byte that lies on the connection is left there until the ring is drained, as for anybody who
 * waits in the kernel: it is for all of them.
 *
 * Sets of other processes are not in our memory, and could not be told of what we take.  Where a living one's stands in the
 * slot already, ours leaves the connection to the kernel, whose byte comes for everybody. */
#include "conn.h"
#include "eset.h"
#include "orphans.h"

static bool has(const uint64_t *words, uint32_t slot) {
  return words[slot / 64] >> (slot % 64) & 1;
}

static uint64_t bit_of(uint32_t slot) {
  return (uint64_t)1 << (slot % 64);
}

static struct bertha_watch *watch_of(const struct slink *k, uint32_t slot) {
  return &k->link->slots[slot].watch[k->link->side];
}

void share_enlist(struct slink *k) {
  struct link *l = k->link;
  bool taken = bertha_lock(&l->sets_lock); /* or a handler's: it is put before what is being looked at */
  k->beside = l->sets;
  l->sets = k;
  if (taken) {
    bertha_unlock(&l->sets_lock);
  }
}

bool share_unlist(struct slink *k) {
  struct link *l = k->link;
  if (!bertha_lock(&l->sets_lock)) {
    for (unsigned i = 0; i < ESET_WORDS; i++) {
      k->in[i] = 0;
    }
    return false;
  }
  struct slink **place = &l->sets;
  while (*place != NULL && *place != k) {
    place = &(*place)->beside;
  }
  if (*place == k) {
    *place = k->beside;
  }
  bertha_unlock(&l->sets_lock);
  return true;
}

static bool place_also(struct bertha_watch *w, uint16_t name) {
  uint32_t more = atomic_load(&w->more);
  uint32_t used = more < BERTHA_WATCH_ALSO ? more : BERTHA_WATCH_ALSO;
  uint32_t i = 0;
  while (i < used && atomic_load(&w->also[i]) != 0) {
    i++;
  }
  if (i == BERTHA_WATCH_ALSO) {
    return false;
  }
  atomic_store(&w->also[i], name);
  if (i == used) {
    atomic_store(&w->more, (uint16_t)(i + 1));
  }
  return true;
}

/* A process that is alive waits for it in a set that we do not have: our parent, whose set we have closed, or a child. */
static bool named_elsewhere(const struct slink *k, uint32_t slot) {
  const struct bertha_watch *w = watch_of(k, slot);
  uint32_t more = atomic_load(&w->more);
  uint32_t used = more < BERTHA_WATCH_ALSO ? more : BERTHA_WATCH_ALSO;
  for (uint32_t i = 0; i <= used; i++) {
    uint32_t index = atomic_load(i < used ? &w->also[i] : &w->epoll) & ~BERTHA_WATCH_ONE;
    if (LIKELY(index == 0 || index >= BERTHA_SLEEPERS)) {
      continue;
    }
    uint32_t owner = atomic_load(&k->link->sleepers[k->link->side][index].owner);
    if (owner != 0 && owner != (uint32_t)bertha.pid && !orphans_gone(owner)) {
      return true;
    }
  }
  return false;
}

/* The first one: what others have left there (a process that is gone, a connection that had the slot before) goes.  False:
 * another process's is there, or comes just now. */
static bool place_alone(const struct slink *k, uint32_t slot, uint16_t name) {
  struct bertha_watch *w = watch_of(k, slot);
  uint16_t seen = atomic_load(&w->epoll);
  if (UNLIKELY(named_elsewhere(k, slot))) {
    return false;
  }
  if (UNLIKELY(atomic_load(&w->more) != 0)) {
    atomic_store(&w->more, 0);
  }
  for (uint32_t i = 0; i < BERTHA_WATCH_ALSO; i++) {
    if (UNLIKELY(atomic_load_explicit(&w->also[i], memory_order_relaxed) != 0)) {
      atomic_store(&w->also[i], 0);
    }
  }
  return atomic_compare_exchange_strong(&w->epoll, &seen, name);
}

/* A set that slept alone may have been rung by a byte, and not be armed any more; others take the byte off from now on. */
static void no_longer_alone(struct slink *o) {
  atomic_store(&o->set->sharing, true);
  if (atomic_load(&o->set->asleep) != 0) {
    sleeper_arm(&o->link->sleepers[o->link->side][o->sleeper]);
  }
}

bool share_join(struct slink *k, uint32_t slot, bool exclusive) {
  struct link *l = k->link;
  uint16_t name = (uint16_t)(k->sleeper | (exclusive ? BERTHA_WATCH_ONE : 0));
  bool others = false;
  bool inherited = false;
  if (!bertha_lock(&l->sets_lock)) {
    return false;
  }
  for (const struct slink *o = l->sets; o != NULL; o = o->beside) {
    if (o != k && has(o->in, slot) && !share_parted(o, slot)) {
      others = true;
      inherited |= o->set->inherited; /* the parent's: it looks at the same map, and is told nothing by us */
    }
  }
  bool placed = !inherited;
  if (placed && others) {
    placed = place_also(watch_of(k, slot), name);
  } else if (placed) {
    placed = place_alone(k, slot, name);
  }
  if (placed) {
    parted_joins(k, slot);
    k->in[slot / 64] |= bit_of(slot);
  }
  if (placed && others) {
    atomic_fetch_or(&l->shared[slot / 64], bit_of(slot));
    for (struct slink *o = l->sets; o != NULL; o = o->beside) {
      if (has(o->in, slot)) {
        no_longer_alone(o);
      }
    }
  }
  bertha_unlock(&l->sets_lock);
  atomic_thread_fence(memory_order_seq_cst); /* before the look that follows: see share_take() */
  return placed;
}

/* The one that is left comes first again, written there before it goes from where it was. */
static void displace(struct bertha_watch *w, uint32_t sleeper) {
  uint16_t left = 0;
  unsigned count = 0;
  for (uint32_t i = 0; i <= BERTHA_WATCH_ALSO; i++) {
    _Atomic uint16_t *at = i < BERTHA_WATCH_ALSO ? &w->also[i] : &w->epoll;
    uint16_t name = atomic_load(at);
    if ((name & ~BERTHA_WATCH_ONE) == sleeper) {
      atomic_compare_exchange_strong(at, &name, 0);
    } else if (name != 0) {
      left = name;
      count++;
    }
  }
  if (count <= 1 && atomic_load(&w->more) != 0) {
    atomic_store(&w->epoll, left);
    for (uint32_t i = 0; i < BERTHA_WATCH_ALSO; i++) {
      atomic_store(&w->also[i], 0);
    }
    atomic_store(&w->more, 0);
  }
}

void share_leave(struct slink *k, uint32_t slot) {
  struct link *l = k->link;
  bool taken = bertha_lock(&l->sets_lock);
  unsigned others = 0;
  k->in[slot / 64] &= ~bit_of(slot);
  k->byte_left[slot / 64] &= ~bit_of(slot);
  for (const struct slink *o = l->sets; o != NULL; o = o->beside) {
    others += has(o->in, slot);
  }
  if (others <= 1) {
    atomic_fetch_and(&l->shared[slot / 64], ~bit_of(slot));
  }
  if (!k->set->inherited) { /* the slot names the parent's sleeper, which goes on waiting */
    displace(watch_of(k, slot), k->sleeper);
  }
  if (taken) {
    bertha_unlock(&l->sets_lock);
  }
}

void share_renamed(const struct slink *k, uint32_t slot, uint32_t was) {
  struct bertha_watch *w = watch_of(k, slot);
  for (uint32_t i = 0; i <= BERTHA_WATCH_ALSO; i++) {
    _Atomic uint16_t *at = i < BERTHA_WATCH_ALSO ? &w->also[i] : &w->epoll;
    uint16_t name = atomic_load(at);
    if (name != 0 && (name & ~BERTHA_WATCH_ONE) == was) {
      atomic_store(at, (uint16_t)((name & BERTHA_WATCH_ONE) | k->sleeper));
      return;
    }
  }
  if (atomic_load(&w->more) == 0) {
    atomic_store(&w->epoll, (uint16_t)k->sleeper);
  } else {
    place_also(w, (uint16_t)k->sleeper);
  }
}

static bool sleeps(const struct bertha_sleeper *s) {
  return atomic_load(&s->armed) != 0;
}

/* The name in `at` is ours, or was another process's and is ours now. */
static bool take_place(struct slink *k, _Atomic uint16_t *at, bool from_the_dead) {
  uint16_t name = atomic_load(at);
  uint32_t index = name & ~BERTHA_WATCH_ONE;
  if (index == k->sleeper || index == 0 || index >= BERTHA_SLEEPERS) {
    return index == k->sleeper;
  }
  const struct bertha_sleeper *s = &k->link->sleepers[k->link->side][index];
  uint32_t owner = atomic_load(&s->owner);
  bool left = owner != (uint32_t)bertha.pid && (!sleeps(s) || (from_the_dead && orphans_gone(owner)));
  return left &&
         atomic_compare_exchange_strong(at, &name, (uint16_t)((name & BERTHA_WATCH_ONE) | k->sleeper));
}

/* What says something of all in the slot is changed under the lock, which is our process's alone: as for share_renamed(). */
void share_again(struct slink *k, uint32_t slot, bool exclusive, bool from_the_dead) {
  struct bertha_watch *w = watch_of(k, slot);
  uint16_t mine = (uint16_t)(k->sleeper | (exclusive ? BERTHA_WATCH_ONE : 0));
  uint16_t none = 0;
  bool named = false;
  if (k->sleeper == 0 || !bertha_lock(&k->link->sets_lock)) {
    return;
  }
  bool alone = atomic_load(&w->more) == 0;
  for (uint32_t i = 0; i <= BERTHA_WATCH_ALSO && !named; i++) { /* ours may be there */
    const _Atomic uint16_t *at = i == 0 ? &w->epoll : &w->also[i - 1];
    named = (i == 0 || !alone) && (atomic_load(at) & ~BERTHA_WATCH_ONE) == k->sleeper;
  }
  named = named || (alone && atomic_compare_exchange_strong(&w->epoll, &none, mine));
  for (uint32_t i = 0; i <= BERTHA_WATCH_ALSO && !named && (i == 0 || !alone); i++) {
    named = take_place(k, i == 0 ? &w->epoll : &w->also[i - 1], from_the_dead);
  }
  if (!named && from_the_dead) {
    place_also(w, mine);
  }
  bertha_unlock(&k->link->sets_lock);
}

static void tell(struct slink *k, unsigned word, uint64_t bits, bool wake) {
  for (struct slink *o = k->link->sets; o != NULL; o = o->beside) {
    uint64_t theirs = o != k ? o->in[word] & bits : 0;
    if (theirs == 0) {
      continue;
    }
    atomic_fetch_or(&o->told[word], theirs);
    uint64_t one = 1;
    int saved = errno;
    if (wake && atomic_load(&o->set->asleep) != 0 && o->set->bell_fd >= 0 &&
        QUIET(write)(o->set->bell_fd, &one, sizeof one) < 0) {
      errno = saved;
    }
  }
}

/* A handler that finds the lock its own thread's looks at what has changed and takes nothing. */
static uint64_t take_shared(struct slink *k, unsigned word, uint64_t seen) {
  struct link *l = k->link;
  _Atomic uint64_t *dirty = &l->dirty[l->side][word];
  if (!bertha_lock(&l->sets_lock)) {
    return seen | atomic_load(&k->told[word]);
  }
  uint64_t told = atomic_exchange(&k->told[word], 0);
  uint64_t take = seen & atomic_load(dirty); /* what is no longer there we were told of */
  if (take != 0) {
    tell(k, word, take, false);
    atomic_fetch_and(dirty, ~take);
  }
  bertha_unlock(&l->sets_lock);
  return take | told;
}

uint64_t share_take(struct slink *k, unsigned word) {
  struct link *l = k->link;
  _Atomic uint64_t *dirty = &l->dirty[l->side][word];
  uint64_t seen = atomic_load_explicit(dirty, memory_order_acquire) & k->mask[word];
  uint64_t told = atomic_load_explicit(&k->told[word], memory_order_acquire); /* in this order: see above */
  if (LIKELY((seen | told) == 0)) {
    return 0;
  }
  uint64_t shared = atomic_load_explicit(&l->shared[word], memory_order_relaxed);
  uint64_t alone = seen & ~shared;
  uint64_t found = alone;
  if (alone != 0) {
    atomic_fetch_and(dirty, ~alone); /* before the look: a later change sets it again */
  }
  if (UNLIKELY((seen & shared) != 0 || told != 0)) {
    found |= take_shared(k, word, seen & shared) & k->mask[word];
  }
  atomic_thread_fence(memory_order_seq_cst);
  /* One that comes to be shared just now: either its other set looks after we have taken the bit, or we see it here.  That
   * set may have gone to sleep in between. */
  uint64_t late = alone & atomic_load_explicit(&l->shared[word], memory_order_relaxed);
  if (UNLIKELY(late != 0) && bertha_lock(&l->sets_lock)) {
    tell(k, word, late, true);
    bertha_unlock(&l->sets_lock);
  }
  return found;
}

bool share_byte_left(struct slink *k) {
  bool left = false;
  for (unsigned i = 0; i < ESET_WORDS; i++) {
    for (uint64_t todo = k->byte_left[i]; todo != 0; todo &= todo - 1) {
      uint32_t slot = i * 64 + (unsigned)__builtin_ctzll(todo);
      bool out = atomic_load(&k->link->slots[slot].dir[1 - k->link->side].bell_out) != 0;
      if (!out) {
        k->byte_left[i] &= ~bit_of(slot);
      }
      left |= out;
    }
  }
  return left;
}
