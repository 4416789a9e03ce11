/* Who is in which epoll set, and who serves it: the kernel or the rings. */
#include "eset_members.h"
#include "eset_wait.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

#include "agentc.h"
#include "conn.h"

enum { SETS = 4096 };
uint64_t eset_magic;
static struct eset *sets[SETS];
static _Atomic uint32_t sets_lock;
static uint32_t sets_used;

extern void bertha_close_hidden(int fd);

uint32_t eset_entry(int fd) {
  return (unsigned)fd < BERTHA_FDS && bertha.fds != NULL
             ? atomic_load_explicit(&bertha.fds[fd].set, memory_order_acquire)
             : 0;
}

void eset_set_entry(int fd, uint32_t value) {
  atomic_store_explicit(&bertha.fds[fd].set, value, memory_order_release);
}

uint32_t eset_count(void) {
  return sets_used;
}

struct eset *eset_by_entry(uint32_t e) {
  return e > 0 && e <= SETS ? sets[e - 1] : NULL;
}

struct eset *eset_of(int epfd) {
  uint32_t e = eset_entry(epfd);
  if (LIKELY(e == 0) || conn_of(epfd) != NULL) {
    return NULL;
  }
  return eset_by_entry(e);
}

struct eset *eset_with(int fd) {
  return (unsigned)fd < ESET_FDS && conn_of(fd) != NULL ? eset_by_entry(eset_entry(fd)) : NULL;
}

bool eset_serves(int epfd, int fd) {
  const struct eset *s = eset_of(epfd);
  return s != NULL && ((unsigned)fd >= ESET_FDS || s->regs[fd].state != REG_NONE);
}

/* At the first epoll descriptor, so that a child which waits in the same kernel set knows its parent's registrations. */
static void make_magic(void) {
  uint64_t random = 0;
  if (LIKELY(eset_magic != 0)) {
    return;
  }
  if (getrandom(&random, sizeof random, GRND_NONBLOCK) != (ssize_t)sizeof random) {
    random = (uint64_t)bertha_now_ns() * 0x9e3779b97f4a7c15u;
  }
  uint64_t none = 0;
  random = (random | 0x8000000000000000u) & ESET_MAGIC_BITS; /* no user-space pointer */
  __atomic_compare_exchange_n(&eset_magic, &none, random, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

void eset_created(int epfd) {
  if ((unsigned)epfd < BERTHA_FDS && bertha.enabled && !bertha_in_forked_stranger()) {
    make_magic();
    eset_set_entry(epfd, SET_FRESH);
    conn_reach(epfd);
  }
}

struct eset *eset_new(int epfd) {
  struct eset *s = NULL;
  uint32_t index = 0;
  if (!bertha_lock(&sets_lock)) {
    return NULL;
  }
  s = eset_by_entry(eset_entry(epfd));
  if (s != NULL) { /* another thread was quicker */
    bertha_unlock(&sets_lock);
    return s;
  }
  make_magic();
  for (index = 0; index < sets_used; index++) {
    if (sets[index]->epfd < 0) {
      s = sets[index];
      break;
    }
  }
  if (s == NULL && sets_used < SETS) {
    size_t size = sizeof *s + sizeof(struct reg) * ESET_FDS;
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p != MAP_FAILED) {
      s = p;
      s->regs = (struct reg *)(void *)(s + 1);
      index = sets_used++;
      sets[index] = s;
    }
  }
  if (s != NULL) {
    s->epfd = epfd;
    s->index = index;
    s->kin_seen = kin_adoptions();
    s->pid = bertha.pid;
    s->bell_fd = -1;
    atomic_store(&s->asleep, 0);
    if (atomic_exchange(&bertha.fds[epfd].set, index + 1) == SET_PLAIN) {
      s->plain = true; /* who marks it from now on finds the set */
    }
    conn_reach(epfd);
  }
  bertha_unlock(&sets_lock);
  return s;
}

struct eset *eset_to_sleep_in(int epfd) {
  extern char __libc_single_threaded __attribute__((weak)); /* glibc 2.32 */
  struct eset *s = eset_of(epfd);
  if (s == NULL && !(&__libc_single_threaded != NULL && __libc_single_threaded) && bertha.enabled &&
      (unsigned)epfd < BERTHA_FDS && conn_of(epfd) == NULL && !bertha_is_hidden(epfd) &&
      !bertha_in_forked_stranger()) {
    s = eset_new(epfd);
  }
  return s;
}

/* ---- rings of a set ------------------------------------------------------------------------------ */

void eset_drop_slink(struct eset *s, struct slink *k) {
  struct slink **place = &s->warm;
  while (*place != NULL && *place != k) {
    place = &(*place)->next_warm;
  }
  if (*place == k) {
    *place = k->next_warm;
  }
  s->slink_count--;
  bool unlisted = share_unlist(k);
  if (!s->inherited) {
    sleeper_give_back(k->link, k->sleeper);
  }
  if (unlisted) {
    munmap(k, sizeof *k);
  }
}

/* Of links that this process has no connections on any more. */
static void drop_retired(struct eset *s) {
  for (struct slink **place = &s->slinks; *place != NULL;) {
    struct slink *k = *place;
    if (k->count > 0 || !atomic_load_explicit(&k->link->retired, memory_order_relaxed)) {
      place = &k->next;
      continue;
    }
    *place = k->next;
    eset_drop_slink(s, k);
  }
}

static struct slink *slink_for(struct eset *s, struct link *l) {
  for (struct slink *k = s->slinks; k != NULL; k = k->next) {
    if (k->link == l) {
      return k;
    }
  }
  drop_retired(s);
  struct slink *k = mmap(NULL, sizeof *k, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (k == MAP_FAILED) {
    return NULL;
  }
  k->link = l;
  k->set = s;
  k->sleeper = sleeper_take(l, s->bell);
  if (k->sleeper == 0) {
    munmap(k, sizeof *k);
    return NULL;
  }
  k->next = s->slinks;
  s->slinks = k;
  s->slink_count++;
  slink_warm(k);
  share_enlist(k);
  return k;
}

void eset_ring_on(struct slink *k, uint32_t slot) {
  k->words = slot / 64 < k->words ? k->words : slot / 64 + 1;
  k->mask[slot / 64] |= (uint64_t)1 << (slot % 64);
  slink_mark(k, slot);
}

static void ring_off(struct slink *k, uint32_t slot) {
  k->mask[slot / 64] &= ~((uint64_t)1 << (slot % 64));
  k->pending[slot / 64] &= ~((uint64_t)1 << (slot % 64));
}

uint32_t eset_sticky(uint32_t events) {
  return EPOLLIN | EPOLLRDHUP | EPOLLET | (events & EPOLLPRI);
}

/* With the lock held: from now on the rings serve it.  `op` says whether the kernel knows it already. */
int eset_to_ring(struct eset *s, int fd, struct conn *c, int op) {
  struct reg *r = &s->regs[fd];
  struct slink *k = slink_for(s, c->link);
  if (k == NULL || !share_join(k, c->slot_index, r->events & EPOLLEXCLUSIVE)) {
    return -ENOSPC;
  }
  struct epoll_event e = {.events = eset_sticky(r->events), .data.u64 = reg_data(r, fd)};
  int result = op == EPOLL_CTL_MOD                         ? eset_kernel_mod(s, fd, &e)
               : REAL(epoll_ctl)(s->epfd, op, fd, &e) == 0 ? 0
                                                           : -errno;
  if (result != 0) {
    share_leave(k, c->slot_index);
    return result;
  }
  borrow_keep(c, s);
  r->slink = k;
  r->conn = conn_index(c) + 1;
  r->first = 1;
  r->held = 0;
  r->ready = 0;
  struct pollfd now = {.fd = fd, .events = POLLRDHUP}; /* an end that came before we were told of it */
  if (QUIET(poll)(&now, 1, 0) > 0) {
    conn_kernel_events(c, (uint16_t)now.revents);
  }
  r->state = REG_RING;
  r->kernel_out = 0;
  k->fd[c->slot_index] = fd;
  k->count++;
  s->ring_count++;
  eset_ring_on(k, c->slot_index);
  return 0;
}

void eset_kernels_room(struct eset *s, int fd, const struct conn *c) {
  struct reg *r = &s->regs[fd];
  if (c->tx_phase != PHASE_RING && (r->events & EPOLL_ROOM) && !r->kernel_out) {
    struct epoll_event e = {.events = eset_sticky(r->events) | EPOLLOUT, .data.u64 = reg_data(r, fd)};
    r->kernel_out = REAL(epoll_ctl)(s->epfd, EPOLL_CTL_MOD, fd, &e) == 0;
    r->first = 1;
  }
}

static void one_less(struct eset *s, struct slink *k) {
  s->ring_count--;
  k->words = --k->count > 0 ? k->words : 0;
}

void eset_leave_ring(struct eset *s, struct reg *r, struct conn *c) {
  struct slink *k = r->slink;
  ring_off(k, c->slot_index);
  share_leave(k, c->slot_index);
  one_less(s, k);
  r->slink = NULL;
}

void eset_take_out(struct eset *s, struct reg *r, const struct conn *c) {
  struct slink *k = r->slink;
  ring_off(k, c->slot_index);
  parted_begin(k, c, r->events & EPOLLEXCLUSIVE);
  one_less(s, k);
  r->state = REG_OFF;
}

/* The kernel is readable by itself: it holds bytes, or an end. */
static bool kernel_tells(const struct conn *c) {
  bool bytes = c->rx_phase == PHASE_BEFORE && atomic_load(&c->krx) != atomic_load(&conn_rx(c)->switch_at);
  return bytes || c->rx_phase == PHASE_AFTER || (conn_flags(c) & CONN_FIN);
}

/* The ring has data, and no byte on the connection tells the kernel: it came before anybody asked for one. */
static bool untold(struct conn *c, int fd, uint32_t events) {
  if (c == NULL || conn_kind(c) != BERTHA_CONN_SHM || !(events & (EPOLLIN | EPOLLRDNORM)) ||
      (events & EPOLLOUT)) {
    return false;
  }
  atomic_thread_fence(memory_order_seq_cst); /* first the watch, then the look: as before a sleep */
  return atomic_load(&conn_rx(c)->bell_out) == 0 && !kernel_tells(c) && conn_events(c, fd, POLLIN) != 0;
}

/* A member that was on a ring has been told of all that there is: to ask the kernel for it would tell of it again.  Who watches
 * the set sees that, too, so it is not enough to leave it out afterwards. */
static bool all_was_told(struct reg *r, struct conn *c) {
  bool room = c->tx_phase == PHASE_RING || ((r->ready & EPOLLOUT) && !(conn_flags(c) & CONN_TX_SHORT));
  return edge_only(r) && (room || !(r->events & EPOLL_ROOM)) && !eset_news(r, c);
}

/* What the kernel was asked of it on the ring will do, and to ask anew would tell anew of what holds: of an end, as of a byte that
 * lies there. */
static bool as_it_is(const struct reg *r, const struct conn *c) {
  return r->held && ((r->events & (EPOLLIN | EPOLLRDNORM)) || (conn_flags(c) & ENDS));
}

/* What the kernel is asked of a member that it serves.  One that has fired its one shot: nothing but errors, which are
 * left out when they come.  One whose data the kernel has not been told of: also whether it is writable, which it is; what
 * it then reports is judged by the ring (eset_wait.c), and the loan given back when there is nothing left. */
struct epoll_event eset_kernel_event(struct reg *r, int fd) {
  uint32_t events = r->fired ? EPOLLONESHOT | EPOLLET : r->events;
  if (r->held) { /* an end it has to be told of */
    events = (events & ~(uint32_t)EPOLL_ROOM) | EPOLLRDHUP;
  }
  r->lent = !r->fired && !r->held && untold(conn_of(fd), fd, r->events);
  if (r->lent) {
    events |= EPOLLOUT;
  }
  return (struct epoll_event){.events = events, .data.u64 = reg_data(r, fd)};
}

/* One with EPOLLEXCLUSIVE cannot be modified; one that had fired on its ring is not there (eset_to_kernel). */
int eset_kernel_mod(struct eset *s, int fd, struct epoll_event *event) {
  if (REAL(epoll_ctl)(s->epfd, EPOLL_CTL_MOD, fd, event) == 0) {
    return 0;
  }
  if (errno != EINVAL && errno != ENOENT) {
    return -errno;
  }
  REAL(epoll_ctl)(s->epfd, EPOLL_CTL_DEL, fd, NULL);
  return REAL(epoll_ctl)(s->epfd, EPOLL_CTL_ADD, fd, event) == 0 ? 0 : -errno;
}

void eset_kernel_reg(struct eset *s, struct conn *c, int by) {
  s->kernel_streams += (uint32_t)by;
  if (!s->inherited) {
    atomic_fetch_add(&c->kernel_regs, (uint32_t)by);
  }
}

/* With the lock held: back to the kernel, with the program's own events; its waits must then hear the byte
 * on the connection. */
void eset_to_kernel(struct eset *s, int fd) {
  struct reg *r = &s->regs[fd];
  struct conn *c = conn_by_index(r->conn - 1);
  bool listed = r->slink->mask[c->slot_index / 64] >> (c->slot_index % 64) & 1;
  r->fired = (r->events & EPOLLONESHOT) && !listed;
  borrow_end(c);
  eset_leave_ring(s, r, c);
  eset_kernel_reg(s, c, 1);
  conn_watch_kernel(c);
  atomic_thread_fence(memory_order_seq_cst); /* what comes from now on rings */
  r->held = all_was_told(r, c);
  r->state = REG_KERNEL;
  if (r->fired) { /* of which nothing is told: not even of a reset, which cannot be left out */
    r->lent = 0;
    REAL(epoll_ctl)(s->epfd, EPOLL_CTL_DEL, fd, NULL);
    return;
  }
  if (as_it_is(r, c)) {
    r->lent = 0;
    return;
  }
  struct epoll_event e = eset_kernel_event(r, fd);
  eset_kernel_mod(s, fd, &e);
}

void eset_queue_upgrade(struct eset *s, int fd) {
  struct reg *r = &s->regs[fd];
  if (r->state == REG_KERNEL && __atomic_exchange_n(&r->queued, 1, __ATOMIC_ACQ_REL) == 0) {
    uint32_t next = atomic_load(&s->upgrades);
    do {
      r->next_upgrade = next;
    } while (!atomic_compare_exchange_weak(&s->upgrades, &next, (uint32_t)fd + 1));
  }
}

/* What the program was told of by the kernel, and has not lacked since. */
static uint32_t told_of_room(const struct reg *r, const struct conn *c) {
  return edge_only(r) && !(conn_flags(c) & CONN_TX_SHORT) ? r->ready & EPOLL_ROOM : 0;
}

/* With EPOLLET: of what has just come to the ring, room alone may have been told of; all the rest is news. */
static void only_news(struct reg *r, struct conn *c, uint32_t told) {
  r->tail = c->rx_head;
  r->wanted = atomic_load(&c->room_wanted);
  r->shuts = atomic_load(&c->shuts);
  r->ends = 0;
  r->ready = told;
  r->fresh = 0;
}

/* True: one of them is in other sets, too. */
static bool upgrade(struct eset *s) {
  uint32_t next = atomic_exchange(&s->upgrades, 0);
  bool many = false;
  while (next != 0) {
    int fd = (int)next - 1;
    struct reg *r = &s->regs[fd];
    next = r->next_upgrade;
    __atomic_store_n(&r->queued, 0, __ATOMIC_RELEASE);
    struct conn *c = conn_of(fd);
    if (r->state != REG_KERNEL || c == NULL || conn_index(c) + 1 != r->conn ||
        conn_kind(c) != BERTHA_CONN_SHM || s->plain || r->stays || (r->events & EPOLLONESHOT)) {
      continue; /* one shot: it may have been fired, and be some thread's: at its next epoll_ctl */
    }
    bool among = eset_entry(fd) == SET_MANY;
    uint32_t room = told_of_room(r, c);
    if (eset_to_ring(s, fd, c, EPOLL_CTL_MOD) == 0) {
      if (room != 0 || !(r->events & EPOLL_ROOM)) {
        only_news(r, c, room);
      }
      eset_kernel_reg(s, c, -1);
      conn_refresh_watch(c);
      many |= among;
    } else {
      r->stays = among;
    }
  }
  return many;
}

void eset_upgrade_queued(struct eset *s) {
  if (LIKELY(atomic_load_explicit(&s->upgrades, memory_order_relaxed) == 0) || !upgrade(s)) {
    return;
  }
  /* As long as another set leaves them to the kernel, each message costs a byte; and nobody may ever wait for that set.  One
   * that is in use just now does it by itself. */
  for (uint32_t i = 0; i < sets_used; i++) {
    struct eset *o = sets[i];
    if (o != s && o->epfd >= 0 && !o->inherited && atomic_load(&o->upgrades) != 0 &&
        bertha_try_lock(&o->lock)) {
      upgrade(o);
      eset_pass_on_own(o);
      bertha_unlock(&o->lock);
    }
  }
}

/* Without the sets' locks: one is perhaps this thread's, which has found out while it went through the set, and others are
 * perhaps those of threads that have found out at the same time. */
bool eset_wants_upgrade(struct conn *c, int fd) {
  if (atomic_load(&c->kernel_regs) == 0) {
    return false;
  }
  uint32_t e = eset_entry(fd);
  for (uint32_t i = e == SET_MANY ? 0 : e - 1; fd < ESET_FDS && i < sets_used; i++) {
    struct eset *s = sets[i];
    if (s->epfd >= 0 && !s->inherited && s->regs[fd].conn == conn_index(c) + 1) {
      eset_queue_upgrade(s, fd);
    }
    if (e != SET_MANY) {
      break;
    }
  }
  return true;
}

/* A child that goes on with its parent's set (a daemon's second life) waits under its own name. */
void eset_adopt(struct eset *s) {
  s->inherited = false;
  s->adopted = true;
  atomic_store(&s->asleep, 0);
  kin_adopt(s, (uint32_t)s->pid);
  s->pid = bertha.pid;
  s->bell = 0;
  s->bell_fd = -1;
  for (struct slink *k = s->slinks; k != NULL; k = k->next) {
    uint32_t was = k->sleeper;
    k->sleeper = sleeper_take(k->link, 0);
    for (uint32_t slot = 0; slot < k->link->slot_count; slot++) {
      if (k->in[slot / 64] >> (slot % 64) & 1) {
        slink_mark(k, slot);
        share_renamed(k, slot, was);
      }
    }
  }
}

void eset_after_fork(void) {
  atomic_store(&sets_lock, 0);
  nest_after_fork();
  for (uint32_t i = 0; i < sets_used; i++) {
    if (sets[i]->epfd >= 0) {
      atomic_store(&sets[i]->lock, 0);
      parted_after_fork(sets[i]);
      sets[i]->inherited = true;
      sets[i]->asleep = 0;
      sets[i]->asleep_outside = 0;
      if (sets[i]->bell_fd >= 0) {
        bertha_close_hidden(sets[i]->bell_fd);
        sets[i]->bell_fd = -1;
      }
    }
  }
}

void eset_fd_moved(int from, int to) {
  for (uint32_t i = 0; i < sets_used; i++) {
    if (sets[i]->bell_fd == from) {
      sets[i]->bell_fd = to;
    }
  }
}
