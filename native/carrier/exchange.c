/* The datagrams between this carrier and another one: HELLO, ACCEPT, then the chunnels. */
#include <errno.h>
#include <math.h>
#include <openssl/rand.h>
#include <stdio.h>

#include "datagrams.h"

#define HELLO_AGAIN_NS (SECOND_NS / 4) /* doubled each time */
#define HELLO_AGAIN_MAX_NS (2 * SECOND_NS)
#define HELLO_NS (10 * SECOND_NS)
/* The same, once the server's data has come before its ACCEPT. */
#define HELLO_AT_ONCE_NS (SECOND_NS / 200)
#define SERVER_IDLE_NS (600 * SECOND_NS)
static const char no_agent[] =
    "the server's agent is gone, and this plan is not known yet; connect again when it is back";

/* Those whose plans the agent has yet to judge. */
static struct exchange *asked;

static double seconds(int64_t ns) {
  return (double)ns / (double)SECOND_NS;
}

static void fail(struct exchange *x, const char *why) {
  if (x->step != STEP_FAILED) {
    x->step = STEP_FAILED;
    snprintf(x->detail, sizeof x->detail, "%s", why);
  }
}

static void send_buffer(struct exchange *x, struct buffer *b, bool good) {
  if (good) {
    datagrams_send(x->owner, &x->peer->place, buffer_data(b), buffer_size(b));
  }
  buffer_free(b);
}

static void say_hello(struct exchange *x) {
  struct buffer b = {0};
  bool good = envelope_hello(&b, x->session, x->plan, x->plan_size, x->secrets);
  send_buffer(x, &b, good);
}

static void hello(struct exchange *x, int64_t now) {
  say_hello(x);
  x->hello_at = now + x->hello_wait;
  x->hello_wait = 2 * x->hello_wait < HELLO_AGAIN_MAX_NS ? 2 * x->hello_wait : HELLO_AGAIN_MAX_NS;
}

static void say_accept(struct exchange *x) {
  struct buffer b = {0};
  bool good = envelope_accept(&b, x->session, x->plan, x->plan_size, x->secrets);
  send_buffer(x, &b, good);
}

static void say_refuse(struct exchange *x, const char *why) {
  struct buffer b = {0};
  bool good = envelope_refuse(&b, x->session, why);
  send_buffer(x, &b, good);
}

/* ---- the plan ------------------------------------------------------------------------------------ */

bool exchange_runs(const uint8_t *plan, size_t size, bool server) {
  struct pack_value args;
  return chain_fits(plan, size, server, &args);
}

static double number_of(const struct pack_value *args, const char *name, double otherwise) {
  struct pack_value value;
  double number;
  return pack_get(args, name, &value) && pack_real(&value, &number) ? number : otherwise;
}

static bool make(struct exchange *x) {
  struct pack_value args;
  uint32_t connection = 0;
  if (!chain_fits(x->plan, x->plan_size, x->server, &args)) {
    fail(x, "the plan has a chunnel that the native carrier does not have for datagrams");
    return false;
  }
  if (!chain_open(&x->chain, x->plan, x->plan_size, x->server, x->secrets)) {
    fail(x, x->chain.why);
    return false;
  }
  double mtu = number_of(&args, "mtu", 1200), give_up = number_of(&args, "give_up", 30);
  if (!(mtu >= RELIABLE_MTU_MIN && mtu <= RELIABLE_MTU_MAX && give_up >= 0.1 && give_up <= 3600)) {
    fail(x, "reliable: arguments that cannot be");
    return false;
  }
  bool good = x->server || RAND_bytes((uint8_t *)&connection, sizeof connection) == 1;
  struct reliable_config config = {
      .server = x->server,
      .mtu = (uint32_t)mtu,
      .connection = connection,
      .give_up = give_up,
      .first = 1,
      /* No program can send or be given a longer one; pieces of a stream may be. */
      .message_max = x->chain.framed ? CHAIN_PIECE_MAX : BERTHA_DGRAM_MAX,
      .held = &x->owner->held};
  x->chunnel = good ? reliable_open(&config) : NULL;
  if (x->chunnel == NULL) {
    fail(x, "no memory");
    return false;
  }
  x->most = config.mtu > RELIABLE_ACK_MAX ? config.mtu : RELIABLE_ACK_MAX;
  return true;
}

/* ---- what follows from anything that has happened -------------------------------------------------- */

static void for_program(struct exchange *x, const uint8_t *message, size_t size) {
  struct datagrams *d = x->owner;
  if (!datagrams_give(d, BERTHA_DGRAM_DATA, &x->peer->place, 0, message, size, true)) {
    d->lost++;
    dgram_tell_soon(d);
  }
}

/* What has come goes through what stands on `reliable`, and what that answers goes to it; false: it has failed. */
static bool through(struct exchange *x, int64_t now) {
  struct chain *c = &x->chain;
  const uint8_t *data;
  size_t size;
  for (bool more = c->framed; more;) {
    more = false;
    if (!chain_move(c)) {
      fail(x, c->why);
      return false;
    }
    for (; (size = chain_below(c, &data)) > 0; more = true) {
      if (!reliable_send(x->chunnel, data, size, seconds(now))) {
        fail(x, reliable_why(x->chunnel));
        return false;
      }
      chain_sent(c, size);
    }
    for (; chain_above(c, &data, &size); more = true) {
      for_program(x, data, size);
      chain_given(c, size);
    }
    if (c->why[0] != '\0') {
      fail(x, c->why);
      return false;
    }
  }
  x->owner->lost += c->skipped;
  c->skipped = 0;
  return true;
}

/* All that has come out of the chunnels goes on. */
static void pour(struct exchange *x, int64_t now) {
  static uint8_t out[ENVELOPE_HEAD + RELIABLE_MTU_MAX + RELIABLE_ACK_MAX];
  struct datagrams *d = x->owner;
  const uint8_t *message;
  size_t size;
  while (reliable_message(x->chunnel, &message, &size)) {
    if (!x->chain.framed) {
      for_program(x, message, size);
    } else if (!chain_came(&x->chain, message, size)) {
      fail(x, x->chain.why);
      return;
    }
  }
  if (!through(x, now)) {
    return;
  }
  envelope_seal(out, ENVELOPE_DATA, x->session);
  while ((size = reliable_datagram(x->chunnel, out + ENVELOPE_HEAD, x->most)) > 0) {
    datagrams_send(d, &x->peer->place, out, ENVELOPE_HEAD + size);
  }
  struct reliable_state state = reliable_state(x->chunnel);
  x->full = state.full || chain_full(&x->chain);
  x->ended = state.ended;
  x->chunnel_at = state.deadline < INFINITY ? (int64_t)(state.deadline * (double)SECOND_NS) + 1 : 0;
  if (reliable_why(x->chunnel)[0] != '\0') {
    fail(x, reliable_why(x->chunnel));
  }
}

/* A datagram of the program. */
static bool say(struct exchange *x, const uint8_t *data, size_t size, int64_t now) {
  if (!x->chain.framed) {
    return reliable_send(x->chunnel, data, size, seconds(now));
  }
  if (!chain_send(&x->chain, data, size)) {
    fail(x, x->chain.why);
    return false;
  }
  return true;
}

static void moved(struct exchange *x, bool good, int64_t now) {
  for (;;) {
    if (!good) {
      fail(x, reliable_why(x->chunnel)); /* unless it has already */
      return;
    }
    pour(x, now);
    struct packet *p = x->waiting.first;
    if (p == NULL || x->full || x->step == STEP_FAILED) {
      return;
    }
    good = say(x, p->bytes, p->size, now);
    queue_drop_first(&x->waiting);
  }
}

static int64_t earlier(int64_t a, int64_t b) {
  return a == 0 || (b != 0 && b < a) ? b : a;
}

static int64_t deadline(const struct exchange *x) {
  int64_t at = x->hello_at;
  at = earlier(at, x->server ? x->last + SERVER_IDLE_NS : 0);
  at = earlier(at, x->step == STEP_PENDING ? x->born + HELLO_NS : 0);
  return earlier(at, x->chunnel != NULL ? x->chunnel_at : 0);
}

static void has_failed(struct datagrams *d, const struct place *place) {
  struct peer *p = peers_find(d, place);
  if (p != NULL) {
    peers_unplan(d, p);
    peers_settle(d, p);
  }
  datagrams_give(d, BERTHA_DGRAM_REFUSED, place, 0, NULL, 0, false);
  if (datagrams_connected(d)) {
    datagrams_give(d, BERTHA_DGRAM_ERROR, place, ECONNREFUSED, NULL, 0, false);
  }
}

static void settle(struct exchange *x) {
  struct datagrams *d = x->owner;
  if (x->step == STEP_READY && !x->shown) {
    x->shown = true;
    dgram_show(d, x->plan, x->plan_size, x->server);
    dgram_tell(d);
  }
  if (x->step != STEP_FAILED && !timer_set(&x->timer, deadline(x))) {
    fail(x, "no memory");
  }
  if (x->step == STEP_FAILED) {
    struct place place = x->peer->place;
    bool refused = x->refused;
    if (x->detail[0] != '\0') {
      dgram_detail(d, x->detail);
    }
    exchange_drop(x);
    if (refused) {
      has_failed(d, &place);
    }
    dgram_tell_soon(d);
  }
  datagrams_queue(d); /* the program may go on, or has closed and nothing is left to say */
}

/* ---- what comes before the plan is judged ---------------------------------------------------------- */

static bool keep_early(struct exchange *x, const struct envelope *came) {
  struct reliable_held *held = &x->owner->held;
  if (x->early.count >= EARLY_MAX || held->early + sizeof(struct packet) + came->size > held->early_max ||
      !queue_add(&x->early, &x->peer->place, NULL, 0, came->body, came->size)) {
    return false;
  }
  held->early += sizeof(struct packet) + came->size;
  return true;
}

static void drop_early(struct exchange *x) {
  x->owner->held.early -= sizeof(struct packet) + x->early.first->size;
  queue_drop_first(&x->early);
}

/* ---- the two ways in which it begins --------------------------------------------------------------- */

static void begin(struct exchange *x, int64_t now) {
  if (x->server) {
    x->step = STEP_READY;
    say_accept(x);
  } else {
    hello(x, now);
  }
  moved(x, reliable_start(x->chunnel, seconds(now)), now);
  while (x->early.first != NULL && x->step != STEP_FAILED) {
    struct packet *p = x->early.first;
    moved(x, reliable_came(x->chunnel, p->bytes, p->size, seconds(now)), now);
    drop_early(x);
  }
}

static void due(void *who) {
  struct exchange *x = who;
  int64_t now = carrier_now();
  if (x->step == STEP_PENDING && now >= x->born + HELLO_NS) {
    fail(x, "the other end has not answered within 10 s");
  }
  if (x->step != STEP_FAILED && x->hello_at != 0 && now >= x->hello_at) {
    hello(x, now);
  }
  if (x->step != STEP_FAILED && x->chunnel != NULL && x->chunnel_at != 0 && now >= x->chunnel_at) {
    moved(x, reliable_tick(x->chunnel, seconds(now)), now);
  }
  if (x->server && now >= x->last + SERVER_IDLE_NS) {
    if (exchange_silent(x, now) > 0) {
      fail(x, "");
    }
    x->last = now;
  }
  settle(x);
}

static struct exchange *add(struct datagrams *d, struct peer *p, const uint8_t *plan, size_t size,
                            struct secrets *k) {
  struct exchange *x = calloc(1, sizeof *x);
  if (x == NULL || (x->plan = malloc(size)) == NULL) {
    free(x);
    trust_give_back(k);
    return NULL;
  }
  memcpy(x->plan, plan, size);
  x->plan_size = size;
  x->owner = d;
  x->peer = p;
  x->secrets = k;
  x->server = d->server;
  x->last = x->born = x->spoke = carrier_now();
  x->hello_wait = HELLO_AGAIN_NS;
  x->timer = (struct timer){.due = due, .who = x};
  struct exchange **at = &p->exchanges;
  while (*at != NULL) {
    at = &(*at)->next;
  }
  *at = x;
  d->exchange_count++;
  return x;
}

void exchange_open(struct datagrams *d, struct peer *p) {
  struct exchange *x = add(d, p, p->plan, p->plan_size, trust_secrets(p->context, false, d->shim->uid));
  if (x == NULL) {
    return;
  }
  peers_current(d, p, x);
  struct buffer said = {0};
  bool good = RAND_bytes((uint8_t *)&x->session, sizeof x->session) == 1 &&
              envelope_hello(&said, x->session, x->plan, x->plan_size, x->secrets);
  if (!good) {
    fail(x, "no memory");
  } else if (buffer_size(&said) > ENVELOPE_HELLO_MAX) {
    char why[200];
    snprintf(why, sizeof why,
             "the plan does not fit into a datagram (%zu bytes, more than %d); use fewer chunnels or shorter "
             "arguments",
             buffer_size(&said), ENVELOPE_HELLO_MAX);
    fail(x, why);
  } else if (make(x)) {
    begin(x, x->born);
  }
  buffer_free(&said);
  settle(x);
}

/* A question is asked once for all that wait for the same answer. */
static uint64_t ask(const struct exchange *x) {
  for (const struct exchange *other = asked; other != NULL; other = other->next_asked) {
    if (other->owner == x->owner && other->plan_size == x->plan_size &&
        memcmp(other->plan, x->plan, x->plan_size) == 0) {
      return other->asked;
    }
  }
  char peer[DATAGRAMS_NAME_MAX];
  datagrams_name(x->owner, &x->peer->place, peer);
  return carrier_ask(x->owner->listener, x->plan, x->plan_size, peer);
}

void exchange_greeted(struct datagrams *d, struct peer *p, uint64_t session, const uint8_t *plan, size_t size,
                      struct secrets *k) {
  struct exchange *x = add(d, p, plan, size, k);
  if (x == NULL) {
    return;
  }
  x->session = session;
  if (trust_knows(d->listener, plan, size, carrier_has_agent())) {
    exchange_judged(x, NULL);
  } else if (!carrier_has_agent()) {
    exchange_judged(x, no_agent);
  } else if ((x->asked = ask(x)) == 0) {
    exchange_judged(x, "the server's agent does not answer; connect again later");
  } else {
    x->next_asked = asked;
    asked = x;
    d->unjudged++;
    settle(x);
  }
}

static void answered(struct exchange *x) {
  for (struct exchange **at = &asked; x->asked != 0 && *at != NULL; at = &(*at)->next_asked) {
    if (*at == x) {
      *at = x->next_asked;
      x->owner->unjudged--;
      break;
    }
  }
  x->asked = 0;
}

void exchange_judged(struct exchange *x, const char *why) {
  answered(x);
  if (why != NULL) {
    if (peers_may_answer(x->owner)) {
      say_refuse(x, why);
    }
    fail(x, why);
  } else if (make(x)) {
    begin(x, carrier_now());
    if (x->step == STEP_READY) {
      peers_current(x->owner, x->peer, x);
    }
  }
  settle(x);
}

void exchange_verdict(uint64_t id, bool good, const char *why) {
  bool first = true;
  struct exchange *next;
  for (struct exchange *x = asked; x != NULL; x = next) {
    next = x->next_asked;
    if (x->asked == id) {
      if (first) {
        trust_remember(x->owner->listener, x->plan, x->plan_size, good);
        first = false;
      }
      exchange_judged(x, good ? NULL : why);
    }
  }
}

void exchange_agent_gone(void) {
  while (asked != NULL) {
    exchange_judged(asked, no_agent);
  }
}

/* ---- what its owner asks --------------------------------------------------------------------------- */

bool exchange_unsaid(const struct exchange *x) {
  /* A handshake that the other end never ends does not hold it for longer than a HELLO that is not answered. */
  bool held = chain_holds(&x->chain) && carrier_now() < x->born + HELLO_NS;
  return x->step != STEP_FAILED && (held || x->hello_at != 0 || (x->chunnel != NULL && x->chunnel_at != 0));
}

int64_t exchange_silent(const struct exchange *x, int64_t now) {
  return exchange_unsaid(x) || x->step == STEP_PENDING ? 0 : now - x->last;
}

double exchange_begun_at(const struct exchange *x) {
  return x->chunnel != NULL ? reliable_begun_at(x->chunnel) : INFINITY;
}

int64_t exchange_unproven(const struct exchange *x, int64_t now) {
  bool unproven = x->server && x->step == STEP_READY && !reliable_answered(x->chunnel);
  return unproven ? now - x->spoke : 0;
}

void exchange_fail(struct exchange *x, const char *why) {
  fail(x, why);
  settle(x);
}

/* ---- what its owner gives -------------------------------------------------------------------------- */

/* Of the server, to the HELLO. */
static void answer(struct exchange *x, const struct envelope *came) {
  static const char start[] = "the server refused: ";
  if (came->kind == ENVELOPE_ACCEPT && envelope_is_accepted(came, x->plan, x->plan_size, x->secrets)) {
    x->step = STEP_READY;
    x->hello_at = 0;
  } else if (came->kind == ENVELOPE_REFUSE) {
    x->step = STEP_FAILED;
    x->refused = true;
    memcpy(x->detail, start, sizeof start);
    envelope_why_refused(came, x->detail + sizeof start - 1, sizeof x->detail - sizeof start + 1);
  }
}

static void network(struct exchange *x, const struct envelope *came, int64_t now) {
  bool pending = !x->server && x->step == STEP_PENDING;
  if (came->kind == ENVELOPE_DATA) {
    x->spoke = now;
    /* The server speaks, so it has accepted: that was lost, or is late.  Asked, it says so again. */
    if (pending && now - x->reminded >= HELLO_AT_ONCE_NS) {
      x->reminded = now;
      say_hello(x);
    }
    if (x->chunnel != NULL) {
      moved(x, reliable_came(x->chunnel, came->body, came->size, seconds(now)), now);
    } else if (!keep_early(x, came)) {
      x->owner->lost++;
    }
  } else if (came->kind == ENVELOPE_HELLO && x->server && x->step == STEP_READY) {
    say_accept(x); /* the first one was lost */
  } else if (pending) {
    answer(x, came); /* not yet agreed, it has nothing that could be forgotten or ended */
  } else if (came->kind == ENVELOPE_END) {
    fail(x, x->chunnel != NULL && !x->ended ? "reliable: the connection was cut off" : "");
  } else if (came->kind == ENVELOPE_UNKNOWN && !x->server) {
    fail(x, "the server has forgotten this session");
  }
}

void exchange_network(struct exchange *x, const struct envelope *came) {
  x->last = carrier_now();
  network(x, came, x->last);
  settle(x);
}

void exchange_program(struct exchange *x, const uint8_t *data, size_t size) {
  x->last = carrier_now();
  if (x->chunnel != NULL && x->waiting.count == 0 && !x->full) {
    moved(x, say(x, data, size, x->last), x->last);
  } else if (x->waiting.count >= WAITING_MAX ||
             !queue_add(&x->waiting, &x->peer->place, NULL, 0, data, size)) {
    x->owner->lost++;
  }
  settle(x);
}

void exchange_drop(struct exchange *x) {
  struct datagrams *d = x->owner;
  struct peer *p = x->peer;
  answered(x);
  for (struct exchange **at = &p->exchanges; *at != NULL; at = &(*at)->next) {
    if (*at == x) {
      *at = x->next;
      break;
    }
  }
  if (p->current == x) {
    peers_current(d, p, NULL);
  }
  if (d->speaking == x) {
    d->speaking = NULL;
  }
  d->exchange_count--;
  timer_set(&x->timer, 0);
  while (x->early.first != NULL) {
    drop_early(x);
  }
  queue_clear(&x->waiting);
  reliable_close(x->chunnel);
  chain_close(&x->chain);
  trust_give_back(x->secrets);
  free(x->plan);
  free(x);
  peers_settle(d, p);
}
