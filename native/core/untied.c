/* Why a server saw no claim of its client's: the client does not know us, or it did not find us at the agent. */
#include "agentc.h"
#include "conn.h"

/* Connections that came while the agent did not know the listener wait to be accepted for a moment longer. */
#define KNOWN_SINCE_NS 1000000000

uint32_t listener_standing(struct listener *l) {
  uint64_t generation = directory_generation();
  if (UNLIKELY(generation == 0 || l->generation != generation)) {
    return BERTHA_WHY_NO_AGENT;
  }
  int64_t since = atomic_load_explicit(&l->known_since, memory_order_relaxed);
  if (LIKELY(since == 0)) {
    return BERTHA_WHY_NONE;
  }
  if (bertha_now_ns() - since < KNOWN_SINCE_NS) {
    return BERTHA_WHY_AGENT_NEW;
  }
  atomic_store_explicit(&l->known_since, 0, memory_order_relaxed);
  return BERTHA_WHY_NONE;
}

uint32_t conn_untied_reason(const struct conn *c) {
  return c->info.reason != 0 ? c->info.reason
         : agent_has_gone()  ? BERTHA_WHY_NO_AGENT
                             : BERTHA_WHY_PEER_UNAWARE;
}

void conn_broken(struct conn *c) {
  c->info.reason = BERTHA_WHY_CORRUPT;
  conn_set_flag(c, CONN_BROKEN);
}
