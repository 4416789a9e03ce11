#include "envelope.h"

#include <openssl/crypto.h>
#include <openssl/hmac.h>

static const uint8_t magic[4] = {0xbe, 'B', 'R', 'D'};
static const char client_label[] = "bertha datagrams v1 client";
static const char server_label[] = "bertha datagrams v1 server";
enum { MAC_SIZE = 32 };

bool envelope_is_ours(const uint8_t *data, size_t size) {
  return size >= sizeof magic && memcmp(data, magic, sizeof magic) == 0;
}

static void put64(uint8_t to[8], uint64_t value) {
  for (int i = 0; i < 8; i++) {
    to[i] = (uint8_t)(value >> (56 - 8 * i));
  }
}

bool envelope_open(const uint8_t *data, size_t size, struct envelope *e) {
  if (size < ENVELOPE_HEAD || !envelope_is_ours(data, size) || data[4] < ENVELOPE_HELLO ||
      data[4] > ENVELOPE_END) {
    return false;
  }
  *e = (struct envelope){
      .kind = (enum envelope_kind)data[4], .body = data + ENVELOPE_HEAD, .size = size - ENVELOPE_HEAD};
  for (int i = 0; i < 8; i++) {
    e->session = e->session << 8 | data[5 + i];
  }
  return true;
}

void envelope_seal(uint8_t head[ENVELOPE_HEAD], enum envelope_kind kind, uint64_t session) {
  memcpy(head, magic, sizeof magic);
  head[4] = (uint8_t)kind;
  put64(head + 5, session);
}

static bool add_head(struct buffer *to, enum envelope_kind kind, uint64_t session) {
  uint8_t head[ENVELOPE_HEAD];
  envelope_seal(head, kind, session);
  return buffer_add(to, head, sizeof head);
}

static bool has_key(const struct secrets *k) {
  return k != NULL && k->has_cluster_key;
}

static bool mac_of(const struct secrets *k, const char *label, uint64_t session, const uint8_t *plan,
                   size_t size, uint8_t mac[MAC_SIZE]) {
  struct buffer text = {0};
  uint8_t number[8];
  unsigned got = 0;
  put64(number, session);
  bool good = buffer_add(&text, label, strlen(label)) && buffer_add(&text, number, sizeof number) &&
              buffer_add(&text, plan, size) &&
              HMAC(EVP_sha256(), k->cluster_key, (int)k->cluster_key_size, buffer_data(&text),
                   buffer_size(&text), mac, &got) != NULL;
  buffer_free(&text);
  return good && got == MAC_SIZE;
}

static bool is_mac(const struct pack_value *shown, const struct secrets *k, const char *label,
                   uint64_t session, const uint8_t *plan, size_t size) {
  uint8_t wanted[MAC_SIZE];
  return shown->kind == PACK_BYTES && shown->size == MAC_SIZE &&
         mac_of(k, label, session, plan, size, wanted) && CRYPTO_memcmp(wanted, shown->data, MAC_SIZE) == 0;
}

bool envelope_hello(struct buffer *to, uint64_t session, const uint8_t *plan, size_t size,
                    const struct secrets *k) {
  uint8_t mac[MAC_SIZE];
  bool keyed = has_key(k);
  bool good = add_head(to, ENVELOPE_HELLO, session) && pack_map(to, keyed ? 3 : 2) && pack_text(to, "v") &&
              pack_uint(to, 1) && pack_text(to, "plan") && pack_bytes(to, plan, size);
  return good && (!keyed || (mac_of(k, client_label, session, plan, size, mac) && pack_text(to, "mac") &&
                             pack_bytes(to, mac, MAC_SIZE)));
}

bool envelope_accept(struct buffer *to, uint64_t session, const uint8_t *plan, size_t size,
                     const struct secrets *k) {
  uint8_t mac[MAC_SIZE];
  bool keyed = has_key(k);
  bool good = add_head(to, ENVELOPE_ACCEPT, session) && pack_map(to, keyed ? 2 : 1) && pack_text(to, "v") &&
              pack_uint(to, 1);
  return good && (!keyed || (mac_of(k, server_label, session, plan, size, mac) && pack_text(to, "mac") &&
                             pack_bytes(to, mac, MAC_SIZE)));
}

bool envelope_refuse(struct buffer *to, uint64_t session, const char *why) {
  char cut[ENVELOPE_WHY_MAX + 1];
  size_t n = strlen(why);
  if (n > ENVELOPE_WHY_MAX) { /* not within a character */
    for (n = ENVELOPE_WHY_MAX; n > 0 && ((uint8_t)why[n] & 0xc0) == 0x80; n--) {
    }
  }
  memcpy(cut, why, n);
  cut[n] = '\0';
  return add_head(to, ENVELOPE_REFUSE, session) && pack_map(to, 2) && pack_text(to, "v") &&
         pack_uint(to, 1) && pack_text(to, "why") && pack_text(to, cut);
}

static bool map_of(const struct envelope *e, struct pack_value *map) {
  struct pack_value version;
  return pack_read(e->body, e->size, map) == e->size && e->size > 0 && pack_get(map, "v", &version) &&
         version.kind == PACK_INT && version.number == 1;
}

bool envelope_read_hello(const struct envelope *e, const struct secrets *k, struct pack_value *plan,
                         const char **why) {
  struct pack_value map, mac;
  *why = NULL;
  if (!map_of(e, &map) || !pack_get(&map, "plan", plan) || plan->kind != PACK_BYTES || plan->size == 0 ||
      plan->size > BERTHA_CARRIER_PLAN_MAX) {
    return false;
  }
  bool shown = pack_get(&map, "mac", &mac) && mac.kind == PACK_BYTES;
  if (!has_key(k)) {
    *why = shown ? "the client has a cluster key, and the server has none" : NULL;
  } else if (!shown) {
    *why = "the client has no cluster key, and the server has one";
  } else if (!is_mac(&mac, k, client_label, e->session, plan->data, plan->size)) {
    *why = "the client has another cluster key than the server";
  }
  return *why == NULL;
}

bool envelope_is_accepted(const struct envelope *e, const uint8_t *plan, size_t size,
                          const struct secrets *k) {
  struct pack_value map, mac;
  return map_of(e, &map) && (!has_key(k) || (pack_get(&map, "mac", &mac) &&
                                             is_mac(&mac, k, server_label, e->session, plan, size)));
}

void envelope_why_refused(const struct envelope *e, char *to, size_t room) {
  struct pack_value map, why = {.kind = PACK_NIL};
  if (!map_of(e, &map) || !pack_get(&map, "why", &why) || why.kind != PACK_TEXT || why.size == 0) {
    why = (struct pack_value){
        .kind = PACK_TEXT, .data = (const uint8_t *)"no reason given", .size = sizeof "no reason given" - 1};
  }
  pack_copy(&why, to, room);
  pack_printable(to);
}
