/* reliable: see reliable.h.  Its twin is bertha_socket/chunnels/reliable.py, and tests hold the two to the same
 * datagrams: the arithmetic of the windows and timers is in double here because it is there. */
#include <math.h>
#include <stdio.h>

#include "reliable_inner.h"

static const double ACK_DELAY = 0.02; /* s */

static uint32_t get32(const uint8_t *from) {
  return (uint32_t)from[0] << 24 | (uint32_t)from[1] << 16 | (uint32_t)from[2] << 8 | from[3];
}

/* The full number of which these are the last 32 bits, nearest to the reference; below 0 where there is none. */
static int64_t nearest(uint32_t low, uint64_t reference) {
  return (int64_t)reference + (int32_t)(low - (uint32_t)reference);
}

bool reliable_fail(struct reliable *r, const char *why) {
  if (r->why[0] == '\0') {
    snprintf(r->why, sizeof r->why, "reliable: %s", why);
  }
  return false;
}

/* ---- what is said ---- */

static size_t header(const struct reliable *r, uint8_t *to, uint8_t kind, uint8_t flags, uint64_t a,
                     uint64_t b) {
  to[0] = kind;
  to[1] = flags;
  reliable_put32(to + 2, r->connection);
  reliable_put32(to + 6, a);
  reliable_put32(to + 10, b);
  return RELIABLE_HEADER;
}

static size_t acknowledgement(struct reliable *r, uint8_t *to) {
  uint8_t count = reliable_ranges(r, to + RELIABLE_HEADER);
  r->ack_at = INFINITY;
  r->unacknowledged = 0;
  return header(r, to, RELIABLE_ACK, count, RELIABLE_WINDOW - r->early_count, r->wanted) + 8 * (size_t)count;
}

/* What follows from anything that has happened. */
static bool settle(struct reliable *r) {
  bool done = reliable_sent_all(r);
  if (r->known && done) {
    r->heard = reliable_most(r->heard, r->now);
  }
  if (r->over && done && r->ended && !r->resting) {
    /* Our last acknowledgement may get lost: the other end asks again. */
    r->resting = true;
    r->rest_until = r->known ? r->now + 3 * r->rto : r->now;
  }
  r->lingers = r->over && (!r->resting || r->now < r->rest_until);
  return r->why[0] == '\0';
}

static bool patient(struct reliable *r) {
  if (r->now - r->heard <= r->give_up) {
    return true;
  }
  char why[80];
  snprintf(why, sizeof why, "the other end has not answered for %g s", r->give_up);
  return reliable_fail(r, why);
}

/* ---- its owner's calls ---- */

struct reliable *reliable_open(const struct reliable_config *config) {
  if (config->mtu < RELIABLE_MTU_MIN || config->mtu > RELIABLE_MTU_MAX) {
    return NULL;
  }
  struct reliable *r = calloc(1, sizeof *r);
  if (r == NULL) {
    return NULL;
  }
  r->server = config->server;
  r->known = !config->server;
  r->connection = config->server ? 0 : config->connection;
  r->payload = config->mtu - RELIABLE_HEADER;
  r->give_up = config->give_up;
  r->message_max = config->message_max > 0 ? config->message_max : RELIABLE_MESSAGE_MAX;
  r->held = config->held;
  r->first = config->first;
  r->acknowledged = r->next = r->wanted = r->seek = config->first;
  r->recover = config->first - 1;
  reliable_sender_init(r);
  r->hello_at = r->ack_at = INFINITY;
  return r;
}

void reliable_close(struct reliable *r) {
  if (r == NULL) {
    return;
  }
  reliable_sender_free(r);
  reliable_receiver_free(r);
  free(r);
}

void reliable_drop(struct reliable *r) {
  reliable_fail(r, "closed");
  reliable_receiver_free(r);
}

bool reliable_start(struct reliable *r, double now) {
  r->now = r->heard = now;
  if (!r->server) {
    r->say_hello = true;
    r->hello_at = now + r->rto;
  }
  return r->why[0] == '\0';
}

bool reliable_send(struct reliable *r, const uint8_t *message, size_t size, double now) {
  char why[80];
  if (r->why[0] != '\0') {
    return false;
  }
  if (r->over) {
    return reliable_fail(r, "a message after the end");
  }
  r->now = now;
  if (size > r->message_max) {
    snprintf(why, sizeof why, "a message of %zu bytes, more than %zu", size, r->message_max);
    return reliable_fail(r, why);
  }
  if (r->byte_past - r->byte_next + size > RELIABLE_QUEUE_BYTES ||
      r->waiting_past - r->waiting_first >= RELIABLE_QUEUE_MESSAGES) {
    return reliable_fail(r, "more waits to be sent than is kept");
  }
  return reliable_wait(r, message, size, false) && settle(r);
}

bool reliable_end(struct reliable *r, double now) {
  if (r->why[0] != '\0' || r->over) {
    return r->why[0] == '\0';
  }
  r->now = now;
  r->over = true;
  return reliable_wait(r, NULL, 0, true) && settle(r);
}

bool reliable_came(struct reliable *r, const uint8_t *datagram, size_t size, double now) {
  if (r->why[0] != '\0') {
    return false;
  }
  if (size < RELIABLE_HEADER) {
    return true;
  }
  uint8_t kind = datagram[0], flags = datagram[1];
  uint32_t connection = get32(datagram + 2), a = get32(datagram + 6), b = get32(datagram + 10);
  const uint8_t *payload = datagram + RELIABLE_HEADER;
  size -= RELIABLE_HEADER;
  if (kind < RELIABLE_DATA || kind > RELIABLE_HELLO || (kind == RELIABLE_DATA && size > r->payload)) {
    return true;
  }
  if (!r->known && kind != RELIABLE_ACK) {
    r->known = true;
    r->connection = connection;
  }
  if (!r->known || connection != r->connection) {
    return true;
  }
  r->now = r->heard = now;
  if (kind == RELIABLE_HELLO) {
    r->say_ack_first = r->server;
    return r->server ? settle(r) : true;
  }
  r->hello_at = INFINITY;
  r->say_hello = false;
  int64_t upto = nearest(b, r->acknowledged);
  if (kind == RELIABLE_DATA) {
    reliable_acknowledge(r, upto, NULL, 0);
    r->unacknowledged++;
    r->judge_ack = true;
    return reliable_take(r, nearest(a, r->wanted), flags, payload, size) && settle(r);
  }
  int64_t ranges[RELIABLE_RANGES][2];
  int count = 0;
  while (count < flags && count < RELIABLE_RANGES && (size_t)(count + 1) * 8 <= size) {
    /* From where they can only be beyond what is acknowledged; see reliable.py. */
    int64_t first = nearest(get32(payload + 8 * count), r->acknowledged);
    ranges[count][0] = first;
    ranges[count][1] = first + (int32_t)(get32(payload + 8 * count + 4) - (uint32_t)first);
    count++;
  }
  r->room = a;
  reliable_acknowledge(r, upto, ranges, count);
  return settle(r);
}

bool reliable_tick(struct reliable *r, double now) {
  if (r->why[0] != '\0') {
    return false;
  }
  r->now = now;
  if (now >= r->hello_at) {
    if (!patient(r)) {
      return false;
    }
    reliable_backoff(r);
    r->say_hello = true;
    r->hello_at = now + r->rto;
  }
  if (now >= r->timer) {
    if (!patient(r)) {
      return false;
    }
    reliable_expire(r);
  }
  r->say_ack = true; /* if it is still owed when everything else has been said */
  return settle(r);
}

size_t reliable_datagram(struct reliable *r, uint8_t *to, size_t room) {
  uint64_t number = 0;
  if (room < RELIABLE_ACK_MAX || room < RELIABLE_HEADER + (size_t)r->payload || r->why[0] != '\0') {
    return 0;
  }
  if (r->say_hello) {
    r->say_hello = false;
    return header(r, to, RELIABLE_HELLO, 0, 0, 0);
  }
  if (r->say_ack_first) {
    r->say_ack_first = false;
    return acknowledgement(r, to);
  }
  const struct packet *p = reliable_due(r, &number);
  if (p != NULL) {
    r->ack_at = INFINITY;
    r->unacknowledged = 0;
    reliable_payload(r, p, to + RELIABLE_HEADER);
    return header(r, to, RELIABLE_DATA, p->flags, number, r->wanted) + p->size;
  }
  if (r->judge_ack) {
    r->judge_ack = false;
    if (r->at_once || r->unacknowledged >= 2 || r->ended) {
      return acknowledgement(r, to);
    }
    if (r->unacknowledged > 0 && r->ack_at == INFINITY) {
      r->ack_at = r->now + ACK_DELAY;
    }
  }
  if (r->say_ack) {
    r->say_ack = false;
    if (r->now >= r->ack_at) {
      return acknowledgement(r, to);
    }
  }
  return 0;
}

bool reliable_message(struct reliable *r, const uint8_t **data, size_t *size) {
  buffer_take(&r->up, r->given);
  r->given = 0;
  if (r->size_first == r->size_past) {
    r->size_first = r->size_past = 0;
    if (buffer_size(&r->up) == 0) {
      buffer_free(&r->up);
    }
    return false;
  }
  *size = r->given = r->sizes[r->size_first++];
  *data = buffer_data(&r->up);
  return true;
}

struct reliable_state reliable_state(const struct reliable *r) {
  struct reliable_state s = {.full = r->parts > RELIABLE_QUEUE, .ended = r->ended, .lingers = r->lingers};
  s.deadline = reliable_least(reliable_least(r->timer, r->hello_at), r->ack_at);
  if (r->lingers && r->resting) {
    s.deadline = reliable_least(s.deadline, r->rest_until);
  }
  if (r->why[0] != '\0') {
    s.deadline = INFINITY;
  }
  return s;
}

double reliable_begun_at(const struct reliable *r) {
  return r->counted > 0 ? r->begun_at : INFINITY;
}

bool reliable_answered(const struct reliable *r) {
  return r->acknowledged > r->first;
}

const char *reliable_why(const struct reliable *r) {
  return r->why;
}
