/* Bytes through a ring: order, wrap-around, growth, the switches at either end, and headers that lie. */
#include "rig.h"

#include <cmocka.h>

enum { RING = 4096, CLIENT = BERTHA_SIDE_CLIENT, SERVER = BERTHA_SIDE_SERVER };

static void fill(uint8_t *to, size_t n, uint64_t at) {
  for (size_t i = 0; i < n; i++) {
    to[i] = (uint8_t)((at + i) * 2654435761u >> 13);
  }
}

static void bytes_arrive_in_order(void **state) {
  (void)state;
  struct rig r;
  struct pair p;
  char buf[64];
  rig_open(&r, 2, RING, 0);
  pair_tied(&p, &r, 1);
  assert_int_equal(get(&p, SERVER, buf, sizeof buf, MSG_DONTWAIT), -EAGAIN);
  assert_int_equal(put(&p, CLIENT, "hello ", 6, 0), 6);
  assert_int_equal(put(&p, CLIENT, "world", 5, 0), 5);
  assert_int_equal(get(&p, SERVER, buf, 3, MSG_PEEK), 3);
  assert_int_equal(get(&p, SERVER, buf, sizeof buf, 0), 11);
  assert_memory_equal(buf, "hello world", 11);
  assert_int_equal(put(&p, SERVER, "back", 4, 0), 4);
  assert_int_equal(get(&p, CLIENT, buf, sizeof buf, 0), 4);
  assert_memory_equal(buf, "back", 4);
  pair_close(&p);
  rig_close(&r);
}

static void a_full_ring_takes_no_more(void **state) {
  (void)state;
  struct rig r;
  struct pair p;
  static uint8_t data[3 * RING], got[3 * RING];
  rig_open(&r, 1, RING, 0);
  pair_tied(&p, &r, 0);
  fill(data, sizeof data, 0);
  assert_int_equal(put(&p, CLIENT, data, sizeof data, MSG_DONTWAIT), RING);
  assert_int_equal(put(&p, CLIENT, data, 1, MSG_DONTWAIT), -EAGAIN);
  assert_int_equal(conn_events(p.conn[CLIENT], p.fd[CLIENT], POLLOUT), 0);
  assert_int_equal(get(&p, SERVER, got, RING / 2, 0), RING / 2);
  assert_int_equal(conn_events(p.conn[CLIENT], p.fd[CLIENT], POLLOUT), POLLOUT);
  assert_int_equal(put(&p, CLIENT, data + RING, sizeof data - RING, MSG_DONTWAIT), RING / 2);
  assert_int_equal(get(&p, SERVER, got + RING / 2, sizeof got, 0), RING);
  assert_memory_equal(got, data, 3 * RING / 2);
  pair_close(&p);
  rig_close(&r);
}

/* Every small size, over every offset that it can have in the ring. */
static void wraps_at_any_offset(void **state) {
  (void)state;
  struct rig r;
  struct pair p;
  uint8_t data[300], got[300];
  uint64_t at = 0;
  rig_open(&r, 1, RING, 0);
  pair_tied(&p, &r, 0);
  fill(data, 1, 0);
  assert_int_equal(put(&p, CLIENT, data, 1, 0), 1); /* never empty: the ring may not start over */
  for (int turn = 0; turn < 3000; turn++) {
    size_t n = (size_t)turn % 299 + 1;
    fill(data, n, at + 1);
    assert_int_equal(put(&p, CLIENT, data, n, MSG_DONTWAIT), n);
    fill(data, n, at);
    assert_int_equal(get(&p, SERVER, got, n, MSG_DONTWAIT), n);
    assert_memory_equal(got, data, n);
    at += n;
  }
  assert_true(at > 50 * RING);
  pair_close(&p);
  rig_close(&r);
}

static void an_empty_ring_starts_over_and_grows(void **state) {
  (void)state;
  struct rig r;
  struct pair p;
  enum { MAX = 1 << 20 };
  static uint8_t data[2 * MAX], got[2 * MAX];
  rig_open(&r, 1, MAX, 0);
  pair_tied(&p, &r, 0);
  struct conn *c = p.conn[CLIENT];
  uint32_t first = c->tx_size;
  for (int i = 0; i < 10; i++) {
    assert_int_equal(put(&p, CLIENT, "0123456789", 10, 0), 10);
    assert_memory_equal(c->tx_mem, "0123456789", 10); /* the same bytes of memory each time */
    assert_int_equal(get(&p, SERVER, got, 64, 0), 10);
  }
  assert_int_equal(c->tx_size, first);
  fill(data, sizeof data, 5);
  size_t sent = 0;
  size_t had = 0;
  while (had < sizeof data) {
    ssize_t n = put(&p, CLIENT, data + sent, sizeof data - sent, MSG_DONTWAIT);
    if (n > 0) {
      sent += (size_t)n;
    }
    n = get(&p, SERVER, got + had, sizeof got - had, MSG_DONTWAIT);
    assert_true(n > 0);
    had += (size_t)n;
  }
  assert_memory_equal(got, data, sizeof data);
  assert_true(c->tx_size > first);
  assert_int_equal(c->tx_size, MAX);
  pair_close(&p);
  rig_close(&r);
}

static void a_policy_bounds_the_ring(void **state) {
  (void)state;
  struct rig r;
  struct pair p;
  static uint8_t data[1 << 16];
  rig_open(&r, 1, 1 << 16, 1024);
  pair_tied(&p, &r, 0);
  assert_int_equal(put(&p, CLIENT, data, sizeof data, MSG_DONTWAIT), 1024);
  assert_int_equal(get(&p, SERVER, data, sizeof data, MSG_DONTWAIT), 1024);
  assert_int_equal(put(&p, CLIENT, data, sizeof data, MSG_DONTWAIT), 1024);
  pair_close(&p);
  rig_close(&r);
}

/* What was given to the kernel before the tie was seen is read first, to the byte. */
static void switches_at_an_exact_byte(void **state) {
  (void)state;
  struct rig r;
  struct pair p;
  char got[64] = {0};
  rig_open(&r, 1, RING, 0);
  pair_open(&p, &r, 0);
  atomic_store(&p.conn[CLIENT]->slot->state, BERTHA_SLOT_WORD(1, BERTHA_SLOT_CLAIMED));
  assert_int_equal(put(&p, CLIENT, "kernel ", 7, 0), 7);
  assert_int_equal(kernel_queue_wait(p.fd[SERVER]), 7);
  atomic_store(&p.conn[CLIENT]->slot->state, BERTHA_SLOT_WORD(1, BERTHA_SLOT_ATTACHED));
  assert_true(conn_ripe(p.conn[SERVER], p.fd[SERVER]));
  assert_int_equal(put(&p, CLIENT, "ring", 4, 0), 4);
  assert_int_equal(atomic_load(&conn_tx(p.conn[CLIENT])->switch_at), 7);
  assert_int_equal(get(&p, SERVER, got, 3, 0), 3);
  assert_int_equal(get(&p, SERVER, got + 3, 8, MSG_WAITALL), 8);
  assert_memory_equal(got, "kernel ring", 11);
  assert_int_equal(get(&p, SERVER, got, 1, MSG_DONTWAIT), -EAGAIN);
  assert_int_equal(kernel_queue(p.fd[SERVER]), 0); /* the bell byte has been taken off */
  pair_close(&p);
  rig_close(&r);
}

/* And back again, with bell bytes between. */
static void goes_back_to_the_kernel_for_good(void **state) {
  (void)state;
  struct rig r;
  struct pair p;
  char got[64] = {0};
  rig_open(&r, 1, RING, 0);
  pair_tied(&p, &r, 0);
  atomic_store(&p.conn[SERVER]->slot->watch[SERVER].kernel, 1); /* so that a bell byte is sent */
  assert_int_equal(put(&p, CLIENT, "ring ", 5, 0), 5);
  assert_int_equal(kernel_queue_wait(p.fd[SERVER]), 1);
  conn_leave_ring(p.conn[CLIENT], BERTHA_WHY_KERNEL_ASKED);
  assert_int_equal(put(&p, CLIENT, "kernel", 6, 0), 6);
  assert_int_equal(get(&p, SERVER, got, 11, MSG_WAITALL), 11);
  assert_memory_equal(got, "ring kernel", 11);
  assert_int_equal(p.conn[SERVER]->rx_phase, PHASE_AFTER);
  assert_int_equal(put(&p, SERVER, "answer", 6, 0), 6); /* asked back by want_kernel */
  assert_int_equal(get(&p, CLIENT, got, 6, MSG_WAITALL), 6);
  assert_memory_equal(got, "answer", 6);
  assert_int_equal(p.conn[SERVER]->tx_phase, PHASE_AFTER);
  pair_close(&p);
  rig_close(&r);
}

static void the_end_comes_after_the_last_byte(void **state) {
  (void)state;
  struct rig r;
  struct pair p;
  char got[8];
  rig_open(&r, 1, RING, 0);
  pair_tied(&p, &r, 0);
  assert_int_equal(put(&p, CLIENT, "last", 4, 0), 4);
  shutdown(p.fd[CLIENT], SHUT_WR);
  assert_int_equal(get(&p, SERVER, got, 8, MSG_WAITALL), 4);
  assert_int_equal(get(&p, SERVER, got, 8, 0), 0);
  assert_true(conn_events(p.conn[SERVER], p.fd[SERVER], POLLIN | POLLRDHUP) & POLLRDHUP);
  pair_close(&p);
  rig_close(&r);
}

/* A random conversation against what a stream has to be. */
static void random_conversation(void **state) {
  (void)state;
  static uint8_t data[1 << 17], expected[1 << 17];
  for (uint64_t seed = 1; seed <= 12; seed++) {
    struct rig r;
    struct pair p;
    uint64_t random = seed * 0x9e3779b97f4a7c15u;
    uint64_t written[2] = {0, 0};
    uint64_t read_at[2] = {0, 0};
    rig_open(&r, 4, seed % 2 ? RING : 1 << 16, seed % 3 ? 0 : 2048);
    pair_tied(&p, &r, (uint32_t)seed % 4);
    for (int step = 0; step < 2000; step++) {
      int side = (int)(rig_random(&random) & 1);
      size_t n = (size_t)(rig_random(&random) % (rig_random(&random) % 8 ? 200 : sizeof data)) + 1;
      if (rig_random(&random) & 1) {
        fill(data, n, written[side] * 3 + (uint64_t)side);
        for (size_t i = 0; i < n; i++) {
          data[i] = (uint8_t)((written[side] + i) * 31 + (uint64_t)side);
        }
        ssize_t k = put(&p, side, data, n, MSG_DONTWAIT);
        assert_true(k > 0 || k == -EAGAIN);
        written[side] += k > 0 ? (uint64_t)k : 0;
        continue;
      }
      bool peek = rig_random(&random) % 4 == 0;
      ssize_t k = get(&p, side, data, n, MSG_DONTWAIT | (peek ? MSG_PEEK : 0));
      uint64_t there = written[1 - side] - read_at[side];
      assert_int_equal(k, there == 0 ? -EAGAIN : (ssize_t)(n < there ? n : there));
      for (ssize_t i = 0; i < k; i++) {
        expected[i] = (uint8_t)((read_at[side] + (uint64_t)i) * 31 + (uint64_t)(1 - side));
      }
      if (k > 0) {
        assert_memory_equal(data, expected, k);
        read_at[side] += peek ? 0 : (uint64_t)k;
      }
    }
    pair_close(&p);
    rig_close(&r);
  }
}

/* ---- the other side lies ------------------------------------------------------------------------- */

struct lie {
  uint64_t tail;
  uint64_t base;
  uint32_t size;
  bool broken; /* must be found out: what passes for a ring is read, whatever is in it */
};

static void a_lying_producer_is_found_out(void **state) {
  (void)state;
  static const struct lie lies[] = {
      {10, 0, 0, true},        {10, 0, 3, true},          {10, 0, RING * 2, true},
      {10, 0, 1u << 31, true}, {RING + 1, 0, RING, true}, {UINT64_MAX, 0, RING, true},
      {100, 0, 64, true},      {10, 5, RING, false},      {10, UINT64_MAX - 3, RING, false},
      {64, 1, 64, false},      {RING, 77, RING, false},   {1, 0, 1, false},
  };
  for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
    struct rig r;
    struct pair p;
    uint8_t got[2 * RING];
    rig_open(&r, 1, RING, 0);
    memset((uint8_t *)r.header + r.link[0].ring_offset, 'x', 2 * RING);
    pair_tied(&p, &r, 0);
    struct bertha_direction *d = conn_tx(p.conn[CLIENT]);
    atomic_store(&d->switch_at, 0);
    atomic_store(&d->size, lies[i].size);
    atomic_store(&d->base, lies[i].base);
    atomic_store(&d->tail, lies[i].tail);
    ssize_t n = get(&p, SERVER, got, sizeof got, MSG_DONTWAIT);
    if (lies[i].broken) {
      assert_int_equal(n, -ECONNRESET);
    } else {
      assert_int_equal(n, lies[i].tail);
    }
    conn_events(p.conn[SERVER], p.fd[SERVER], POLLIN | POLLOUT | POLLRDHUP);
    assert_true(conn_readable_bytes(p.conn[SERVER]) <= RING);
    pair_close(&p);
    rig_close(&r);
  }
}

static void a_lying_consumer_is_found_out(void **state) {
  (void)state;
  static const uint64_t heads[] = {1000, (uint64_t)1 << 63, 11};
  static uint8_t data[2 * RING];
  for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
    struct rig r;
    struct pair p;
    rig_open(&r, 1, RING, 0);
    pair_tied(&p, &r, 0);
    assert_int_equal(put(&p, CLIENT, data, 10, MSG_DONTWAIT), 10);
    atomic_store(&conn_tx(p.conn[CLIENT])->head, heads[i]); /* more than was ever written */
    assert_int_equal(put(&p, CLIENT, data, sizeof data, MSG_DONTWAIT), -ECONNRESET);
    pair_close(&p);
    rig_close(&r);
  }
}

static void sleepers_that_do_not_exist_are_not_rung(void **state) {
  (void)state;
  struct rig r;
  struct pair p;
  char got[8];
  rig_open(&r, 1, RING, 0);
  pair_tied(&p, &r, 0);
  for (int side = 0; side < 2; side++) {
    struct bertha_watch *w = &p.conn[0]->slot->watch[side];
    atomic_store(&w->epoll, 65535);
    atomic_store(&w->rx, BERTHA_SLEEPERS);
    atomic_store(&w->tx, 40000);
  }
  assert_int_equal(put(&p, CLIENT, "x", 1, 0), 1);
  assert_int_equal(get(&p, SERVER, got, 8, 0), 1);
  p.conn[SERVER]->rcv_timeout_ns = 3000000;
  assert_int_equal(get(&p, SERVER, got, 8, 0), -EAGAIN); /* sleeps where the numbers lie */
  pair_close(&p);
  rig_close(&r);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(bytes_arrive_in_order),
      cmocka_unit_test(a_full_ring_takes_no_more),
      cmocka_unit_test(wraps_at_any_offset),
      cmocka_unit_test(an_empty_ring_starts_over_and_grows),
      cmocka_unit_test(a_policy_bounds_the_ring),
      cmocka_unit_test(switches_at_an_exact_byte),
      cmocka_unit_test(goes_back_to_the_kernel_for_good),
      cmocka_unit_test(the_end_comes_after_the_last_byte),
      cmocka_unit_test(random_conversation),
      cmocka_unit_test(a_lying_producer_is_found_out),
      cmocka_unit_test(a_lying_consumer_is_found_out),
      cmocka_unit_test(sleepers_that_do_not_exist_are_not_rung),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
