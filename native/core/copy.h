/* Bytes into a ring and out of it.  Short ones by memcpy, long ones by what is quickest there (copy.c). */
#ifndef BERTHA_COPY_H
#define BERTHA_COPY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { COPY_SHORT = 2048 };

void copy_long_in(uint8_t *to, const uint8_t *from, size_t size);
void copy_long_out(uint8_t *to, const uint8_t *from, size_t size);

static inline void copy_in(uint8_t *to, const uint8_t *from, size_t size) {
  if (size <= COPY_SHORT) {
    memcpy(to, from, size);
  } else {
    copy_long_in(to, from, size);
  }
}

static inline void copy_out(uint8_t *to, const uint8_t *from, size_t size) {
  if (size <= COPY_SHORT) {
    memcpy(to, from, size);
  } else {
    copy_long_out(to, from, size);
  }
}

/* What a thread has learnt of its long copies. */
struct copier {
  enum { COPY_PLAIN, COPY_TRIAL, COPY_AROUND } mode;
  unsigned turn;  /* copies in this mode */
  unsigned slow;  /* looks in a row at which plain ones were */
  unsigned quick; /* or were not */
  unsigned rest;  /* copies until there may be another trial */
  int64_t begin;  /* of the time that `bytes` took, which is that of the whole stream */
  uint64_t bytes; /* since then */
  double plain;   /* bytes in a nanosecond, of the stream */
};
/* Before a copy of `size`: whether it is to go around the caches.  `*look`: copy_took() is to be told when it began, and when it ended. */
bool copy_goes_around(struct copier *k, size_t size, bool *look);
void copy_took(struct copier *k, size_t size, int64_t began, int64_t ended);

#endif
