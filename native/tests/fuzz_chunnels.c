/* compress and frame: whatever comes from the network, in whatever pieces; and what one end makes, the other reads. */
#include "../chunnels/chunnel.h"

static const struct {
  const struct chunnel_ops *ops;
  const char *wire;
} kinds[] = {{&chunnel_compress, "zstd/1"}, {&chunnel_compress, "lz4/1"}, {&chunnel_frame, "u32be/1"}};

static struct chunnel *opened(uint8_t kind) {
  static const struct pack_value none = {.kind = PACK_MAP};
  struct chunnel_config config = {.wire = kinds[kind].wire, .args = &none};
  const char *why;
  struct chunnel *c = kinds[kind].ops->open(&config, &why);
  if (c == NULL) {
    abort();
  }
  return c;
}

/* Everything that is in `in` goes up in such pieces; false: it was refused, with a reason. */
static bool rise(struct chunnel *c, const uint8_t *data, size_t size, size_t part, struct buffer *all) {
  struct buffer in = {0}, out = {0}, back = {0};
  bool good = true;
  size_t at = 0;
  while (good && !c->up_done) {
    size_t n = size - at < part ? size - at : part;
    if (n > 0 && !buffer_add(&in, data + at, n)) {
      abort();
    }
    at += n;
    good = c->ops->up(c, &in, &out, &back, at == size);
    /* A full buffer, and what is made of one record more. */
    if (buffer_size(&out) > CHUNNEL_ENOUGH + 64 * 1024 + size || buffer_size(&back) > 0) {
      abort();
    }
    if (all != NULL && !buffer_add(all, buffer_data(&out), buffer_size(&out))) {
      abort();
    }
    buffer_take(&out, buffer_size(&out));
  }
  if (!good && c->why[0] == '\0') {
    abort();
  }
  buffer_free(&in);
  buffer_free(&out);
  buffer_free(&back);
  return good;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size < 2) {
    return 0;
  }
  uint8_t kind = data[0] % 3;
  size_t part = (size_t)data[1] * data[1] + 1;
  data += 2;
  size -= 2;
  struct chunnel *c = opened(kind);
  rise(c, data, size, part, NULL);
  c->ops->close(c);

  struct buffer plain = {0}, wire = {0}, back = {0};
  c = opened(kind);
  for (size_t at = 0; !c->down_done;) {
    size_t n = size - at < part ? size - at : part;
    if (!buffer_add(&plain, data + at, n)) {
      abort();
    }
    at += n;
    if (!c->ops->down(c, &plain, &wire, at == size)) {
      abort();
    }
  }
  if (!rise(c, buffer_data(&wire), buffer_size(&wire), part, &back) || buffer_size(&back) != size ||
      (size > 0 && memcmp(buffer_data(&back), data, size) != 0)) {
    abort();
  }
  c->ops->close(c);
  buffer_free(&plain);
  buffer_free(&wire);
  buffer_free(&back);
  return 0;
}
