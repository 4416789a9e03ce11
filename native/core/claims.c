/* The table of claims: hints by which a server finds a client's slot from the client's address.
 *
 * Every client of a listener may write here, so nothing in it is believed: at worst a hint is missing, and
 * the connection stays plain. */
#include <string.h>

#include "agentc.h"

uint32_t tuple_tag(const uint8_t client_addr[16], uint16_t client_port) {
  uint64_t a, b;
  memcpy(&a, client_addr, 8);
  memcpy(&b, client_addr + 8, 8);
  uint64_t h = (a ^ (b * 0x9e3779b97f4a7c15u)) + client_port * 0xbf58476d1ce4e5b9u;
  h ^= h >> 31;
  h *= 0x94d049bb133111ebu;
  h ^= h >> 29;
  return (uint32_t)h | 1u; /* never 0 */
}

/* Two different ones for every tag: a claim that was found twice would look like two claims of one address. */
static struct bertha_claims_bucket *bucket(struct bertha_claims_header *claims, uint32_t tag, int which) {
  struct bertha_claims_bucket *buckets = (struct bertha_claims_bucket *)(void *)(claims + 1);
  uint32_t first = (tag >> 1) & (BERTHA_CLAIM_BUCKETS - 1);
  uint32_t second = ((tag >> 1) * 2654435761u >> 7) & (BERTHA_CLAIM_BUCKETS - 1);
  return &buckets[which == 0 ? first : second != first ? second : first ^ 1];
}

bool claim_publish(struct bertha_claims_header *claims, uint32_t tag, uint64_t word) {
  for (int which = 0; which < 2; which++) {
    struct bertha_claims_bucket *b = bucket(claims, tag, which);
    for (int i = 0; i < BERTHA_CLAIM_WAYS; i++) {
      uint64_t none = 0;
      if (atomic_load_explicit(&b->word[i], memory_order_relaxed) == 0 &&
          atomic_compare_exchange_strong_explicit(&b->word[i], &none, word, memory_order_release,
                                                  memory_order_relaxed)) {
        return true;
      }
    }
  }
  return false;
}

void claim_withdraw(struct bertha_claims_header *claims, uint32_t tag, uint64_t word) {
  for (int which = 0; which < 2; which++) {
    struct bertha_claims_bucket *b = bucket(claims, tag, which);
    for (int i = 0; i < BERTHA_CLAIM_WAYS; i++) {
      uint64_t mine = word;
      if (atomic_load_explicit(&b->word[i], memory_order_relaxed) == word &&
          atomic_compare_exchange_strong(&b->word[i], &mine, 0)) {
        return;
      }
    }
  }
}

/* Up to 2 * BERTHA_CLAIM_WAYS words that may be the connection's. */
int claim_find(struct bertha_claims_header *claims, uint32_t tag, uint64_t *words) {
  int found = 0;
  uint64_t want = bertha_claim_word(tag, 0, 0) >> 40;
  for (int which = 0; which < 2; which++) {
    struct bertha_claims_bucket *b = bucket(claims, tag, which);
    for (int i = 0; i < BERTHA_CLAIM_WAYS; i++) {
      uint64_t word = atomic_load_explicit(&b->word[i], memory_order_acquire);
      if (word != 0 && word >> 40 == want) {
        words[found++] = word;
      }
    }
  }
  return found;
}
