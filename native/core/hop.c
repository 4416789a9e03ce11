#include "hop.h"

#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "agentc.h"
#include "conn.h"
#include "wait.h"

#define HOP_LISTENER UINT64_MAX   /* in the header's `listener`: no listener has that number */
#define HOP_RING_MAX (256u << 10) /* bytes: as much as a chunnel holds before its reader waits */
enum { PAGE = 4096, HOP_SLEEPER = 1, APART_SLOTS = BERTHA_SLEEPERS - HOP_SLEEPER };

/* ---- in the program ------------------------------------------------------------------------------ */

static uint64_t up_to(uint64_t n, uint64_t unit) {
  return (n + unit - 1) / unit * unit;
}

/* The carrier's entry among the sleepers, for that slot. */
static uint32_t sleeper_of(const struct link *l, uint32_t slot) {
  return l->apart ? HOP_SLEEPER + slot : HOP_SLEEPER;
}

static void fill_header(struct bertha_link_header *h, uint32_t index, uint32_t slots, bool loans) {
  *h = (struct bertha_link_header){.magic = BERTHA_MAGIC_LINK,
                                   .version = BERTHA_LAYOUT_VERSION,
                                   .listener = HOP_LISTENER,
                                   .index = index,
                                   .slot_count = slots,
                                   .ring_max = HOP_RING_MAX,
                                   .client_pid = (uint32_t)bertha.pid};
  uint64_t at = up_to(sizeof *h, BERTHA_CACHELINE);
  for (int side = 0; side < 2; side++) {
    h->dirty_offset[side] = at;
    at = up_to(at + up_to(slots, 64) / 8, BERTHA_CACHELINE);
  }
  for (int side = 0; side < 2; side++) {
    h->sleeper_offset[side] = up_to(at, PAGE);
    at = h->sleeper_offset[side] + BERTHA_SLEEPERS * sizeof(struct bertha_sleeper);
  }
  h->slot_offset = up_to(at, PAGE);
  h->ring_offset = up_to(h->slot_offset + slots * sizeof(struct bertha_slot), PAGE);
  h->total_size = h->ring_offset + (uint64_t)2 * slots * HOP_RING_MAX;
  if (loans) {
    h->loan_offset = h->total_size;
    h->total_size += (uint64_t)slots * BERTHA_LOAN_STRIDE;
  }
}

static struct bertha_link_reply as_reply(uint32_t index, bool apart, uint32_t spin_us) {
  return (struct bertha_link_reply){
      .listener = HOP_LISTENER,
      .index = index,
      .plan = {.implementation = BERTHA_IMPL_SHM,
               .spin_us = apart ? 0 : spin_us, /* no interpreter is that quick */
               .ring_size = HOP_RING_MAX}};
}

static bool make_bells(struct link *l, bool apart) {
  if (apart) {
    l->apart = true;
    l->bells = malloc(l->slot_count * sizeof *l->bells);
    for (uint32_t slot = 0; l->bells != NULL && slot < l->slot_count; slot++) {
      l->bells[slot] = -1;
    }
    return l->bells != NULL;
  }
  /* Not the byte on the socketpair, which cannot be sent any more when the program has shut down its half. */
  int bell = REAL(eventfd)(0, EFD_NONBLOCK | EFD_CLOEXEC);
  l->bell_fd = bell >= 0 ? bertha_hide_fd(bell) : -1;
  return bell >= 0;
}

int hop_bell(struct link *l, uint32_t slot) {
  if (l->bells[slot] < 0) {
    int bell = REAL(eventfd)(0, EFD_NONBLOCK | EFD_CLOEXEC);
    l->bells[slot] = bell >= 0 ? bertha_hide_fd(bell) : -1;
  }
  return l->bells[slot];
}

struct link *hop_make(bool apart, uint32_t spin_us, uint32_t *index) {
  static _Atomic uint32_t made;
  struct bertha_link_header h;
  *index = atomic_fetch_add(&made, 1) + 1;
  fill_header(&h, *index, apart ? APART_SLOTS : BERTHA_LINK_SLOTS, !apart);
  int fd = REAL(memfd_create)("bertha-hop", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) {
    return NULL;
  }
  if (ftruncate(fd, (off_t)h.total_size) != 0 || pwrite(fd, &h, sizeof h, 0) != (ssize_t)sizeof h ||
      REAL(fcntl)(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
    QUIET(close)(fd);
    return NULL;
  }
  struct bertha_link_reply reply = as_reply(*index, apart, spin_us);
  struct link *l = link_adopt(fd, BERTHA_SIDE_CLIENT, &reply);
  if (l != NULL && !make_bells(l, apart)) {
    link_drop(l);
    l = NULL;
  }
  return l;
}

void hop_prepare(struct link *l, uint32_t slot) {
  static const struct bertha_tuple none;
  struct bertha_slot *s = &l->slots[slot];
  slot_prepare(s, &none, 0);
  for (int side = 0; side < 2; side++) {
    atomic_store_explicit(&s->dir[side].switch_at, 0, memory_order_relaxed);
  }
  if (atomic_load(&s->loan_wanted) != BERTHA_LOAN_NEVER && link_loan(l, slot) != NULL) {
    memset((void *)link_loan(l, slot), 0, offsetof(struct bertha_loan, in));
  }
  atomic_store_explicit(&s->loan_wanted, BERTHA_LOAN_NEVER, memory_order_relaxed);
  atomic_store_explicit(&s->loan_turn, BERTHA_TURN_CARRIER, memory_order_relaxed);
  /* what the carrier writes, too, because we may write first */
  atomic_store_explicit(&s->watch[BERTHA_SIDE_SERVER].epoll, (uint16_t)sleeper_of(l, slot),
                        memory_order_relaxed);
  atomic_store_explicit(&s->watch[BERTHA_SIDE_SERVER].kernel, 0, memory_order_release);
}

void hop_tie(struct conn *c, struct link *l, uint32_t slot) {
  uint32_t use = BERTHA_SLOT_USE(atomic_load(&l->slots[slot].state));
  c->link = l;
  c->side = BERTHA_SIDE_CLIENT; /* of the link: the connection's own side is in info.role */
  c->slot_index = slot;
  c->slot = &l->slots[slot];
  c->rx_phase = c->tx_phase = PHASE_RING;
  atomic_store(&c->slot->state, BERTHA_SLOT_WORD(use, BERTHA_SLOT_ATTACHED));
  conn_tied(c, BERTHA_CONN_UNIX);
}

void hop_leave(struct conn *c, int fd) {
  uint32_t ring = BERTHA_CONN_SHM;
  if ((conn_flags(c) & CONN_CARRIED) && conn_kind(c) == ring && c->home == NULL &&
      conn_take_back(c, fd, c->info.reason)) {
    atomic_compare_exchange_strong(&c->info.kind, &ring, BERTHA_CONN_UNIX);
    conn_set_flag(c, CONN_HOP_LEFT);
    slot_give_back(c->link, c->slot_index); /* for good once the carrier has left it, too */
  }
}

/* ---- in the carrier ------------------------------------------------------------------------------ */

bool hop_init(void) {
  bertha.is_carrier = true;
  bertha.connlog[0] = '\0';
  bertha.spin_ns = 0;
  if (bertha.fds == NULL) { /* switched off by the environment, which means programs */
    void *p = mmap(NULL, sizeof(struct fd_entry) * BERTHA_FDS, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    bertha.fds = p != MAP_FAILED ? p : NULL;
    bertha_follow_forks();
  }
  bertha.enabled = bertha.fds != NULL;
  return bertha.enabled && bertha_table_open();
}

struct link *hop_adopt(int fd, uint32_t index, bool apart) {
  struct bertha_link_reply reply = as_reply(index, apart, UINT32_MAX); /* rings.c looks, not the core */
  struct link *l = link_adopt(fd, BERTHA_SIDE_SERVER, &reply);
  if (l != NULL) {
    extern void bertha_close_hidden(int);
    bertha_close_hidden(l->fd); /* of many programs: the mapping is enough */
    l->fd = -1;
    l->apart = apart;
    if (!apart) {
      struct bertha_sleeper *s = &l->sleepers[BERTHA_SIDE_SERVER][HOP_SLEEPER];
      atomic_store(&s->owner, (uint32_t)bertha.pid);
      atomic_store(&s->bell, 0);
      hop_arm(l);
    }
  }
  return l;
}

struct conn *hop_open(struct link *l, uint32_t slot, int fd) {
  bool there = slot < l->slot_count && sleeper_of(l, slot) < BERTHA_SLEEPERS;
  struct conn *c = there ? conn_new(fd, BERTHA_CONN_UNIX) : NULL;
  if (c == NULL) {
    return NULL;
  }
  c->link = l;
  c->side = BERTHA_SIDE_SERVER;
  c->slot_index = slot;
  c->slot = &l->slots[slot];
  c->rx_phase = c->tx_phase = PHASE_RING;
  conn_set_flag(c, CONN_NONBLOCK);
  struct bertha_watch *w = &c->slot->watch[BERTHA_SIDE_SERVER];
  atomic_store(&w->epoll, (uint16_t)sleeper_of(l, slot));
  atomic_store(&w->rx, 0);
  atomic_store(&w->tx, 0);
  atomic_store(&w->kernel, 0);
  conn_tied(c, BERTHA_CONN_UNIX);
  c->tx_limit = c->tx_size; /* what lies unread must fit into the socketpair, if the program wants it there */
  conn_track(fd, c);
  return c;
}

void hop_close(struct conn *c, int fd, bool in_order) {
  if (hop_due(c)) {
    hop_ring(c, fd);
  }
  if (!in_order) {
    atomic_store_explicit(&conn_tx(c)->closed, 2, memory_order_release);
  }
  bell_clear(c, fd); /* a byte that is left would make the kernel reset the socketpair */
  if (hop_loan(c) != NULL && atomic_load(&c->slot->loan_wanted) != BERTHA_LOAN_NEVER) {
    explicit_bzero(&hop_loan(c)->records, sizeof hop_loan(c)->records);
  }
  atomic_store_explicit(&c->slot->watch[BERTHA_SIDE_SERVER].done, 1, memory_order_release);
  conn_forget(fd);
  conn_free(c);
}

/* It was closed with bytes unread, or was told to reset: there is no end of the stream to pass on. */
static bool aborted(const struct conn *c) {
  uint32_t flags = conn_flags(c);
  uint32_t closed = atomic_load_explicit(&conn_rx(c)->closed, memory_order_acquire);
  bool unread = c->tx_phase == PHASE_RING && atomic_load(&conn_tx(c)->head) != c->tx_tail;
  /* Of a socketpair whose halves have both been ended the kernel says the same as of one that is gone; the program may be
   * about to read what lies in its ring. */
  bool both_ended = closed == 1 && (flags & CONN_WR_SHUT);
  return closed == 2 || ((flags & CONN_RST) && unread && !both_ended);
}

ssize_t hop_recv(struct conn *c, int fd, void *to, size_t room) {
  struct iovec part = {to, room};
  ssize_t n = conn_recv(c, fd, &part, 1, MSG_DONTWAIT);
  if (n == 0 && aborted(c)) {
    n = -ECONNRESET;
  } else if (n == -ECONNRESET && !aborted(c)) { /* killed, with nothing unread but a bell byte */
    n = 0;
  }
  if (n < 0) {
    errno = (int)-n;
    return -1;
  }
  return n;
}

ssize_t hop_send(struct conn *c, int fd, const void *from, size_t size) {
  struct iovec part = {(void *)(uintptr_t)from, size};
  ssize_t n = conn_send(c, fd, &part, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (n < 0) {
    errno = (int)-n;
    return -1;
  }
  return n;
}

bool hop_left(const struct conn *c) {
  return c->tx_phase == PHASE_AFTER;
}

bool hop_due(const struct conn *c) {
  return conn_flags(c) & CONN_DUE;
}

void hop_ring(struct conn *c, int fd) {
  bool taken = !(conn_flags(c) & CONN_DUE_ROOM) && c->tx_phase == PHASE_RING &&
               atomic_load_explicit(&conn_tx(c)->head, memory_order_acquire) == c->tx_tail;
  conn_clear_flag(c, CONN_DUE | CONN_DUE_ROOM);
  if (!taken) { /* a program that was woken for another connection has found this one's data, and may sleep again */
    bell_ring_all(c, fd);
  }
}

bool hop_both_ways(const struct conn *c) {
  return c->rx_phase == PHASE_RING && c->tx_phase == PHASE_RING &&
         atomic_load(&conn_tx(c)->want_kernel) == BERTHA_WANT_RING &&
         atomic_load(&conn_rx(c)->ring_end) == UINT64_MAX && atomic_load(&conn_rx(c)->closed) == 0;
}

_Atomic uint32_t *hop_turn(const struct conn *c) {
  return &c->slot->loan_turn;
}

uint32_t hop_wanted(const struct conn *c) {
  return atomic_load_explicit(&c->slot->loan_wanted, memory_order_relaxed);
}

struct bertha_loan *hop_loan(const struct conn *c) {
  return link_loan(c->link, c->slot_index);
}

/* What the slot says is a stranger's: what does not fit is found where it is used (ring_read, ring_room).  The size of our
 * own direction's ring is ours to change, and the program leaves it. */
void hop_resume(struct conn *c) {
  struct bertha_direction *d = conn_tx(c);
  __atomic_store_n(&c->rx_head, atomic_load(&conn_rx(c)->head), __ATOMIC_RELAXED);
  c->tx_tail = atomic_load(&d->tail);
  c->tx_base = atomic_load(&d->base);
  c->tx_head = atomic_load(&d->head);
  c->tx_look_at = 0;
}

void hop_end(struct conn *c, int fd) {
  atomic_store_explicit(&conn_tx(c)->closed, 1, memory_order_release);
  conn_set_flag(c, CONN_WR_SHUT);
  REAL(shutdown)(fd, SHUT_WR);
}

void hop_event(struct conn *c, int fd, uint32_t events) {
  conn_kernel_events(c, events);
  if ((events & EPOLLIN) && c->rx_phase == PHASE_RING) {
    bell_clear(c, fd);
  }
}

bool hop_collect(struct link *l, void (*changed)(void *who, uint32_t slot), void *who) {
  _Atomic uint64_t *dirty = l->dirty[BERTHA_SIDE_SERVER];
  bool any = false;
  for (uint32_t i = 0; i < (l->slot_count + 63) / 64; i++) {
    if (atomic_load_explicit(&dirty[i], memory_order_relaxed) == 0) {
      continue;
    }
    uint64_t todo = atomic_exchange(&dirty[i], 0); /* before the look: a later change sets it again */
    for (any = true; todo != 0; todo &= todo - 1) {
      changed(who, i * 64 + (uint32_t)__builtin_ctzll(todo));
    }
  }
  return any;
}

void hop_asked(struct conn *c, int fd) {
  if (UNLIKELY(conn_asked_back(c))) {
    conn_give_back(c, fd);
  }
}

void hop_arm(struct link *l) {
  struct bertha_sleeper *s = &l->sleepers[BERTHA_SIDE_SERVER][HOP_SLEEPER];
  if (atomic_load_explicit(&s->armed, memory_order_relaxed) == 0) {
    sleeper_arm(s);
  }
}

void hop_awake(struct link *l) {
  _Atomic uint32_t *armed = &l->sleepers[BERTHA_SIDE_SERVER][HOP_SLEEPER].armed;
  if (atomic_load_explicit(armed, memory_order_relaxed) != 0) {
    atomic_store(armed, 0);
  }
  same_processor(l); /* says where we run, before the program thinks of spinning */
}

/* ---- in a carrier in Python ---------------------------------------------------------------------- */

int hop_wait(struct conn *c, int fd, int want) {
  struct bertha_sleeper *s = &c->link->sleepers[BERTHA_SIDE_SERVER][sleeper_of(c->link, c->slot_index)];
  if (hop_due(c)) {
    hop_ring(c, fd);
  }
  hop_asked(c, fd);
  if (atomic_load_explicit(&s->armed, memory_order_relaxed) == 0) {
    sleeper_arm(s);
  }
  atomic_thread_fence(memory_order_seq_cst);
  int ready = conn_events_any(c, fd, (short)want) & want;
  if (ready != 0) {
    atomic_store(&s->armed, 0);
  }
  return hop_left(c) ? ready | HOP_LEFT : ready;
}

size_t hop_packed_size(void) {
  return sizeof(struct conn);
}

void hop_pack(struct conn *c, int fd, void *to) {
  memcpy(to, (const void *)c, sizeof *c);
  conn_forget(fd);
  conn_free(c);
}

bool hop_alone(void) {
  return bertha_table_anew();
}

struct conn *hop_unpack(const void *from, int fd) {
  const struct conn *packed = from;
  struct conn *c = conn_new(fd, BERTHA_CONN_UNIX);
  if (c != NULL) {
    uint32_t life = atomic_load(&c->life);
    memcpy((void *)c, from, sizeof *c);
    atomic_store(&c->life, life);
    atomic_store(&c->info.refs, 1);
    atomic_store(&c->info.holder, (uint32_t)bertha.pid);
    atomic_store_explicit(&c->info.kind, atomic_load(&packed->info.kind), memory_order_release);
    conn_track(fd, c);
  }
  return c;
}

uint32_t hop_use(const struct link *l, uint32_t slot) {
  return BERTHA_SLOT_USE(atomic_load(&l->slots[slot].state));
}

/* A later one's process may have the slot already. */
void hop_abandon(struct link *l, uint32_t slot, uint32_t use) {
  if (hop_use(l, slot) == use) {
    atomic_store_explicit(&l->slots[slot].dir[BERTHA_SIDE_SERVER].closed, 2, memory_order_release);
    atomic_store_explicit(&l->slots[slot].watch[BERTHA_SIDE_SERVER].done, 1, memory_order_release);
  }
}
