/* What the other end of a connection, or an agent, sends a carrier before there are chunnels: first bytes, preambles,
 * plans, msgpack. */
#include <stdio.h>
#include <unistd.h>

#include "../carrier/session.h"

static struct secrets keyed = {
    .certificate = (char[]){"none"}, .has_cluster_key = true, .cluster_key_size = 32};

/* In the place of session.c and main.c. */
bool session_push(struct session *s, const char *type, const char *wire, const struct pack_value *args,
                  const char **why) {
  struct pack_value level;
  (void)type;
  (void)wire;
  (void)pack_get(args, "level", &level);
  *why = "too many";
  s->stages += s->stages < STAGES_MAX;
  return s->stages < STAGES_MAX;
}

void session_state(struct session *s, uint32_t state, const char *why) {
  char text[616]; /* as much as there is in the status */
  plan_text(s->plan, s->plan_size, s->server, text, sizeof text);
  if (strlen(text) < 2 || text[strlen(text) - 1] != ']' || strlen(why) > 399) {
    abort();
  }
  char left_out[400];
  plan_left_out(s->plan, s->plan_size, left_out, s->plan_size % 2 ? sizeof left_out : 20);
  for (const char *p = left_out; *p != '\0'; p++) {
    if ((unsigned char)*p < 0x20) {
      abort();
    }
  }
  s->state = state;
}

bool carrier_has_agent(void) {
  return true;
}

bool trust_knows(uint64_t listener, const uint8_t *plan, size_t size, bool agent) {
  return agent && listener == 1 && plan != NULL && size > 0;
}

bool carrier_ask_session(struct session *s) {
  s->asked = s->listener;
  return s->listener == 2;
}

void carrier_answered(struct session *s) {
  s->asked = 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size < 2) {
    return 0;
  }
  uint8_t how = data[0];
  struct session *s = calloc(1, sizeof *s);
  if (s == NULL) {
    return 0;
  }
  const char *why = "";
  s->server = how & 1;
  s->mode = how & 2 ? BERTHA_CARRY_MAYBE : BERTHA_CARRY_REQUIRED;
  s->secrets = how & 4 ? &keyed : NULL;
  s->listener = how >> 3 & 3;
  bool preamble = how & 32; /* a sound head, so that more of the inputs come to the map */
  size_t part = data[1] + 1u;
  data += 2;
  size -= 2;
  bool good = true;
  if (!s->server) {
    s->plan = malloc(size + 1); /* what an agent gave the shim */
    s->plan_size = s->plan != NULL ? size : 0;
    memcpy(s->plan, data, s->plan_size);
    good = greeting_begin(s, &why);
  }
  if (preamble) {
    uint8_t head[8] = {0xbe, 'B', 'R', 'T', 0, 0, (uint8_t)(size >> 8), (uint8_t)size};
    good = good && buffer_add(&s->up[s->server ? 0 : s->base], head, sizeof head);
  }
  for (size_t at = 0; good && at < size && !s->up_open && !s->parting; at += part) {
    size_t n = size - at < part ? size - at : part;
    good = buffer_add(&s->up[s->sniffed ? s->base : 0], data + at, n) &&
           (s->sniffed || greeting_sniff(s, &why)) &&
           (!s->sniffed || s->up_open || (s->base > 0 && s->server) || greeting_read(s, &why));
    if (s->asked != 0) {
      good = greeting_verdict(s, how & 64, "not with this listener", &why);
    }
  }
  if (!good && why[0] == '\0') {
    abort(); /* every failure has a reason */
  }
  for (unsigned i = 0; i <= STAGES_MAX; i++) {
    buffer_free(&s->down[i]);
    buffer_free(&s->up[i]);
  }
  free(s->plan);
  free(s);
  return 0;
}
