/* Reading a plan: its bytes are those of bertha_socket/negotiation/plan.py, checked by the agents. */
#include <stdio.h>

#include "session.h"

static bool chunnels_of(const uint8_t *plan, size_t size, struct pack_value *chunnels) {
  struct pack_value map;
  return pack_read(plan, size, &map) == size && pack_get(&map, "chunnels", chunnels) &&
         chunnels->kind == PACK_ARRAY && chunnels->number <= 32;
}

static void field(const struct pack_value *chunnel, const char *name, char *to, size_t room) {
  struct pack_value value = {.kind = PACK_NIL};
  if (!pack_get(chunnel, name, &value)) {
    value.kind = PACK_NIL;
  }
  pack_copy(&value, to, room);
}

/* The index of the outermost chunnel with something on the wire, if it is encrypt; else the count. */
static uint64_t first_outer(const struct pack_value *chunnels) {
  for (uint64_t i = chunnels->number; i-- > 0;) {
    struct pack_value c;
    char wire[64], type[64];
    if (!pack_at(chunnels, i, &c)) {
      break;
    }
    field(&c, "wire", wire, sizeof wire);
    field(&c, "type", type, sizeof type);
    if (strcmp(wire, "none") != 0) {
      return strcmp(type, "encrypt") == 0 ? i : chunnels->number;
    }
  }
  return chunnels->number;
}

bool plan_tls_first(const uint8_t *plan, size_t size) {
  struct pack_value chunnels;
  return chunnels_of(plan, size, &chunnels) && first_outer(&chunnels) < chunnels.number;
}

bool plan_stages(struct session *s, bool outer, const char **why) {
  struct pack_value chunnels;
  *why = "the plan cannot be read; run the same release at both ends";
  if (!chunnels_of(s->plan, s->plan_size, &chunnels)) {
    return false;
  }
  uint64_t split = first_outer(&chunnels);
  uint64_t from = outer ? split : 0;
  uint64_t to = outer ? chunnels.number : split;
  for (uint64_t i = to; i-- > from;) { /* the network's first */
    struct pack_value c, args = {.kind = PACK_MAP};
    char type[64], wire[64], name[64];
    if (!pack_at(&chunnels, i, &c)) {
      return false;
    }
    field(&c, "type", type, sizeof type);
    field(&c, "wire", wire, sizeof wire);
    field(&c, s->server ? "server" : "client", name, sizeof name);
    if (!pack_get(&c, "args", &args)) {
      args = (struct pack_value){.kind = PACK_MAP};
    }
    if (name[0] != '\0' && !session_push(s, type, wire, &args, why)) {
      return false;
    }
  }
  return true;
}

bool plan_chunnel(const uint8_t *plan, size_t size, bool server, unsigned i, struct plan_chunnel *c) {
  struct pack_value chunnels, found;
  if (!chunnels_of(plan, size, &chunnels) || i >= chunnels.number || !pack_at(&chunnels, i, &found)) {
    return false;
  }
  field(&found, "type", c->type, sizeof c->type);
  field(&found, "wire", c->wire, sizeof c->wire);
  field(&found, server ? "server" : "client", c->implementation, sizeof c->implementation);
  if (!pack_get(&found, "args", &c->args) || c->args.kind != PACK_MAP) {
    c->args = (struct pack_value){.kind = PACK_MAP};
  }
  return true;
}

static size_t put(char *to, size_t room, size_t at, const char *text, bool quoted) {
  size_t n = at;
  for (const char *p = text; quoted && *p != '\0'; p++) {
    if ((unsigned char)*p < 0x20 || *p == '"' || *p == '\\') {
      return put(to, room, at, "?", false); /* no name has that */
    }
  }
  n += (size_t)snprintf(to + (n < room ? n : room), n < room ? room - n : 0, "%s", text);
  return n;
}

void plan_text(const uint8_t *plan, size_t size, bool at_server, char *to, size_t room) {
  struct pack_value chunnels;
  size_t n = put(to, room, 0, "[", false);
  for (uint64_t i = 0; chunnels_of(plan, size, &chunnels) && i < chunnels.number; i++) {
    struct pack_value c;
    char type[64], client[64], server[64], where[64];
    if (!pack_at(&chunnels, i, &c)) {
      break;
    }
    field(&c, "type", type, sizeof type);
    field(&c, "client", client, sizeof client);
    field(&c, "server", server, sizeof server);
    field(&c, at_server ? "server_where" : "client_where", where, sizeof where);
    if (where[0] == '\0') { /* the other end alone runs it */
      field(&c, at_server ? "client_where" : "server_where", where, sizeof where);
    }
    size_t before = n;
    n = put(to, room, n, i > 0 ? ",{\"type\":\"" : "{\"type\":\"", false);
    n = put(to, room, n, type, true);
    n = put(to, room, n, "\",\"implementation\":\"", false);
    n = put(to, room, n, client[0] != '\0' ? client : server, true);
    if (client[0] != '\0' && server[0] != '\0' && strcmp(client, server) != 0) {
      n = put(to, room, n, "/", false);
      n = put(to, room, n, server, true);
    }
    n = put(to, room, n, "\",\"where\":\"", false);
    n = put(to, room, n, where, true);
    n = put(to, room, n, "\"}", false);
    if (n + 2 > room) { /* what does not fit is left out */
      n = before;
      break;
    }
  }
  put(to, room, n, "]", false);
}

void plan_left_out(const uint8_t *plan, size_t size, char *to, size_t room) {
  struct pack_value map, omitted;
  size_t n = 0;
  to[0] = '\0';
  if (pack_read(plan, size, &map) != size || !pack_get(&map, "omitted", &omitted)) {
    return;
  }
  struct pack_value one;
  for (uint64_t i = 0; n + 1 < room && pack_at(&omitted, i, &one); i++) {
    char type[64], why[200];
    field(&one, "type", type, sizeof type);
    field(&one, "why", why, sizeof why);
    n = put(to, room, n, i == 0 ? "left out: " : "; ", false);
    n = put(to, room, n, type, false);
    n = put(to, room, n, ": ", false);
    n = put(to, room, n, why, false);
  }
  pack_printable(to);
}
