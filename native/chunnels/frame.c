/* frame: a length before each message (bertha_socket/chunnels/frame.py has the format).  What is above is a program's
 * stream here, so each piece that was read of it is a message, and messages go up as their bytes come: the longest one
 * needs no room. */
#include <stdio.h>

#include "chunnel.h"

enum { HEAD = 4, PIECE_MAX = 64 * 1024, DEFAULT_MAX = 16 * 1024 * 1024 };

struct frame {
  struct chunnel base;
  uint32_t max;
  uint32_t left; /* of the message that is coming in */
};

static void frame_close(struct chunnel *c) {
  free(c);
}

static struct chunnel *frame_open(const struct chunnel_config *config, const char **why) {
  struct frame *f = calloc(1, sizeof *f);
  struct pack_value max;
  *why = "frame: no memory";
  if (f == NULL) {
    return NULL;
  }
  f->base.ops = &chunnel_frame;
  f->max = DEFAULT_MAX;
  if (pack_get(config->args, "max", &max) && max.kind == PACK_INT && max.number >= 1 &&
      max.number <= UINT32_MAX) {
    f->max = (uint32_t)max.number;
  }
  return &f->base;
}

static bool frame_down(struct chunnel *c, struct buffer *in, struct buffer *out, bool end) {
  const struct frame *f = (const struct frame *)c;
  size_t most = f->max < PIECE_MAX ? f->max : PIECE_MAX;
  while (buffer_size(in) > 0 && buffer_size(out) < CHUNNEL_ENOUGH) {
    size_t size = buffer_size(in) < most ? buffer_size(in) : most;
    uint8_t *to = buffer_reserve(out, HEAD + size);
    if (to == NULL) {
      snprintf(c->why, sizeof c->why, "frame: no memory");
      return false;
    }
    for (int i = 0; i < HEAD; i++) {
      to[i] = (uint8_t)(size >> (8 * (HEAD - 1 - i)));
    }
    memcpy(to + HEAD, buffer_data(in), size);
    buffer_added(out, HEAD + size);
    buffer_take(in, size);
  }
  c->down_done = end && buffer_size(in) == 0;
  return true;
}

static bool frame_up(struct chunnel *c, struct buffer *in, struct buffer *out, struct buffer *back,
                     bool end) {
  struct frame *f = (struct frame *)c;
  (void)back;
  while (buffer_size(out) < CHUNNEL_ENOUGH && (f->left > 0 ? buffer_size(in) > 0 : buffer_size(in) >= HEAD)) {
    const uint8_t *from = buffer_data(in);
    if (f->left == 0) {
      f->left = (uint32_t)from[0] << 24 | (uint32_t)from[1] << 16 | (uint32_t)from[2] << 8 | from[3];
      if (f->left > f->max) {
        snprintf(c->why, sizeof c->why, "frame: a message of %u bytes came, more than %u", f->left, f->max);
        return false;
      }
      buffer_take(in, HEAD);
      continue;
    }
    size_t size = buffer_size(in) < f->left ? buffer_size(in) : f->left;
    if (!buffer_add(out, from, size)) {
      snprintf(c->why, sizeof c->why, "frame: no memory");
      return false;
    }
    buffer_take(in, size);
    f->left -= (uint32_t)size;
  }
  if (end && buffer_size(out) < CHUNNEL_ENOUGH) {
    if (f->left > 0 || buffer_size(in) > 0) {
      snprintf(c->why, sizeof c->why, "frame: the connection ended in the midst of a message");
      return false;
    }
    c->up_done = true;
  }
  return true;
}

const struct chunnel_ops chunnel_frame = {"frame", frame_open, frame_down, frame_up, frame_close, NULL};
