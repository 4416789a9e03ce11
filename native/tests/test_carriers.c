/* A process's rings to a carrier: connections whose policies bound spinning differently are in different links, and the
 * carrier hears of the bound.  What anybody really spins is not measured. */
#include "rig.h"

#include <cmocka.h>

#include "../core/hop.h"
#include "../core/wait.h"

static int shim_end = -1, carrier_end = -1;
static bool has_rings;

/* The agent: gives a new carrier, of which we have the other end. */
static uint32_t an_agent(enum bertha_op op, const void *body, size_t body_size, const int *fds, int count,
                         void *reply, size_t reply_size, int *got, int most) {
  (void)body, (void)body_size, (void)fds, (void)count, (void)reply_size, (void)most;
  assert_int_equal(op, BERTHA_OP_CARRIER);
  int pair[2];
  assert_return_code(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), errno);
  *got = shim_end = pair[0];
  carrier_end = pair[1];
  ((struct bertha_carrier_request *)reply)->rings = has_rings;
  return 0;
}

#define agent_call an_agent
#define carrier_carry carry_here
#define carrier_tell tell_here
#define carrier_statuses statuses_here
#define carrier_open_statuses open_statuses_here
#define carried_after_fork after_fork_here
#define carried_fd_moved fd_moved_here
#include "../core/carriers.c"
#undef agent_call

static int set_up(void **state) {
  (void)state;
  memset(&here.carriers, 0, sizeof here.carriers);
  has_rings = true;
  bertha.spin_given = false;
  bertha.spin_ns = 50000;
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  for (int i = 0; i < CARRIERS; i++) {
    for (uint32_t k = 0; k < here.carriers[i].link_count; k++) {
      link_drop(here.carriers[i].links[k]);
    }
  }
  close(carrier_end);
  return 0;
}

/* One connection with that bound; where its rings are. */
static struct place connection(uint32_t carrier, uint32_t spin_us) {
  static struct link any;
  int ends[2];
  assert_return_code(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), errno);
  struct bertha_carrier_carry head = {.magic = BERTHA_CARRIER_MAGIC, .version = BERTHA_CARRIER_VERSION};
  struct place place = {.link = &any, .spin_us = spin_us};
  assert_true(carry_here(carrier, &head, "", ends[0], ends[1], &place));
  close(ends[0]);
  close(ends[1]);
  return place;
}

/* What the carrier has been told of its next link; UINT32_MAX - 1: of none. */
static uint32_t told(void) {
  union {
    struct bertha_carrier_hello hello;
    struct bertha_carrier_link link;
    struct bertha_carrier_carry_ring ring;
  } message;
  ssize_t n;
  while ((n = recv(carrier_end, &message, sizeof message, MSG_DONTWAIT)) > 0) {
    if (message.hello.kind == BERTHA_CARRIER_LINK) {
      assert_int_equal(n, sizeof message.link);
      return message.link.spin_us;
    }
  }
  return UINT32_MAX - 1;
}

static void a_bound_has_its_link(void **state) {
  (void)state;
  struct place free_one = connection(BERTHA_CARRIER_NATIVE, UINT32_MAX);
  assert_int_equal(told(), UINT32_MAX);
  assert_int_equal(link_spin_bound(free_one.link), 50000);
  struct place bounded = connection(BERTHA_CARRIER_NATIVE, 20);
  assert_int_equal(told(), 20);
  assert_int_equal(link_spin_bound(bounded.link), 20000);
  struct place forbidden = connection(BERTHA_CARRIER_NATIVE, 0);
  assert_int_equal(told(), 0);
  assert_int_equal(link_spin_bound(forbidden.link), 0);
  assert_ptr_equal(connection(BERTHA_CARRIER_NATIVE, 20).link, bounded.link);
  assert_ptr_equal(connection(BERTHA_CARRIER_NATIVE, UINT32_MAX).link, free_one.link);
  assert_ptr_equal(connection(BERTHA_CARRIER_NATIVE, 0).link, forbidden.link);
  assert_int_equal(told(), UINT32_MAX - 1);
}

static void the_environment_bounds_it_too(void **state) {
  (void)state;
  bertha.spin_given = true;
  bertha.spin_ns = 5000;
  connection(BERTHA_CARRIER_NATIVE, UINT32_MAX);
  assert_int_equal(told(), 5);
  connection(BERTHA_CARRIER_NATIVE, 20);
  assert_int_equal(told(), 5);
  connection(BERTHA_CARRIER_NATIVE, 2);
  assert_int_equal(told(), 2);
}

static void on_one_processor_nobody_spins(void **state) {
  (void)state;
  bertha.spin_ns = 0;
  connection(BERTHA_CARRIER_NATIVE, UINT32_MAX);
  assert_int_equal(told(), 0);
  connection(BERTHA_CARRIER_NATIVE, 20);
  assert_int_equal(told(), 0);
}

/* When no link is left to be made, one that is bounded closer does; where there is none, the socketpair. */
static void more_bounds_than_links(void **state) {
  (void)state;
  for (uint32_t i = 0; i < BERTHA_CARRIER_LINKS; i++) {
    assert_int_equal(connection(BERTHA_CARRIER_NATIVE, 10 + i).number, i);
  }
  struct place place = connection(BERTHA_CARRIER_NATIVE, UINT32_MAX);
  assert_non_null(place.link);
  assert_true(place.link->plan.spin_us < UINT32_MAX);
  place = connection(BERTHA_CARRIER_NATIVE, 9);
  assert_null(place.link);
  assert_int_equal(place.why, BERTHA_WHY_LINK_FULL);
}

/* For a carrier in Python nobody spins at all. */
static void one_link_to_python(void **state) {
  (void)state;
  struct place first = connection(BERTHA_CARRIER_PYTHON, UINT32_MAX);
  assert_int_equal(link_spin_bound(first.link), 0);
  assert_ptr_equal(connection(BERTHA_CARRIER_PYTHON, 20).link, first.link);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(a_bound_has_its_link, set_up, tear_down),
      cmocka_unit_test_setup_teardown(the_environment_bounds_it_too, set_up, tear_down),
      cmocka_unit_test_setup_teardown(on_one_processor_nobody_spins, set_up, tear_down),
      cmocka_unit_test_setup_teardown(more_bounds_than_links, set_up, tear_down),
      cmocka_unit_test_setup_teardown(one_link_to_python, set_up, tear_down),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
