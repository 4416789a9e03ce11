/* Pairs of sockets on one host: who has found whom. */
#include "local.h"

#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "agentc.h"
#include "dgram.h"
#include "wait.h"

enum { SWEEP_EVERY = 16, LISTED_EVERY = 16 };

/* Another thread may be looking at what is given back: it stays a record of its kind, and finds another one's. */
static struct {
  _Atomic uint32_t lock;
  struct pair *pairs;
  struct inlet *inlets;
} spare;

void pairs_after_fork(void) {
  memset(&spare, 0, sizeof spare);
}

static struct pair *new_pair(void) {
  struct pair *p = NULL;
  if (bertha_lock(&spare.lock)) {
    p = spare.pairs;
    spare.pairs = p != NULL ? p->sibling : NULL;
    bertha_unlock(&spare.lock);
  }
  if (p == NULL) {
    return calloc(1, sizeof *p);
  }
  memset(&p->next, 0, sizeof *p - offsetof(struct pair, next));
  return p;
}

static void give_pair(struct pair *p) {
  if (bertha_lock(&spare.lock)) {
    p->sibling = spare.pairs;
    spare.pairs = p;
    bertha_unlock(&spare.lock);
  }
}

void inlet_give(struct inlet *in) {
  atomic_fetch_sub(&in->link->pairs, 1);
  if (bertha_lock(&spare.lock)) { /* `link` stays: who looks must find one */
    in->next = spare.inlets;
    spare.inlets = in;
    bertha_unlock(&spare.lock);
  }
}

static struct inlet *new_inlet(struct link *l) {
  struct inlet *in = NULL;
  if (bertha_lock(&spare.lock)) {
    in = spare.inlets;
    spare.inlets = in != NULL ? in->next : NULL;
    bertha_unlock(&spare.lock);
  }
  in = in != NULL ? in : calloc(1, sizeof *in);
  if (in != NULL) {
    memset(in->pending, 0, sizeof in->pending);
    memset(in->pair, 0, sizeof in->pair);
    in->words = in->next_slot = 0;
    in->link = l;
    atomic_fetch_add(&l->pairs, 1);
  }
  return in;
}

/* Nothing is sent there any more, and nothing put into its box. */
static void cut_off(struct local *d, struct pair *p) {
  struct pair **at = &d->bucket[p->port % PAIR_BUCKETS];
  while (*at != NULL && *at != p) {
    at = &(*at)->next;
  }
  if (*at == p) {
    *at = p->next;
  }
  for (at = &d->hot; *at != NULL && *at != p;) {
    at = &(*at)->next_hot;
  }
  if (*at == p) {
    *at = p->next_hot;
  }
  p->hot = false;
  atomic_store(&p->in->awake, 0);
}

void pair_end(struct local *d, struct pair *p) {
  cut_off(d, p);
  p->ended = true;
  atomic_thread_fence(memory_order_seq_cst);
  if (!box_ready(p->in, p->head)) {
    pair_drop(d, p);
  }
}

void pair_drop(struct local *d, struct pair *p) {
  if (p->tied && box_unread(p->out, p->tail)) {
    local_take_back(d, p); /* the other end's socket may be another process's by now */
  }
  cut_off(d, p);
  struct pair **at = &d->pairs;
  while (*at != p) {
    at = &(*at)->sibling;
  }
  *at = p->sibling;
  d->pair_count--;
  if (d->looked_at == p) {
    d->looked = LOOKED_NOWHERE;
    d->looked_at = NULL;
  }
  if (d->server) {
    for (unsigned i = 0; i < d->inlet_count; i++) {
      if (d->inlet[i]->link == p->link) {
        d->inlet[i]->pair[p->slot] = NULL;
      }
    }
    slot_leave(p->link, p->slot, BERTHA_SIDE_SERVER);
  } else {
    d->vague |= p->tied;
    struct bertha_slot *s = &p->link->slots[p->slot];
    uint32_t claimed = BERTHA_SLOT_WORD(p->use, BERTHA_SLOT_CLAIMED);
    if (atomic_compare_exchange_strong(&s->state, &claimed, BERTHA_SLOT_WORD(p->use, BERTHA_SLOT_REFUSED))) {
      uint32_t tag = tuple_tag(s->tuple.client_addr, s->tuple.client_port);
      claim_withdraw(p->link->claims, tag, bertha_claim_word(tag, p->link->index, p->slot));
    }
    slot_give_back(p->link, p->slot);
  }
  atomic_fetch_sub(&p->link->pairs, 1);
  give_pair(p);
}

/* ---- pairs ---------------------------------------------------------------------------------------- */

struct pair *local_pair(const struct local *d, const uint8_t addr[16], uint16_t port) {
  struct pair *p = d->bucket[port % PAIR_BUCKETS];
  while (p != NULL && (p->port != port || memcmp(p->addr, addr, 16) != 0)) {
    p = p->next;
  }
  return p;
}

static struct pair *add(struct local *d, struct link *l, uint32_t slot, uint32_t use, const uint8_t addr[16],
                        uint16_t port, uint32_t scope) {
  struct pair *p = new_pair();
  if (p == NULL) {
    return NULL;
  }
  struct pair **bucket = &d->bucket[port % PAIR_BUCKETS];
  p->link = l;
  p->slot = slot;
  p->use = use;
  p->in = (struct box *)(void *)link_ring(l, slot, 1 - l->side);
  p->out = (struct box *)(void *)link_ring(l, slot, l->side);
  memcpy(p->addr, addr, 16);
  p->port = port;
  p->scope = scope;
  p->next = *bucket;
  atomic_thread_fence(memory_order_release); /* to who looks without the lock */
  *bucket = p;
  p->sibling = d->pairs;
  d->pairs = p;
  d->pair_count++;
  atomic_fetch_add(&l->pairs, 1);
  return p;
}

/* ---- client --------------------------------------------------------------------------------------- */

/* Which address the kernel gives what goes there. */
static bool own_address(int fd, const uint8_t to[16], uint16_t port, uint32_t scope, uint8_t addr[16],
                        uint16_t *own_port) {
  struct sockaddr_storage a;
  socklen_t size = sizeof a;
  static const uint8_t any[16];
  static const uint8_t v4_any[16] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  if (REAL(getsockname)(fd, (struct sockaddr *)&a, &size) != 0 ||
      !address_of((struct sockaddr *)&a, addr, own_port) || *own_port == 0) {
    return false;
  }
  if (memcmp(addr, any, 16) != 0 && memcmp(addr, v4_any, 16) != 0) {
    return true;
  }
  int family = a.ss_family;
  int probe = REAL(socket)(family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  union {
    struct sockaddr_in in;
    struct sockaddr_in6 in6;
  } there = {.in6 = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_scope_id = scope}};
  if (family == AF_INET) {
    there.in = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port)};
    memcpy(&there.in.sin_addr, to + 12, 4);
  } else {
    memcpy(&there.in6.sin6_addr, to, 16);
  }
  uint16_t port_of_probe;
  size = sizeof a;
  bool good = probe >= 0 &&
              QUIET(connect)(probe, (struct sockaddr *)&there,
                             family == AF_INET ? sizeof there.in : sizeof there.in6) == 0 &&
              REAL(getsockname)(probe, (struct sockaddr *)&a, &size) == 0 &&
              address_of((struct sockaddr *)&a, addr, &port_of_probe);
  if (probe >= 0) {
    QUIET(close)(probe);
  }
  return good;
}

/* 0: none, or `*why` they are too many. */
static uint64_t choose(const uint8_t addr[16], uint16_t port, uint64_t netns, uint32_t *why) {
  struct dir_hit hits[BERTHA_RESOLVE_MAX];
  int n = directory_find_datagrams(addr, port, hits, BERTHA_RESOLVE_MAX);
  for (int i = 0; i < n; i++) {
    if (hits[i].netns == netns) {
      return hits[i].listener;
    }
  }
  *why = n > 1 ? BERTHA_WHY_AMBIGUOUS : BERTHA_WHY_NOT_LISTED;
  return n == 1 && !(hits[0].flags & BERTHA_DIR_LOOPBACK) ? hits[0].listener : 0;
}

/* An address that means another host on each interface. */
static bool is_link_local(const uint8_t addr[16]) {
  return addr[0] == 0xfe && (addr[1] & 0xc0) == 0x80;
}

/* A link to who is there, which is not retired until it has been let go (`pairs`). */
static struct link *find_way(int fd, struct bertha_tuple *tuple, uint32_t scope, uint64_t netns,
                             uint32_t *why) {
  *why = BERTHA_WHY_NOT_LISTED;
  uint64_t listener = choose(tuple->server_addr, tuple->server_port, netns, why);
  if (listener == 0 || is_link_local(tuple->server_addr) ||
      !own_address(fd, tuple->server_addr, tuple->server_port, scope, tuple->client_addr,
                   &tuple->client_port)) {
    return NULL;
  }
  return link_to(NULL, listener, tuple->server_addr, tuple->server_port, netns, why);
}

static uint32_t claim(struct local *d, struct link *l, const struct bertha_tuple *tuple, uint32_t scope,
                      uint64_t netns) {
  const uint8_t *addr = tuple->server_addr;
  uint16_t port = tuple->server_port;
  if (local_pair(d, addr, port) != NULL || d->kernel_only) {
    return 0;
  }
  if (l->plan.implementation != BERTHA_IMPL_SHM || l->ring_max < sizeof(struct box)) {
    return BERTHA_WHY_POLICY;
  }
  int s = slot_take(l);
  if (s < 0) {
    return BERTHA_WHY_LINK_FULL;
  }
  struct bertha_slot *slot = &l->slots[s];
  uint32_t use = BERTHA_SLOT_USE(atomic_load_explicit(&slot->state, memory_order_relaxed));
  struct pair *p = add(d, l, (uint32_t)s, use, addr, port, scope);
  if (p == NULL) {
    slot_give_back(l, (uint32_t)s);
    return BERTHA_WHY_NO_MEMORY;
  }
  slot_prepare(slot, tuple, netns);
  box_init(p->in);
  box_init(p->out);
  memcpy(d->c->info.local_addr, tuple->client_addr, 16);
  d->c->info.local_port = tuple->client_port;
  atomic_store_explicit(&slot->state, BERTHA_SLOT_WORD(use, BERTHA_SLOT_CLAIMED), memory_order_release);
  uint32_t tag = tuple_tag(tuple->client_addr, tuple->client_port);
  if (!claim_publish(l->claims, tag, bertha_claim_word(tag, l->index, (uint32_t)s))) {
    pair_drop(d, p);
    return BERTHA_WHY_CLAIMS_FULL;
  }
  return 0;
}

void local_claim(struct local *d, int fd, const uint8_t addr[16], uint16_t port, uint32_t scope) {
  if (d->server || !bertha_lock(&d->lock)) {
    return;
  }
  const struct conn *c = d->c;
  uint32_t life = atomic_load(&d->life);
  bool wanted = c != NULL && c == conn_of(fd) && !d->claiming && !d->kernel_only &&
                d->pair_count < PAIRS_CLIENT && local_pair(d, addr, port) == NULL &&
                !(d->tried && d->tried_port == port && memcmp(d->tried_addr, addr, 16) == 0);
  d->claiming |= wanted;
  bertha_unlock(&d->lock);
  if (!wanted) {
    return;
  }
  int saved = errno;
  uint32_t why = 0;
  struct bertha_tuple tuple = {.server_port = port};
  memcpy(tuple.server_addr, addr, 16);
  uint64_t netns = bertha_netns(fd);
  struct link *l = find_way(fd, &tuple, scope, netns, &why);
  if (local_lock_again(d, c, life)) {
    d->claiming = false;
    why = l != NULL ? claim(d, l, &tuple, scope, netns) : why;
    if (why != 0) {
      d->tried = true;
      memcpy(d->tried_addr, addr, 16);
      d->tried_port = port;
      d->c->info.reason = why;
    }
    bertha_unlock(&d->lock);
  }
  if (l != NULL) {
    atomic_fetch_sub(&l->pairs, 1);
  }
  errno = saved;
}

bool local_stale(struct local *d, struct pair *p, int fd) {
  if (d->server || box_ready(p->in, p->head)) {
    return false;
  }
  if (atomic_load_explicit(&p->link->slots[p->slot].watch[BERTHA_SIDE_SERVER].done, memory_order_acquire)) {
    return true;
  }
  if (++p->missed % LISTED_EVERY != 0) {
    return false;
  }
  uint32_t pid = p->link->slots[p->slot].server_pid;
  int saved = errno;
  bool gone =
      pid != 0 && kill((pid_t)pid, 0) != 0 && errno == ESRCH; /* and another one has its place, perhaps */
  errno = saved;
  uint32_t why;
  return gone || choose(p->addr, p->port, bertha_netns(fd), &why) != p->link->listener;
}

bool local_client_tied(struct pair *p) {
  if (LIKELY(p->tied)) {
    return true;
  }
  uint32_t state = atomic_load_explicit(&p->link->slots[p->slot].state, memory_order_acquire);
  p->tied = state == BERTHA_SLOT_WORD(p->use, BERTHA_SLOT_ATTACHED);
  p->since = p->tied ? bertha_now_ns() : 0;
  return p->tied;
}

/* ---- server --------------------------------------------------------------------------------------- */

static struct inlet *inlet_of(struct local *d, struct link *l) {
  for (unsigned i = 0; i < d->inlet_count; i++) {
    if (d->inlet[i]->link == l) {
      return d->inlet[i];
    }
  }
  struct inlet *in = d->inlet_count < INLETS ? new_inlet(l) : NULL;
  if (in != NULL) {
    d->inlet[d->inlet_count++] = in;
  }
  return in;
}

/* Of clients that have closed theirs, or are gone. */
static void sweep(struct local *d) {
  for (struct pair *p = d->pairs, *next; p != NULL; p = next) {
    next = p->sibling;
    struct bertha_watch *client = &p->link->slots[p->slot].watch[BERTHA_SIDE_CLIENT];
    if ((atomic_load(&client->done) || atomic_load(&p->link->header->dead)) && !box_ready(p->in, p->head)) {
      pair_drop(d, p);
    }
  }
  for (unsigned i = 0; i < d->inlet_count;) {
    struct inlet *in = d->inlet[i];
    if (atomic_load(&in->link->header->dead) && atomic_load(&in->link->pairs) == 1) {
      inlet_give(in);
      d->inlet[i] = d->inlet[--d->inlet_count];
    } else {
      i++;
    }
  }
}

/* The claim is believed if what has just come from there is what its client said it would send. */
static bool tie(struct local *d, struct link *l, const struct listener *listener, uint64_t word, uint32_t tag,
                const uint8_t addr[16], uint16_t port, uint32_t scope, uint32_t sum) {
  uint32_t index = (uint32_t)word & 0xffffu;
  if (index >= l->slot_count || l->ring_max < sizeof(struct box)) {
    return false;
  }
  struct bertha_slot *s = &l->slots[index];
  uint32_t claimed = atomic_load_explicit(&s->state, memory_order_acquire);
  uint32_t use = BERTHA_SLOT_USE(claimed);
  const struct box *box = (const struct box *)(const void *)link_ring(l, index, BERTHA_SIDE_CLIENT);
  uint64_t announced = atomic_load(&box->announced);
  if (BERTHA_SLOT_STATE(claimed) != BERTHA_SLOT_CLAIMED || s->tuple.client_port != port ||
      memcmp(s->tuple.client_addr, addr, 16) != 0 || (uint32_t)announced != sum) {
    return false;
  }
  if (!link_held(l)) {
    claim_withdraw(listener->claims, tag, word);
    return false;
  }
  struct inlet *in = inlet_of(d, l);
  if (in == NULL) {
    return false;
  }
  if (in->pair[index] != NULL) { /* whose client has left the slot since */
    pair_drop(d, in->pair[index]);
    if (!atomic_compare_exchange_strong(&s->state, &claimed, claimed)) {
      return false;
    }
  }
  struct pair *p = add(d, l, index, use, addr, port, scope);
  if (p == NULL) {
    return false;
  }
  atomic_store(&s->watch[BERTHA_SIDE_SERVER].done, 0);
  if (!atomic_compare_exchange_strong(&s->state, &claimed, BERTHA_SLOT_WORD(use, BERTHA_SLOT_ATTACHED))) {
    pair_drop(d, p);
    return false;
  }
  claim_withdraw(listener->claims, tag, word);
  s->server_pid = (uint32_t)bertha.pid;
  p->tied = p->opened = true;
  atomic_store(&p->in->taken, announced >> 32); /* what its client sent before came before */
  if (announced >> 32 == 0) {                   /* which of several it is the client cannot tell */
    p->since = bertha_now_ns() - DROPPED_NS + ON_ITS_WAY_NS;
  }
  in->pair[index] = p;
  in->words = index / 64 + 1 > in->words ? index / 64 + 1 : in->words;
  same_processor(l);
  return true;
}

bool local_heard(struct local *d, const uint8_t addr[16], uint16_t port) {
  struct pair *p = local_pair(d, addr, port);
  if (p == NULL) {
    return !d->server || d->kernel_only;
  }
  p->heard = true;
  if (!d->server && !local_client_tied(p)) {
    return true;
  }
  uint64_t taken = atomic_load_explicit(&p->in->taken, memory_order_relaxed);
  if (taken < atomic_load_explicit(&p->in->begun, memory_order_acquire)) {
    atomic_store_explicit(&p->in->taken, taken + 1, memory_order_release);
  }
  struct bertha_slot *s = &p->link->slots[p->slot];
  bool left = BERTHA_SLOT_USE(atomic_load(&s->state)) != p->use || atomic_load(&p->link->header->dead) ||
              (d->server && atomic_load(&s->watch[BERTHA_SIDE_CLIENT].done));
  if (LIKELY(!left)) {
    local_heat(d, p);
    return true;
  }
  pair_end(d, p); /* its port may be another client's by now */
  return !d->server || d->kernel_only;
}

/* What came by the kernel may have done so because a new agent has nobody listed there. */
static void list_again(struct local *d) {
  if (!bertha_lock(&d->lock)) {
    return;
  }
  struct conn *c = d->c;
  uint32_t life = atomic_load(&d->life);
  int fd = d->fd;
  struct listener *l = c != NULL ? listener_of(c) : NULL;
  bertha_unlock(&d->lock);
  struct listener *fresh = dgram_listed_again(l, fd);
  if (fresh == NULL) {
    return;
  }
  bool ours = local_lock_again(d, c, life);
  if (ours) {
    c->listener = fresh->id;
    bertha_unlock(&d->lock);
  }
  listener_closed(ours ? l : fresh); /* closed meanwhile: nobody has that number any more */
}

void local_meet(struct local *d, const uint8_t addr[16], uint16_t port, uint32_t scope,
                const struct msghdr *msg, size_t size) {
  int saved = errno;
  if (d->server) {
    list_again(d);
  }
  if (!bertha_lock(&d->lock)) {
    return;
  }
  const struct conn *c = d->c;
  uint32_t life = atomic_load(&d->life);
  struct listener *listener = c != NULL ? listener_of(c) : NULL;
  uint64_t words[2 * BERTHA_CLAIM_WAYS];
  uint32_t tag = tuple_tag(addr, port);
  bool whole = !(msg->msg_flags & MSG_TRUNC); /* else it may look like another one */
  int n = whole && listener != NULL ? claim_find(listener->claims, tag, words) : 0;
  if (n > 0 && ++d->turn % SWEEP_EVERY == 0) {
    sweep(d);
  }
  bertha_unlock(&d->lock);
  uint32_t sum = n > 0 ? box_sum(msg->msg_iov, (int)msg->msg_iovlen, size) : 0;
  bool tied = false;
  for (int i = 0; i < n && !tied; i++) {
    uint32_t why = 0;
    struct link *l = link_fetch(listener, (uint32_t)(words[i] >> 16) & 0xffffffu, &why);
    if (l == NULL || !local_lock_again(d, c, life)) {
      continue;
    }
    tied = local_pair(d, addr, port) != NULL;
    if (!tied && tie(d, l, listener, words[i], tag, addr, port, scope, sum)) {
      local_heat(d, local_pair(d, addr, port));
      tied = true;
    }
    bertha_unlock(&d->lock);
  }
  errno = saved;
}
