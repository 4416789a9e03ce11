/* UDP sockets that others of this host speak with: made, kept to the kernel, closed. */
#include "local.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#include "agentc.h"
#include "connlog.h"
#include "dgram.h"
#include "wait.h"

_Atomic uint32_t local_count;
_Atomic uint32_t local_stir;

/* Another thread may be looking at what is given back: it stays a record of its kind, and finds another one's. */
static struct {
  _Atomic uint32_t lock;
  struct local *locals;
} spare;
static struct local *_Atomic by_conn[BERTHA_CONNS];

/* Changed with the lock, read without: who is taken out still leads to those that came after it. */
static _Atomic uint32_t all_lock;
static struct local *_Atomic all;
static _Atomic uint64_t never[BERTHA_FDS / 64];

void local_never(int fd, bool yes) {
  uint64_t bit = (uint64_t)1 << ((unsigned)fd % 64);
  if ((unsigned)fd < BERTHA_FDS && yes) {
    atomic_fetch_or(&never[fd / 64], bit);
  } else if ((unsigned)fd < BERTHA_FDS &&
             UNLIKELY(atomic_load_explicit(&never[fd / 64], memory_order_relaxed) & bit)) {
    atomic_fetch_and(&never[fd / 64], ~bit);
  }
}

bool local_is_never(int fd) {
  return (unsigned)fd < BERTHA_FDS &&
         (atomic_load_explicit(&never[fd / 64], memory_order_relaxed) >> (fd % 64) & 1);
}

/* All that changes what comes with a datagram, or which come, is the kernel's.  SO_REUSEADDR lets another socket take over what
 * comes to this one, as DTLS servers do for each client. */
static bool is_harmless(int level, int name) {
  static const int of_sockets[] = {SO_RCVBUF,   SO_SNDBUF,   SO_RCVBUFFORCE, SO_SNDBUFFORCE, SO_BROADCAST,
                                   SO_RCVTIMEO, SO_SNDTIMEO, SO_KEEPALIVE,   SO_LINGER,      SO_PRIORITY};
  static const int of_ip[] = {IP_TOS, IP_TTL, IP_MTU_DISCOVER, IP_MULTICAST_TTL, IP_MULTICAST_LOOP};
  static const int of_ipv6[] = {IPV6_V6ONLY, IPV6_UNICAST_HOPS, IPV6_TCLASS, IPV6_MTU_DISCOVER};
  const int *names = level == SOL_SOCKET ? of_sockets : level == IPPROTO_IP ? of_ip : of_ipv6;
  size_t n = level == SOL_SOCKET     ? sizeof of_sockets / sizeof *of_sockets
             : level == IPPROTO_IP   ? sizeof of_ip / sizeof *of_ip
             : level == IPPROTO_IPV6 ? sizeof of_ipv6 / sizeof *of_ipv6
                                     : 0;
  for (size_t i = 0; i < n; i++) {
    if (names[i] == name) {
      return true;
    }
  }
  return false;
}

void local_option(int fd, int level, int name) {
  if (is_harmless(level, name)) {
    return;
  }
  local_never(fd, true);
  struct conn *c = conn_of(fd);
  if (c != NULL) {
    local_kernels(c);
  }
}

void local_kernels(struct conn *c) {
  if (!(conn_flags(c) & CONN_LOCAL)) {
    return;
  }
  if (!(conn_flags(c) & CONN_KERNELS)) {
    conn_set_flag(c, CONN_KERNELS); /* also by another number, and for who inherits it */
  }
  struct local *d = local_of(c);
  if (d != NULL && bertha_lock(&d->lock)) {
    local_keep_out(d);
    bertha_unlock(&d->lock);
  }
}

void local_sends(int fd) {
  struct conn *c = dgram_of(fd);
  struct local *d = c != NULL && (conn_flags(c) & CONN_LOCAL) ? local_of(c) : NULL;
  if (d != NULL && bertha_lock(&d->lock)) {
    local_rescue(d, true);
    local_keep_out(d);
    bertha_unlock(&d->lock);
  }
}

bool local_lock_again(struct local *d, const struct conn *c, uint32_t life) {
  if (!bertha_lock(&d->lock)) {
    return false;
  }
  if (LIKELY(d->c == c && atomic_load_explicit(&d->life, memory_order_relaxed) == life)) {
    return true;
  }
  bertha_unlock(&d->lock);
  return false;
}

struct local *local_of(const struct conn *c) {
  struct local *d = atomic_load_explicit(&by_conn[conn_index(c)], memory_order_acquire);
  return LIKELY(d != NULL && d->pid == bertha.pid) ? d : NULL;
}

struct local *local_first(void) {
  return atomic_load_explicit(&all, memory_order_acquire);
}

/* ---- sockets -------------------------------------------------------------------------------------- */

static struct local *new_local(void) {
  struct local *d = NULL;
  if (bertha_lock(&spare.lock)) {
    d = spare.locals;
    spare.locals = d != NULL ? d->next_spare : NULL;
    bertha_unlock(&spare.lock);
  }
  if (d == NULL) {
    return calloc(1, sizeof *d);
  }
  memset((uint8_t *)d + offsetof(struct local, c), 0,
         offsetof(struct local, life) - offsetof(struct local, c));
  return d;
}

static void give_local(struct local *d) {
  atomic_fetch_add(&d->life, 1);
  if (bertha_lock(&spare.lock)) {
    d->next_spare = spare.locals;
    spare.locals = d;
    bertha_unlock(&spare.lock);
  }
}

/* False: in a signal handler that came upon this very list. */
static bool enlist(struct local *d, struct conn *c, int fd) {
  if (!bertha_lock(&all_lock)) {
    return false;
  }
  d->c = c;
  d->fd = fd;
  d->pid = bertha.pid;
  d->server = c->side == BERTHA_SIDE_SERVER;
  d->watched.epfd = d->outer.epfd = -1;
  atomic_store(&d->next, atomic_load(&all));
  atomic_store_explicit(&all, d, memory_order_release);
  bertha_unlock(&all_lock);
  atomic_store_explicit(&by_conn[conn_index(c)], d, memory_order_release);
  atomic_fetch_add(&local_count, 1);
  return true;
}

static struct local *make(int fd, int family, uint32_t side) {
  if (atomic_load(&bertha.io_uring) || conn_of(fd) != NULL || (unsigned)fd >= BERTHA_FDS ||
      local_is_never(fd)) {
    return NULL;
  }
  int flags = REAL(fcntl)(fd, F_GETFL);
  struct local *d = flags >= 0 && !(flags & O_ASYNC) ? new_local() : NULL;
  struct conn *c = d != NULL ? conn_new(fd, BERTHA_CONN_PLAIN) : NULL;
  if (c == NULL) {
    if (d != NULL) {
      give_local(d);
    }
    return NULL;
  }
  conn_set_flag(c, CONN_DGRAM | CONN_LOCAL | (flags & O_NONBLOCK ? CONN_NONBLOCK : 0));
  c->side = (uint8_t)side;
  c->info.role = side;
  c->info.family = (uint32_t)family | BERTHA_FAMILY_DATAGRAMS;
  c->info.opened_ns = connlog_clock();
  c->rcv_timeout_ns = dgram_timeout(fd, SO_RCVTIMEO);
  c->info.reason = BERTHA_WHY_ALL_BY_UDP; /* unless */
  if (side == BERTHA_SIDE_SERVER) {
    connlog_addresses(c, fd);
  }
  conn_books_begin();
  conn_track(fd, c);
  conn_books_end();
  if (!enlist(d, c, fd)) { /* it stays the kernel's */
    give_local(d);
    return NULL;
  }
  return d;
}

/* A program may bind a socket and leave it to a child, or give it another number.  Epoll sets that have it already are not
 * known here: then it stays the kernel's. */
struct local *local_mine(struct conn *c, int fd) {
  struct local *d = local_of(c);
  if (LIKELY(d != NULL) || atomic_load(&c->kernel_regs) != 0 || atomic_load(&c->info.refs) != 1 ||
      conn_of(fd) != c || atomic_load(&bertha.io_uring) || local_is_never(fd) ||
      (conn_flags(c) & CONN_KERNELS)) {
    return d;
  }
  d = new_local();
  if (d != NULL) {
    d->vague = true;
  }
  if (d != NULL && !enlist(d, c, fd)) {
    give_local(d);
    return NULL;
  }
  return d;
}

void local_serve(int fd, int family, struct listener *l) {
  struct local *d = make(fd, family, BERTHA_SIDE_SERVER);
  if (d != NULL) {
    d->c->listener = l->id;
  }
}

void local_dial(int fd, int family, const uint8_t addr[16], uint16_t port, bool first) {
  struct dir_hit hit;
  struct local *d =
      directory_find_datagrams(addr, port, &hit, 1) > 0 ? make(fd, family, BERTHA_SIDE_CLIENT) : NULL;
  if (d != NULL && !first && bertha_lock(&d->lock)) {
    d->vague = true;
    bertha_unlock(&d->lock);
  }
}

/* Nobody puts anything more into our boxes, until something comes by the kernel. */
void local_cool(struct local *d) {
  for (struct pair *p = d->pairs; p != NULL; p = p->sibling) {
    atomic_store(&p->in->awake, 0);
    box_let_go(p->in, p->head); /* another process may receive, which finds it by the kernel alone */
    p->hot = false;
  }
  d->hot = NULL;
  atomic_thread_fence(memory_order_seq_cst); /* and now a look at what is there */
}

/* In a child nothing of it holds: the slots are the parent's. */
void local_after_fork(void) {
  memset(&spare, 0, sizeof spare);
  pairs_after_fork();
  atomic_store(&all_lock, 0);
  atomic_store(&all, NULL);
  atomic_store(&local_count, 0);
}

void local_fork_begin(void) {
  for (struct local *d = atomic_load(&all); d != NULL; d = d->next) {
    if (d->c != NULL && d->pair_count > 0 && bertha_lock(&d->lock)) {
      local_rescue(d, true);
      local_cool(d);
      bertha_unlock(&d->lock);
    }
  }
}

void local_forked(void) {
  for (struct local *d = atomic_load(&all); d != NULL; d = d->next) {
    bool locked = bertha_lock(&d->lock);
    d->shared = true;
    if (locked) {
      bertha_unlock(&d->lock);
    }
  }
}

void local_leave(void) {
  if (LIKELY(atomic_load(&all) == NULL) || bertha_in_forked_stranger()) {
    return;
  }
  for (struct local *d = atomic_load(&all); d != NULL; d = d->next) {
    if (d->c != NULL && bertha_lock(&d->lock)) {
      local_rescue(d, true);
      local_keep_out(d);
      bertha_unlock(&d->lock);
    }
  }
}

void local_keep_out(struct local *d) {
  d->kernel_only = true;
  local_cool(d);
}

bool local_alone(struct local *d) {
  if (UNLIKELY(d->kernel_only)) {
    return false;
  }
  uint32_t me = bertha_tid();
  if (UNLIKELY(d->owner != me)) {
    if (d->owner == 0) {
      d->owner = me;
    }
  }
  if (UNLIKELY(atomic_load_explicit(&d->c->info.refs, memory_order_relaxed) != 1)) {
    local_cool(d); /* another process, or a duplicate, may be what is to be woken */
    return false;
  }
  if (UNLIKELY(d->owner != me || conn_of(d->fd) != d->c ||
               atomic_load_explicit(&bertha.io_uring, memory_order_relaxed))) {
    local_keep_out(d); /* another thread or process may sleep, and be the one that is to be woken */
    return false;
  }
  return true;
}

/* What others have not read is sent from the address that they know. */
void local_reconnecting(struct conn *c) {
  struct local *d = local_of(c);
  if (d != NULL && bertha_lock(&d->lock)) {
    local_rescue(d, true);
    bertha_unlock(&d->lock);
  }
}

/* Disconnected, it has another address as well: its old port may be somebody else's already. */
void local_reconnected(struct conn *c) {
  struct local *d = local_of(c);
  if (d == NULL || !bertha_lock(&d->lock)) {
    return;
  }
  if (d->server) {
    local_keep_out(d); /* the kernel sorts out who may send to it now */
  }
  for (struct pair *p = d->pairs, *next; p != NULL && !d->server; p = next) {
    next = p->sibling;
    if (c->info.peer_port == 0 || p->port != c->info.peer_port ||
        memcmp(p->addr, c->info.peer_addr, 16) != 0) {
      pair_end(d, p);
    }
  }
  d->tried = false;
  bertha_unlock(&d->lock);
}

static bool unlist(struct local *d) {
  if (!bertha_lock(&all_lock)) {
    return false;
  }
  struct local *_Atomic *at = &all;
  while (atomic_load(at) != NULL && atomic_load(at) != d) {
    at = &atomic_load(at)->next;
  }
  if (atomic_load(at) == d) {
    atomic_store(at, atomic_load(&d->next));
  }
  bertha_unlock(&all_lock);
  return true;
}

/* With the lock held, which it takes with it. */
static void leave(struct local *d, bool open) {
  struct conn *c = d->c;
  if (open) {
    local_rescue(d, true);
  } else {
    d->fd = -1; /* nothing goes by that number any more */
  }
  while (d->pairs != NULL) {
    box_let_go(d->pairs->in, d->pairs->head); /* it comes by the kernel, to who has the socket still */
    pair_drop(d, d->pairs);
  }
  for (unsigned i = 0; i < d->inlet_count; i++) {
    inlet_give(d->inlet[i]);
  }
  d->inlet_count = 0;
  atomic_store(&by_conn[conn_index(c)], NULL);
  atomic_fetch_sub(&local_count, 1);
  local_unregister(d);
  bool unlisted = unlist(d);
  d->c = NULL;
  bertha_unlock(&d->lock);
  if (unlisted) { /* else its record stays where it is, unused */
    give_local(d);
  }
}

void local_closing(struct conn *c, int fd) {
  struct local *d = local_of(c);
  if (d != NULL && bertha_lock(&d->lock)) {
    d->leaving = fd >= 0;
    d->fd = fd;
    leave(d, fd >= 0);
  }
}

static int other_number(const struct conn *c, int fd) {
  for (uint32_t i = 0; i < bertha.max_fd; i++) {
    if ((int)i != fd && conn_of((int)i) == c) {
      return (int)i;
    }
  }
  return -1;
}

/* What lies there, and what its program has been told of, is the socket's, whatever its number is.  A call of another thread that
 * goes on with the old one finds it closed. */
static void goes_on_as(struct local *d, int fd) {
  d->fd = fd;
  d->asleep = 0;
  d->claiming = false;
  atomic_fetch_add(&d->life, 1);
  if (d->watched.epfd >= 0) {
    local_keep_out(d); /* the kernel's books have it by the old number */
  }
}

void local_forgotten(struct conn *c, int fd, bool open) {
  struct local *d = local_of(c);
  if (d != NULL && d->fd == fd && bertha_lock(&d->lock)) {
    int other = other_number(c, fd);
    if (other < 0) {
      leave(d, open);
      return;
    }
    goes_on_as(d, other);
    bertha_unlock(&d->lock);
  }
}
