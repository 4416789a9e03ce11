/* As much msgpack as carriers speak (github.com/msgpack/msgpack/blob/master/spec.md): maps with text keys, texts,
 * bytes, numbers, booleans, nil, arrays.  Whatever comes is untrusted: everything is bounded by the bytes there are. */
#ifndef BERTHA_PACK_H
#define BERTHA_PACK_H

#include "buffer.h"

enum pack_kind {
  PACK_NIL,
  PACK_BOOL,
  PACK_INT,
  PACK_TEXT,
  PACK_BYTES,
  PACK_ARRAY,
  PACK_MAP,
  PACK_REAL,
  PACK_OTHER
};

struct pack_value {
  enum pack_kind kind;
  uint64_t number;     /* PACK_INT (two's complement), PACK_BOOL; elements of an array, pairs of a map */
  const uint8_t *data; /* of a text or bytes; of the first element */
  size_t size;         /* of a text or bytes; of all elements, of everything for PACK_OTHER */
};

/* The value at `data`; returns its whole size, 0: there is none, or it is cut off or too deep. */
size_t pack_read(const uint8_t *data, size_t size, struct pack_value *value);
/* A map's entry of that name: false when there is none. */
bool pack_get(const struct pack_value *map, const char *name, struct pack_value *value);
/* An array's element. */
bool pack_at(const struct pack_value *array, uint64_t index, struct pack_value *value);
bool pack_is(const struct pack_value *value, const char *text);
/* A number, whole or not (float 64). */
bool pack_real(const struct pack_value *value, double *number);
/* Copies a text, cut to fit, always ended by NUL; empty for anything else. */
void pack_copy(const struct pack_value *value, char *to, size_t room);
/* For a log: what a stranger has sent, and was cut. */
void pack_printable(char *text);

bool pack_map(struct buffer *b, unsigned pairs); /* up to 15 */
bool pack_text(struct buffer *b, const char *text);
bool pack_bytes(struct buffer *b, const void *data, size_t size);
bool pack_uint(struct buffer *b, uint64_t n);
bool pack_bool(struct buffer *b, bool value);

#endif
