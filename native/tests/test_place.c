/* A carrier that waits for its processor beside an idle one goes there, and only then. */
#include "../carrier/place.c" /* for what is static there */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>

#include <cmocka.h>

enum {
  STEP_MS = 30, /* past every look's own pause */
  LOOKS = 4,    /* PATIENCE of them, and then WINDOW_MS */
};

static struct {
  int64_t now;
  uint64_t ran, waited, busy_ticks;
  cpu_set_t before;
} t;

static void say(int fd, const char *text) {
  assert_int_equal(ftruncate(fd, 0), 0);
  assert_int_equal(pwrite(fd, text, strlen(text), 0), (ssize_t)strlen(text));
}

/* One look later: `waits` of the time it waited, and all processors were idle for `idle` percent. */
static void pass(int waits, int idle) {
  char text[32 * 64], own[100];
  int n = 0;
  t.now += STEP_MS * MS;
  t.ran += (uint64_t)STEP_MS * 1000000u / 2;
  t.waited += (uint64_t)STEP_MS * 1000000u * (uint64_t)waits / 100;
  t.busy_ticks += (uint64_t)idle * (uint64_t)ticks_per_second() * STEP_MS / 1000;
  n += snprintf(text, sizeof text, "cpu  1 2 3 4 5\n");
  for (int i = 0; i < 32; i++) {
    n += snprintf(text + n, sizeof text - (size_t)n, "cpu%d 10 0 20 %" PRIu64 " 5 0\n", i,
                  1000 + t.busy_ticks / 100);
  }
  snprintf(text + n, sizeof text - (size_t)n, "intr 1 2 3\n");
  snprintf(own, sizeof own, "%" PRIu64 " %" PRIu64 " 7\n", t.ran, t.waited);
  say(place.all, text);
  say(place.own, own);
  place_look(t.now);
}

/* Until it goes. */
static void starve(void) {
  for (int i = 0; i < LOOKS; i++) {
    assert_false(place.moved);
    pass(50, 60);
  }
  assert_true(place.moved);
}

static cpu_set_t mask(void) {
  cpu_set_t set;
  assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
  return set;
}

static int begin(void **state) {
  (void)state;
  t.before = mask();
  t.now = INT64_C(1000000000000);
  t.ran = t.waited = t.busy_ticks = 0;
  place = (struct place){.own = memfd_create("own", MFD_CLOEXEC), .all = memfd_create("all", MFD_CLOEXEC)};
  pass(0, 0);
  return place.own < 0 || place.all < 0;
}

static int end(void **state) {
  (void)state;
  close(place.own);
  close(place.all);
  return sched_setaffinity(0, sizeof t.before, &t.before);
}

static void need_two(void) {
  if (CPU_COUNT(&t.before) < 2) {
    skip();
  }
}

static void who_waits_beside_an_idle_one_goes(void **state) {
  (void)state;
  need_two();
  for (int i = 0; i < LOOKS - 1; i++) {
    pass(50, 60);
    assert_false(place.moved);
  }
  int here = sched_getcpu();
  pass(50, 60);
  assert_true(place.moved);
  cpu_set_t now = mask();
  assert_int_equal(CPU_COUNT(&now), CPU_COUNT(&t.before) - 1);
  if (CPU_COUNT(&t.before) == 2) { /* among more, we may have been moved just before the look */
    assert_false(CPU_ISSET(here, &now));
    assert_int_not_equal(sched_getcpu(), here);
  }
}

static void who_does_not_wait_stays(void **state) {
  (void)state;
  for (int i = 0; i < 20; i++) {
    pass(10, 90);
  }
  for (int i = 0; i < 20; i++) { /* now and then is not enough */
    pass(i % 2 ? 60 : 0, 90);
  }
  assert_false(place.moved);
  cpu_set_t now = mask();
  assert_true(CPU_EQUAL(&now, &t.before));
}

static void where_all_are_busy_it_stays(void **state) {
  (void)state;
  for (int i = 0; i < 20; i++) {
    pass(60, 10);
  }
  assert_false(place.moved);
}

static void it_comes_back_and_stays_away_longer_each_time(void **state) {
  (void)state;
  need_two();
  int64_t held = 0;
  for (int round = 0; round < 8; round++) {
    starve();
    int64_t hold = place.until - place.active;
    assert_int_equal(hold, round == 0                     ? HOLD_MS * MS
                           : held * 2 < HOLD_MOST_MS * MS ? held * 2
                                                          : HOLD_MOST_MS * MS);
    held = hold;
    while (place.active + STEP_MS * MS < place.until) {
      pass(0, 60);
      assert_true(place.moved);
    }
    while (place.moved) {
      pass(0, 60);
    }
    cpu_set_t now = mask();
    assert_true(CPU_EQUAL(&now, &t.before));
    pass(0, 60);
  }
}

/* As taskset(1) would. */
static void what_others_set_holds(void **state) {
  (void)state;
  need_two();
  starve();
  cpu_set_t one;
  CPU_ZERO(&one);
  for (int i = 0; CPU_COUNT(&one) == 0; i++) {
    if (CPU_ISSET(i, &t.before) && !CPU_ISSET(i, &place.ours)) {
      CPU_SET(i, &one); /* the very one that it had left */
    }
  }
  assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
  for (int i = 0; i < 50; i++) {
    pass(60, 60);
  }
  cpu_set_t now = mask();
  assert_true(CPU_EQUAL(&now, &one));
  assert_false(place.moved);
}

/* Between one load and the next it stays where it was. */
static void idleness_does_not_count(void **state) {
  (void)state;
  need_two();
  starve();
  for (int i = 0; i < 5; i++) {
    t.now += 60000 * MS;
    pass(0, 60);
    assert_true(place.moved);
  }
}

static void without_the_files_nothing_is_done(void **state) {
  (void)state;
  close(place.own);
  place.own = -1;
  for (int i = 0; i < 10; i++) {
    t.now += 100 * MS;
    place_look(t.now);
  }
  assert_false(place.moved);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(who_waits_beside_an_idle_one_goes, begin, end),
      cmocka_unit_test_setup_teardown(who_does_not_wait_stays, begin, end),
      cmocka_unit_test_setup_teardown(where_all_are_busy_it_stays, begin, end),
      cmocka_unit_test_setup_teardown(it_comes_back_and_stays_away_longer_each_time, begin, end),
      cmocka_unit_test_setup_teardown(what_others_set_holds, begin, end),
      cmocka_unit_test_setup_teardown(idleness_does_not_count, begin, end),
      cmocka_unit_test_setup_teardown(without_the_files_nothing_is_done, begin, end),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
