/* The eventfds of other processes' sleepers: fetched once, bounded in number, and never another descriptor's number. */
#include "rig.h"

#include <assert.h>
#include <sys/eventfd.h>
#include <sys/resource.h>

#include <cmocka.h>

/* For keep_bell() and known_bell(), which no other file sees. */
#include "../core/bell.c"

static int new_bell(void) {
  int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  assert_true(fd >= 0);
  return fd;
}

static uint64_t rung(int fd) {
  uint64_t count = 0;
  return read(fd, &count, sizeof count) == sizeof count ? count : 0;
}

/* Who has it may also drain it, and take O_NONBLOCK off, which is common to all. */
static void a_drained_bell_holds_nobody_up(void **state) {
  (void)state;
  int fd = new_bell();
  uint64_t most = UINT64_MAX - 1;
  assert_int_equal(write(fd, &most, sizeof most), sizeof most);
  assert_true(bell_drain(fd));
  assert_false(bell_drain(fd));
  assert_int_equal(fcntl(fd, F_SETFL, 0), 0);
  struct iovec part = {&most, sizeof most};
  if (preadv2(fd, &part, 1, -1, RWF_NOWAIT) < 0 && errno == EAGAIN) { /* Linux 5.8 and later */
    assert_false(bell_drain(fd));
  }
  close(fd);
}

static void any_number_of_sleepers_costs_a_bounded_number_of_descriptors(void **state) {
  (void)state;
  uint32_t before = (uint32_t)rig_descriptors(4096);
  uint32_t allowed = bells_allowed();
  uint64_t one = 1;
  for (uint32_t id = 1; id <= 3 * allowed; id++) {
    int theirs = new_bell();
    int kept = keep_bell(id, dup(theirs));
    assert_int_equal(known_bell(id), kept);
    assert_int_equal(write(kept, &one, sizeof one), sizeof one);
    assert_int_equal(rung(theirs), 1); /* the number stands for the bell that was just fetched */
    close(theirs);
  }
  assert_true((uint32_t)rig_descriptors(4096) <= before + allowed);
}

static void one_in_use_stays_as_a_rule(void **state) {
  (void)state;
  uint32_t allowed = bells_allowed();
  uint32_t base = 100000;
  int theirs = new_bell();
  keep_bell(base, dup(theirs));
  uint32_t fetched = 0;
  for (uint32_t id = base + 1; id <= base + 3 * allowed; id++) {
    if (known_bell(base) < 0) { /* rung again and again; a round of the hand may still begin with it */
      keep_bell(base, dup(theirs));
      fetched++;
    }
    keep_bell(id, new_bell());
  }
  assert_true(fetched <= 3);
  uint64_t one = 1;
  assert_int_equal(write(known_bell(base), &one, sizeof one), sizeof one);
  assert_int_equal(rung(theirs), 1);
  close(theirs);
}

static void numbers_that_meet_in_the_table(void **state) {
  (void)state;
  int theirs[2 * PROBES];
  uint64_t one = 1;
  for (uint32_t i = 0; i < 2 * PROBES; i++) {
    theirs[i] = new_bell();
    uint32_t id = 200000 / BELLS * BELLS + 7 + i * BELLS;
    int kept = keep_bell(id, dup(theirs[i]));
    assert_int_equal(known_bell(id), kept);
    assert_int_equal(write(kept, &one, sizeof one), sizeof one);
    assert_int_equal(rung(theirs[i]), 1);
  }
  for (uint32_t i = 0; i < 2 * PROBES; i++) {
    close(theirs[i]);
  }
}

int main(void) {
  struct rlimit limit;
  assert(getrlimit(RLIMIT_NOFILE, &limit) == 0);
  if (limit.rlim_cur > 2048) {
    limit.rlim_cur = 2048;
    assert(setrlimit(RLIMIT_NOFILE, &limit) == 0);
  }
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_drained_bell_holds_nobody_up),
      cmocka_unit_test(any_number_of_sleepers_costs_a_bounded_number_of_descriptors),
      cmocka_unit_test(one_in_use_stays_as_a_rule),
      cmocka_unit_test(numbers_that_meet_in_the_table),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
