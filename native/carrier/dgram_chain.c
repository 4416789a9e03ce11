#include "dgram_chain.h"

#include <stdio.h>

enum { HEAD = 4, PIECE = 16 * 1024, FRAME_MAX = 16 * 1024 * 1024, MOVES = 64 };

/* ---- the plan ------------------------------------------------------------------------------------ */

static bool is(const struct plan_chunnel *c, const char *type, const char *wire) {
  return strcmp(c->type, type) == 0 && strcmp(c->wire, wire) == 0;
}

bool chain_fits(const uint8_t *plan, size_t size, bool server, struct pack_value *reliable_args) {
  struct plan_chunnel c;
  unsigned above = 0;
  bool framed = false, ended = false;
  for (unsigned i = 0; plan_chunnel(plan, size, server, i, &c); i++) {
    if (c.implementation[0] == '\0') {
      continue;
    }
    if (ended || strcmp(c.implementation, "native") != 0) {
      return false;
    }
    if (is(&c, "reliable", "brel/1")) {
      *reliable_args = c.args;
      ended = true;
    } else if (!framed) { /* a program gives datagrams */
      framed = is(&c, "frame", "u32be/1");
      if (!framed) {
        return false;
      }
    } else if (!stage_known(c.type) || ++above > CHAIN_MAX) {
      return false;
    }
  }
  return ended;
}

/* ---- its life ------------------------------------------------------------------------------------ */

static bool failed(struct chain *c, const char *why) {
  snprintf(c->why, sizeof c->why, "%s", why);
  return false;
}

bool chain_open(struct chain *c, const uint8_t *plan, size_t size, bool server,
                const struct secrets *secrets) {
  struct plan_chunnel found[CHAIN_MAX + 1], one;
  unsigned count = 0;
  for (unsigned i = 0; plan_chunnel(plan, size, server, i, &one) && count <= CHAIN_MAX; i++) {
    if (one.implementation[0] != '\0' && strcmp(one.type, "reliable") != 0) {
      found[count++] = one;
    }
  }
  c->framed = count > 0;
  c->most = FRAME_MAX;
  struct pack_value max;
  if (count > 0 && pack_get(&found[0].args, "max", &max) && max.kind == PACK_INT && max.number >= 1 &&
      max.number <= UINT32_MAX) {
    c->most = (uint32_t)max.number;
  }
  while (count > 1) { /* the network's first */
    const char *why = "no memory";
    const struct plan_chunnel *p = &found[--count];
    c->stage[c->stages] = stage_open(p->type, p->wire, &p->args, server, secrets, &why);
    if (c->stage[c->stages] == NULL) {
      return failed(c, why);
    }
    c->stages++;
  }
  return true;
}

void chain_close(struct chain *c) {
  for (unsigned i = 0; i < c->stages; i++) {
    c->stage[i]->ops->close(c->stage[i]);
  }
  for (unsigned i = 0; i <= CHAIN_MAX; i++) {
    buffer_free(&c->down[i]);
    buffer_free(&c->up[i]);
  }
  c->stages = 0;
}

/* ---- downwards ----------------------------------------------------------------------------------- */

bool chain_send(struct chain *c, const uint8_t *message, size_t size) {
  if (size > c->most) {
    snprintf(c->why, sizeof c->why, "frame: a message of %zu bytes, more than %u; raise max", size, c->most);
    return false;
  }
  uint8_t head[HEAD];
  for (int i = 0; i < HEAD; i++) {
    head[i] = (uint8_t)(size >> (8 * (HEAD - 1 - i)));
  }
  struct buffer *to = &c->down[c->stages];
  return (buffer_add(to, head, HEAD) && buffer_add(to, message, size)) || failed(c, "no memory");
}

size_t chain_below(const struct chain *c, const uint8_t **data) {
  size_t size = buffer_size(&c->down[0]);
  *data = buffer_data(&c->down[0]);
  return size < PIECE ? size : PIECE;
}

void chain_sent(struct chain *c, size_t size) {
  buffer_take(&c->down[0], size);
}

/* ---- upwards ------------------------------------------------------------------------------------- */

bool chain_came(struct chain *c, const uint8_t *piece, size_t size) {
  return buffer_add(&c->up[0], piece, size) || failed(c, "no memory");
}

static size_t length_at(const uint8_t *head) {
  return (size_t)head[0] << 24 | (size_t)head[1] << 16 | (size_t)head[2] << 8 | head[3];
}

/* A message that is longer than a datagram can be is passed over without being kept. */
static void pass_over(struct chain *c) {
  struct buffer *from = &c->up[c->stages];
  size_t size = buffer_size(from) < c->skip ? buffer_size(from) : c->skip;
  buffer_take(from, size);
  c->skip -= (uint32_t)size;
}

bool chain_above(struct chain *c, const uint8_t **data, size_t *size) {
  struct buffer *from = &c->up[c->stages];
  for (;;) {
    if (c->skip > 0) {
      pass_over(c);
    }
    if (buffer_size(from) < HEAD) {
      return false;
    }
    size_t length = length_at(buffer_data(from));
    if (length > c->most) {
      snprintf(c->why, sizeof c->why, "frame: a message of %zu bytes came, more than %u", length, c->most);
      return false;
    }
    if (length > BERTHA_DGRAM_MAX) {
      c->skipped++;
      c->skip = (uint32_t)length;
      buffer_take(from, HEAD);
      continue;
    }
    *data = buffer_data(from) + HEAD;
    *size = length;
    return buffer_size(from) >= HEAD + length;
  }
}

void chain_given(struct chain *c, size_t size) {
  buffer_take(&c->up[c->stages], HEAD + size);
}

/* ---- through the stages --------------------------------------------------------------------------- */

static size_t bytes_in(const struct chain *c, size_t sizes[2 * (CHAIN_MAX + 1)]) {
  size_t changed = 0;
  for (unsigned i = 0; i <= c->stages; i++) {
    size_t now[2] = {buffer_size(&c->down[i]), buffer_size(&c->up[i])};
    for (unsigned j = 0; j < 2; j++) {
      changed += now[j] != sizes[2 * i + j];
      sizes[2 * i + j] = now[j];
    }
  }
  return changed;
}

static bool once(struct chain *c) {
  for (unsigned i = c->stages; i-- > 0;) {
    struct chunnel *s = c->stage[i];
    if (!s->ops->down(s, &c->down[i + 1], &c->down[i], false)) {
      return failed(c, s->why);
    }
  }
  for (unsigned i = 0; i < c->stages; i++) {
    struct chunnel *s = c->stage[i];
    if (!s->up_done && !s->ops->up(s, &c->up[i], &c->up[i + 1], &c->down[i], false)) {
      return failed(c, s->why);
    }
  }
  return true;
}

bool chain_move(struct chain *c) {
  size_t sizes[2 * (CHAIN_MAX + 1)] = {0};
  bytes_in(c, sizes);
  for (int i = 0; i < MOVES; i++) { /* what a handshake in one stage lets go may wait for that of another */
    if (!once(c)) {
      return false;
    }
    if (bytes_in(c, sizes) == 0) {
      break;
    }
  }
  return true;
}

bool chain_full(const struct chain *c) {
  return c->framed && buffer_size(&c->down[c->stages]) >= CHUNNEL_ENOUGH;
}

bool chain_holds(const struct chain *c) {
  for (unsigned i = 0; c->framed && i <= c->stages; i++) {
    if (buffer_size(&c->down[i]) > 0) {
      return true;
    }
  }
  return false;
}
