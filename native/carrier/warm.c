/* Idle connections keep no memory, but those that spoke last keep theirs for a while: to free and to allocate buffers (and
 * TLS's own) for each of many small messages is a tenth of what redis gets through encrypt().  How many is bounded. */
#include "session.h"

enum { WARM_MAX = 64 };

static struct session *warm[WARM_MAX]; /* in the order in which they came; NULL: ended meanwhile */
static unsigned next_place;

static void cool(struct session *s) {
  for (unsigned i = 0; i <= s->stages; i++) {
    if (buffer_size(&s->down[i]) == 0) {
      buffer_free(&s->down[i]);
    }
    if (buffer_size(&s->up[i]) == 0) {
      buffer_free(&s->up[i]);
    }
  }
  for (unsigned i = 0; i < s->stages; i++) {
    if (s->stage[i]->ops->idle != NULL) {
      s->stage[i]->ops->idle(s->stage[i]);
    }
  }
}

void warm_forget(struct session *s) {
  if (s->warm != 0) {
    warm[s->warm - 1] = NULL;
    s->warm = 0;
  }
}

void warm_add(struct session *s) {
  if (s->warm != 0) {
    return;
  }
  struct session *oldest = warm[next_place];
  if (oldest != NULL) {
    warm_forget(oldest);
    cool(oldest);
  }
  warm[next_place] = s;
  next_place = (next_place + 1) % WARM_MAX;
  s->warm = next_place == 0 ? WARM_MAX : next_place;
}

bool warm_any(void) {
  for (unsigned i = 0; i < WARM_MAX; i++) {
    if (warm[i] != NULL) {
      return true;
    }
  }
  return false;
}

void warm_cool(void) {
  for (unsigned i = 0; i < WARM_MAX; i++) {
    struct session *s = warm[i];
    if (s != NULL) {
      warm_forget(s);
      cool(s);
    }
  }
}
