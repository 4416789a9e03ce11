/* A growing byte buffer: written at the end, read at the start. */
#ifndef BERTHA_BUFFER_H
#define BERTHA_BUFFER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct buffer {
  uint8_t *bytes;
  size_t start;
  size_t end;
  size_t room;
};

static inline size_t buffer_size(const struct buffer *b) {
  return b->end - b->start;
}

static inline uint8_t *buffer_data(const struct buffer *b) {
  return b->bytes != NULL ? b->bytes + b->start : NULL;
}

/* At least `more` bytes of room behind the end; NULL: no memory. */
static inline uint8_t *buffer_reserve(struct buffer *b, size_t more) {
  size_t size = buffer_size(b);
  if (b->room - b->end < more && b->start > 0) {
    memmove(b->bytes, b->bytes + b->start, size);
    b->start = 0;
    b->end = size;
  }
  if (b->room - b->end < more) {
    size_t room = b->room > 0 ? b->room : 4096;
    while (room - b->end < more) {
      room *= 2;
    }
    uint8_t *grown = realloc(b->bytes, room);
    if (grown == NULL) {
      return NULL;
    }
    b->bytes = grown;
    b->room = room;
  }
  return b->bytes + b->end;
}

static inline void buffer_added(struct buffer *b, size_t n) {
  b->end += n;
}

static inline bool buffer_add(struct buffer *b, const void *data, size_t n) {
  uint8_t *to = n > 0 ? buffer_reserve(b, n) : NULL;
  if (to == NULL) {
    return n == 0;
  }
  memcpy(to, data, n);
  b->end += n;
  return true;
}

static inline void buffer_take(struct buffer *b, size_t n) {
  b->start += n;
  if (b->start == b->end) {
    b->start = b->end = 0;
  }
}

/* An idle connection keeps no memory. */
static inline void buffer_free(struct buffer *b) {
  free(b->bytes);
  *b = (struct buffer){0};
}

#endif
