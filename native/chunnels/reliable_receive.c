/* What has come to reliable, put in order and together again. */
#include <stdio.h>

#include "reliable_inner.h"

enum { EARLY_RING = RELIABLE_WINDOW * sizeof(struct early) };

static void count_early(struct reliable *r, size_t more, size_t less) {
  if (r->held != NULL) {
    r->held->early += more;
    r->held->early -= less;
  }
}

static void early_free(struct reliable *r) {
  for (uint64_t n = r->wanted; r->early != NULL && n < r->early_past; n++) {
    struct early *e = &r->early[n % RELIABLE_WINDOW];
    if (e->there) {
      count_early(r, 0, e->size + RELIABLE_PIECE);
      r->early_bytes -= e->size;
      free(e->payload);
    }
  }
  count_early(r, 0, r->early != NULL ? EARLY_RING : 0);
  free(r->early);
  r->early = NULL;
  r->early_count = 0;
}

static bool more_sizes(struct reliable *r) {
  uint32_t count = r->size_past - r->size_first;
  if (r->size_first > 0) {
    memmove(r->sizes, r->sizes + r->size_first, count * sizeof *r->sizes);
  } else {
    uint32_t room = r->size_room > 0 ? 2 * r->size_room : 8;
    size_t *grown = realloc(r->sizes, room * sizeof *grown);
    if (grown == NULL) {
      return false;
    }
    r->sizes = grown;
    r->size_room = room;
  }
  r->size_first = 0;
  r->size_past = count;
  return true;
}

static void count_begun(struct reliable *r, size_t more, size_t less) {
  if (r->held != NULL) {
    r->held->begun += more;
    r->held->begun -= less;
  }
  r->counted += more;
  r->counted -= less;
}

/* A datagram's payload whose turn it is. */
static bool join(struct reliable *r, uint8_t flags, const uint8_t *payload, size_t size) {
  r->wanted++;
  if (r->ended) {
    return true;
  }
  if ((flags & RELIABLE_END) != 0) {
    r->ended = true;
    r->up.end -= r->begun; /* that one will never be whole */
    r->begun = 0;
    count_begun(r, 0, r->counted);
    return true;
  }
  if (r->begun + size > r->message_max) {
    char why[80];
    snprintf(why, sizeof why, "a message of more than %zu bytes came", r->message_max);
    return reliable_fail(r, why);
  }
  if (!buffer_add(&r->up, payload, size)) {
    return reliable_fail(r, "no memory");
  }
  r->begun += size;
  if ((flags & RELIABLE_MORE) != 0) {
    if (r->counted == 0) {
      r->begun_at = r->now;
      count_begun(r, RELIABLE_ROOM, 0);
    }
    count_begun(r, size, 0);
    return true;
  }
  count_begun(r, 0, r->counted);
  if (r->size_past == r->size_room && !more_sizes(r)) {
    return reliable_fail(r, "no memory");
  }
  r->sizes[r->size_past++] = r->begun;
  r->begun = 0;
  return true;
}

static bool keep_early(struct reliable *r, uint64_t number, uint8_t flags, const uint8_t *payload,
                       size_t size) {
  size_t cost = size + RELIABLE_PIECE;
  size_t ring = r->early == NULL ? EARLY_RING : 0;
  if (r->early_bytes + size > RELIABLE_EARLY_BYTES ||
      (r->held != NULL && r->held->early + cost + ring > r->held->early_max)) {
    return true; /* as if it were lost */
  }
  if (r->early == NULL) {
    r->early = calloc(RELIABLE_WINDOW, sizeof *r->early);
    r->early_past = r->wanted;
    count_early(r, r->early != NULL ? ring : 0, 0);
  }
  uint8_t *kept = malloc(size > 0 ? size : 1);
  if (r->early == NULL || kept == NULL) {
    free(kept);
    return reliable_fail(r, "no memory");
  }
  memcpy(kept, payload, size);
  struct early *e = &r->early[number % RELIABLE_WINDOW];
  e->payload = kept;
  e->size = (uint32_t)size;
  e->flags = flags;
  e->there = true;
  r->early_count++;
  r->early_bytes += size;
  count_early(r, cost, 0);
  r->early_past = number + 1 > r->early_past ? number + 1 : r->early_past;
  return true;
}

bool reliable_take(struct reliable *r, int64_t number, uint8_t flags, const uint8_t *payload, size_t size) {
  r->at_once = true;
  if (number < (int64_t)r->wanted || number >= (int64_t)r->wanted + RELIABLE_WINDOW ||
      r->size_past - r->size_first >= RELIABLE_WINDOW || /* nobody takes them: as if it were lost */
      (r->early != NULL && r->early[number % RELIABLE_WINDOW].there)) {
    return true;
  }
  if (number > (int64_t)r->wanted) {
    return keep_early(r, (uint64_t)number, flags, payload, size);
  }
  if (!join(r, flags, payload, size)) {
    return false;
  }
  while (r->early_count > 0 && r->early[r->wanted % RELIABLE_WINDOW].there) {
    struct early *e = &r->early[r->wanted % RELIABLE_WINDOW];
    uint8_t *kept = e->payload;
    *e = (struct early){.flags = e->flags, .size = e->size};
    r->early_count--;
    r->early_bytes -= e->size;
    count_early(r, 0, e->size + RELIABLE_PIECE);
    bool good = join(r, e->flags, kept, e->size);
    free(kept);
    if (!good) {
      return false;
    }
  }
  if (r->early_count == 0) {
    early_free(r);
  }
  r->at_once = r->early_count > 0;
  return true;
}

uint8_t reliable_ranges(const struct reliable *r, uint8_t *to) {
  uint8_t count = 0;
  for (uint64_t n = r->wanted; r->early_count > 0 && n < r->early_past; n++) {
    if (!r->early[n % RELIABLE_WINDOW].there) {
      continue;
    }
    if (count == RELIABLE_RANGES) {
      break;
    }
    reliable_put32(to + 8 * count, n);
    while (n < r->early_past && r->early[n % RELIABLE_WINDOW].there) {
      n++;
    }
    reliable_put32(to + 8 * count + 4, n);
    count++;
  }
  return count;
}

void reliable_receiver_free(struct reliable *r) {
  early_free(r);
  count_begun(r, 0, r->counted);
  buffer_free(&r->up);
  free(r->sizes);
  r->sizes = NULL;
  r->size_room = r->size_first = r->size_past = 0;
  r->begun = r->given = 0;
}
