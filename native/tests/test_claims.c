/* The table of claims: what is published is found, what is withdrawn is not, a full place says so. */
#include "rig.h"

#include <cmocka.h>

static struct bertha_claims_header *new_table(void) {
  size_t size =
      sizeof(struct bertha_claims_header) + BERTHA_CLAIM_BUCKETS * sizeof(struct bertha_claims_bucket);
  struct bertha_claims_header *claims = aligned_alloc(64, size);
  assert_non_null(claims);
  memset((void *)claims, 0, size);
  return claims;
}

static bool has(struct bertha_claims_header *claims, uint32_t tag, uint64_t word) {
  uint64_t words[2 * BERTHA_CLAIM_WAYS];
  int n = claim_find(claims, tag, words);
  assert_in_range(n, 0, 2 * BERTHA_CLAIM_WAYS);
  for (int i = 0; i < n; i++) {
    assert_int_equal(words[i] >> 40, tag & 0xffffff);
    if (words[i] == word) {
      return true;
    }
  }
  return false;
}

static void tags_are_never_zero(void **state) {
  (void)state;
  uint64_t random = 42;
  for (int i = 0; i < 10000; i++) {
    uint64_t addr[2] = {rig_random(&random), rig_random(&random)};
    assert_int_not_equal(tuple_tag((uint8_t *)addr, (uint16_t)i) & 0xffffff, 0);
  }
}

/* Clients of one host differ in their port alone: their tags must spread. */
static void ports_spread(void **state) {
  (void)state;
  static const uint8_t addr[16] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1};
  struct bertha_claims_header *claims = new_table();
  for (uint32_t port = 32768; port < 40768; port++) { /* 8000 of 32768 places */
    uint32_t tag = tuple_tag(addr, (uint16_t)port);
    assert_true(claim_publish(claims, tag, bertha_claim_word(tag, 1, port & 1023)));
  }
  free(claims);
}

/* The server takes two claims of one address for two clients in networks that know nothing of each other. */
static void each_is_found_once(void **state) {
  (void)state;
  static const uint8_t addr[16] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1};
  struct bertha_claims_header *claims = new_table();
  for (uint32_t port = 0; port < 65536; port++) {
    uint32_t tag = tuple_tag(addr, (uint16_t)port);
    uint64_t word = bertha_claim_word(tag, 1, port & 1023);
    uint64_t words[2 * BERTHA_CLAIM_WAYS];
    assert_true(claim_publish(claims, tag, word));
    assert_int_equal(claim_find(claims, tag, words), 1);
    assert_int_equal(words[0], word);
    claim_withdraw(claims, tag, word);
    assert_int_equal(claim_find(claims, tag, words), 0);
  }
  free(claims);
}

static void published_is_found_until_withdrawn(void **state) {
  (void)state;
  struct bertha_claims_header *claims = new_table();
  uint64_t a = bertha_claim_word(0x123457, 3, 17);
  uint64_t b = bertha_claim_word(0x123457, 4, 17); /* same tag, another link */
  assert_false(has(claims, 0x123457, a));
  assert_true(claim_publish(claims, 0x123457, a));
  assert_true(claim_publish(claims, 0x123457, b));
  assert_true(has(claims, 0x123457, a));
  assert_true(has(claims, 0x123457, b));
  claim_withdraw(claims, 0x123457, a);
  assert_false(has(claims, 0x123457, a));
  assert_true(has(claims, 0x123457, b));
  claim_withdraw(claims, 0x123457, a); /* once more does nothing */
  assert_true(has(claims, 0x123457, b));
  claim_withdraw(claims, 0x123457, b);
  assert_false(has(claims, 0x123457, b));
  free(claims);
}

static void a_full_place_refuses(void **state) {
  (void)state;
  struct bertha_claims_header *claims = new_table();
  uint32_t tag = 0x00abcd;
  int published = 0;
  while (claim_publish(claims, tag, bertha_claim_word(tag, 1, (uint32_t)published))) {
    published++;
    assert_in_range(published, 1, 2 * BERTHA_CLAIM_WAYS);
  }
  assert_int_equal(published, 2 * BERTHA_CLAIM_WAYS);
  claim_withdraw(claims, tag, bertha_claim_word(tag, 1, 3));
  assert_true(claim_publish(claims, tag, bertha_claim_word(tag, 2, 0)));
  assert_true(has(claims, tag, bertha_claim_word(tag, 2, 0)));
  assert_false(claim_publish(claims, tag, bertha_claim_word(tag, 2, 1)));
  free(claims);
}

static void garbage_is_only_a_hint(void **state) {
  (void)state;
  struct bertha_claims_header *claims = new_table();
  uint64_t random = 7;
  uint64_t *words = (uint64_t *)(void *)(claims + 1);
  for (size_t i = 0; i < BERTHA_CLAIM_BUCKETS * BERTHA_CLAIM_WAYS; i++) {
    words[i] = rig_random(&random);
  }
  for (uint32_t tag = 1; tag < 20000; tag += 2) {
    has(claims, tag, 0);
  }
  free(claims);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(tags_are_never_zero),  cmocka_unit_test(ports_spread),
      cmocka_unit_test(each_is_found_once),   cmocka_unit_test(published_is_found_until_withdrawn),
      cmocka_unit_test(a_full_place_refuses), cmocka_unit_test(garbage_is_only_a_hint),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
