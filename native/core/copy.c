/* Long copies, in parts that memcpy does by vector instructions, or around the caches (decision 0025).
 *
 * For long copies glibc's memcpy takes `rep movsb`.  Between two processors that share a cache its vectors are quicker on AMD's Zen 4,
 * and where the destination lies 1 to 15 bytes behind the source, counted within a page, they are so by far: 15 GB/s instead of
 * 2.7 (glibc's bug 30994).
 *
 * Where the two do not share one (the far side of a socket, another complex of cores), each line that is written has to be
 * taken from the reader's cache first, which stores that go around the caches need not do.  Near, they are the slower ones.
 * On virtual machines it changes while they run, so it is measured all the time: plain copies that are slow are a reason
 * for a trial, and the rate of the stream decides. */
#include "copy.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "shim.h"

enum {
  LONG = 65536, /* what is looked at; less costs little, and a clock would be a part of it */
  AROUND_LEAST = 16384,
  LOOK_EVERY = 4,    /* plain copies */
  SLOW_LOOKS = 8,    /* in a row, for a trial */
  TRIAL = 32,        /* copies */
  REST = 4096,       /* copies after a trial that was lost */
  PROBE_EVERY = 256, /* copies around the caches */
  PROBE = 8,         /* plain ones among them */
  QUICK_LOOKS = 6,   /* of those, to be back */
};
#define SLOW 5.0 /* bytes in a nanosecond */
#define QUICK 8.0
#define GAIN 1.25

static void in_parts(uint8_t *to, const uint8_t *from, size_t size) {
  size_t part = COPY_SHORT; /* glibc's threshold is never less */
  __asm__("" : "+r"(part)); /* of a size that it knows the compiler makes `rep movsq` by itself */
  for (; size > part; size -= part, to += part, from += part) {
    memcpy(to, from, part);
  }
  memcpy(to, from, size);
}

static void around(uint8_t *to, const uint8_t *from, size_t size) {
#ifdef __SSE2__
  size_t head = (size_t)(-(uintptr_t)to & 63);
  memcpy(to, from, head);
  for (to += head, from += head, size -= head; size >= 64; size -= 64, to += 64, from += 64) {
    const __m128i *source = (const void *)from;
    __m128i *line = (void *)to;
    __m128i a = _mm_loadu_si128(source), b = _mm_loadu_si128(source + 1);
    __m128i c = _mm_loadu_si128(source + 2), d = _mm_loadu_si128(source + 3);
    _mm_stream_si128(line, a);
    _mm_stream_si128(line + 1, b);
    _mm_stream_si128(line + 2, c);
    _mm_stream_si128(line + 3, d);
  }
  _mm_sfence(); /* before the index that says that they are there */
  memcpy(to, from, size);
#else
  in_parts(to, from, size);
#endif
}

static void enter(struct copier *k, int mode, int64_t now) {
  k->mode = mode;
  k->turn = k->slow = k->quick = 0;
  k->begin = now;
  k->bytes = 0;
}

bool copy_goes_around(struct copier *k, size_t size, bool *look) {
  if (size < LONG) {
    *look = false;
    return k->mode != COPY_PLAIN && size >= AROUND_LEAST;
  }
  k->bytes += size;
  k->turn++;
  if (k->mode == COPY_PLAIN) {
    k->rest -= k->rest > 0;
    *look = k->rest == 0 && k->turn % LOOK_EVERY == 0;
    return false;
  }
  bool probe = k->mode == COPY_AROUND && k->turn % PROBE_EVERY < PROBE;
  *look = probe || (k->mode == COPY_TRIAL && k->turn >= TRIAL);
  return !probe;
}

void copy_took(struct copier *k, size_t size, int64_t began, int64_t ended) {
  double speed = (double)size / (double)(ended - began + 1);
  double rate = (double)k->bytes / (double)(ended - k->begin + 1);
  if (k->mode == COPY_TRIAL) {
    bool won = rate > GAIN * k->plain;
    k->rest = won ? 0 : REST;
    enter(k, won ? COPY_AROUND : COPY_PLAIN, ended);
  } else if (k->mode == COPY_AROUND) {
    k->quick = speed > QUICK ? k->quick + 1 : 0;
    if (k->quick >= QUICK_LOOKS) {
      enter(k, COPY_PLAIN, ended);
    }
  } else if (speed >= SLOW) {
    k->slow = 0;
  } else if (++k->slow == 1) {
    k->begin = ended;
    k->bytes = 0;
  } else if (k->slow >= SLOW_LOOKS) {
    k->plain = rate;
    enter(k, COPY_TRIAL, ended);
  }
}

void copy_long_in(uint8_t *to, const uint8_t *from, size_t size) {
  static BERTHA_TLS struct copier copier;
  bool look;
  bool goes_around = copy_goes_around(&copier, size, &look);
  int64_t began = look ? bertha_now_ns() : 0;
  if (goes_around) {
    around(to, from, size);
  } else {
    in_parts(to, from, size);
  }
  if (look) {
    copy_took(&copier, size, began, bertha_now_ns());
  }
}

void copy_long_out(uint8_t *to, const uint8_t *from, size_t size) {
  in_parts(to, from, size);
}
