/* msgpack from others: what is not there is nothing. */
#include "../carrier/pack.c"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

/* A map of one that a caller has left in the place where it reads. */
static struct pack_value left_over(void) {
  return (struct pack_value){.kind = PACK_MAP, .number = 1, .size = 2, .data = (const uint8_t *)"\xa1v"};
}

static void no_bytes_are_nil(void **state) {
  (void)state;
  struct pack_value value = left_over(), found;
  assert_int_equal(pack_read((const uint8_t *)"", 0, &value), 0);
  assert_int_equal(value.kind, PACK_NIL);
  assert_false(pack_get(&value, "v", &found));
}

static void half_a_value_is_none(void **state) {
  (void)state;
  const uint8_t text[] = {0x82, 0xa1, 'v', 0x01, 0xa1};
  for (size_t size = 0; size <= sizeof text; size++) {
    struct pack_value value = left_over();
    assert_int_equal(pack_read(text, size, &value), 0);
  }
}

static void a_real_is_a_float_64_alone(void **state) {
  (void)state;
  const uint8_t real[] = {0xcb, 0x3f, 0xf8, 0, 0, 0, 0, 0, 0};
  const uint8_t others[][11] = {{0xd7, 0xcb, 0x3f, 0xf8},
                                {0xc7, 8, 0xcb, 0x3f, 0xf8}}; /* of an extension's type */
  struct pack_value value;
  double number = 0;
  assert_int_equal(pack_read(real, sizeof real, &value), sizeof real);
  assert_true(pack_real(&value, &number) && number == 1.5);
  for (size_t i = 0; i < 2; i++) {
    assert_int_not_equal(pack_read(others[i], sizeof others[i], &value), 0);
    assert_false(pack_real(&value, &number));
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(no_bytes_are_nil),
                                     cmocka_unit_test(half_a_value_is_none),
                                     cmocka_unit_test(a_real_is_a_float_64_alone)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
