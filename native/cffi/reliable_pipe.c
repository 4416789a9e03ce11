/* Around native/chunnels/reliable.c: what comes out of it is put together, so that Python crosses over once. */
#include "reliable_pipe.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "../carrier/buffer.h"

enum { SIZES_FIRST = 8 };

struct whole {
  struct reliable_pipe shown; /* first: it is what Python has */
  struct reliable *engine;
  atomic_flag busy; /* Python's lock is not held here */
  uint32_t most;    /* bytes of a datagram */
  struct buffer out;
  uint32_t *sizes;
  uint32_t size_room, count;
  const char *why;
};

static struct whole *whole_of(const struct reliable_pipe *p) {
  return (struct whole *)(uintptr_t)p;
}

struct reliable_pipe *reliable_pipe_open(int server, uint32_t mtu, double give_up, uint32_t connection,
                                         uint64_t first, size_t message_max, struct reliable_held *held) {
  struct reliable_config config = {server != 0, mtu, connection, give_up, first, message_max, held};
  struct whole *w = calloc(1, sizeof *w);
  if (w == NULL) {
    return NULL;
  }
  w->engine = reliable_open(&config);
  if (w->engine == NULL) {
    free(w);
    return NULL;
  }
  atomic_flag_clear(&w->busy);
  w->most = mtu > RELIABLE_ACK_MAX ? mtu : RELIABLE_ACK_MAX;
  w->shown.deadline = INFINITY;
  return &w->shown;
}

void reliable_pipe_close(struct reliable_pipe *p) {
  if (p == NULL) {
    return;
  }
  struct whole *w = whole_of(p);
  reliable_close(w->engine);
  buffer_free(&w->out);
  free(w->sizes);
  free(w);
}

static bool put_size(struct whole *w, size_t size) {
  if (w->count == w->size_room) {
    uint32_t room = w->size_room > 0 ? 2 * w->size_room : SIZES_FIRST;
    uint32_t *grown = realloc(w->sizes, room * sizeof *grown);
    if (grown == NULL) {
      return false;
    }
    w->sizes = grown;
    w->size_room = room;
  }
  w->sizes[w->count++] = (uint32_t)size;
  return true;
}

static int64_t failed(struct whole *w, const char *why) {
  w->why = why;
  w->shown.deadline = INFINITY;
  atomic_flag_clear(&w->busy);
  return -1;
}

/* The end of each call. */
static int64_t gather(struct whole *w, bool good) {
  const uint8_t *message;
  size_t size;
  if (!good) {
    return failed(w, reliable_why(w->engine));
  }
  while (reliable_message(w->engine, &message, &size)) {
    if (!buffer_add(&w->out, message, size) || !put_size(w, size)) {
      return failed(w, "reliable: no memory");
    }
  }
  int64_t ups = w->count;
  for (;;) {
    uint8_t *to = buffer_reserve(&w->out, w->most);
    size = to != NULL ? reliable_datagram(w->engine, to, w->most) : 0;
    if (to == NULL || (size > 0 && !put_size(w, size))) {
      return failed(w, "reliable: no memory");
    }
    if (size == 0) {
      break;
    }
    buffer_added(&w->out, size);
  }
  if (reliable_why(w->engine)[0] != '\0') {
    return failed(w, reliable_why(w->engine));
  }
  struct reliable_state state = reliable_state(w->engine);
  int64_t downs = w->count - ups;
  w->shown.deadline = state.deadline;
  w->shown.bytes = buffer_data(&w->out);
  w->shown.size = buffer_size(&w->out);
  w->shown.sizes = w->sizes;
  atomic_flag_clear(&w->busy);
  return (state.full ? RELIABLE_PIPE_FULL : 0) | (state.ended ? RELIABLE_PIPE_ENDED : 0) |
         (state.lingers ? RELIABLE_PIPE_LINGERS : 0) | ups << RELIABLE_PIPE_UPS |
         downs << RELIABLE_PIPE_DOWNS;
}

static bool begin(struct whole *w) {
  if (atomic_flag_test_and_set(&w->busy)) {
    return false;
  }
  w->out.start = w->out.end = 0;
  w->count = 0;
  return true;
}

int64_t reliable_pipe_start(struct reliable_pipe *p, double now) {
  struct whole *w = whole_of(p);
  return begin(w) ? gather(w, reliable_start(w->engine, now)) : -2;
}

int64_t reliable_pipe_down(struct reliable_pipe *p, const uint8_t *message, size_t size, double now) {
  struct whole *w = whole_of(p);
  return begin(w) ? gather(w, reliable_send(w->engine, message, size, now)) : -2;
}

int64_t reliable_pipe_down_end(struct reliable_pipe *p, double now) {
  struct whole *w = whole_of(p);
  return begin(w) ? gather(w, reliable_end(w->engine, now)) : -2;
}

int64_t reliable_pipe_up(struct reliable_pipe *p, const uint8_t *datagram, size_t size, double now) {
  struct whole *w = whole_of(p);
  return begin(w) ? gather(w, reliable_came(w->engine, datagram, size, now)) : -2;
}

int64_t reliable_pipe_tick(struct reliable_pipe *p, double now) {
  struct whole *w = whole_of(p);
  return begin(w) ? gather(w, reliable_tick(w->engine, now)) : -2;
}

void reliable_pipe_taken(struct reliable_pipe *p) {
  struct whole *w = whole_of(p);
  if (begin(w)) {
    buffer_free(&w->out);
    free(w->sizes);
    w->sizes = NULL;
    w->size_room = 0;
    w->shown.bytes = NULL;
    w->shown.sizes = NULL;
    w->shown.size = 0;
    atomic_flag_clear(&w->busy);
  }
}

void reliable_pipe_drop(struct reliable_pipe *p) {
  struct whole *w = whole_of(p);
  if (begin(w)) {
    reliable_drop(w->engine);
    w->shown.deadline = INFINITY;
    atomic_flag_clear(&w->busy);
  }
}

double reliable_pipe_begun_at(const struct reliable_pipe *p) {
  return reliable_begun_at(whole_of(p)->engine);
}

int reliable_pipe_answered(const struct reliable_pipe *p) {
  return reliable_answered(whole_of(p)->engine);
}

const char *reliable_pipe_why(const struct reliable_pipe *p) {
  const char *why = whole_of(p)->why;
  return why != NULL ? why : "";
}
