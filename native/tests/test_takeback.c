/* A direction that leaves its ring while other threads ring, ask, or die: no bell is taken for data, nobody waits for ever. */
#include "rig.h"

#include <pthread.h>

#include <cmocka.h>

/* What another thread does just before a bell byte is sent. */
static void (*before_the_bell)(void);

static ssize_t send_after_that(int fd, const void *from, size_t n, int flags) {
  void (*what)(void) = before_the_bell;
  before_the_bell = NULL;
  if (what != NULL) {
    what();
  }
  return quiet_send(fd, from, n, flags);
}

#define quiet_send(fd, from, n, flags) send_after_that(fd, from, n, flags)
#include "../core/bell.c"
#undef quiet_send

/* What happens while a ring is given back, before a byte of it is in the kernel. */
static void (*while_it_gives)(void);

static ssize_t sendmsg_after_that(int fd, const struct msghdr *msg, int flags) {
  void (*what)(void) = while_it_gives;
  while_it_gives = NULL;
  if (what != NULL) {
    what();
  }
  return quiet_sendmsg(fd, msg, flags);
}

#define quiet_sendmsg(fd, msg, flags) sendmsg_after_that(fd, msg, flags)
#include "../core/takeback.c"
#undef quiet_sendmsg

enum { CLIENT = BERTHA_SIDE_CLIENT, SERVER = BERTHA_SIDE_SERVER, PATIENCE = 20, MOMENT_US = 30000 };
static struct rig rig;
static struct pair pair;

static int set_up(void **state) {
  (void)state;
  rig_open(&rig, 1, 1 << 16, 1 << 16);
  pair_tied(&pair, &rig, 0);
  alarm(PATIENCE); /* who waits for ever is ended */
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  alarm(0);
  pair_close(&pair);
  rig_close(&rig);
  return 0;
}

/* The direction never switched, because a thread was sending by the kernel when it was to leave its ring. */
static void leave_without_a_switch(void) {
  atomic_fetch_add(&pair.conn[SERVER]->kernel_sends, 1);
  conn_leave_ring(pair.conn[SERVER], BERTHA_WHY_KERNEL_ASKED);
  atomic_fetch_sub(&pair.conn[SERVER]->kernel_sends, 1);
}

static void no_bell_without_a_switch(void **state) {
  (void)state;
  char got[8];
  leave_without_a_switch();
  bell_on_connection(pair.conn[SERVER], pair.fd[SERVER]);
  assert_int_equal(put(&pair, SERVER, "abc", 3, 0), 3);
  assert_int_equal(get(&pair, CLIENT, got, 3, MSG_WAITALL), 3);
  assert_memory_equal(got, "abc", 3);
}

static void *writer(void *unused) {
  (void)unused;
  assert_int_equal(put(&pair, CLIENT, "abc", 3, 0), 3);
  return NULL;
}

static pthread_t writing;
static void write_meanwhile(void) {
  assert_int_equal(pthread_create(&writing, NULL, writer, NULL), 0);
  usleep(MOMENT_US);
}

static void no_bell_behind_what_comes_by_the_kernel(void **state) {
  (void)state;
  char got[8];
  assert_int_equal(put(&pair, CLIENT, "1", 1, 0), 1);
  assert_int_equal(get(&pair, SERVER, got, 1, 0), 1);
  atomic_store(&conn_tx(pair.conn[CLIENT])->want_kernel, BERTHA_WANT_KERNEL);
  before_the_bell = write_meanwhile;
  bell_on_connection(pair.conn[CLIENT], pair.fd[CLIENT]);
  assert_int_equal(pthread_join(writing, NULL), 0);
  assert_int_equal(put(&pair, CLIENT, "def", 3, 0), 3);
  assert_int_equal(get(&pair, SERVER, got, 6, MSG_WAITALL), 6);
  assert_memory_equal(got, "abcdef", 6);
}

/* ---- the other end's answer ---------------------------------------------------------------------- */

static bool took_back;
static void *taker(void *unused) {
  (void)unused;
  took_back = conn_take_back(pair.conn[CLIENT], pair.fd[CLIENT], BERTHA_WHY_PASSED_ON);
  return NULL;
}

static pthread_t begin_taking(void) {
  pthread_t thread;
  assert_int_equal(pthread_create(&thread, NULL, taker, NULL), 0);
  while (atomic_load(&conn_rx(pair.conn[CLIENT])->want_kernel) != BERTHA_WANT_ALL_BACK) {
    usleep(100);
  }
  return thread;
}

static void one_that_never_used_its_ring(void **state) {
  (void)state;
  leave_without_a_switch();
  pthread_t thread = begin_taking();
  conn_give_back(pair.conn[SERVER], pair.fd[SERVER]);
  assert_int_equal(pthread_join(thread, NULL), 0);
  assert_true(took_back);
}

static void one_that_has_left_its_ring(void **state) {
  (void)state;
  char got[8];
  assert_int_equal(put(&pair, SERVER, "abc", 3, 0), 3);
  conn_leave_ring(pair.conn[SERVER], BERTHA_WHY_KERNEL_ASKED);
  pthread_t thread = begin_taking();
  assert_int_equal(put(&pair, SERVER, "def", 3, 0), 3);
  assert_int_equal(pthread_join(thread, NULL), 0);
  assert_false(took_back); /* there is no place for the first bytes before the others */
  assert_int_equal(get(&pair, CLIENT, got, 6, MSG_WAITALL), 6);
  assert_memory_equal(got, "abcdef", 6);
}

static void another_thread_asks_for_less(void **state) {
  (void)state;
  char byte;
  assert_int_equal(put(&pair, SERVER, "1", 1, 0), 1);
  pthread_t thread = begin_taking();
  conn_leave_ring(pair.conn[CLIENT], BERTHA_WHY_KERNEL_ASKED);
  assert_int_equal(put(&pair, SERVER, "2", 1, 0), 1);
  assert_int_equal(pthread_join(thread, NULL), 0);
  assert_true(took_back);
  assert_int_equal(recv(pair.fd[CLIENT], &byte, 1, 0), 1);
  assert_int_equal(byte, '1');
}

static void one_that_is_killed_while_it_gives(void **state) {
  (void)state;
  char got[8];
  assert_int_equal(put(&pair, SERVER, "abc", 3, 0), 3);
  pthread_t thread = begin_taking();
  atomic_store(&conn_tx(pair.conn[SERVER])->want_kernel, BERTHA_WANT_GIVING);
  assert_int_equal(send(pair.fd[SERVER], "ab", 2, 0), 2);
  shutdown(pair.fd[SERVER], SHUT_RDWR);
  assert_int_equal(pthread_join(thread, NULL), 0);
  assert_true(took_back);
  assert_int_equal(recv(pair.fd[CLIENT], got, sizeof got, MSG_WAITALL), 2);
}

static char heard[8];
static void *reader(void *unused) {
  (void)unused;
  assert_int_equal(get(&pair, CLIENT, heard, 6, MSG_WAITALL), 6);
  return NULL;
}

static pthread_t reading;
static void read_meanwhile(void) {
  assert_int_equal(pthread_create(&reading, NULL, reader, NULL), 0);
  usleep(MOMENT_US);
}

static void one_that_asked_was_killed(void **state) {
  (void)state;
  assert_int_equal(put(&pair, SERVER, "abc", 3, 0), 3);
  atomic_store(&conn_rx(pair.conn[CLIENT])->want_kernel, BERTHA_WANT_ALL_BACK);
  while_it_gives = read_meanwhile;
  assert_int_equal(put(&pair, SERVER, "def", 3, 0), 3);
  assert_int_equal(pthread_join(reading, NULL), 0);
  assert_memory_equal(heard, "abcdef", 6);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(no_bell_without_a_switch, set_up, tear_down),
      cmocka_unit_test_setup_teardown(no_bell_behind_what_comes_by_the_kernel, set_up, tear_down),
      cmocka_unit_test_setup_teardown(one_that_never_used_its_ring, set_up, tear_down),
      cmocka_unit_test_setup_teardown(one_that_has_left_its_ring, set_up, tear_down),
      cmocka_unit_test_setup_teardown(another_thread_asks_for_less, set_up, tear_down),
      cmocka_unit_test_setup_teardown(one_that_is_killed_while_it_gives, set_up, tear_down),
      cmocka_unit_test_setup_teardown(one_that_asked_was_killed, set_up, tear_down),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
