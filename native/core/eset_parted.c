/* Members that the program has taken out of a set, perhaps for a moment.
 *
 * redis-benchmark and others take a connection out and put it in again for each request.  Its slot names the set's sleeper, in a
 * line that the other end reads for each message: to write there takes both processors a cache line to and fro, twice for
 * each change.  So the name stays, and the set counts as one that the slot is in (as after EPOLLONESHOT), until a thread is
 * about to sleep in the set: before that nobody is woken by it.  Put in again, it is as it was.
 *
 * Not where anybody else has to do with it: other sets, other processes, other descriptors, a carrier. */
#include "conn.h"
#include "eset.h"

static uint64_t parted(const struct slink *k, unsigned word) {
  return atomic_load_explicit(&k->parted[word], memory_order_relaxed);
}

/* Of the slot alone; with the set's lock, so nobody else writes there. */
static void note(struct slink *k, uint32_t slot, bool is) {
  uint64_t bit = (uint64_t)1 << (slot % 64);
  uint64_t was = parted(k, slot / 64);
  atomic_store_explicit(&k->parted[slot / 64], is ? was | bit : was & ~bit, memory_order_relaxed);
  k->set->parted += is ? 1u : -1u;
}

void parted_begin(struct slink *k, const struct conn *c, bool exclusive) {
  const struct eset *s = k->set;
  bool ours_alone = !s->inherited && !s->adopted && !s->kin && !exclusive && k->link->loans == NULL &&
                    atomic_load_explicit(&s->asleep, memory_order_relaxed) == 0 &&
                    !atomic_load_explicit(&s->sharing, memory_order_relaxed) &&
                    atomic_load_explicit(&s->outers, memory_order_relaxed) == 0 &&
                    atomic_load_explicit(&c->info.refs, memory_order_relaxed) == 1;
  if (!ours_alone) {
    share_leave(k, c->slot_index);
    return;
  }
  note(k, c->slot_index, true);
}

/* Another set, for which ours did not count (share_join), or another process of the family may have put its name there. */
bool parted_again(struct slink *k, uint32_t slot, bool exclusive) {
  const struct bertha_watch *w = &k->link->slots[slot].watch[k->link->side];
  if (!share_parted(k, slot)) {
    return false;
  }
  bool taken = bertha_lock(&k->link->sets_lock);
  note(k, slot, false);
  bool named = !exclusive && atomic_load(&w->more) == 0 && atomic_load(&w->epoll) == k->sleeper;
  if (taken) {
    bertha_unlock(&k->link->sets_lock);
  }
  if (!named) {
    share_leave(k, slot);
  }
  return named;
}

void parted_end(struct slink *k, uint32_t slot) {
  if (share_parted(k, slot)) {
    note(k, slot, false);
    share_leave(k, slot);
  }
}

void parted_joins(struct slink *k, uint32_t slot) {
  if (UNLIKELY(share_parted(k, slot))) {
    note(k, slot, false);
  }
}

void parted_all_end(struct eset *s) {
  for (struct slink *k = s->slinks; k != NULL && s->parted > 0; k = k->next) {
    for (unsigned i = 0; i < ESET_WORDS; i++) {
      while (parted(k, i) != 0) {
        parted_end(k, i * 64 + (unsigned)__builtin_ctzll(parted(k, i)));
      }
    }
  }
  s->parted = 0;
}

/* The names are the parent's. */
void parted_after_fork(struct eset *s) {
  for (struct slink *k = s->slinks; k != NULL && s->parted > 0; k = k->next) {
    for (unsigned i = 0; i < ESET_WORDS; i++) {
      k->in[i] &= ~parted(k, i);
      atomic_store_explicit(&k->parted[i], 0, memory_order_relaxed);
    }
  }
  s->parted = 0;
}
