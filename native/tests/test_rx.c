/* Reads and writes that come upon another thread's work, upon their own, or upon nonsense: none waits for ever. */
#include "rig.h"

#include <fcntl.h>
#include <signal.h>

#include <cmocka.h>

/* What another thread does between a look at a connection and the sleep that follows. */
static void (*in_between)(struct conn *c);

static uint32_t sleep_after_that(struct conn *c) {
  void (*what)(struct conn *) = in_between;
  in_between = NULL;
  if (what != NULL) {
    what(c);
  }
  return conn_kernel_sleep(c);
}

#define conn_kernel_sleep(c) sleep_after_that(c)
#include "../core/rx.c"
#undef conn_kernel_sleep

enum { PATIENCE = 20 };
static struct rig rig;
static struct pair pair;

static int set_up(void **state) {
  (void)state;
  rig_open(&rig, 4, 1 << 16, 1 << 16);
  alarm(PATIENCE); /* who sleeps for ever is ended */
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  alarm(0);
  pair_close(&pair);
  rig_close(&rig);
  return 0;
}

/* The server's other thread has found the claim, and the client writes into the ring. */
static void tie(struct conn *c) {
  conn_clear_flag(c, CONN_NO_ATTACH);
  conn_tied(c, BERTHA_CONN_MAYBE);
  conn_after_tied(c, pair.fd[1]);
  assert_true(conn_ripe(pair.conn[0], pair.fd[0]));
  assert_int_equal(put(&pair, 0, "x", 1, 0), 1);
}

static void tied_before_the_sleep(void **state) {
  (void)state;
  char byte = 0;
  pair_open(&pair, &rig, 0);
  atomic_store(&pair.conn[1]->info.kind, BERTHA_CONN_MAYBE);
  conn_set_flag(pair.conn[1], CONN_NO_ATTACH); /* no claim to be seen yet */
  in_between = tie;
  assert_int_equal(get(&pair, 1, &byte, 1, 0), 1);
  assert_int_equal(byte, 'x');
}

/* The same, and the client is gone before it has rung. */
static void tie_and_end(struct conn *c) {
  tie(c);
  recv(pair.fd[1], (char[8]){0}, 8, MSG_DONTWAIT); /* its bell, if it got that far */
  shutdown(pair.fd[0], SHUT_RDWR);
}

static void tied_and_ended(void **state) {
  (void)state;
  char byte = 0;
  pair_open(&pair, &rig, 0);
  atomic_store(&pair.conn[1]->info.kind, BERTHA_CONN_MAYBE);
  conn_set_flag(pair.conn[1], CONN_NO_ATTACH);
  in_between = tie_and_end;
  assert_int_equal(get(&pair, 1, &byte, 1, 0), 1);
  assert_int_equal(get(&pair, 1, &byte, 1, 0), 0);
}

/* A signal handler within a call on the same connection. */
static void own_lock_is_not_waited_for(void **state) {
  (void)state;
  char byte = 0;
  pair_tied(&pair, &rig, 0);
  assert_int_equal(put(&pair, 0, "x", 1, 0), 1);
  assert_true(bertha_lock(&pair.conn[1]->rx_lock) && bertha_lock(&pair.conn[0]->tx_lock));
  assert_int_equal(get(&pair, 1, &byte, 1, 0), -EAGAIN);
  assert_int_equal(put(&pair, 0, "y", 1, 0), -EAGAIN);
  bertha_unlock(&pair.conn[1]->rx_lock);
  bertha_unlock(&pair.conn[0]->tx_lock);
  assert_int_equal(get(&pair, 1, &byte, 1, 0), 1);
  assert_int_equal(byte, 'x');
}

/* "I am giving back" is said by this side, in memory that the other one writes as well. */
static void giving_that_nobody_does(void **state) {
  (void)state;
  char bytes[2];
  pair_tied(&pair, &rig, 0);
  assert_int_equal(put(&pair, 0, "x", 1, 0), 1);
  atomic_store(&pair.conn[0]->slot->dir[0].want_kernel, BERTHA_WANT_GIVING);
  atomic_store(&pair.conn[0]->slot->watch[1].kernel, 1); /* to be rung on the connection */
  assert_int_equal(put(&pair, 0, "y", 1, 0), 1);
  assert_int_equal(get(&pair, 1, bytes, 2, 0), 2);
}

/* The client sent by the kernel alone, has read the answer in the ring, and has closed; the bell of that answer came after
 * the close, and its socket answered with a reset. */
static void bell_after_the_end(void **state) {
  (void)state;
  char byte = 0;
  pair_open(&pair, &rig, 0);
  assert_int_equal(send(pair.fd[0], "q", 1, 0), 1);
  assert_int_equal(get(&pair, 1, &byte, 1, 0), 1);
  assert_int_equal(put(&pair, 1, "a", 1, 0), 1);
  assert_int_equal(get(&pair, 0, &byte, 1, 0), 1);
  assert_int_equal(pair.conn[1]->rx_phase, PHASE_BEFORE);
  atomic_store(&pair.conn[0]->slot->dir[0].closed, 1);
  struct linger now = {.l_onoff = 1};
  assert_return_code(setsockopt(pair.fd[0], SOL_SOCKET, SO_LINGER, &now, sizeof now), errno);
  int free_one = open("/dev/null", O_RDONLY | O_CLOEXEC);
  assert_int_equal(dup2(free_one, pair.fd[0]), pair.fd[0]);
  close(free_one);
  assert_int_equal(get(&pair, 1, &byte, 1, 0), 0);
  assert_int_equal(get(&pair, 1, &byte, 1, 0), 0);
}

/* It had not read the answer: that is a reset. */
static void reset_before_the_answer_was_read(void **state) {
  (void)state;
  char byte = 0;
  pair_open(&pair, &rig, 0);
  assert_int_equal(send(pair.fd[0], "q", 1, 0), 1);
  assert_int_equal(get(&pair, 1, &byte, 1, 0), 1);
  assert_int_equal(put(&pair, 1, "a", 1, 0), 1);
  atomic_store(&pair.conn[0]->slot->dir[0].closed, 1);
  struct linger now = {.l_onoff = 1};
  assert_return_code(setsockopt(pair.fd[0], SOL_SOCKET, SO_LINGER, &now, sizeof now), errno);
  int free_one = open("/dev/null", O_RDONLY | O_CLOEXEC);
  assert_int_equal(dup2(free_one, pair.fd[0]), pair.fd[0]);
  close(free_one);
  assert_int_equal(get(&pair, 1, &byte, 1, 0), -ECONNRESET);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(tied_before_the_sleep, set_up, tear_down),
      cmocka_unit_test_setup_teardown(tied_and_ended, set_up, tear_down),
      cmocka_unit_test_setup_teardown(own_lock_is_not_waited_for, set_up, tear_down),
      cmocka_unit_test_setup_teardown(giving_that_nobody_does, set_up, tear_down),
      cmocka_unit_test_setup_teardown(bell_after_the_end, set_up, tear_down),
      cmocka_unit_test_setup_teardown(reset_before_the_answer_was_read, set_up, tear_down),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
