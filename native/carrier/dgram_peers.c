/* The other ends of one UDP socket: who shows a plan gets an exchange of his own; who does not is passed through, or where
 * chunnels are required dropped and counted. */
#include <math.h>

#include "datagrams.h"

#define CLIENT_IDLE_NS                                                                                       \
  (240 * SECOND_NS)                /* the server may have forgotten a session that is silent for longer */
#define SILENT_NS (30 * SECOND_NS) /* what has been silent for so long makes room for newcomers */
#define UNPROVEN_NS (3 * SECOND_NS)

/* ---- the table ------------------------------------------------------------------------------------- */

static bool same_place(const struct place *a, const struct place *b) {
  return a->port == b->port && a->scope == b->scope && memcmp(a->addr, b->addr, sizeof a->addr) == 0;
}

static uint64_t mixed(uint64_t h, uint64_t more) {
  h = (h ^ more) * 0x9e3779b97f4a7c15u;
  return h ^ h >> 32;
}

static unsigned bucket_of(const struct datagrams *d, const struct place *place) {
  static uint64_t salt; /* strangers choose addresses */
  uint64_t words[2];
  if (salt == 0) {
    salt = trust_salt();
  }
  memcpy(words, place->addr, sizeof words);
  uint64_t h = mixed(mixed(mixed(salt, words[0]), words[1]), (uint64_t)place->scope << 16 | place->port);
  return (unsigned)(h & (d->bucket_count - 1));
}

struct peer *peers_find(const struct datagrams *d, const struct place *place) {
  struct peer *p = d->bucket_count > 0 ? d->buckets[bucket_of(d, place)] : NULL;
  while (p != NULL && !same_place(&p->place, place)) {
    p = p->next;
  }
  return p;
}

static bool grow(struct datagrams *d) {
  unsigned before = d->bucket_count;
  unsigned count = before > 0 ? 2 * before : BUCKETS_FIRST;
  struct peer **buckets = calloc(count, sizeof *buckets), **old = d->buckets;
  if (buckets == NULL) {
    return before > 0;
  }
  d->buckets = buckets;
  d->bucket_count = count;
  for (unsigned i = 0; i < before; i++) {
    struct peer *next;
    for (struct peer *p = old[i]; p != NULL; p = next) {
      next = p->next;
      struct peer **to = &buckets[bucket_of(d, &p->place)];
      p->next = *to;
      *to = p;
    }
  }
  free(old);
  return true;
}

struct peer *peers_get(struct datagrams *d, const struct place *place) {
  struct peer *p = peers_find(d, place);
  if (p != NULL) {
    return p;
  }
  if ((d->peer_count >= d->bucket_count && !grow(d)) || (p = calloc(1, sizeof *p)) == NULL) {
    return NULL;
  }
  struct peer **to = &d->buckets[bucket_of(d, place)];
  p->place = *place;
  p->next = *to;
  *to = p;
  d->peer_count++;
  return p;
}

static void free_peer(struct datagrams *d, struct peer *p) {
  for (struct peer **at = &d->buckets[bucket_of(d, &p->place)]; *at != NULL; at = &(*at)->next) {
    if (*at == p) {
      *at = p->next;
      break;
    }
  }
  d->peer_count--;
  free(p->plan);
  free(p);
}

void peers_settle(struct datagrams *d, struct peer *p) {
  if (p->exchanges == NULL && p->plan == NULL) {
    free_peer(d, p);
  }
}

void peers_current(struct datagrams *d, struct peer *p, struct exchange *x) {
  d->currents += (x != NULL) - (p->current != NULL);
  p->current = x;
}

void peers_free(struct datagrams *d) {
  for (unsigned i = 0; i < d->bucket_count; i++) {
    while (d->buckets[i] != NULL) {
      struct peer *p = d->buckets[i];
      peers_unplan(d, p);
      if (p->exchanges == NULL) {
        free_peer(d, p);
        continue;
      }
      for (struct exchange *x = p->exchanges, *next; x != NULL; x = next) { /* the last one frees the peer */
        next = x->next;
        exchange_drop(x);
      }
    }
  }
  free(d->buckets);
  d->buckets = NULL;
  d->bucket_count = 0;
}

const struct peer *peers_only(const struct datagrams *d) {
  const struct peer *only = NULL;
  for (unsigned i = 0; i < d->bucket_count; i++) {
    for (const struct peer *p = d->buckets[i]; p != NULL; p = p->next) {
      if (p->exchanges != NULL && only != NULL) {
        return NULL;
      }
      only = p->exchanges != NULL ? p : only;
    }
  }
  return only;
}

bool peers_unsaid(const struct datagrams *d) {
  for (unsigned i = 0; i < d->bucket_count; i++) {
    for (const struct peer *p = d->buckets[i]; p != NULL; p = p->next) {
      for (const struct exchange *x = p->exchanges; x != NULL; x = x->next) {
        if (exchange_unsaid(x)) {
          return true;
        }
      }
    }
  }
  return false;
}

/* ---- plans, of a client ---------------------------------------------------------------------------- */

void peers_unplan(struct datagrams *d, struct peer *p) {
  if (p->plan != NULL) {
    free(p->plan);
    p->plan = NULL;
    d->plans--;
  }
}

/* The one that was told first is forgotten. */
static void forget_a_plan(struct datagrams *d) {
  struct peer *first = NULL;
  for (unsigned i = 0; i < d->bucket_count; i++) {
    for (struct peer *p = d->buckets[i]; p != NULL; p = p->next) {
      if (p->plan != NULL && (first == NULL || p->plan_order < first->plan_order)) {
        first = p;
      }
    }
  }
  if (first != NULL) {
    peers_unplan(d, first);
    peers_settle(d, first);
  }
}

/* The exchange by the plan of before; may free the peer. */
static void forget_ours(struct datagrams *d, struct peer *p) {
  if (p->current != NULL && !p->current->server) {
    exchange_drop(p->current);
  } else {
    peers_settle(d, p);
  }
}

void peers_planned(struct datagrams *d, const struct place *place, const uint8_t *plan, size_t size,
                   uint64_t context) {
  if (!exchange_runs(plan, size, false) && beside_program(d, BERTHA_DGRAM_PLAN, place, context, plan, size)) {
    struct peer *known = peers_find(d, place);
    if (known != NULL) {
      peers_unplan(d, known);
      forget_ours(d, known);
    }
    return;
  }
  struct peer *p = peers_get(d, place);
  if (p == NULL || size == 0) {
    if (p != NULL) {
      peers_settle(d, p);
    }
    return;
  }
  if (p->plan != NULL && p->context == context && p->plan_size == size && memcmp(p->plan, plan, size) == 0) {
    return;
  }
  peers_unplan(d, p);
  p->plan = malloc(size);
  if (p->plan == NULL) {
    peers_settle(d, p);
    return;
  }
  memcpy(p->plan, plan, size);
  p->plan_size = size;
  p->context = context;
  p->plan_order = ++d->plan_last;
  forget_ours(d, p);
  if (++d->plans > PLACES_MAX) {
    forget_a_plan(d);
  }
}

/* ---- from the program ------------------------------------------------------------------------------ */

void peers_program_sent(struct datagrams *d, const struct place *to, const uint8_t *data, size_t size) {
  if (!datagrams_can_name(d, to)) { /* the kernel would have said so to the program */
    d->lost++;
    return;
  }
  struct peer *p = peers_find(d, to);
  struct exchange *x = p != NULL ? p->current : NULL;
  if (x != NULL && !x->server) {
    int64_t now = carrier_now();
    if (now - x->last > CLIENT_IDLE_NS && exchange_silent(x, now) > CLIENT_IDLE_NS) {
      exchange_drop(x);
      p = peers_find(d, to);
      x = NULL;
    }
  }
  if (x == NULL && p != NULL && p->plan != NULL) {
    exchange_open(d, p);
    p = peers_find(d, to);
    x = p != NULL ? p->current : NULL;
    if (x == NULL) { /* it has failed at once, and said why */
      d->lost++;
      return;
    }
  }
  if (x != NULL) {
    d->speaking = x;
    exchange_program(x, data, size);
  } else if (beside_program(d, BERTHA_DGRAM_DATA, to, 0, data, size)) {
    return; /* it knows who has an exchange there */
  } else if (d->mode == BERTHA_CARRY_REQUIRED) {
    dgram_stranger(d, to);
  } else {
    if (!d->passed) {
      d->passed = true;
      dgram_tell(d);
    }
    datagrams_send(d, to, data, size);
  }
}

/* ---- from the network ------------------------------------------------------------------------------ */

static void refuse(struct datagrams *d, const struct place *to, uint64_t session, const char *why) {
  struct buffer b = {0};
  if (peers_may_answer(d) && envelope_refuse(&b, session, why)) {
    datagrams_send(d, to, buffer_data(&b), buffer_size(&b));
  }
  buffer_free(&b);
  dgram_detail(d, why);
  dgram_tell_soon(d);
}

/* First one that may have said HELLO from a forged address, which anybody can say again who has seen it. */
static bool make_room(struct datagrams *d) {
  if (d->exchange_count < EXCHANGES_MAX) {
    return true;
  }
  int64_t now = carrier_now(), longest = SILENT_NS, unproven_longest = UNPROVEN_NS;
  struct exchange *silent = NULL, *unproven = NULL;
  for (unsigned i = 0; i < d->bucket_count; i++) {
    for (struct peer *p = d->buckets[i]; p != NULL; p = p->next) {
      for (struct exchange *x = p->exchanges; x != NULL; x = x->next) {
        int64_t ns = exchange_silent(x, now);
        if (ns > longest) {
          longest = ns;
          silent = x;
        }
        ns = exchange_unproven(x, now);
        if (ns > unproven_longest) {
          unproven_longest = ns;
          unproven = x;
        }
      }
    }
  }
  silent = unproven != NULL ? unproven : silent;
  if (silent != NULL) {
    exchange_drop(silent);
  }
  return silent != NULL;
}

/* Several of one address may be: a HELLO that is said again by somebody else displaces nobody. */
static void make_room_of(struct datagrams *d, const struct place *place) {
  const struct peer *p = peers_find(d, place);
  unsigned count = 0;
  struct exchange *oldest = NULL;
  for (struct exchange *x = p != NULL ? p->exchanges : NULL; x != NULL; x = x->next) {
    count++;
    oldest = oldest == NULL && x != p->current ? x : oldest;
  }
  if (count >= EACH_MAX && oldest != NULL) {
    exchange_drop(oldest);
  }
}

static void greeted(struct datagrams *d, const struct place *from, const struct envelope *came,
                    const uint8_t *data, size_t size) {
  struct secrets *k = trust_secrets(d->listener, true, d->shim->uid);
  struct pack_value plan;
  const char *why;
  struct peer *p = NULL;
  bool good = trust_serves(d->listener, d->shim->uid, &why) && envelope_read_hello(came, k, &plan, &why);
  if (why != NULL) {
    d->kept_out++;
    refuse(d, from, came->session, why);
  }
  if (good && d->until == 0 && !exchange_runs(plan.data, plan.size, true)) {
    if (!beside_network(d, from, data, size, true)) {
      d->lost++; /* the program takes nothing; it says so again */
    }
  } else if (good && d->until == 0 && d->unjudged >= UNJUDGED_MAX) {
    d->lost++;                        /* it says so again */
  } else if (good && d->until == 0) { /* nobody makes room for one that is not let in */
    make_room_of(d, from);
    if (make_room(d)) {
      p = peers_get(d, from);
    } else {
      d->lost++;
    }
  }
  if (p == NULL) {
    trust_give_back(k);
    return;
  }
  exchange_greeted(d, p, came->session, plan.data, plan.size, k);
  p = peers_find(d, from);
  if (p != NULL) {
    peers_settle(d, p);
  }
}

bool peers_may_answer(struct datagrams *d) {
  int64_t now = carrier_now();
  if (now - d->strangers_at >= SECOND_NS) {
    d->strangers_at = now;
    d->strangers_answered = 0;
  }
  return ++d->strangers_answered <= STRANGERS_RATE;
}

static void answer_unknown(struct datagrams *d, const struct place *from, uint64_t session) {
  if (peers_may_answer(d)) {
    uint8_t said[ENVELOPE_HEAD];
    envelope_seal(said, ENVELOPE_UNKNOWN, session);
    datagrams_send(d, from, said, sizeof said);
  }
}

/* More has begun than is kept of all: the message that takes longest goes, with its exchange.  A sender has all of it when
 * it begins. */
static void make_less(struct datagrams *d) {
  while (d->held.begun > HELD_BEGUN) {
    double earliest = INFINITY;
    struct exchange *found = NULL;
    for (unsigned i = 0; i < d->bucket_count; i++) {
      for (struct peer *p = d->buckets[i]; p != NULL; p = p->next) {
        for (struct exchange *x = p->exchanges; x != NULL; x = x->next) {
          if (exchange_begun_at(x) < earliest) {
            earliest = exchange_begun_at(x);
            found = x;
          }
        }
      }
    }
    if (found == NULL) {
      return;
    }
    exchange_fail(found, "reliable: too many messages are not whole");
  }
}

static void carrier_said(struct datagrams *d, const struct place *from, const struct envelope *came,
                         const uint8_t *data, size_t size) {
  struct peer *p = peers_find(d, from);
  struct exchange *x = p != NULL ? p->exchanges : NULL;
  while (x != NULL && x->session != came->session) {
    x = x->next;
  }
  if (x == NULL) {
    if (d->server && came->kind == ENVELOPE_HELLO) {
      greeted(d, from, came, data, size);
    } else if (!beside_network(d, from, data, size, false) && d->server && came->kind == ENVELOPE_DATA) {
      answer_unknown(d, from, came->session);
    }
    return;
  }
  if (came->kind == ENVELOPE_DATA) {
    if (datagrams_full(d)) {
      d->lost++; /* the chunnel that sends again will */
      return;
    }
    if (x->step == STEP_READY) {
      peers_current(d, p, x);
    }
  }
  exchange_network(x, came);
  make_less(d);
}

void peers_network_said(struct datagrams *d, const struct place *from, const uint8_t *data, size_t size) {
  struct envelope came;
  if (envelope_is_ours(data, size)) {
    if (envelope_open(data, size, &came)) {
      carrier_said(d, from, &came, data, size);
    }
    return;
  }
  const struct peer *p = peers_find(d, from);
  bool expected = p != NULL && (p->plan != NULL || p->current != NULL);
  if (!expected && d->beside >= 0 && beside_network(d, from, data, size, false)) {
    return; /* it knows who has an exchange there; one that is yet to come knows nobody */
  }
  if (expected || d->mode == BERTHA_CARRY_REQUIRED) {
    dgram_stranger(d, from);
    return;
  }
  if (!d->passed) {
    d->passed = true;
    dgram_tell(d);
  }
  if (!datagrams_give(d, BERTHA_DGRAM_DATA, from, 0, data, size, false)) {
    d->lost++;
  }
}
