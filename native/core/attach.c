/* How a kernel connection gets tied to a slot of shared memory.
 *
 * The client claims a slot once its kernel connection has a local port, and leaves a hint; the server looks
 * for the hint when it accepts, and at every call until it has read the first byte.  A client claims before
 * it sends, so a server that has read a byte and sees no claim knows that there will be none.  Nobody waits
 * for anybody: until a side sees the tie, it uses the kernel's connection. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/syscall.h>

#include "agentc.h"
#include "brief.h"
#include "carried.h"
#include "claimant.h"
#include "conn.h"
#include "connlog.h"
#include "eset.h"
#include "orphans.h"
#include "unixpair.h"

#define ALONE_WAIT_NS 20000000

static const uint8_t v4_prefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

bool address_of(const struct sockaddr *sa, uint8_t addr[16], uint16_t *port) {
  if (sa->sa_family == AF_INET) {
    const struct sockaddr_in *in = (const void *)sa;
    memcpy(addr, v4_prefix, 12);
    memcpy(addr + 12, &in->sin_addr, 4);
    *port = ntohs(in->sin_port);
    return true;
  }
  if (sa->sa_family == AF_INET6) {
    const struct sockaddr_in6 *in6 = (const void *)sa;
    memcpy(addr, &in6->sin6_addr, 16);
    *port = ntohs(in6->sin6_port);
    return true;
  }
  return false;
}

bool address_is_v4(const uint8_t addr[16]) {
  return memcmp(addr, v4_prefix, 12) == 0;
}

/* connect() to "any" means this host (ip(7)). */
static void any_to_loopback(uint8_t addr[16]) {
  static const uint8_t v4_any[4];
  static const uint8_t v6_any[16];
  if (address_is_v4(addr) && memcmp(addr + 12, v4_any, 4) == 0) {
    addr[12] = 127;
    addr[15] = 1;
  } else if (memcmp(addr, v6_any, 16) == 0) {
    addr[15] = 1;
  }
}

void conn_make_plain(struct conn *c, uint32_t why) {
  c->info.reason = why;
  atomic_store_explicit(&c->info.kind, BERTHA_CONN_PLAIN, memory_order_release);
}

void conn_unwatch(struct conn *c) {
  _Atomic uint16_t *kernel = &c->slot->watch[c->side].kernel;
  uint16_t seen = atomic_load(kernel); /* before the look at the counts: see conn_watch_kernel() */
  if (seen != 0 && atomic_load(&c->kernel_waiters) == 0 && atomic_load(&c->kernel_regs) == 0) {
    atomic_compare_exchange_strong(kernel, &seen, 0);
  }
}

void conn_refresh_watch(struct conn *c) {
  if (conn_kind(c) == BERTHA_CONN_SHM) {
    conn_unwatch(c);
  }
}

/* Both ends know of each other. */
void conn_tied(struct conn *c, uint32_t from) {
  struct link *l = c->link;
  c->link_index = l->index;
  c->rx_mem = link_ring(l, c->slot_index, 1 - c->side);
  c->tx_mem = link_ring(l, c->slot_index, c->side);
  c->tx_limit = l->plan.ring_size != 0 && l->plan.ring_size < l->ring_max ? l->plan.ring_size : l->ring_max;
  c->tx_size = c->tx_limit < 65536 ? c->tx_limit : 65536;
  c->rx_head = 0;
  c->tx_tail = 0;
  c->tx_base = 0;
  c->tx_head = 0;
  c->tx_look_at = 0;
  c->info.reason = l->plan.reason;
  bool by_unix = l->plan.implementation == BERTHA_IMPL_UNIX;
  atomic_compare_exchange_strong(&c->info.kind, &from, by_unix ? BERTHA_CONN_UNIX : BERTHA_CONN_SHM);
}

/* Without the connection's lock: an epoll set has a lock of its own, and takes ours while it holds that. */
void conn_after_tied(struct conn *c, int fd) {
  if (conn_kind(c) == BERTHA_CONN_SHM && !eset_wants_upgrade(c, fd)) {
    conn_refresh_watch(c);
  }
}

/* ---- client ------------------------------------------------------------------------------------ */

/* 127.0.0.0/8 stands in the directory as 127.0.0.1. */
static int find_listeners(const uint8_t addr[16], uint16_t port, struct dir_hit *hits, int max) {
  int n = directory_find(addr, port, hits, max);
  if (n == 0 && address_is_v4(addr) && addr[12] == 127) {
    uint8_t one[16];
    memcpy(one, addr, 16);
    one[13] = one[14] = 0;
    one[15] = 1;
    n = directory_find(one, port, hits, max);
  }
  return n;
}

static uint64_t choose_listener(const uint8_t addr[16], uint16_t port, uint64_t netns,
                                const struct bertha_tuple *tuple, uint32_t *why) {
  struct dir_hit hits[BERTHA_RESOLVE_MAX];
  int n = find_listeners(addr, port, hits, BERTHA_RESOLVE_MAX);
  bool loopback = address_is_v4(addr) && addr[12] == 127;
  *why = BERTHA_WHY_NOT_LISTED;
  for (int i = 0; i < n; i++) {
    if (hits[i].netns == netns) {
      return hits[i].listener; /* what is ours never leaves the namespace */
    }
  }
  static const uint8_t v6_loopback[16] = {[15] = 1};
  if (n == 0 || loopback || memcmp(addr, v6_loopback, 16) == 0) {
    return 0;
  }
  if (n == 1) {
    return hits[0].listener;
  }
  struct bertha_resolve body = {.client_port = tuple->client_port, .server_port = port, .count = (uint32_t)n};
  memcpy(body.client_addr, tuple->client_addr, 16);
  memcpy(body.server_addr, addr, 16);
  for (int i = 0; i < n; i++) {
    body.listeners[i] = hits[i].listener;
  }
  struct bertha_resolve_reply reply = {0};
  *why = agent_call(BERTHA_OP_RESOLVE, &body, sizeof body, NULL, 0, &reply, sizeof reply, NULL, 0);
  if (*why == 0 && reply.listener == 0) {
    *why = BERTHA_WHY_AMBIGUOUS;
  }
  return *why == 0 ? reply.listener : 0;
}

void slot_prepare(struct bertha_slot *s, const struct bertha_tuple *tuple, uint64_t netns) {
  s->netns = netns;
  s->tuple = *tuple;
  s->nonce = 0;
  s->client_pid = (uint32_t)bertha.pid;
  s->server_pid = 0;
  atomic_store_explicit(&s->promise, 0, memory_order_relaxed);
  for (int side = 0; side < 2; side++) {
    struct bertha_watch *w = &s->watch[side];
    atomic_store_explicit(&w->epoll, 0, memory_order_relaxed);
    atomic_store_explicit(&w->more, 0, memory_order_relaxed);
    atomic_store_explicit(&w->rx, 0, memory_order_relaxed);
    atomic_store_explicit(&w->tx, 0, memory_order_relaxed);
    atomic_store_explicit(&w->kernel, 1, memory_order_relaxed);
    atomic_store_explicit(&w->done, 0, memory_order_relaxed);
    struct bertha_direction *d = &s->dir[side];
    atomic_store_explicit(&d->tail, 0, memory_order_relaxed);
    atomic_store_explicit(&d->base, 0, memory_order_relaxed);
    atomic_store_explicit(&d->size, 65536, memory_order_relaxed);
    atomic_store_explicit(&d->closed, 0, memory_order_relaxed);
    atomic_store_explicit(&d->switch_at, UINT64_MAX, memory_order_relaxed);
    atomic_store_explicit(&d->ring_end, UINT64_MAX, memory_order_relaxed);
    atomic_store_explicit(&d->space_wanted, 0, memory_order_relaxed);
    atomic_store_explicit(&d->head, 0, memory_order_relaxed);
    atomic_store_explicit(&d->want_kernel, 0, memory_order_relaxed);
    atomic_store_explicit(&d->bell_out, 0, memory_order_relaxed);
    atomic_store_explicit(&d->bells, 0, memory_order_relaxed);
  }
}

static bool alone_now(struct conn *c) {
  uint32_t others = atomic_load(&c->info.refs);
  if (LIKELY(others == 1)) {
    return true;
  }
  for (uint32_t fd = 0; others > 0 && fd < bertha.max_fd; fd++) {
    others -= conn_of((int)fd) == c;
  }
  return others == 0;
}

/* A link that this process maps now is not in the memory of those that were forked before: a connection that they
 * have as well cannot be tied to it.  As a rule it is a parent that is about to close its copy, which on a busy
 * machine takes it a turn or two of the scheduler; a client of ours is there, so it is worth that wait, once. */
static bool alone(struct conn *c) {
  bool now = alone_now(c);
  if (LIKELY(now) || c->info.reason == BERTHA_WHY_INHERITED) {
    return now;
  }
  struct timespec moment = {0, 20000};
  for (int64_t until = bertha_now_ns() + ALONE_WAIT_NS; !alone_now(c) && bertha_now_ns() < until;) {
    REAL(syscall)(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &moment, NULL);
    moment.tv_nsec = moment.tv_nsec < 320000 ? 2 * moment.tv_nsec : moment.tv_nsec;
  }
  return alone_now(c);
}

/* From here on a server may tie itself. */
static bool claim_told(struct conn *c) {
  struct bertha_slot *s = c->slot;
  uint32_t use = BERTHA_SLOT_USE(atomic_load_explicit(&s->state, memory_order_relaxed));
  uint32_t claimed = BERTHA_SLOT_WORD(use, BERTHA_SLOT_CLAIMED);
  atomic_store_explicit(&s->state, claimed, memory_order_release);
  uint32_t tag = tuple_tag(s->tuple.client_addr, s->tuple.client_port);
  return claim_publish(c->link->claims, tag, bertha_claim_word(tag, c->link->index, c->slot_index)) ||
         !atomic_compare_exchange_strong(&s->state, &claimed, BERTHA_SLOT_WORD(use, BERTHA_SLOT_REFUSED));
}

/* Asked only where connect() did not wait for it. */
static bool established(int fd, uint8_t addr[16], uint16_t *port) {
  struct sockaddr_storage peer;
  socklen_t size = sizeof peer;
  int saved = errno;
  bool is = REAL(getpeername)(fd, (struct sockaddr *)&peer, &size) == 0 &&
            address_of((struct sockaddr *)&peer, addr, port);
  errno = saved;
  return is;
}

/* With the rx lock held.  It may be another connect()'s than the one that the claim was made for, which has failed: by another
 * port, or to another address. */
static bool tell_of(struct conn *c, int fd, const uint8_t to[16], uint16_t to_port) {
  struct bertha_tuple *t = &c->slot->tuple;
  struct sockaddr_storage local;
  socklen_t size = sizeof local;
  if (to_port != t->server_port || memcmp(to, t->server_addr, 16) != 0 ||
      REAL(getsockname)(fd, (struct sockaddr *)&local, &size) != 0 ||
      !address_of((struct sockaddr *)&local, t->client_addr, &t->client_port)) {
    return false;
  }
  memcpy(c->info.local_addr, t->client_addr, 16);
  c->info.local_port = t->client_port;
  atomic_store(&c->slot->promise, 0); /* of a sleep before this call: unix_wait() */
  return claim_told(c);
}

static void claim_pending(struct conn *c, int fd) {
  uint8_t to[16];
  uint16_t port;
  if (!established(fd, to, &port) || !bertha_lock(&c->rx_lock)) {
    return;
  }
  if (conn_kind(c) == BERTHA_CONN_CLAIMED && (conn_flags(c) & CONN_PENDING) && conn_of(fd) == c) {
    if (!tell_of(c, fd, to, port)) {
      conn_make_plain(c, BERTHA_WHY_NOT_ATTACHED);
      unix_drop(c);
      slot_give_back(c->link, c->slot_index);
    }
    conn_clear_flag(c, CONN_PENDING);
  }
  bertha_unlock(&c->rx_lock);
}

/* What can be said without a system call, and without the time.  `tuple`: where it goes. */
static uint32_t why_not_claim(struct conn *c, const struct sockaddr *to, struct bertha_tuple *tuple) {
  if (!address_of(to, tuple->server_addr, &tuple->server_port)) {
    return BERTHA_WHY_NOT_LISTED;
  }
  any_to_loopback(tuple->server_addr);
  memcpy(c->info.peer_addr, tuple->server_addr, 16);
  c->info.peer_port = tuple->server_port;
  if (directory_generation() == 0) {
    return BERTHA_WHY_NO_AGENT;
  }
  struct dir_hit any;
  if (find_listeners(tuple->server_addr, tuple->server_port, &any, 1) == 0) {
    return BERTHA_WHY_NOT_LISTED; /* the common case of a plain destination ends here */
  }
  if (conn_flags(c) & CONN_NO_ATTACH) {
    return c->info.reason != 0 ? c->info.reason : BERTHA_WHY_KERNEL_ASKED;
  }
  if (brief_expected(any.listener)) {
    c->chosen = any.listener;
    return BERTHA_WHY_BRIEF;
  }
  return 0;
}

/* `unsure`: whether the connection is established.  A claim of one that is not could outlive it: the kernel frees the port of
 * a connect() that fails, and the next one to get it would be tied to our slot. */
static uint32_t claim(struct conn *c, int fd, struct bertha_tuple *t, bool unsure) {
  struct sockaddr_storage local;
  socklen_t size = sizeof local;
  if (REAL(getsockname)(fd, (struct sockaddr *)&local, &size) != 0 ||
      !address_of((struct sockaddr *)&local, t->client_addr, &t->client_port)) {
    return BERTHA_WHY_NOT_LISTED;
  }
  memcpy(c->info.local_addr, t->client_addr, 16);
  c->info.local_port = t->client_port;
  uint64_t netns = bertha_netns(fd);
  uint32_t why = 0;
  uint64_t listener = choose_listener(t->server_addr, t->server_port, netns, t, &why);
  if (listener == 0) {
    return why;
  }
  struct link *l = link_to(c, listener, t->server_addr, t->server_port, netns, &why);
  if (l == NULL) {
    return why;
  }
  if (!alone(c)) { /* a child that is made from now on has the link */
    return BERTHA_WHY_INHERITED;
  }
  if (l->plan.implementation != BERTHA_IMPL_SHM &&
      (l->plan.implementation != BERTHA_IMPL_UNIX || l->mailbox < 0)) {
    return l->plan.reason != 0 ? l->plan.reason : BERTHA_WHY_POLICY;
  }
  int s = slot_take(l);
  if (s < 0) {
    return BERTHA_WHY_LINK_FULL;
  }
  c->chosen = l->plan.reason == BERTHA_WHY_NONE ? listener : 0;
  c->side = BERTHA_SIDE_CLIENT;
  c->slot_index = (uint32_t)s;
  c->slot = &l->slots[s];
  slot_prepare(c->slot, t, netns);
  why = l->plan.implementation == BERTHA_IMPL_UNIX ? unix_prepare(c) : 0;
  if (UNLIKELY(why != 0)) {
    slot_give_back(l, (uint32_t)s);
    return why;
  }
  uint8_t peer[16];
  uint16_t port;
  bool pending = UNLIKELY(unsure) && !established(fd, peer, &port);
  if (UNLIKELY(pending)) {
    conn_set_flag(c, CONN_PENDING);
  }
  atomic_store_explicit(&c->info.kind, BERTHA_CONN_CLAIMED, memory_order_release);
  if (LIKELY(!pending) && !claim_told(c)) {
    unix_drop(c);
    slot_give_back(l, (uint32_t)s);
    return BERTHA_WHY_CLAIMS_FULL;
  }
  return 0;
}

/* A port that the program chose may be that of an earlier connection that the server has yet to accept.  Once ours is
 * established, the earlier one is dead, and the server can tell. */
void conn_connecting(struct conn *c, int fd, const struct sockaddr *to, bool under_way) {
  bool unsure = under_way || (conn_flags(c) & CONN_BOUND);
  struct bertha_tuple tuple = {.reserved = 0};
  c->info.role = BERTHA_SIDE_CLIENT;
  c->info.family = to->sa_family;
  c->info.opened_ns = connlog_about();
  uint32_t why = bertha.io_uring ? BERTHA_WHY_IO_URING : why_not_claim(c, to, &tuple);
  if (why == 0) {
    int64_t began = bertha_now_ns();
    why = claim(c, fd, &tuple, unsure);
    c->info.setup_us = (uint32_t)((bertha_now_ns() - began) / 1000);
  }
  if (why != 0) {
    conn_make_plain(c, why);
  }
}

/* ---- server ------------------------------------------------------------------------------------ */

void conn_accepted(struct conn *c, int fd, struct listener *listener, const struct sockaddr *from) {
  c->info.role = BERTHA_SIDE_SERVER;
  c->side = BERTHA_SIDE_SERVER;
  c->info.family = from->sa_family;
  c->info.opened_ns = connlog_clock();
  bool named = address_of(from, c->info.peer_addr, &c->info.peer_port);
  bool carried = listener != NULL &&
                 atomic_load_explicit(&listener->claims->dag, memory_order_acquire) == BERTHA_DAG_REQUIRED;
  if (UNLIKELY(
          carried)) { /* also where rings cannot be: what is in the descriptor's place then is the kernel's */
    c->listener = listener->id;
    if (carried_accepted(c, fd, listener)) {
      return;
    }
  }
  if (!named || listener == NULL || bertha.io_uring) {
    conn_make_plain(c, bertha.io_uring ? BERTHA_WHY_IO_URING : BERTHA_WHY_NO_AGENT);
    return;
  }
  c->listener = listener->id;
  atomic_store_explicit(&c->info.kind, BERTHA_CONN_MAYBE, memory_order_release);
  if (!atomic_load_explicit(&listener->passes_on, memory_order_relaxed)) {
    conn_ripe(c, fd);
  }
  if (UNLIKELY(atomic_load_explicit(&listener->claims->dag, memory_order_acquire) != BERTHA_DAG_NONE) &&
      conn_kind(c) == BERTHA_CONN_MAYBE) {
    carried_accepted(c, fd,
                     listener); /* nobody of this host has claimed it: a client elsewhere may bring a plan */
  }
  if (conn_kind(c) == BERTHA_CONN_MAYBE && c->info.reason == 0) {
    c->info.reason = listener_standing(listener); /* until it is tied */
  }
}

static bool slot_is(const struct bertha_slot *s, const struct conn *c, const uint8_t local[16],
                    uint16_t port) {
  return s->tuple.client_port == c->info.peer_port && s->tuple.server_port == port &&
         memcmp(s->tuple.client_addr, c->info.peer_addr, 16) == 0 &&
         memcmp(s->tuple.server_addr, local, 16) == 0;
}

static bool take_claim(struct conn *c, int fd, struct listener *listener, uint64_t word, uint32_t tag) {
  uint32_t why = 0;
  struct link *l = link_fetch(listener, (uint32_t)(word >> 16) & 0xffffffu, &why);
  uint32_t index = (uint32_t)word & 0xffffu;
  if (l == NULL && (why == BERTHA_WHY_NO_MEMORY || why == BERTHA_WHY_NO_DESCRIPTOR)) {
    c->info.reason = why; /* if nothing better comes of it */
  }
  if (l == NULL || index >= l->slot_count) {
    return false;
  }
  if (!alone_now(c)) { /* since find_claim() looked, and before the link was there */
    c->info.reason = BERTHA_WHY_INHERITED;
    return false;
  }
  struct bertha_slot *s = &l->slots[index];
  uint32_t claimed = atomic_load_explicit(&s->state, memory_order_acquire); /* before all that we compare */
  uint32_t use = BERTHA_SLOT_USE(claimed);
  if (BERTHA_SLOT_STATE(claimed) != BERTHA_SLOT_CLAIMED) {
    return false;
  }
  struct sockaddr_storage address;
  socklen_t size = sizeof address;
  uint8_t local[16];
  uint16_t port;
  /* getpeername fails for a connection that was reset while it waited for us: the claim then belongs to a
   * later connection from the same port. */
  struct sockaddr_storage peer;
  socklen_t peer_size = sizeof peer;
  if (REAL(getsockname)(fd, (struct sockaddr *)&address, &size) != 0 ||
      !address_of((struct sockaddr *)&address, local, &port) || !slot_is(s, c, local, port) ||
      REAL(getpeername)(fd, (struct sockaddr *)&peer, &peer_size) != 0) {
    return false;
  }
  if (!link_held(l)) {
    claim_withdraw(listener->claims, tag, word);
    return false;
  }
  if (UNLIKELY(l->claimant.proof != BERTHA_PROOF_NONE) &&
      !claimant_owns(&l->claimant, fd, (struct sockaddr *)&address, (struct sockaddr *)&peer)) {
    claim_withdraw(listener->claims, tag,
                   word); /* one look for each claim; whoever made it stays plain too */
    atomic_compare_exchange_strong(&s->state, &claimed, BERTHA_SLOT_WORD(use, BERTHA_SLOT_REFUSED));
    c->info.reason = BERTHA_WHY_OTHER_USER; /* if nothing better comes of it */
    return false;
  }
  c->link = l;
  c->slot = s;
  c->slot_index = index;
  if (l->plan.implementation == BERTHA_IMPL_UNIX) { /* posted before the client can look for it */
    why = unix_offer(c);
    if (why != 0) {
      if (why != UNIX_LATER) {
        conn_make_plain(c, why);
      }
      return false;
    }
  }
  if (!atomic_compare_exchange_strong(&s->state, &claimed, BERTHA_SLOT_WORD(use, BERTHA_SLOT_ATTACHED))) {
    unix_drop(c);
    return false;
  }
  claim_withdraw(listener->claims, tag, word);
  memcpy(c->info.local_addr, local, 16);
  c->info.local_port = port;
  s->server_pid = (uint32_t)bertha.pid;
  if (l->plan.implementation == BERTHA_IMPL_UNIX) {
    unix_hold_to(c);
  }
  same_processor(l); /* says where we run, before the client thinks of spinning */
  conn_tied(c, BERTHA_CONN_MAYBE);
  return true;
}

/* Two living claims of one 4-tuple: clients in two networks that use the same addresses, of which only one has its other
 * half here.  Which one, the kernel's connection does not say. */
static bool ambiguous(const struct conn *c, struct listener *listener, const uint64_t *words, int n) {
  int living = 0;
  for (int i = 0; n > 1 && i < n; i++) {
    uint32_t why = 0;
    struct link *l = link_fetch(listener, (uint32_t)(words[i] >> 16) & 0xffffffu, &why);
    uint32_t index = (uint32_t)words[i] & 0xffffu;
    bool again = false; /* a hint is believed once, however often somebody has written it */
    for (int k = 0; k < i; k++) {
      again |= words[k] == words[i];
    }
    if (!again && l != NULL && index < l->slot_count && link_held(l) &&
        BERTHA_SLOT_STATE(atomic_load(&l->slots[index].state)) == BERTHA_SLOT_CLAIMED &&
        l->slots[index].tuple.client_port == c->info.peer_port &&
        memcmp(l->slots[index].tuple.client_addr, c->info.peer_addr, 16) == 0) {
      living++;
    }
  }
  return living > 1;
}

static bool find_claim(struct conn *c, int fd) {
  uint64_t words[2 * BERTHA_CLAIM_WAYS];
  uint32_t tag = tuple_tag(c->info.peer_addr, c->info.peer_port);
  struct listener *listener = listener_of(c);
  int n = listener != NULL ? claim_find(listener->claims, tag, words) : 0;
  if (n > 0 && !alone(c)) {
    c->info.reason = BERTHA_WHY_INHERITED; /* if nothing better comes of it */
    return false;
  }
  if (n == 0 || !bertha_lock(&c->rx_lock)) {
    return false;
  }
  bool found = false;
  int64_t began = bertha_now_ns();
  if (ambiguous(c, listener, words, n)) {
    conn_make_plain(c, BERTHA_WHY_AMBIGUOUS);
  }
  for (int i = 0; i < n && !found && conn_kind(c) == BERTHA_CONN_MAYBE; i++) {
    found = take_claim(c, fd, listener, words[i], tag);
  }
  c->info.setup_us = (uint32_t)((bertha_now_ns() - began) / 1000);
  bertha_unlock(&c->rx_lock);
  if (found) {
    conn_after_tied(c, fd);
  }
  return conn_kind(c) == BERTHA_CONN_SHM;
}

bool conn_ripe(struct conn *c, int fd) {
  uint32_t kind = conn_kind(c);
  if (UNLIKELY(atomic_load_explicit(&c->info.holder, memory_order_relaxed) != (uint32_t)bertha.pid)) {
    orphans_mine(c, fd);
  }
  if (LIKELY(kind == BERTHA_CONN_SHM)) {
    return true;
  }
  if (conn_flags(c) & CONN_NO_ATTACH) {
    return false;
  }
  if (kind == BERTHA_CONN_MAYBE) {
    return find_claim(c, fd);
  }
  if (kind == BERTHA_CONN_UNIX && (conn_flags(c) & CONN_CARRIED) && carried_settle(c, fd)) {
    return conn_kind(c) == BERTHA_CONN_SHM;
  }
  if (kind != BERTHA_CONN_CLAIMED) {
    return false;
  }
  if (UNLIKELY(conn_flags(c) & CONN_PENDING)) {
    claim_pending(c, fd); /* nobody can have come yet */
    return false;
  }
  uint32_t state = BERTHA_SLOT_STATE(atomic_load_explicit(&c->slot->state, memory_order_acquire));
  if (state == BERTHA_SLOT_CLAIMED && !unix_take_back(c)) {
    state = BERTHA_SLOT_STATE(atomic_load_explicit(&c->slot->state, memory_order_acquire));
  }
  if (state == BERTHA_SLOT_ATTACHED) {
    if (!bertha_lock(&c->rx_lock)) {
      return false;
    }
    if (conn_kind(c) == BERTHA_CONN_CLAIMED && /* no other thread was quicker */
        (c->link->plan.implementation == BERTHA_IMPL_SHM || unix_collect(c))) {
      conn_tied(c, BERTHA_CONN_CLAIMED);
    }
    bertha_unlock(&c->rx_lock);
    conn_after_tied(c, fd);
    return conn_kind(c) == BERTHA_CONN_SHM;
  }
  if (state == BERTHA_SLOT_REFUSED && bertha_lock(&c->rx_lock)) {
    if (conn_kind(c) == BERTHA_CONN_CLAIMED) {
      conn_make_plain(c, BERTHA_WHY_NOT_ATTACHED);
      unix_drop(c);
    }
    bertha_unlock(&c->rx_lock);
  }
  return false;
}
