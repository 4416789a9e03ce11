/* A ring grows to what bulk needs.  Its producer makes it small again: between two looks at it nothing was sent, and all
 * that was has been read, so that nobody but us can be in that memory.  Looked at before this process sleeps, which then
 * sleeps no longer than until the next look; a connection that is on its way costs nothing but the test of a bit.
 *
 * MADV_REMOVE takes the pages from both ends' mappings; who touches them again finds zeros. */
#include "trim.h"

#include <sys/mman.h>

#include "agentc.h"
#include "conn.h"

enum { FDS = 65536, WARM_SLOTS = 16 };
#define LOOK_NS 500000000

static _Atomic uint64_t grown[FDS / 64];
static _Atomic uint32_t count;
static _Atomic int64_t next_look;
static _Atomic uint32_t looking; /* lock: a thread looks at connections that may be others' */

void trim_note(int fd) {
  uint64_t bit = (uint64_t)1 << (fd % 64);
  if ((unsigned)fd < FDS && !(atomic_load_explicit(&grown[fd / 64], memory_order_relaxed) & bit) &&
      !(atomic_fetch_or(&grown[fd / 64], bit) & bit)) {
    atomic_fetch_add(&count, 1);
  }
}

static void forget(int fd) {
  uint64_t bit = (uint64_t)1 << (fd % 64);
  if (atomic_fetch_and(&grown[fd / 64], ~bit) & bit) {
    atomic_fetch_sub(&count, 1);
  }
}

static size_t page(void) {
  static _Atomic size_t size;
  size_t is = atomic_load_explicit(&size, memory_order_relaxed);
  if (is == 0) {
    is = (size_t)sysconf(_SC_PAGESIZE);
    atomic_store(&size, is);
  }
  return is;
}

static void give_back(uint8_t *ring, size_t keep, size_t size) {
  if (keep < size) {
    int saved = errno;
    madvise(ring + keep, size - keep, MADV_REMOVE);
    errno = saved;
  }
}

/* True: not a second time, unless it is used again. */
static bool look(struct conn *c) {
  if (conn_kind(c) != BERTHA_CONN_SHM || c->home != NULL || !bertha_lock(&c->tx_lock)) {
    return true;
  }
  struct bertha_direction *d = conn_tx(c);
  bool moved = c->trim_tail != c->tx_tail;
  c->trim_tail = c->tx_tail;
  if (!moved && c->tx_phase == PHASE_RING &&
      atomic_load_explicit(&d->head, memory_order_acquire) == c->tx_tail) {
    c->tx_size = c->tx_limit < TRIM_WARM ? c->tx_limit : TRIM_WARM;
    c->tx_base = c->tx_look_at = c->tx_head = c->tx_tail;
    atomic_store_explicit(&d->size, c->tx_size, memory_order_relaxed);
    atomic_store_explicit(&d->base, c->tx_base, memory_order_relaxed);
    give_back(c->tx_mem, page(), c->link->ring_max);
  }
  bertha_unlock(&c->tx_lock);
  return !moved;
}

static void look_at_all(void) {
  if (!bertha_lock(&looking)) {
    return;
  }
  atomic_thread_fence(memory_order_seq_cst);
  for (uint32_t word = 0; word < FDS / 64 && word * 64 < bertha.max_fd; word++) {
    uint64_t bits = atomic_load_explicit(&grown[word], memory_order_relaxed);
    for (; bits != 0; bits &= bits - 1) {
      int fd = (int)word * 64 + __builtin_ctzll(bits);
      struct conn *c = conn_of(fd);
      if (c == NULL || look(c)) {
        forget(fd);
      }
    }
  }
  bertha_unlock(&looking);
}

/* The closer takes the connection off its descriptor and then looks for us; we say that we look, and then find the
 * connection by its descriptor. */
void trim_closing(void) {
  atomic_thread_fence(memory_order_seq_cst);
  if (UNLIKELY(atomic_load_explicit(&looking, memory_order_acquire) != 0) && bertha_lock(&looking)) {
    bertha_unlock(&looking);
  }
}

void trim_after_fork(void) {
  atomic_store(&looking, 0);
}

int64_t trim_before_sleep(int64_t ns) {
  if (LIKELY(atomic_load_explicit(&count, memory_order_relaxed) == 0)) {
    return ns;
  }
  int64_t now = bertha_now_ns();
  int64_t due = atomic_load(&next_look);
  if (now >= due && atomic_compare_exchange_strong(&next_look, &due, now + LOOK_NS)) {
    look_at_all();
    due = now + LOOK_NS;
  }
  int64_t left = due > now ? due - now : 0;
  return atomic_load(&count) > 0 && (ns < 0 || left < ns) ? left : ns;
}

/* What few connections at a time use stays: the next one in the slot finds it warm. */
void trim_slot(const struct link *l, uint32_t slot) {
  size_t keep = slot < WARM_SLOTS && TRIM_WARM > page() ? TRIM_WARM : page();
  for (int side = 0; side < 2; side++) {
    const struct bertha_direction *d = &l->slots[slot].dir[side];
    if (atomic_load_explicit(&d->tail, memory_order_relaxed) > keep) {
      give_back(link_ring(l, slot, side), keep, l->ring_max);
    }
  }
}
