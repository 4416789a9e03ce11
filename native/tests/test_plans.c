/* Destinations and their plans: one whose agent is slow to answer keeps nobody from those that are known. */
#include "rig.h"

#include <pthread.h>

#include <cmocka.h>

#include "../core/carried.h"
#include "../core/plans.h"

enum { SLOW_MS = 1000, SOON_MS = 400 };
static _Atomic int questions;
static _Atomic bool under_way;
static void (*meanwhile)(void); /* what another thread does while the agent thinks */

/* The agent: about port 9 it thinks for long. */
static uint32_t an_agent(enum bertha_op op, const void *body, size_t body_size, const int *fds, int count,
                         void *reply, size_t reply_size, int *got, int most) {
  (void)fds, (void)count, (void)reply_size, (void)got, (void)most, (void)body_size;
  assert_int_equal(op, BERTHA_OP_NEGOTIATE);
  atomic_fetch_add(&questions, 1);
  if (((const struct bertha_negotiate *)body)->server_port == 9) {
    atomic_store(&under_way, true);
    usleep(SLOW_MS * 1000);
  }
  if (meanwhile != NULL) {
    meanwhile();
  }
  struct bertha_negotiate_reply *r = reply;
  r->verdict = BERTHA_VERDICT_PLAN;
  r->valid_ms = 60000;
  r->plan_size = 4;
  memcpy(r + 1, "plan", 4);
  return 0;
}

static uint64_t one(void) {
  return 1;
}

#define agent_call an_agent
#define known known_plans
#define directory_generation one
#include "../core/plans.c"
#undef agent_call
#undef known
#define pair box_pair /* local.h has one, too */
#include "../core/dgram.c"
#undef directory_generation
#undef pair

static const uint8_t address[16] = {[10] = 0xff, [11] = 0xff, [12] = 10, [15] = 1};

static int set_up(void **state) {
  (void)state;
  for (unsigned i = 0; i < PLANS; i++) {
    if (known_plans.plans[i] != NULL) {
      free(known_plans.plans[i]->bytes);
      free(known_plans.plans[i]);
      known_plans.plans[i] = NULL;
    }
  }
  atomic_store(&questions, 0);
  atomic_store(&under_way, false);
  meanwhile = NULL;
  return 0;
}

static bool stream_plan(uint16_t port) {
  struct plan_answer answer;
  return plan_get(address, port, AF_INET, -1, &answer) && answer.verdict == BERTHA_VERDICT_PLAN;
}

static void *asks_for_a_slow_one(void *unused) {
  (void)unused;
  return (void *)(intptr_t)stream_plan(9);
}

static int64_t took_ms(bool (*what)(uint16_t), uint16_t port) {
  int64_t begin = bertha_now_ns();
  assert_true(what(port));
  return (bertha_now_ns() - begin) / 1000000;
}

static void until_under_way(void) {
  while (!atomic_load(&under_way)) {
    usleep(100);
  }
}

static void the_known_are_not_waited_for(void **state) {
  (void)state;
  pthread_t slow;
  void *result;
  assert_true(stream_plan(7));
  assert_int_equal(pthread_create(&slow, NULL, asks_for_a_slow_one, NULL), 0);
  until_under_way();
  assert_in_range(took_ms(stream_plan, 7), 0, SOON_MS);
  assert_int_equal(pthread_join(slow, &result), 0);
  assert_non_null(result);
  assert_int_equal(atomic_load(&questions), 2);
}

static void two_that_ask_the_same_ask_once(void **state) {
  (void)state;
  pthread_t slow;
  void *result;
  assert_int_equal(pthread_create(&slow, NULL, asks_for_a_slow_one, NULL), 0);
  until_under_way();
  assert_true(stream_plan(9));
  assert_int_equal(pthread_join(slow, &result), 0);
  assert_non_null(result);
  assert_int_equal(atomic_load(&questions), 1);
}

/* ---- datagrams ---- */

static int ends[2];
static struct conn *udp;

static int set_up_datagrams(void **state) {
  assert_return_code(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), errno);
  udp = conn_new(ends[0], BERTHA_CONN_UNIX);
  assert_non_null(udp);
  udp->side = BERTHA_SIDE_CLIENT;
  udp->info.family = AF_INET | BERTHA_FAMILY_DATAGRAMS;
  return set_up(state);
}

static int tear_down_datagrams(void **state) {
  (void)state;
  atomic_store(&udp->info.refs, 0);
  conn_free(udp);
  close(ends[0]);
  close(ends[1]);
  return 0;
}

static bool route(uint16_t port) {
  return dgram_route(udp, ends[0], address, port, 0) == 0;
}

static void *sends_to_a_slow_one(void *unused) {
  (void)unused;
  return (void *)(intptr_t)route(9);
}

static int plans_told(void) {
  struct bertha_dgram head;
  int n = 0;
  while (recv(ends[1], &head, sizeof head, MSG_DONTWAIT) == (ssize_t)sizeof head) {
    n += head.kind == BERTHA_DGRAM_PLAN;
  }
  return n;
}

static void known_routes_are_not_waited_for(void **state) {
  (void)state;
  pthread_t slow;
  void *result;
  assert_true(route(7));
  assert_int_equal(pthread_create(&slow, NULL, sends_to_a_slow_one, NULL), 0);
  until_under_way();
  assert_in_range(took_ms(route, 7), 0, SOON_MS);
  assert_int_equal(pthread_join(slow, &result), 0);
  assert_non_null(result);
  assert_int_equal(plans_told(), 2);
  assert_true(route(7) && route(9)); /* known: nothing to be told */
  assert_int_equal(plans_told(), 0);
}

/* The plan that was asked for before is refused while the agent thinks about it: the next datagram has another one. */
static void refused(void) {
  meanwhile = NULL;
  dgram_reroute(address, 7);
}

static void what_is_refused_meanwhile_is_asked_again(void **state) {
  (void)state;
  meanwhile = refused;
  assert_true(route(7));
  assert_true(route(7));
  assert_int_equal(plans_told(), 2);
  assert_true(route(7));
  assert_int_equal(plans_told(), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup(the_known_are_not_waited_for, set_up),
      cmocka_unit_test_setup(two_that_ask_the_same_ask_once, set_up),
      cmocka_unit_test_setup_teardown(known_routes_are_not_waited_for, set_up_datagrams, tear_down_datagrams),
      cmocka_unit_test_setup_teardown(what_is_refused_meanwhile_is_asked_again, set_up_datagrams,
                                      tear_down_datagrams),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
