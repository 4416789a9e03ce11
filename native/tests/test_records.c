/* TLS 1.3's records between two ends that have the same secrets: what is sealed is opened, in order and whole, or not at all. */
#include "../core/records.c"

#include <setjmp.h>
#include <stdarg.h>

#include <stdio.h>

#include <cmocka.h>

struct end {
  struct bertha_records records;
  struct record_keys *keys;
};
static struct end ends[2];
static uint8_t wire[2 * RECORD_MAX], plain[RECORD_MAX], reply[RECORD_REPLY_MAX];
static size_t size, n, reply_size;
static const char *why;

static void begin(uint32_t suite) {
  for (int i = 0; i < 2; i++) {
    ends[i].records = (struct bertha_records){.suite = suite, .sequence = {7, 7}};
    memset(ends[i].records.secret[i], 'a', SECRET_MAX);
    memset(ends[i].records.secret[1 - i], 'b', SECRET_MAX);
    ends[i].keys = records_open(&ends[i].records);
    assert_non_null(ends[i].keys);
  }
}

static void end(void) {
  records_close(ends[0].keys);
  records_close(ends[1].keys);
}

static enum record_what opened(int which, const uint8_t *in, size_t in_size) {
  return record_open(ends[which].keys, &ends[which].records, in, in_size, plain, &n, reply, &reply_size,
                     &why);
}

static void each_suite_carries_each_size(void **state) {
  static const size_t sizes[] = {1, 2, 100, 4096, RECORD_BYTES_MAX - 1, RECORD_BYTES_MAX};
  static uint8_t data[RECORD_BYTES_MAX];
  (void)state;
  for (size_t i = 0; i < sizeof data; i++) {
    data[i] = (uint8_t)(i * 31);
  }
  for (size_t s = 0; s < sizeof suites / sizeof *suites; s++) {
    begin(suites[s].number);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
      for (int from = 0; from < 2; from++) {
        size_t first = sizes[i] / 3;
        size = record_seal(ends[from].keys, &ends[from].records, data, first, data + first, sizes[i] - first,
                           wire);
        assert_int_equal(size, sizes[i] + RECORD_MORE);
        assert_int_equal(record_size(wire, size), size);
        assert_int_equal(opened(1 - from, wire, size), RECORD_BYTES);
        assert_int_equal(n, sizes[i]);
        assert_memory_equal(plain, data, n);
        assert_int_equal(reply_size, 0);
      }
    }
    end();
  }
}

static void what_is_changed_repeated_or_left_out_is_not_opened(void **state) {
  (void)state;
  begin(0x1301);
  size = record_seal(ends[0].keys, &ends[0].records, "hello", 5, NULL, 0, wire);
  for (size_t i = 0; i < size; i++) {
    wire[i] ^= 1;
    if (i != 3 && i != 4) { /* which say how much it is */
      assert_int_equal(opened(1, wire, size), RECORD_BAD);
    }
    wire[i] ^= 1;
  }
  assert_int_equal(opened(1, wire, size), RECORD_BYTES);
  assert_int_equal(opened(1, wire, size), RECORD_BAD); /* again */
  record_seal(ends[0].keys, &ends[0].records, "lost", 4, NULL, 0, wire);
  size = record_seal(ends[0].keys, &ends[0].records, "next", 4, NULL, 0, wire);
  assert_int_equal(opened(1, wire, size), RECORD_BAD);
  end();
}

static void the_end_is_told(void **state) {
  (void)state;
  begin(0x1302);
  size = record_close_notify(ends[0].keys, &ends[0].records, wire);
  assert_int_equal(opened(1, wire, size), RECORD_END);
  size =
      seal(ends[0].keys, &ends[0].records, TYPE_ALERT, "\x02\x28", 2, NULL, 0, wire); /* handshake_failure */
  assert_int_equal(opened(1, wire, size), RECORD_BAD);
  end();
}

/* RFC 8446, 4.6.3 and 7.2 */
static void keys_are_changed_in_time(void **state) {
  (void)state;
  begin(0x1302);
  ends[0].records.sequence[BERTHA_RECORDS_OUT] = REKEY_AFTER;
  ends[1].records.sequence[BERTHA_RECORDS_IN] = REKEY_AFTER;
  size = record_seal(ends[0].keys, &ends[0].records, "new keys", 8, NULL, 0, wire);
  size_t update_size = record_size(wire, size);
  assert_true(update_size < size);
  assert_int_equal(opened(1, wire, update_size), RECORD_BYTES);
  assert_int_equal(n, 0);
  assert_int_equal(reply_size, 0); /* not asked for */
  assert_int_equal(opened(1, wire + update_size, size - update_size), RECORD_BYTES);
  assert_memory_equal(plain, "new keys", 8);
  assert_int_equal(ends[0].records.sequence[BERTHA_RECORDS_OUT], 1);
  assert_memory_equal(ends[0].records.secret[0], ends[1].records.secret[1], SECRET_MAX);
  end();
}

static void keys_are_changed_when_asked(void **state) {
  static const uint8_t asks[] = {HANDSHAKE_KEY_UPDATE, 0, 0, 1, 1};
  (void)state;
  begin(0x1303);
  size = seal(ends[0].keys, &ends[0].records, TYPE_HANDSHAKE, asks, sizeof asks, NULL, 0, wire);
  assert_true(update(ends[0].keys, &ends[0].records, BERTHA_RECORDS_OUT));
  assert_int_equal(opened(1, wire, size), RECORD_BYTES);
  assert_true(reply_size > 0 && reply_size <= RECORD_REPLY_MAX);
  memcpy(wire, reply, reply_size);
  size = reply_size;
  assert_int_equal(opened(0, wire, size), RECORD_BYTES);
  assert_int_equal(reply_size, 0); /* or they would go on for ever */
  for (int from = 0; from < 2; from++) {
    size = record_seal(ends[from].keys, &ends[from].records, "both", 4, NULL, 0, wire);
    assert_int_equal(opened(1 - from, wire, size), RECORD_BYTES);
    assert_memory_equal(plain, "both", 4);
  }
  end();
}

static void nonsense_within_a_record(void **state) {
  static const struct {
    uint8_t type;
    const char *bytes;
    size_t size;
  } cases[] = {
      {TYPE_HANDSHAKE, "\x18\0\0\1\2", 5},
      {TYPE_HANDSHAKE, "\x18\0\0\1", 4},
      {TYPE_HANDSHAKE, "\1", 1},
      {0, "\0\0\0", 3}, /* all padding */
      {20, "\1", 1},
      {99, "abc", 3},
  };
  (void)state;
  begin(0x1301);
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    size = seal(ends[0].keys, &ends[0].records, cases[i].type, cases[i].bytes, cases[i].size, NULL, 0, wire);
    why = NULL;
    assert_int_equal(opened(1, wire, size), RECORD_BAD);
    assert_non_null(why);
    ends[1].records.sequence[BERTHA_RECORDS_IN] = ends[0].records.sequence[BERTHA_RECORDS_OUT];
  }
  size = seal(ends[0].keys, &ends[0].records, TYPE_HANDSHAKE, "\4\0\0\0", 4, NULL, 0,
              wire); /* a ticket: left lying */
  assert_int_equal(opened(1, wire, size), RECORD_BYTES);
  assert_int_equal(n, 0);
  end();
}

static void heads(void **state) {
  (void)state;
  assert_int_equal(record_size((const uint8_t *)"", 0), 0);
  assert_int_equal(record_size((const uint8_t *)"\x17\3\3\0", 4), 0);
  assert_int_equal(record_size((const uint8_t *)"\x16", 1), SIZE_MAX); /* a handshake's, in the clear */
  assert_int_equal(record_size((const uint8_t *)"\x17\3\3\0\x11", 5), 22);
  assert_int_equal(record_size((const uint8_t *)"\x17\3\3\0\x10", 5), SIZE_MAX); /* without a type */
  assert_int_equal(record_size((const uint8_t *)"\x17\3\3\x41\0", 5), RECORD_MAX);
  assert_int_equal(record_size((const uint8_t *)"\x17\3\3\x41\1", 5), SIZE_MAX);
  assert_int_equal(record_size((const uint8_t *)"GET /", 5), SIZE_MAX);
}

static void a_suite_that_is_not_known(void **state) {
  struct bertha_records r = {.suite = 0x1304};
  (void)state;
  assert_null(records_open(&r));
}

int main(void) {
  if (libcrypto() == NULL) {
    printf("libcrypto.so.3 is not installed: nothing to test\n");
    return 0;
  }
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(each_suite_carries_each_size),
      cmocka_unit_test(what_is_changed_repeated_or_left_out_is_not_opened),
      cmocka_unit_test(the_end_is_told),
      cmocka_unit_test(keys_are_changed_in_time),
      cmocka_unit_test(keys_are_changed_when_asked),
      cmocka_unit_test(nonsense_within_a_record),
      cmocka_unit_test(heads),
      cmocka_unit_test(a_suite_that_is_not_known),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
