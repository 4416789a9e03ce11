/* One stage of the native carrier for a test that drives it from outside (tests/conformance/native.py): what a session
 * does with a stage, without a session. */
#include <stdio.h>

#include "../chunnels/chunnel.h"
#include "../chunnels/encrypt.h"

enum { WHY_SIZE = 200 };

struct kit {
  struct chunnel *stage;
  uint8_t *args;
  struct buffer down_in, down_out, up_in, up_out;
  bool down_end, up_end;
  char why[WHY_SIZE];
};

struct kit *kit_open(const char *type, bool server, const char *wire, const uint8_t *args, size_t size,
                     const char *certificate, const char *key, const char *ca, char why[WHY_SIZE]);
bool kit_add(struct kit *k, bool up, const uint8_t *data, size_t size, bool end);
bool kit_turn(struct kit *k);
void kit_idle(struct kit *k);
bool kit_lend(struct kit *k);
size_t kit_size(const struct kit *k, bool up, bool out);
void kit_take(struct kit *k, bool up, uint8_t *to, size_t size);
bool kit_done(const struct kit *k, bool up);
const char *kit_why(const struct kit *k);
void kit_close(struct kit *k);

struct kit *kit_open(const char *type, bool server, const char *wire, const uint8_t *args, size_t size,
                     const char *certificate, const char *key, const char *ca, char why[WHY_SIZE]) {
  const struct chunnel_ops *all[] = {&chunnel_compress, &chunnel_encrypt, &chunnel_frame};
  struct kit *k = calloc(1, sizeof *k);
  struct pack_value map;
  const char *reason = "no such chunnel";
  if (k == NULL || (k->args = malloc(size)) == NULL) {
    abort();
  }
  memcpy(k->args, args, size);
  if (pack_read(k->args, size, &map) != size || map.kind != PACK_MAP) {
    abort();
  }
  struct chunnel_config config = {
      .server = server, .wire = wire, .args = &map, .certificate = certificate, .key = key, .ca = ca};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    if (strcmp(all[i]->type, type) == 0) {
      k->stage = all[i]->open(&config, &reason);
    }
  }
  if (k->stage == NULL) {
    snprintf(why, WHY_SIZE, "%s", reason);
    free(k->args);
    free(k);
    return NULL;
  }
  return k;
}

/* What comes from the program, or from the network; `end`: no more will. */
bool kit_add(struct kit *k, bool up, const uint8_t *data, size_t size, bool end) {
  if (end) {
    *(up ? &k->up_end : &k->down_end) = true;
  }
  return buffer_add(up ? &k->up_in : &k->down_in, data, size);
}

/* As session.c's `move`. */
bool kit_turn(struct kit *k) {
  struct chunnel *c = k->stage;
  return (c->down_done || c->ops->down(c, &k->down_in, &k->down_out, k->down_end)) &&
         (c->up_done || c->ops->up(c, &k->up_in, &k->up_out, &k->down_out, k->up_end));
}

void kit_idle(struct kit *k) {
  if (k->stage->ops->idle != NULL) {
    k->stage->ops->idle(k->stage);
  }
}

/* As carrier/lend.c: a program could go on from here, and gives it back at once.  Afterwards the records are our own. */
bool kit_lend(struct kit *k) {
  struct bertha_records records;
  return k->stage->ops == &chunnel_encrypt && encrypt_lend(k->stage, &records) &&
         encrypt_back(k->stage, &records, false);
}

static const struct buffer *which(const struct kit *k, bool up, bool out) {
  if (up) {
    return out ? &k->up_out : &k->up_in;
  }
  return out ? &k->down_out : &k->down_in;
}

size_t kit_size(const struct kit *k, bool up, bool out) {
  return buffer_size(which(k, up, out));
}

void kit_take(struct kit *k, bool up, uint8_t *to, size_t size) {
  struct buffer *b = up ? &k->up_out : &k->down_out;
  memcpy(to, buffer_data(b), size);
  buffer_take(b, size);
}

bool kit_done(const struct kit *k, bool up) {
  return up ? k->stage->up_done : k->stage->down_done;
}

const char *kit_why(const struct kit *k) {
  return k->stage->why;
}

void kit_close(struct kit *k) {
  k->stage->ops->close(k->stage);
  buffer_free(&k->down_in);
  buffer_free(&k->down_out);
  buffer_free(&k->up_in);
  buffer_free(&k->up_out);
  free(k->args);
  free(k);
}
