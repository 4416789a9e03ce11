/* A claim whose server has not come yet, and several threads: one spins (wait_claimed), and the other end does not ring
 * meanwhile; whoever goes to sleep in the kernel just then must not miss anything. */
#include "rig.h"

#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <time.h>

#include <cmocka.h>

/* What other threads do between a look at the counts and the word to the other end. */
static void (*_Atomic in_between)(void);

static void come_between(void) {
  void (*what)(void) = atomic_exchange(&in_between, NULL);
  if (what != NULL) {
    what();
  }
}

#pragma push_macro("atomic_compare_exchange_strong")
#undef atomic_compare_exchange_strong
#define atomic_compare_exchange_strong(at, seen, to)                                                         \
  (come_between(),                                                                                           \
   atomic_compare_exchange_strong_explicit(at, seen, to, memory_order_seq_cst, memory_order_seq_cst))
#include "../core/attach.c"
#pragma pop_macro("atomic_compare_exchange_strong")

/* And between a look at a connection and the count of who waits for it. */
static uint32_t sleep_after_that(struct conn *c) {
  come_between();
  return conn_kernel_sleep(c);
}
#define conn_kernel_sleep(c) sleep_after_that(c)
#include "../core/wait_fds.c"
#undef conn_kernel_sleep

#include "../core/eset_members.h"
static void count_after_that(struct eset *s, struct conn *c, int by) {
  come_between();
  eset_kernel_reg(s, c, by);
}
#define eset_kernel_reg(s, c, by) count_after_that(s, c, by)
#undef ESET_FDS
enum { HIGHEST = 300, ESET_FDS = HIGHEST }; /* as if that many were all: more take a privilege */
#include "../core/eset_ctl.c"
#undef eset_kernel_reg

enum { SPIN_MS = 400, PATIENCE_MS = 6000, SOON_MS = 3000 };
static struct rig rig;
static struct pair pair;
static int64_t spin_before;

static int set_up(void **state) {
  (void)state;
  rig_open(&rig, 4, 1 << 16, 1 << 16);
  spin_before = bertha.spin_ns;
  bertha.spin_ns = SPIN_MS * 1000000ll;
  atomic_store(&rig.link[0].sleepers[1][0].owner, 0xffffu); /* the server is on a processor of its own */
  pair_open(&pair, &rig, 0);
  atomic_store(&pair.conn[0]->slot->state, BERTHA_SLOT_WORD(1, BERTHA_SLOT_CLAIMED));
  alarm(20);
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  alarm(0);
  bertha.spin_ns = spin_before;
  pair_close(&pair);
  rig_close(&rig);
  return 0;
}

static _Atomic uint16_t *rung(void) {
  return &pair.conn[0]->slot->watch[0].kernel;
}

static void *reads_one_byte(void *to) {
  return (void *)(intptr_t)get(&pair, 0, to, 1, 0);
}

static void *polls(void *revents) {
  struct pollfd p = {.fd = pair.fd[0], .events = POLLIN};
  int64_t begin = bertha_now_ns();
  int n = wait_fds(&p, 1, PATIENCE_MS * 1000000ll, NULL);
  *(short *)revents = n == 1 ? p.revents : 0;
  return (void *)(intptr_t)((bertha_now_ns() - begin) / 1000000);
}

static _Atomic bool napping;
static void naps(int number) {
  (void)number;
  struct timespec t = {0, 200000000};
  atomic_store(&napping, true);
  clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL);
}

static void until_asleep(void) {
  while (atomic_load(&pair.conn[0]->kernel_waiters) == 0) {
    usleep(100);
  }
  usleep(50000); /* and in its system call */
}

static void server_answers(const char *text) {
  char byte;
  atomic_store(&pair.conn[0]->slot->state, BERTHA_SLOT_WORD(1, BERTHA_SLOT_ATTACHED));
  assert_true(conn_ripe(pair.conn[1], pair.fd[1]));
  assert_int_equal(get(&pair, 1, &byte, 1, 0), 1);
  assert_int_equal(put(&pair, 1, text, strlen(text), 0), strlen(text));
}

/* The one takes its part of the answer; the rest is for who polls. */
static void who_polls_beside_a_spin(void **state) {
  (void)state;
  char byte = 0;
  short revents = 0;
  void *result;
  pthread_t reader, poller;
  struct sigaction nap = {.sa_handler = naps, .sa_flags = SA_RESTART};
  assert_return_code(sigaction(SIGUSR1, &nap, NULL), errno);
  assert_int_equal(put(&pair, 0, "q", 1, 0), 1);
  assert_int_equal(conn_kind(pair.conn[0]), BERTHA_CONN_CLAIMED);
  assert_int_equal(pthread_create(&reader, NULL, reads_one_byte, &byte), 0);
  while (atomic_load(rung()) != 0) {
    usleep(100);
  }
  assert_int_equal(pthread_create(&poller, NULL, polls, &revents), 0);
  until_asleep();
  assert_int_equal(pthread_kill(reader, SIGUSR1), 0); /* the reader loses its processor for a while */
  while (!atomic_load(&napping)) {
    usleep(100);
  }
  server_answers("ab");
  assert_int_equal(pthread_join(reader, &result), 0);
  assert_int_equal((intptr_t)result, 1);
  assert_int_equal(byte, 'a');
  assert_int_equal(pthread_join(poller, &result), 0);
  assert_int_equal(revents, POLLIN);
  assert_in_range((intptr_t)result, 0, SOON_MS);
}

/* One is about to say that nobody is in the kernel, another one says so first, and then somebody comes. */
static void comes_and_goes(void) {
  conn_unwatch(pair.conn[0]);
  atomic_fetch_add(&pair.conn[0]->kernel_waiters, 1);
  conn_watch_kernel(pair.conn[0]);
}

static void who_comes_after_another_went(void **state) {
  (void)state;
  atomic_store(&pair.conn[0]->slot->state, BERTHA_SLOT_WORD(1, BERTHA_SLOT_ATTACHED));
  assert_true(conn_ripe(pair.conn[0], pair.fd[0]));
  conn_watch_kernel(pair.conn[0]);
  in_between = comes_and_goes;
  conn_refresh_watch(pair.conn[0]);
  assert_null(in_between);
  assert_int_not_equal(atomic_load(rung()), 0);
}

/* The server has answered before it could see that somebody sleeps in the kernel now. */
static void answered_before_the_sleep(void **state) {
  (void)state;
  char byte = 0;
  assert_int_equal(put(&pair, 0, "q", 1, 0), 1);
  conn_unwatch(pair.conn[0]); /* another thread, which spins */
  server_answers("x");
  struct iovec iov = {&byte, 1};
  assert_int_equal(recv_kernel_part(pair.conn[0], pair.fd[0], &iov, 1, 0), -EINPROGRESS);
  assert_int_equal(get(&pair, 0, &byte, 1, 0), 1);
  assert_int_equal(byte, 'x');
}

static void server_says_x(void) {
  server_answers("x");
}

static void answered_before_the_poll(void **state) {
  (void)state;
  assert_int_equal(put(&pair, 0, "q", 1, 0), 1);
  conn_unwatch(pair.conn[0]); /* another thread, which spins */
  in_between = server_says_x;
  short revents = 0;
  intptr_t took = (intptr_t)polls(&revents);
  assert_null(in_between);
  assert_int_equal(revents, POLLIN);
  assert_in_range(took, 0, SOON_MS);
}

static void *waits_in_the_set(void *epfd) {
  struct epoll_event e = {0};
  int64_t begin = bertha_now_ns();
  int n = eset_wait(eset_of(*(int *)epfd), &e, 1, PATIENCE_MS * 1000000ll, NULL);
  return (void *)(n == 1 && e.data.u64 == 5 ? (intptr_t)((bertha_now_ns() - begin) / 1000000) : -1);
}

/* The other thread sleeps in the set already. */
static void answered_before_it_is_in_the_set(void **state) {
  (void)state;
  struct pair other;
  pair_tied(&other, &rig, 1); /* by which the set is one of ours */
  int epfd = epoll_create1(EPOLL_CLOEXEC);
  struct epoll_event e = {.events = EPOLLIN, .data.u64 = 4};
  assert_int_equal(eset_ctl(epfd, EPOLL_CTL_ADD, other.fd[0], &e), 0);
  assert_non_null(eset_of(epfd));
  pthread_t waiter;
  void *result;
  assert_int_equal(pthread_create(&waiter, NULL, waits_in_the_set, &epfd), 0);
  usleep(100000);
  assert_int_equal(put(&pair, 0, "q", 1, 0), 1);
  conn_unwatch(pair.conn[0]); /* a third one, which spins */
  in_between = server_says_x;
  e = (struct epoll_event){.events = EPOLLIN, .data.u64 = 5};
  assert_int_equal(eset_ctl(epfd, EPOLL_CTL_ADD, pair.fd[0], &e), 0);
  assert_null(in_between);
  assert_int_equal(pthread_join(waiter, &result), 0);
  assert_in_range((intptr_t)result, 0, SOON_MS);
  pair_close(&other);
  close(epfd);
}

/* One whose number is too high for our sets, registered before the claim was seen. */
static void a_high_number_in_a_set(void **state) {
  (void)state;
  int high = HIGHEST + 50;
  assert_int_equal(dup2(pair.fd[1], high), high);
  conn_forget(pair.fd[1]);
  close(pair.fd[1]);
  pair.fd[1] = high;
  struct conn *c = pair.conn[1];
  conn_track(high, c);
  atomic_store(&c->info.refs, 1);
  atomic_store(&c->info.kind, BERTHA_CONN_MAYBE);
  conn_set_flag(c, CONN_NO_ATTACH); /* no claim to be seen yet */
  int epfd = epoll_create1(EPOLL_CLOEXEC);
  struct epoll_event e = {.events = EPOLLIN}, got;
  assert_int_equal(eset_ctl(epfd, EPOLL_CTL_ADD, high, &e), 0);
  conn_clear_flag(c, CONN_NO_ATTACH);
  conn_tied(c, BERTHA_CONN_MAYBE);
  conn_after_tied(c, high);
  atomic_store(&pair.conn[0]->slot->state, BERTHA_SLOT_WORD(1, BERTHA_SLOT_ATTACHED));
  assert_true(conn_ripe(pair.conn[0], pair.fd[0]));
  assert_int_equal(put(&pair, 0, "x", 1, 0), 1);
  assert_int_equal(epoll_wait(epfd, &got, 1, SOON_MS), 1);
  close(epfd);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(who_polls_beside_a_spin, set_up, tear_down),
      cmocka_unit_test_setup_teardown(who_comes_after_another_went, set_up, tear_down),
      cmocka_unit_test_setup_teardown(answered_before_the_sleep, set_up, tear_down),
      cmocka_unit_test_setup_teardown(answered_before_the_poll, set_up, tear_down),
      cmocka_unit_test_setup_teardown(answered_before_it_is_in_the_set, set_up, tear_down),
      cmocka_unit_test_setup_teardown(a_high_number_in_a_set, set_up, tear_down),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
