/* How a carried connection begins: TLS where the plan's outermost chunnel is encrypt, then the preambles (the same as
 * bertha_socket/carrier/preamble.py).  A server sees by the first bytes who is there. */
#include <openssl/crypto.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>
#include <stdio.h>

#include "session.h"

static const uint8_t magic[4] = {0xbe, 'B', 'R', 'T'};
static const char client_label[] = "bertha preamble v1 client";
static const char server_label[] = "bertha preamble v1 server";
/* In a ClientHello: the extension's list of one name (RFC 7301). */
static const uint8_t alpn[] = {0, 9, 8, 'b', 'e', 'r', 't', 'h', 'a', '/', '1'};
enum { MAC_SIZE = 32, HEAD_SIZE = 8, TLS_RECORD_MAX = 16384 };

static bool mac_of(const struct session *s, const char *label, uint8_t mac[MAC_SIZE]) {
  struct buffer text = {0};
  unsigned size = 0;
  bool good = buffer_add(&text, label, strlen(label)) && buffer_add(&text, s->nonce, NONCE_SIZE) &&
              buffer_add(&text, s->plan, s->plan_size) &&
              HMAC(EVP_sha256(), s->secrets->cluster_key, (int)s->secrets->cluster_key_size,
                   buffer_data(&text), buffer_size(&text), mac, &size) != NULL;
  buffer_free(&text);
  return good && size == MAC_SIZE;
}

static bool has_key(const struct session *s) {
  return s->secrets != NULL && s->secrets->has_cluster_key;
}

/* Puts a preamble where the greeting is. */
static bool send_body(struct session *s, const struct buffer *body) {
  uint8_t head[HEAD_SIZE];
  size_t n = buffer_size(body);
  memcpy(head, magic, sizeof magic);
  for (int i = 0; i < 4; i++) {
    head[4 + i] = (uint8_t)(n >> (8 * (3 - i)));
  }
  return buffer_add(&s->down[s->base], head, sizeof head) &&
         buffer_add(&s->down[s->base], buffer_data(body), n);
}

static bool client_hello(struct session *s) {
  struct buffer body = {0};
  uint8_t mac[MAC_SIZE];
  bool keyed = has_key(s);
  bool good = RAND_bytes(s->nonce, NONCE_SIZE) == 1 && pack_map(&body, keyed ? 4 : 3) &&
              pack_text(&body, "v") && pack_uint(&body, 1) && pack_text(&body, "plan") &&
              pack_bytes(&body, s->plan, s->plan_size) && pack_text(&body, "nonce") &&
              pack_bytes(&body, s->nonce, NONCE_SIZE);
  if (good && keyed) {
    good = mac_of(s, client_label, mac) && pack_text(&body, "mac") && pack_bytes(&body, mac, MAC_SIZE);
  }
  good = good && send_body(s, &body);
  buffer_free(&body);
  return good;
}

static bool server_hello(struct session *s, const char *refusal) {
  struct buffer body = {0};
  uint8_t mac[MAC_SIZE];
  bool keyed = refusal == NULL && has_key(s);
  bool good = pack_map(&body, keyed || refusal != NULL ? 3 : 2) && pack_text(&body, "v") &&
              pack_uint(&body, 1) && pack_text(&body, "ok") && pack_bool(&body, refusal == NULL);
  if (good && refusal != NULL) {
    good = pack_text(&body, "why") && pack_text(&body, refusal);
  }
  if (good && keyed) {
    good = mac_of(s, server_label, mac) && pack_text(&body, "mac") && pack_bytes(&body, mac, MAC_SIZE);
  }
  good = good && send_body(s, &body);
  buffer_free(&body);
  return good;
}

bool greeting_begin(struct session *s, const char **why) {
  *why = "no memory";
  if (s->server) {
    return true;
  }
  s->sniffed = true;
  if (plan_tls_first(s->plan, s->plan_size)) {
    if (!plan_stages(s, true, why)) {
      return false;
    }
    s->base = s->stages;
  }
  return client_hello(s) && plan_stages(s, false, why);
}

static bool contains(const uint8_t *data, size_t size, const uint8_t *what, size_t n) {
  for (size_t i = 0; i + n <= size; i++) {
    if (memcmp(data + i, what, n) == 0) {
      return true;
    }
  }
  return false;
}

/* Whether a connection begins like TLS's: a record of a handshake, which is a ClientHello. */
static bool like_tls(const uint8_t *data, size_t size) {
  return data[0] == 0x16 && (size < 2 || data[1] == 3) &&
         (size < 5 || ((size_t)data[3] << 8 | data[4]) <= TLS_RECORD_MAX) && (size < 6 || data[5] == 1);
}

bool greeting_sniff(struct session *s, const char **why) {
  const uint8_t *data = buffer_data(&s->up[0]);
  size_t size = buffer_size(&s->up[0]);
  if (size == 0) {
    return true;
  }
  if (s->state == BERTHA_CARRIED_PLAIN) { /* nothing had come for long */
    s->sniffed = true;
    *why = "the client's preamble came when the connection was plain already";
    return size < sizeof magic || memcmp(data, magic, sizeof magic) != 0;
  }
  bool tls = like_tls(data, size) && s->secrets != NULL && s->secrets->certificate != NULL;
  if (tls && !contains(data, size, alpn, sizeof alpn)) {
    if (size < 5 || size < 5 + ((size_t)data[3] << 8 | data[4])) {
      return true; /* the ClientHello is not whole yet */
    }
    tls = false; /* the program's own TLS */
  }
  bool ours = memcmp(data, magic, size < sizeof magic ? size : sizeof magic) == 0;
  if (ours && size < sizeof magic && s->mode == BERTHA_CARRY_MAYBE) {
    return true; /* some other protocol may begin so, too */
  }
  s->sniffed = true;
  if (tls) {
    struct pack_value none = {.kind = PACK_MAP};
    bool pushed = session_push(s, "encrypt", "tls1.3", &none, why);
    s->base = s->stages;
    return pushed;
  }
  if (!ours) {
    *why = "the client knows of no chunnels, and this server requires them; run it under bertha-run, with an "
           "agent on "
           "its host";
    if (s->mode != BERTHA_CARRY_MAYBE) {
      return false;
    }
    s->up_open = true;
    session_state(s, BERTHA_CARRIED_PLAIN, "");
  }
  return true;
}

static bool refuse(struct session *s, const char *reason) {
  session_state(s, BERTHA_CARRIED_REFUSED, reason);
  s->parting = true;
  s->down_end[s->base] = true;
  bool good = server_hello(s, reason);
  return good;
}

static bool server_reads(struct session *s, const struct pack_value *map, const char **why) {
  struct pack_value plan, nonce, mac;
  *why = "a client's preamble came without its plan or nonce";
  if (!pack_get(map, "plan", &plan) || plan.kind != PACK_BYTES || plan.size > BERTHA_CARRIER_PLAN_MAX ||
      !pack_get(map, "nonce", &nonce) || nonce.kind != PACK_BYTES || nonce.size != NONCE_SIZE) {
    return false;
  }
  bool shown = pack_get(map, "mac", &mac) && mac.kind == PACK_BYTES;
  *why = "no memory";
  s->plan = malloc(plan.size + 1);
  if (s->plan == NULL) {
    return false;
  }
  memcpy(s->plan, plan.data, plan.size);
  s->plan_size = plan.size;
  memcpy(s->nonce, nonce.data, NONCE_SIZE);
  uint8_t wanted[MAC_SIZE];
  if (!has_key(s)) {
    if (shown) {
      return refuse(s, "the client has a cluster key, and the server has none");
    }
  } else if (!shown) {
    return refuse(s, "the client has no cluster key, and the server has one");
  } else if (!mac_of(s, client_label, wanted) || mac.size != MAC_SIZE ||
             CRYPTO_memcmp(wanted, mac.data, MAC_SIZE) != 0) {
    return refuse(s, "the client has another cluster key than the server");
  }
  if (plan_tls_first(s->plan, s->plan_size) != (s->base > 0)) {
    return refuse(s, "the plan and the connection differ about whether TLS comes first");
  }
  if (trust_knows(s->listener, s->plan, s->plan_size, carrier_has_agent())) {
    return greeting_verdict(s, true, "", why);
  }
  if (!carrier_ask_session(s)) {
    return refuse(s, carrier_has_agent() ? "the server's agent does not answer; connect again later"
                                         : "the server's agent is gone, and this plan is not known yet; "
                                           "connect again when it is back");
  }
  return true;
}

static bool client_reads(struct session *s, const struct pack_value *map, const char **why) {
  static char text[401];
  struct pack_value ok, reason, mac;
  if (!pack_get(map, "ok", &ok) || ok.kind != PACK_BOOL || ok.number == 0) {
    bool given = pack_get(map, "why", &reason) && reason.kind == PACK_TEXT;
    snprintf(text, sizeof text, "%s", "the server refused the plan");
    if (given) {
      pack_copy(&reason, text, sizeof text);
      pack_printable(text);
    }
    *why = text;
    return false;
  }
  uint8_t wanted[MAC_SIZE];
  bool shown = pack_get(map, "mac", &mac) && mac.kind == PACK_BYTES;
  if (has_key(s) && (!shown || mac.size != MAC_SIZE || !mac_of(s, server_label, wanted) ||
                     CRYPTO_memcmp(wanted, mac.data, MAC_SIZE) != 0)) {
    *why = "the server does not have this cluster's key, or means another plan";
    return false;
  }
  s->up_open = true;
  s->until = 0;
  session_state(s, BERTHA_CARRIED_READY, "");
  return true;
}

bool greeting_verdict(struct session *s, bool good, const char *reason, const char **why) {
  carrier_answered(s);
  if (!good) {
    return refuse(s, reason);
  }
  if (!server_hello(s, NULL)) {
    *why = "no memory";
    return false;
  }
  if (!plan_stages(s, false, why)) {
    return false;
  }
  s->up_open = true;
  s->until = 0;
  session_state(s, BERTHA_CARRIED_READY, "");
  return true;
}

bool greeting_read(struct session *s, const char **why) {
  struct buffer *in = &s->up[s->base];
  const uint8_t *data = buffer_data(in);
  size_t size = buffer_size(in);
  if (s->asked != 0 || size == 0) {
    return true;
  }
  *why = "the other end does not speak of chunnels";
  if (memcmp(data, magic, size < sizeof magic ? size : sizeof magic) != 0) {
    return false;
  }
  if (size < HEAD_SIZE) {
    return true;
  }
  size_t length = (size_t)data[4] << 24 | (size_t)data[5] << 16 | (size_t)data[6] << 8 | data[7];
  *why = "a preamble came that is too long";
  if (length > PREAMBLE_MAX) {
    return false;
  }
  if (size < HEAD_SIZE + length) {
    return true;
  }
  struct pack_value map, version;
  *why = "a preamble came that is not one of version 1; run the same release at both ends";
  if (pack_read(data + HEAD_SIZE, length, &map) != length || map.kind != PACK_MAP ||
      !pack_get(&map, "v", &version) || version.kind != PACK_INT || version.number != 1) {
    return false;
  }
  /* Its bytes stay where they are until it has been read. */
  bool good = s->server ? server_reads(s, &map, why) : client_reads(s, &map, why);
  buffer_take(in, HEAD_SIZE + length);
  return good;
}
