/* What the agent has said of destinations, for as long as it said that that holds. */
#include "plans.h"

#include <stdlib.h>
#include <string.h>

#include "../carrier/carrier.h"
#include "agentc.h"
#include "carried.h"

enum {
  PATIENCE_MS = 300, /* for the first answer about a destination */
  PLANS = 128,
};

static struct {
  _Atomic uint32_t lock;   /* never held while the agent is asked: that may take its time */
  _Atomic uint32_t asking; /* but this: who wants to know the same finds it known then */
  unsigned next;
  struct plan *plans[PLANS];
  struct plan *kept; /* others that a connection under way may mean */
} known;

/* Another thread of the parent's may have been in the middle of a change: then nothing is known. */
void plans_after_fork(void) {
  if (atomic_load(&known.lock) != 0) {
    memset(known.plans, 0, sizeof known.plans);
    atomic_store(&known.lock, 0);
  }
  atomic_store(&known.asking, 0);
}

bool carried_is_private(const uint8_t a[16]) {
  static const uint8_t v4[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  if (memcmp(a, v4, 12) != 0) { /* unique local (RFC 4193) and link-local addresses */
    return (a[0] & 0xfe) == 0xfc || (a[0] == 0xfe && (a[1] & 0xc0) == 0x80);
  }
  return a[12] == 10 || (a[12] == 172 && (a[13] & 0xf0) == 16) || (a[12] == 192 && a[13] == 168) ||
         (a[12] == 169 && a[13] == 254) || (a[12] == 100 && (a[13] & 0xc0) == 64);
}

/* The plan of before, if there is one: good or not. */
static struct plan *last(const uint8_t addr[16], uint16_t port, bool datagrams) {
  for (unsigned i = 0; i < PLANS; i++) {
    struct plan *p = known.plans[i];
    if (p != NULL && p->port == port && p->datagrams == datagrams && memcmp(p->addr, addr, 16) == 0) {
      return p;
    }
  }
  return NULL;
}

static struct plan *ask(const uint8_t addr[16], uint16_t port, int family, int fd, bool datagrams,
                        bool fresh) {
  bool must = datagrams ? bertha.must_send_datagrams : bertha.must_connect;
  struct bertha_negotiate body = {.server_port = port,
                                  .reserved = (fresh ? BERTHA_NEGOTIATE_FRESH : 0) |
                                              (datagrams ? BERTHA_NEGOTIATE_DATAGRAMS : 0) |
                                              (must ? BERTHA_NEGOTIATE_MUST : 0),
                                  .patience_ms = PATIENCE_MS,
                                  .netns = bertha_netns(fd)};
  memcpy(body.server_addr, addr, 16);
  struct {
    struct bertha_negotiate_reply head;
    uint8_t plan[BERTHA_CARRIER_PLAN_MAX];
  } *reply = calloc(1, sizeof *reply);
  struct plan *p = calloc(1, sizeof *p);
  int probes[2] = {REAL(socket)(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0),
                   REAL(socket)(family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
  uint64_t generation = directory_generation();
  uint32_t news = directory_news();
  bool good = reply != NULL && p != NULL && probes[0] >= 0 &&
              agent_call(BERTHA_OP_NEGOTIATE, &body, sizeof body, probes, probes[1] >= 0 ? 2 : 1, reply,
                         sizeof *reply, NULL, 0) == 0 &&
              reply->head.plan_size <= sizeof reply->plan;
  for (int i = 0; i < 2; i++) {
    if (probes[i] >= 0) {
      QUIET(close)(probes[i]);
    }
  }
  if (good) {
    memcpy(p->addr, addr, 16);
    p->port = port;
    p->datagrams = datagrams;
    p->verdict = reply->head.verdict;
    p->carrier = reply->head.carrier;
    p->size = reply->head.plan_size;
    p->context = reply->head.context;
    p->spin_us = reply->head.spin_us;
    p->generation = generation;
    p->news = news;
    p->until = bertha_now_ns() + (int64_t)reply->head.valid_ms * 1000000;
    memcpy(p->detail, reply->head.detail, sizeof p->detail - 1);
    p->bytes = malloc(p->size + 1);
    good = p->bytes != NULL;
    if (good) {
      memcpy(p->bytes, reply->plan, p->size);
    }
  }
  free(reply);
  if (!good) {
    free(p);
    return NULL;
  }
  return p;
}

static void forget(struct plan *p) {
  if (p != NULL && p->verdict == BERTHA_VERDICT_PLAN) {
    p->kept = known.kept;
    known.kept = p;
  } else if (p != NULL) {
    free(p->bytes);
    free(p);
  }
}

static struct plan *numbered(uint64_t number) {
  struct plan *p = NULL;
  for (unsigned i = 0; i < PLANS && p == NULL; i++) {
    p = known.plans[i] != NULL && known.plans[i]->number == number ? known.plans[i] : NULL;
  }
  for (struct plan *k = known.kept; k != NULL && p == NULL; k = k->kept) {
    p = k->number == number ? k : NULL;
  }
  return p;
}

/* As a rule the answer is the one of before. */
static struct plan *remember(struct plan *p) {
  unsigned at = PLANS;
  for (unsigned i = 0; i < PLANS && at == PLANS; i++) {
    struct plan *old = known.plans[i];
    if (old != NULL &&
        (old->port != p->port || old->datagrams != p->datagrams || memcmp(old->addr, p->addr, 16) != 0)) {
      continue;
    }
    at = i;
    if (old != NULL && old->verdict == p->verdict && old->carrier == p->carrier && old->size == p->size &&
        memcmp(old->bytes, p->bytes, p->size) == 0) {
      old->until = p->until;
      old->generation = p->generation;
      old->news = p->news;
      old->context = p->context;
      old->spin_us = p->spin_us;
      old->refused = false;
      memcpy(old->detail, p->detail, sizeof old->detail);
      free(p->bytes);
      free(p);
      return old;
    }
  }
  if (at == PLANS) {
    at = known.next++ % PLANS;
  }
  static uint32_t count;
  p->number = (uint64_t)(uint32_t)bertha.pid << 32 | ++count;
  forget(known.plans[at]);
  known.plans[at] = p;
  return p;
}

static bool holds(const struct plan *p) {
  return p != NULL && p->generation == directory_generation() && bertha_now_ns() < p->until &&
         (p->verdict == BERTHA_VERDICT_PLAN || p->news == directory_news());
}

/* What is known and good, or the agent's answer, with the lock held then; NULL: it has none, and the lock is free. */
static struct plan *get_plan(const uint8_t addr[16], uint16_t port, int family, int fd, bool datagrams) {
  if (!bertha_lock(&known.lock)) {
    return NULL;
  }
  struct plan *p = last(addr, port, datagrams);
  if (LIKELY(holds(p))) {
    return p;
  }
  bertha_unlock(&known.lock);
  if (!bertha_lock(&known.asking)) {
    return NULL;
  }
  bool locked = bertha_lock(&known.lock);
  p = locked ? last(addr, port, datagrams) : NULL;
  if (!holds(p)) { /* no other thread has asked meanwhile */
    bool fresh = p != NULL && p->refused;
    if (locked) {
      bertha_unlock(&known.lock);
    }
    p = ask(addr, port, family, fd, datagrams, fresh);
    locked = p != NULL && bertha_lock(&known.lock);
    const struct plan *old = locked ? last(addr, port, datagrams) : NULL;
    bool refused = !fresh && old != NULL && old->refused; /* by the server, while the agent was asked */
    p = locked ? remember(p) : NULL;
    if (refused) {
      p->refused = true;
      p->until = 0;
    }
  }
  bertha_unlock(&known.asking);
  return p;
}

bool carried_ask_datagrams(const uint8_t addr[16], uint16_t port, int family, int fd,
                           struct carried_answer *answer) {
  const struct plan *p = directory_generation() != 0 ? get_plan(addr, port, family, fd, true) : NULL;
  if (p != NULL) {
    answer->verdict = p->verdict;
    answer->carrier = p->carrier;
    answer->size = p->size;
    answer->context = p->context;
    answer->until = p->until;
    memcpy(answer->plan, p->bytes, p->size);
    memcpy(answer->detail, p->detail, sizeof answer->detail);
    bertha_unlock(&known.lock);
  }
  return p != NULL;
}

void carried_refused_datagrams(const uint8_t addr[16], uint16_t port) {
  if (bertha_lock(&known.lock)) {
    struct plan *p = last(addr, port, true);
    if (p != NULL) {
      p->until = 0;
      p->refused = true;
    }
    bertha_unlock(&known.lock);
  }
}

bool plan_get(const uint8_t addr[16], uint16_t port, int family, int fd, struct plan_answer *answer) {
  const struct plan *p = get_plan(addr, port, family, fd, false);
  if (p != NULL) {
    answer->number = p->number;
    answer->verdict = p->verdict;
    memcpy(answer->detail, p->detail, sizeof answer->detail);
    bertha_unlock(&known.lock);
  }
  return p != NULL;
}

/* A signal handler that has interrupted who holds the lock may look as well: the lists are whole after each store. */
const struct plan *plan_numbered(uint64_t number) {
  bool locked = bertha_lock(&known.lock);
  const struct plan *p = numbered(number);
  if (locked) {
    bertha_unlock(&known.lock);
  }
  return p != NULL && p->verdict == BERTHA_VERDICT_PLAN ? p : NULL;
}

void plan_detail(uint64_t number, char *to, size_t size) {
  to[0] = '\0';
  if (number != 0 && bertha_lock(&known.lock)) {
    const struct plan *p = numbered(number);
    if (p != NULL) {
      size_t n = strnlen(p->detail, size - 1);
      memcpy(to, p->detail, n);
      to[n] = '\0';
    }
    bertha_unlock(&known.lock);
  }
}

void plan_refused(uint64_t number) {
  if (bertha_lock(&known.lock)) {
    struct plan *p = numbered(number);
    if (p != NULL) {
      p->until = 0;
      p->refused = true;
    }
    bertha_unlock(&known.lock);
  }
}
