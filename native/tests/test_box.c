/* Boxes of datagrams: order, taking back, and a consumer that sleeps. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../core/box.h"

static struct box *fresh(void) {
  struct box *b = calloc(1, sizeof *b);
  assert_non_null(b);
  box_init(b);
  return b;
}

static bool put(struct box *b, uint32_t *tail, uint32_t value, size_t size) {
  uint8_t data[BOX_ROOM + 1];
  memset(data, 0, sizeof data);
  memcpy(data, &value, sizeof value);
  struct iovec iov = {data, size};
  return box_put(b, tail, &iov, 1, size, (struct box_mark){NULL, 0});
}

static int take(struct box *b, uint32_t *head, uint32_t *value, bool peek) {
  uint8_t data[BOX_ROOM];
  struct iovec iov = {data, sizeof data};
  int n = box_take(b, head, &iov, 1, peek);
  if (n >= 4) {
    memcpy(value, data, 4);
  }
  return n;
}

static void in_order(void **state) {
  (void)state;
  struct box *b = fresh();
  uint32_t head = 0, tail = 0, value = 0;
  atomic_store(&b->awake, 1);
  for (uint32_t i = 0; i < 1000; i++) {
    assert_true(put(b, &tail, i, 4 + i % 2000));
    assert_true(box_unread(b, tail));
    assert_int_equal(take(b, &head, &value, true), 4 + i % 2000);
    assert_int_equal(take(b, &head, &value, false), 4 + i % 2000);
    assert_int_equal(value, i);
    assert_int_equal(take(b, &head, &value, false), -1);
    assert_false(box_unread(b, tail));
  }
  free(b);
}

static void full_and_too_large(void **state) {
  (void)state;
  struct box *b = fresh();
  uint32_t head = 0, tail = 0, value = 0;
  atomic_store(&b->awake, 1);
  assert_false(put(b, &tail, 0, BOX_ROOM + 1));
  for (uint32_t i = 0; i < BOX_ITEMS; i++) {
    assert_true(put(b, &tail, i, BOX_ROOM));
  }
  assert_false(put(b, &tail, 0, 4));
  assert_int_equal(take(b, &head, &value, false), BOX_ROOM);
  assert_true(put(b, &tail, 64, 4));
  free(b);
}

/* What the consumer's program has been told of stays, and what comes after it does not. */
static void held(void **state) {
  (void)state;
  struct box *b = fresh();
  const uint8_t *data;
  uint32_t head = 0, tail = 0, value = 0;
  atomic_store(&b->awake, 1);
  assert_false(box_hold(b, head));
  for (uint32_t i = 0; i < 3; i++) {
    assert_true(put(b, &tail, i, 10));
  }
  assert_true(box_hold(b, head));
  assert_true(box_hold(b, head));
  assert_true(box_ready(b, head));
  assert_int_equal(box_take_back(b, &tail, &data), 10);
  assert_int_equal(box_take_back(b, &tail, &data), 10);
  assert_int_equal(box_take_back(b, &tail, &data), -1);
  assert_false(box_unread(b, tail));
  atomic_store(&b->awake, 0);
  assert_false(put(b, &tail, 1, 10)); /* the kernel carries it, behind the one that is held */
  assert_int_equal(take(b, &head, &value, false), 10);
  assert_int_equal(value, 0);
  atomic_store(&b->awake, 1);
  assert_true(put(b, &tail, 7, 10));
  assert_int_equal(take(b, &head, &value, true), 10); /* looked at, it is held as well */
  assert_int_equal(box_take_back(b, &tail, &data), -1);
  box_let_go(b, head);
  assert_true(box_ready(b, head));
  assert_int_equal(box_take_back(b, &tail, &data), 10);
  assert_false(box_hold(b, head));
  free(b);
}

static void taken_back(void **state) {
  (void)state;
  struct box *b = fresh();
  const uint8_t *data;
  uint32_t head = 0, tail = 0, value = 0;
  atomic_store(&b->awake, 1);
  for (uint32_t i = 0; i < 5; i++) {
    assert_true(put(b, &tail, i, 10));
  }
  assert_int_equal(take(b, &head, &value, false), 10);
  for (uint32_t i = 5; i-- > 1;) { /* the newest first */
    assert_int_equal(box_take_back(b, &tail, &data), 10);
    memcpy(&value, data, 4);
    assert_int_equal(value, i);
  }
  assert_int_equal(box_take_back(b, &tail, &data), -1);
  assert_true(put(b, &tail, 9, 10));
  assert_int_equal(take(b, &head, &value, false), 10);
  assert_int_equal(value, 9);
  free(b);
}

static void asleep(void **state) {
  (void)state;
  struct box *b = fresh();
  uint32_t head = 0, tail = 0, value = 0;
  assert_false(box_open(b));
  assert_false(put(b, &tail, 1, 4)); /* taken back at once */
  assert_false(box_ready(b, head));
  atomic_store(&b->awake, 1);
  assert_true(box_open(b));
  assert_true(put(b, &tail, 2, 4));
  atomic_store(&b->awake, 0);
  assert_true(put(b, &tail, 3, 4)); /* it has an older one to come back for */
  assert_int_equal(take(b, &head, &value, false), 4);
  assert_int_equal(take(b, &head, &value, false), 4);
  assert_int_equal(value, 3);
  assert_false(put(b, &tail, 4, 4));
  atomic_store(&b->awake, 1);
  atomic_store(&b->begun, 1); /* one by the kernel that is not taken */
  assert_false(box_open(b));
  atomic_store(&b->taken, 1);
  assert_true(box_open(b));
  free(b);
}

static void hostile(void **state) {
  (void)state;
  struct box *b = fresh();
  uint32_t head = 0, tail = 0, value = 0;
  atomic_store(&b->awake, 1);
  assert_true(put(b, &tail, 1, 4));
  b->item[0].size = UINT32_MAX;
  assert_int_equal(take(b, &head, &value, false), BOX_ROOM);
  free(b);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(in_order),   cmocka_unit_test(full_and_too_large),
                                     cmocka_unit_test(taken_back), cmocka_unit_test(held),
                                     cmocka_unit_test(asleep),     cmocka_unit_test(hostile)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
