/* The policy of spinning, and the entries of sleepers. */
#include "rig.h"

#include <sys/wait.h>

#include <cmocka.h>

enum { BOUND = 20000 };
static const int64_t no_trial = (int64_t)1 << 22; /* a moment at which those that stopped do not try again */

static void a_gain_goes_on_a_loss_stops(void **state) {
  (void)state;
  struct spinner s = {0};
  assert_int_equal(spin_budget(&s, no_trial, BOUND), BOUND);
  spin_learn(&s, 2 * BOUND, BOUND); /* waited beyond the bound: for nothing */
  assert_int_equal(spin_budget(&s, no_trial, BOUND), 0);
  assert_int_equal(spin_budget(&s, 0, BOUND), BOUND); /* the common moment to try */
  spin_learn(&s, BOUND / 2, BOUND);
  assert_int_equal(spin_budget(&s, no_trial, BOUND), BOUND);
}

static void waits_of_the_idle_teach_nothing(void **state) {
  (void)state;
  struct spinner s = {0};
  spin_learn(&s, 1000 * (int64_t)BOUND, BOUND);
  assert_int_equal(spin_budget(&s, no_trial, BOUND), BOUND);
}

static void nothing_but_long_waits_stops_too(void **state) {
  (void)state;
  struct spinner s = {0};
  for (int i = 0; i < 8; i++) {
    assert_int_equal(spin_budget(&s, no_trial, BOUND), BOUND);
    spin_learn(&s, 1000 * (int64_t)BOUND, BOUND);
  }
  assert_int_equal(spin_budget(&s, no_trial, BOUND), 0);
}

static void a_moment_has_few_trials(void **state) {
  (void)state;
  struct spinner s = {.score = -1};
  for (int i = 0; i < 8; i++) {
    assert_int_equal(spin_budget(&s, 0, BOUND), BOUND);
    spin_learn(&s, 2 * BOUND, BOUND);
  }
  assert_int_equal(spin_budget(&s, 0, BOUND), 0);
  assert_int_equal(spin_budget(&s, (int64_t)16 << 22, BOUND), BOUND); /* the next one */
}

static void who_loses_the_processor_stops_soon(void **state) {
  (void)state;
  struct spinner s = {.score = 16};
  for (int i = 0; i < 5; i++) {
    assert_int_equal(spin_budget(&s, no_trial, BOUND), BOUND);
    spin_lost_processor(&s);
  }
  assert_int_equal(spin_budget(&s, no_trial, BOUND), 0);
}

static void many_gains_bear_some_losses(void **state) {
  (void)state;
  struct spinner s = {0};
  for (int i = 0; i < 100; i++) {
    spin_learn(&s, 100, BOUND);
  }
  for (int i = 0; i < 10; i++) {
    spin_learn(&s, 2 * BOUND, BOUND);
  }
  assert_int_equal(spin_budget(&s, no_trial, BOUND), BOUND);
  for (int i = 0; i < 10; i++) {
    spin_learn(&s, 2 * BOUND, BOUND);
  }
  assert_int_equal(spin_budget(&s, no_trial, BOUND), 0);
}

static void forbidden_is_forbidden(void **state) {
  (void)state;
  struct spinner s = {.score = 16};
  assert_int_equal(spin_budget(&s, 0, 0), 0);
}

/* The last of those that learn: what waking costs is the process's. */
static void cheap_wake_ups_make_short_spins(void **state) {
  (void)state;
  struct spinner s = {0};
  for (int wakes = 0; wakes < 100; wakes++) {
    spin_note_wake(1250);
  }
  spin_learn(&s, 9000, BOUND);
  assert_int_equal(spin_budget(&s, no_trial, BOUND), BOUND);
  for (int waits = 0; waits < 3; waits++) {
    spin_learn(&s, 11000, BOUND); /* within the bound, but to sleep would have cost less */
  }
  assert_int_equal(spin_budget(&s, no_trial, BOUND), 0);
  for (int wakes = 0; wakes < 100; wakes++) {
    spin_note_wake(10000);
  }
  s = (struct spinner){0};
  spin_learn(&s, BOUND - 1, BOUND);
  assert_int_equal(spin_budget(&s, no_trial, BOUND), BOUND);
}

struct bound {
  int64_t environment; /* ns; -1: not given; -2: there is one processor, where nobody spins */
  uint32_t policy;     /* us; UINT32_MAX: none */
  int64_t expected;    /* ns */
};

/* The smaller of what the environment and the policy say; the default where neither says anything. */
static void the_bound(void **state) {
  (void)state;
  static const struct bound table[] = {
      {-1, UINT32_MAX, 20000}, {-1, 0, 0}, {-1, 50, 50000}, {5000, UINT32_MAX, 5000}, {5000, 50, 5000},
      {90000, 50, 50000},      {0, 50, 0}, {90000, 0, 0},   {-2, UINT32_MAX, 0},      {-2, 50, 0},
  };
  struct link l = {.side = 0};
  int64_t ns = bertha.spin_ns;
  bool given = bertha.spin_given;
  for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
    bertha.spin_given = table[i].environment >= 0;
    bertha.spin_ns = bertha.spin_given ? table[i].environment : table[i].environment == -1 ? 20000 : 0;
    l.plan.spin_us = table[i].policy;
    assert_int_equal(link_spin_bound(&l), table[i].expected);
  }
  bertha.spin_ns = ns;
  bertha.spin_given = given;
}

static void sleepers_are_taken_and_given_back(void **state) {
  (void)state;
  struct rig r;
  rig_open(&r, 1, 4096, 0);
  bool taken[BERTHA_SLEEPERS] = {false};
  for (uint32_t i = 1; i < BERTHA_SLEEPERS; i++) {
    uint32_t index = sleeper_take(&r.link[0], i);
    assert_in_range(index, 1, BERTHA_SLEEPERS - 1);
    assert_false(taken[index]);
    taken[index] = true;
    assert_int_equal(atomic_load(&r.link[0].sleepers[0][index].bell), i);
  }
  assert_int_equal(sleeper_take(&r.link[0], 1), 0);
  assert_int_not_equal(sleeper_take(&r.link[1], 1), 0); /* the other side has its own */
  sleeper_arm(&r.link[0].sleepers[0][77]);
  sleeper_give_back(&r.link[0], 77);
  assert_int_equal(atomic_load(&r.link[0].sleepers[0][77].armed), 0);
  assert_int_equal(sleeper_take(&r.link[0], 9), 77);
  rig_close(&r);
}

static void the_entries_of_the_dead_are_taken(void **state) {
  (void)state;
  struct rig r;
  rig_open(&r, 1, 4096, 0);
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    _exit(0);
  }
  assert_int_equal(waitpid(child, NULL, 0), child);
  for (uint32_t i = 1; i < BERTHA_SLEEPERS; i++) {
    atomic_store(&r.link[0].sleepers[0][i].owner, (uint32_t)(i == 200 ? child : getppid()));
  }
  assert_int_equal(sleeper_take(&r.link[0], 1), 200);
  rig_close(&r);
}

static void each_sleep_has_its_own_number(void **state) {
  (void)state;
  struct bertha_sleeper s = {0};
  sleeper_arm(&s);
  uint32_t first = atomic_load(&s.armed);
  assert_int_not_equal(first, 0);
  sleeper_arm(&s);
  assert_int_not_equal(atomic_load(&s.armed), 0);
  assert_int_not_equal(atomic_load(&s.armed), first);
}

static void times(void **state) {
  (void)state;
  struct timespec t = {1, 5};
  assert_int_equal(time_ns(NULL), -1);
  assert_int_equal(time_ns(&t), 1000000005);
  t = (struct timespec){-1, 0};
  assert_int_equal(time_ns(&t), -EINVAL);
  t = (struct timespec){0, 1000000000};
  assert_int_equal(time_ns(&t), -EINVAL);
  t = (struct timespec){INT64_MAX, 999999999};
  assert_true(time_ns(&t) > 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_gain_goes_on_a_loss_stops),
      cmocka_unit_test(waits_of_the_idle_teach_nothing),
      cmocka_unit_test(nothing_but_long_waits_stops_too),
      cmocka_unit_test(a_moment_has_few_trials),
      cmocka_unit_test(who_loses_the_processor_stops_soon),
      cmocka_unit_test(many_gains_bear_some_losses),
      cmocka_unit_test(cheap_wake_ups_make_short_spins),
      cmocka_unit_test(forbidden_is_forbidden),
      cmocka_unit_test(the_bound),
      cmocka_unit_test(sleepers_are_taken_and_given_back),
      cmocka_unit_test(the_entries_of_the_dead_are_taken),
      cmocka_unit_test(each_sleep_has_its_own_number),
      cmocka_unit_test(times),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
