/* What reliable has sent, and what waits to be sent; when something counts as lost, and how much may be under way. */
#include <math.h>
#include <stdio.h>

#include "reliable_inner.h"

static const double RTO_FIRST = 1.0, RTO_MIN = 0.2, RTO_MAX = 8.0; /* s */

/* ---- rings ---- */

static struct packet *packet_of(const struct reliable *r, uint64_t number) {
  return &r->packets[number & (r->packet_room - 1)];
}

static bool more_packets(struct reliable *r) {
  uint32_t room = r->packet_room > 0 ? 2 * r->packet_room : 16;
  struct packet *grown = calloc(room, sizeof *grown);
  if (grown == NULL) {
    return false;
  }
  for (uint64_t n = r->acknowledged; n < r->next; n++) {
    grown[n & (room - 1)] = *packet_of(r, n);
  }
  free(r->packets);
  r->packets = grown;
  r->packet_room = room;
  return true;
}

static bool more_waiting(struct reliable *r) {
  uint32_t room = r->waiting_room > 0 ? 2 * r->waiting_room : 16;
  struct waiting *grown = calloc(room, sizeof *grown);
  if (grown == NULL) {
    return false;
  }
  for (uint64_t n = r->waiting_first; n < r->waiting_past; n++) {
    grown[n & (room - 1)] = r->waiting[n & (r->waiting_room - 1)];
  }
  free(r->waiting);
  r->waiting = grown;
  r->waiting_room = room;
  return true;
}

/* Copies between the ring of bytes and something straight; the ring has that much. */
static void ring_read(const struct reliable *r, uint64_t at, uint8_t *to, size_t size) {
  if (size == 0) {
    return; /* there may be no ring */
  }
  size_t from = at & (r->byte_room - 1);
  size_t part = size < r->byte_room - from ? size : r->byte_room - from;
  memcpy(to, r->bytes + from, part);
  memcpy(to + part, r->bytes, size - part);
}

static bool ring_add(struct reliable *r, const uint8_t *data, size_t size) {
  size_t held = (size_t)(r->byte_past - r->byte_first);
  if (r->byte_room - held < size) {
    size_t room = r->byte_room > 0 ? r->byte_room : RELIABLE_ROOM;
    while (room - held < size) {
      room *= 2;
    }
    uint8_t *grown = malloc(room);
    if (grown == NULL) {
      return false;
    }
    for (uint64_t at = r->byte_first; at < r->byte_past;) {
      size_t piece = room - (at & (room - 1)); /* as far as the new ring is straight */
      piece = piece < r->byte_past - at ? piece : (size_t)(r->byte_past - at);
      ring_read(r, at, grown + (at & (room - 1)), piece);
      at += piece;
    }
    free(r->bytes);
    r->bytes = grown;
    r->byte_room = room;
  }
  size_t to = r->byte_past & (r->byte_room - 1);
  size_t part = size < r->byte_room - to ? size : r->byte_room - to;
  memcpy(r->bytes + to, data, part);
  memcpy(r->bytes, data + part, size - part);
  r->byte_past += size;
  return true;
}

bool reliable_wait(struct reliable *r, const uint8_t *message, size_t size, bool end) {
  bool room = r->waiting_past - r->waiting_first < r->waiting_room;
  if (size > 0 && !ring_add(r, message, size)) {
    return reliable_fail(r, "no memory");
  }
  if (!room && !more_waiting(r)) {
    return reliable_fail(r, "no memory");
  }
  r->waiting[r->waiting_past++ & (r->waiting_room - 1)] = (struct waiting){size, end};
  r->parts += size > 0 ? (size - 1) / r->payload + 1 : 1;
  return true;
}

bool reliable_sent_all(const struct reliable *r) {
  return r->waiting_first == r->waiting_past && r->acknowledged == r->next;
}

/* An idle connection keeps next to no memory: a carrier has thousands. */
static void shrink(struct reliable *r) {
  if (!reliable_sent_all(r)) {
    return;
  }
  free(r->bytes);
  r->bytes = NULL;
  r->byte_room = 0;
  if (r->packet_room > 16) {
    free(r->packets);
    r->packets = NULL;
    r->packet_room = 0;
  }
  if (r->waiting_room > 16) {
    free(r->waiting);
    r->waiting = NULL;
    r->waiting_room = 0;
  }
}

/* ---- sender ---- */

/* RFC 6298, 2. */
static void sample(struct reliable *r, double rtt) {
  if (r->srtt < 0) {
    r->srtt = rtt;
    r->var = rtt / 2;
  } else {
    double off = r->srtt < rtt ? rtt - r->srtt : r->srtt - rtt;
    r->var = 0.75 * r->var + 0.25 * off;
    r->srtt = 0.875 * r->srtt + 0.125 * rtt;
  }
  r->base = reliable_least(RTO_MAX, reliable_most(RTO_MIN, r->srtt + reliable_most(0.001, 4 * r->var)));
  r->rto = r->base;
}

void reliable_backoff(struct reliable *r) {
  r->rto = reliable_least(RTO_MAX, r->rto * 2);
}

static void arrives(struct reliable *r, const struct packet *p) {
  if (p->lost) {
    r->lost--;
  } else {
    r->outstanding--;
  }
  uint64_t order = p->order;
  for (int i = RELIABLE_LATER - 1; i >= 0; i--) {
    if (order > r->latest[i]) {
      uint64_t before = r->latest[i];
      r->latest[i] = order;
      order = before;
    }
  }
}

/* What three that were sent later have overtaken. */
static void find_lost(struct reliable *r) {
  bool found = false;
  for (uint64_t n = r->acknowledged; n < r->next; n++) {
    struct packet *p = packet_of(r, n);
    if (!p->arrived && !p->lost && p->order < r->latest[0]) {
      p->lost = found = true;
      r->lost++;
      r->outstanding--;
    } else if (!p->again && p->order >= r->latest[0]) {
      break; /* those behind it were sent later still */
    }
  }
  if (!found) {
    return;
  }
  r->seek = r->acknowledged;
  if (r->acknowledged > r->recover) {
    r->recover = r->next;
    r->threshold = reliable_most(r->window / 2, 2.0);
    r->window = r->threshold;
  }
}

static void grow(struct reliable *r, uint32_t count) {
  if (r->acknowledged <= r->recover || count == 0) {
    return;
  }
  double more = r->window < r->threshold ? count : count / r->window;
  r->window = reliable_least(r->window + more, RELIABLE_WINDOW);
}

void reliable_acknowledge(struct reliable *r, int64_t upto, const int64_t (*ranges)[2], int count) {
  if (upto < (int64_t)r->acknowledged || upto > (int64_t)r->next) {
    return; /* an old one, or of what was never sent */
  }
  const struct packet *newest = NULL;
  uint32_t arrived = 0;
  bool advanced = upto > (int64_t)r->acknowledged;
  while (r->acknowledged < (uint64_t)upto) {
    const struct packet *p = packet_of(r, r->acknowledged++);
    r->byte_first += p->size;
    if (!p->arrived) {
      arrived++;
      newest = p;
      arrives(r, p);
    }
  }
  for (int i = 0; i < count; i++) {
    int64_t first = ranges[i][0] > upto ? ranges[i][0] : upto;
    int64_t past = ranges[i][1] < (int64_t)r->next ? ranges[i][1] : (int64_t)r->next;
    for (int64_t n = first; n < past; n++) {
      struct packet *p = packet_of(r, (uint64_t)n);
      if (!p->arrived) {
        arrives(r, p);
        p->arrived = true;
        p->lost = false;
        arrived++;
        newest = p;
      }
    }
  }
  if (newest != NULL) {
    r->rto = r->base; /* the network is there, whatever was lost */
    /* Karn (RFC 6298, 3): answers to what was sent twice are ambiguous.  So are those after a time-out: it may be that
     * only an acknowledgement was lost. */
    if (!newest->again && newest->sent_at > r->expired_at) {
      sample(r, reliable_most(0.0, r->now - newest->sent_at));
    }
    find_lost(r);
    grow(r, arrived);
  }
  if (r->acknowledged == r->next) {
    r->timer = INFINITY;
    shrink(r);
  } else if (advanced || arrived > 0) {
    r->timer = r->now + r->rto;
  }
}

/* Everything that has not arrived is sent again, slowly at first. */
void reliable_expire(struct reliable *r) {
  reliable_backoff(r);
  r->expired_at = r->now;
  r->threshold = reliable_most(r->window / 2, 2.0);
  r->window = 1.0;
  r->recover = r->acknowledged; /* slow start goes on from here */
  r->outstanding = r->lost = 0;
  r->seek = r->acknowledged;
  for (uint64_t n = r->acknowledged; n < r->next; n++) {
    struct packet *p = packet_of(r, n);
    p->lost = !p->arrived;
    r->lost += p->lost;
  }
  r->timer = r->now + r->rto;
}

/* The first datagram of the message that waits longest; NULL: none may be sent now. */
static struct packet *cut(struct reliable *r) {
  uint32_t room = r->room < 1 ? 1 : r->room > RELIABLE_WINDOW ? RELIABLE_WINDOW : r->room;
  if (r->waiting_first == r->waiting_past || r->next >= r->acknowledged + room) {
    return NULL;
  }
  if (r->next - r->acknowledged >= r->packet_room && !more_packets(r)) {
    reliable_fail(r, "no memory");
    return NULL;
  }
  struct waiting *w = &r->waiting[r->waiting_first & (r->waiting_room - 1)];
  size_t size = w->left < r->payload ? w->left : r->payload;
  struct packet *p = packet_of(r, r->next++);
  *p = (struct packet){.at = r->byte_next, .size = (uint32_t)size};
  p->flags = w->end ? RELIABLE_END : size < w->left ? RELIABLE_MORE : 0;
  r->byte_next += size;
  w->left -= size;
  r->parts--;
  if (p->flags != RELIABLE_MORE) {
    r->waiting_first++;
  }
  return p;
}

const struct packet *reliable_due(struct reliable *r, uint64_t *number) {
  struct packet *p = NULL;
  if (!r->known || r->outstanding >= r->window) {
    return NULL;
  }
  if (r->lost > 0) {
    *number = r->seek > r->acknowledged ? r->seek : r->acknowledged;
    while (*number < r->next && !packet_of(r, *number)->lost) {
      ++*number;
    }
    if (*number >= r->next) {
      return NULL; /* cannot be */
    }
    p = packet_of(r, *number);
    r->seek = *number + 1;
    p->lost = false;
    p->again = true;
    r->lost--;
  } else {
    *number = r->next;
    p = cut(r);
  }
  if (p != NULL) {
    r->outstanding++;
    p->sent_at = r->now;
    p->order = ++r->sendings;
    if (r->timer == INFINITY) {
      r->timer = r->now + r->rto;
    }
  }
  return p;
}

void reliable_payload(const struct reliable *r, const struct packet *p, uint8_t *to) {
  ring_read(r, p->at, to, p->size);
}

void reliable_sender_init(struct reliable *r) {
  r->room = RELIABLE_WINDOW;
  r->window = 10.0; /* RFC 6928 */
  r->threshold = RELIABLE_WINDOW;
  r->rto = r->base = RTO_FIRST;
  r->srtt = -1;
  r->timer = INFINITY;
}

void reliable_sender_free(struct reliable *r) {
  free(r->packets);
  free(r->waiting);
  free(r->bytes);
}
