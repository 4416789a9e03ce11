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
enum { PAGE = 4096, HOP_SLEEPER = 1 };

/* ---- in the program ------------------------------------------------------------------------------ */

static uint64_t up_to(uint64_t n, uint64_t unit) {
  return (n + unit - 1) / unit * unit;
}

static void fill_header(struct bertha_link_header *h, uint32_t index) {
  *h = (struct bertha_link_header){.magic = BERTHA_MAGIC_LINK,
                                   .version = BERTHA_LAYOUT_VERSION,
                                   .listener = HOP_LISTENER,
                                   .index = index,
                                   .slot_count = BERTHA_LINK_SLOTS,
                                   .ring_max = HOP_RING_MAX,
                                   .client_pid = (uint32_t)bertha.pid};
  uint64_t at = up_to(sizeof *h, BERTHA_CACHELINE);
  for (int side = 0; side < 2; side++) {
    h->dirty_offset[side] = at;
    at = up_to(at + BERTHA_LINK_SLOTS / 8, BERTHA_CACHELINE);
  }
  for (int side = 0; side < 2; side++) {
    h->sleeper_offset[side] = up_to(at, PAGE);
    at = h->sleeper_offset[side] + BERTHA_SLEEPERS * sizeof(struct bertha_sleeper);
  }
  h->slot_offset = up_to(at, PAGE);
  h->ring_offset = up_to(h->slot_offset + BERTHA_LINK_SLOTS * sizeof(struct bertha_slot), PAGE);
  h->total_size = h->ring_offset + (uint64_t)2 * BERTHA_LINK_SLOTS * HOP_RING_MAX;
}

static struct bertha_link_reply as_reply(uint32_t index) {
  return (struct bertha_link_reply){
      .listener = HOP_LISTENER,
      .index = index,
      .plan = {.implementation = BERTHA_IMPL_SHM, .spin_us = UINT32_MAX, .ring_size = HOP_RING_MAX}};
}

struct link *hop_make(uint32_t *index) {
  static _Atomic uint32_t made;
  struct bertha_link_header h;
  *index = atomic_fetch_add(&made, 1) + 1;
  fill_header(&h, *index);
  int fd = REAL(memfd_create)("bertha-hop", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) {
    return NULL;
  }
  if (ftruncate(fd, (off_t)h.total_size) != 0 || pwrite(fd, &h, sizeof h, 0) != (ssize_t)sizeof h ||
      REAL(fcntl)(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
    QUIET(close)(fd);
    return NULL;
  }
  /* Not the byte on the socketpair, which cannot be sent any more when the program has shut down its half. */
  int bell = REAL(eventfd)(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (bell < 0) {
    QUIET(close)(fd);
    return NULL;
  }
  struct bertha_link_reply reply = as_reply(*index);
  struct link *l = link_adopt(fd, BERTHA_SIDE_CLIENT, &reply);
  if (l == NULL) {
    QUIET(close)(bell);
    return NULL;
  }
  l->bell_fd = bertha_hide_fd(bell);
  return l;
}

void hop_prepare(struct link *l, uint32_t slot) {
  static const struct bertha_tuple none;
  struct bertha_slot *s = &l->slots[slot];
  slot_prepare(s, &none, 0);
  for (int side = 0; side < 2; side++) {
    atomic_store_explicit(&s->dir[side].switch_at, 0, memory_order_relaxed);
  }
  /* what the carrier writes, too, because we may write first */
  atomic_store_explicit(&s->watch[BERTHA_SIDE_SERVER].epoll, HOP_SLEEPER, memory_order_relaxed);
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
  }
  bertha.enabled = bertha.fds != NULL;
  return bertha.enabled && bertha_table_open();
}

struct link *hop_adopt(int fd, uint32_t index) {
  struct bertha_link_reply reply = as_reply(index);
  struct link *l = link_adopt(fd, BERTHA_SIDE_SERVER, &reply);
  if (l != NULL) {
    extern void bertha_close_hidden(int);
    bertha_close_hidden(l->fd); /* of many programs: the mapping is enough */
    l->fd = -1;
    struct bertha_sleeper *s = &l->sleepers[BERTHA_SIDE_SERVER][HOP_SLEEPER];
    atomic_store(&s->owner, (uint32_t)bertha.pid);
    atomic_store(&s->bell, 0);
    hop_arm(l);
  }
  return l;
}

struct conn *hop_open(struct link *l, uint32_t slot, int fd) {
  struct conn *c = conn_new(fd, BERTHA_CONN_UNIX);
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
  atomic_store(&w->epoll, HOP_SLEEPER);
  atomic_store(&w->rx, 0);
  atomic_store(&w->tx, 0);
  atomic_store(&w->kernel, 0);
  conn_tied(c, BERTHA_CONN_UNIX);
  c->tx_limit = c->tx_size; /* what lies unread must fit into the socketpair, if the program wants it there */
  conn_track(fd, c);
  return c;
}

void hop_close(struct conn *c, int fd, bool in_order) {
  if (!in_order) {
    atomic_store_explicit(&conn_tx(c)->closed, 2, memory_order_release);
  }
  bell_clear(c, fd); /* a byte that is left would make the kernel reset the socketpair */
  atomic_store_explicit(&c->slot->watch[BERTHA_SIDE_SERVER].done, 1, memory_order_release);
  conn_forget(fd);
  conn_free(c);
}

/* It was closed with bytes unread, or was told to reset: there is no end of the stream to pass on. */
static bool aborted(const struct conn *c) {
  bool gone = conn_flags(c) & CONN_RST;
  bool unread = c->tx_phase == PHASE_RING && atomic_load(&conn_tx(c)->head) != c->tx_tail;
  return atomic_load_explicit(&conn_rx(c)->closed, memory_order_acquire) == 2 || (gone && unread);
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

void hop_ring(struct conn *c, int fd) {
  bell_ring_all(c, fd);
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
