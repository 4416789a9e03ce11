/* Long copies: every byte and none more, whichever way they go; and what a thread learns of the two ways. */
#include "../core/copy.c" /* for what is static there */

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

enum { PAGE_SIZE = 4096, LONGEST = 3 * 2048 + 5, ROOM = PAGE_SIZE + LONGEST, SIZE = 131072 };

typedef void copying(uint8_t *to, const uint8_t *from, size_t size);

static void every_byte_and_none_more(void **state) {
  static copying *const ways[] = {in_parts, around, copy_in, copy_out};
  static const size_t sizes[] = {0, 1, 63, 64, 200, 2047, 2048, 2049, 4096, 4097, LONGEST};
  static uint8_t from[ROOM] __attribute__((aligned(PAGE_SIZE)));
  static uint8_t to[ROOM] __attribute__((aligned(PAGE_SIZE)));
  (void)state;
  for (size_t i = 0; i < ROOM; i++) {
    from[i] = (uint8_t)(1 + rand() % 255);
  }
  for (size_t way = 0; way < sizeof ways / sizeof ways[0]; way++) {
    for (size_t behind = 0; behind < 70; behind++) {
      for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        size_t at = behind % 7; /* of the source */
        if (way == 1 && sizes[i] < 64) {
          continue; /* never called with so little */
        }
        memset(to, 0, ROOM);
        ways[way](to + behind, from + at, sizes[i]);
        assert_memory_equal(to + behind, from + at, sizes[i]);
        assert_true(behind == 0 || to[behind - 1] == 0);
        assert_int_equal(to[behind + sizes[i]], 0);
      }
    }
  }
}

/* Copies of a stream that take so long, if they go through the caches and around them, in nanoseconds. */
static unsigned copy_many(struct copier *k, int64_t *now, unsigned count, int64_t plain, int64_t past) {
  unsigned went_around = 0;
  for (unsigned i = 0; i < count; i++) {
    bool look;
    bool goes = copy_goes_around(k, SIZE, &look);
    int64_t began = *now;
    *now += goes ? past : plain;
    went_around += goes;
    if (look) {
      copy_took(k, SIZE, began, *now);
    }
  }
  return went_around;
}

enum { FAST_NS = SIZE / 16, MIDDLING_NS = SIZE / 7, SLOW_NS = SIZE / 2 };

static void those_that_are_quick_stay(void **state) {
  struct copier k = {.mode = COPY_PLAIN};
  int64_t now = 1000;
  (void)state;
  assert_int_equal(copy_many(&k, &now, 100000, FAST_NS, SLOW_NS), 0);
  assert_int_equal(copy_many(&k, &now, 100000, MIDDLING_NS, FAST_NS), 0); /* nor is there a reason to try */
}

static void slow_ones_go_around_where_that_gains(void **state) {
  struct copier k = {.mode = COPY_PLAIN};
  int64_t now = 1000;
  (void)state;
  unsigned around_it = copy_many(&k, &now, 10000, SLOW_NS, MIDDLING_NS);
  assert_true(around_it > 9500 && around_it < 9960); /* some are plain, to see whether it is still so */
  assert_true(copy_many(&k, &now, 10000, FAST_NS, MIDDLING_NS) < 2 * PROBE_EVERY);
  assert_int_equal(k.mode, COPY_PLAIN);
}

static void a_trial_that_is_lost_is_not_repeated_soon(void **state) {
  struct copier k = {.mode = COPY_PLAIN};
  int64_t now = 1000;
  (void)state;
  assert_int_equal(copy_many(&k, &now, 4000, SLOW_NS, SLOW_NS), TRIAL);
  assert_true(copy_many(&k, &now, 40000, SLOW_NS, SLOW_NS) <= 10 * TRIAL);
}

static void short_ones_never(void **state) {
  struct copier k = {.mode = COPY_AROUND};
  bool look;
  (void)state;
  assert_false(copy_goes_around(&k, AROUND_LEAST - 1, &look) || look);
  assert_true(copy_goes_around(&k, AROUND_LEAST, &look) && !look);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_byte_and_none_more),
      cmocka_unit_test(those_that_are_quick_stay),
      cmocka_unit_test(slow_ones_go_around_where_that_gains),
      cmocka_unit_test(a_trial_that_is_lost_is_not_repeated_soon),
      cmocka_unit_test(short_ones_never),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
