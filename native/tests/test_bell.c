/* Wake-ups: the byte on the kernel's connection, the map of changes, sleepers that are rung. */
#include "rig.h"

#include <pthread.h>

#include <cmocka.h>

enum { RING = 4096, CLIENT = BERTHA_SIDE_CLIENT, SERVER = BERTHA_SIDE_SERVER };

static void at_most_one_byte_is_out(void **state) {
  (void)state;
  struct rig r;
  struct pair p;
  char got[64];
  rig_open(&r, 1, RING, 0);
  pair_tied(&p, &r, 0);
  atomic_store(&p.conn[SERVER]->slot->watch[SERVER].kernel, 1);
  for (int i = 0; i < 5; i++) {
    assert_int_equal(put(&p, CLIENT, "x", 1, 0), 1);
  }
  assert_int_equal(kernel_queue_wait(p.fd[SERVER]), 1);
  assert_int_equal(get(&p, SERVER, got, 3, 0), 3);
  assert_int_equal(kernel_queue(p.fd[SERVER]),
                   1); /* the ring still holds data: it stays readable for everybody */
  assert_int_equal(get(&p, SERVER, got, 64, 0), 2);
  assert_int_equal(kernel_queue(p.fd[SERVER]), 0);
  assert_int_equal(atomic_load(&conn_tx(p.conn[CLIENT])->bells), 1);
  pair_close(&p);
  rig_close(&r);
}

static void nobody_in_the_kernel_costs_no_byte(void **state) {
  (void)state;
  struct rig r;
  struct pair p;
  char got[64];
  rig_open(&r, 1, RING, 0);
  pair_tied(&p, &r, 0);
  for (int i = 0; i < 20; i++) {
    assert_int_equal(put(&p, CLIENT, "x", 1, 0), 1);
    assert_int_equal(get(&p, SERVER, got, 64, 0), 1);
  }
  assert_int_equal(atomic_load(&conn_tx(p.conn[CLIENT])->bells), 0);
  pair_close(&p);
  rig_close(&r);
}

/* Readable by the kernel's word whenever the ring holds data, and not when it does not: after each step. */
static void the_kernel_says_what_the_ring_holds(void **state) {
  (void)state;
  struct rig r;
  struct pair p;
  uint64_t random = 99;
  size_t there = 0;
  char data[512] = {0};
  rig_open(&r, 1, RING, 0);
  pair_tied(&p, &r, 0);
  atomic_store(&p.conn[SERVER]->slot->watch[SERVER].kernel, 1);
  for (int i = 0; i < 2000; i++) {
    size_t n = rig_random(&random) % 400 + 1;
    if (rig_random(&random) & 1) {
      ssize_t k = put(&p, CLIENT, data, n, MSG_DONTWAIT);
      there += k > 0 ? (size_t)k : 0;
    } else {
      ssize_t k = get(&p, SERVER, data, n, MSG_DONTWAIT);
      there -= k > 0 ? (size_t)k : 0;
    }
    struct pollfd at = {.fd = p.fd[SERVER], .events = POLLIN};
    assert_int_equal(poll(&at, 1, there > 0 ? 2000 : 0), there > 0);
  }
  pair_close(&p);
  rig_close(&r);
}

static void a_change_is_marked(void **state) {
  (void)state;
  struct rig r;
  struct pair p;
  rig_open(&r, 70, RING, 0);
  pair_tied(&p, &r, 67);
  assert_int_equal(put(&p, CLIENT, "x", 1, 0), 1);
  assert_true(atomic_load(&r.link[1].dirty[SERVER][1]) == 1u << 3);
  assert_true(atomic_load(&r.link[1].dirty[CLIENT][1]) == 0);
  pair_close(&p);
  rig_close(&r);
}

/* Without an agent there are no eventfds: an armed sleeper is rung by the byte, one that is awake is not. */
static void only_who_sleeps_is_rung(void **state) {
  (void)state;
  struct rig r;
  struct pair p;
  rig_open(&r, 1, RING, 0);
  pair_tied(&p, &r, 0);
  uint32_t index = sleeper_take(&r.link[SERVER], 0);
  struct bertha_sleeper *s = &r.link[SERVER].sleepers[SERVER][index];
  atomic_store(&p.conn[SERVER]->slot->watch[SERVER].rx, (uint16_t)index);
  assert_int_equal(put(&p, CLIENT, "x", 1, 0), 1);
  assert_int_equal(kernel_queue(p.fd[SERVER]), 0);
  sleeper_arm(s);
  assert_int_equal(put(&p, CLIENT, "x", 1, 0), 1);
  assert_int_equal(kernel_queue_wait(p.fd[SERVER]), 1);
  assert_int_equal(atomic_load(&s->armed), 0);
  pair_close(&p);
  rig_close(&r);
}

/* ---- two threads, every way to wait --------------------------------------------------------------- */

struct talk {
  struct pair *pair;
  size_t total;
  bool by_poll;
};

static void *write_all(void *arg) {
  struct talk *t = arg;
  uint64_t random = 5;
  uint8_t data[3000];
  for (size_t at = 0; at < t->total;) {
    size_t n = rig_random(&random) % sizeof data + 1;
    n = n < t->total - at ? n : t->total - at;
    for (size_t i = 0; i < n; i++) {
      data[i] = (uint8_t)((at + i) * 167 >> 3);
    }
    ssize_t k = put(t->pair, CLIENT, data, n, 0);
    if (k <= 0) {
      return (void *)1;
    }
    at += (size_t)k;
  }
  return NULL;
}

static void *read_all(void *arg) {
  struct talk *t = arg;
  uint64_t random = 6;
  uint8_t data[2000];
  for (size_t at = 0; at < t->total;) {
    if (t->by_poll) {
      struct pollfd p = {.fd = t->pair->fd[SERVER], .events = POLLIN};
      if (wait_fds(&p, 1, 10 * (int64_t)1000000000, NULL) != 1 || !(p.revents & POLLIN)) {
        return (void *)2;
      }
    }
    ssize_t n = get(t->pair, SERVER, data, rig_random(&random) % sizeof data + 1, 0);
    if (n <= 0) {
      return (void *)3;
    }
    for (ssize_t i = 0; i < n; i++) {
      if (data[i] != (uint8_t)((at + (size_t)i) * 167 >> 3)) {
        return (void *)4;
      }
    }
    at += (size_t)n;
  }
  return NULL;
}

static void nobody_sleeps_over_anything(void **state) {
  (void)state;
  for (int way = 0; way < 4; way++) {
    struct rig r;
    struct pair p;
    rig_open(&r, 1, RING, way & 1 ? 512 : 0);
    pair_tied(&p, &r, 0);
    struct talk t = {&p, (size_t)1 << 19, way & 2};
    pthread_t threads[2];
    void *wrong[2];
    assert_int_equal(pthread_create(&threads[0], NULL, write_all, &t), 0);
    assert_int_equal(pthread_create(&threads[1], NULL, read_all, &t), 0);
    pthread_join(threads[0], &wrong[0]);
    pthread_join(threads[1], &wrong[1]);
    assert_null(wrong[0]);
    assert_null(wrong[1]);
    pair_close(&p);
    rig_close(&r);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(at_most_one_byte_is_out),
      cmocka_unit_test(nobody_in_the_kernel_costs_no_byte),
      cmocka_unit_test(the_kernel_says_what_the_ring_holds),
      cmocka_unit_test(a_change_is_marked),
      cmocka_unit_test(only_who_sleeps_is_rung),
      cmocka_unit_test(nobody_sleeps_over_anything),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
