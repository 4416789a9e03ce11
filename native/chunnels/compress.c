/* compress: zstd or lz4, one record for each piece that the program sent (bertha_socket/chunnels/compress.py has the
 * format).  A record is an independent frame, so nothing is held back. */
#include <lz4frame.h>
#include <stdio.h>
#include <zstd.h>

#include "chunnel.h"

enum { PLAIN_MAX = 64 * 1024, RECORD_MAX = 128 * 1024, HEAD = 4 };
#define STORED 0x80000000u

struct compress {
  struct chunnel base;
  bool lz4;
  int level;
  ZSTD_CCtx *packer;
  ZSTD_DCtx *unpacker;
  LZ4F_dctx *lz4_unpacker;
};

static void compress_close(struct chunnel *c) {
  struct compress *z = (struct compress *)c;
  ZSTD_freeCCtx(z->packer);
  ZSTD_freeDCtx(z->unpacker);
  if (z->lz4_unpacker != NULL) {
    LZ4F_freeDecompressionContext(z->lz4_unpacker);
  }
  free(z);
}

static struct chunnel *compress_open(const struct chunnel_config *config, const char **why) {
  struct compress *z = calloc(1, sizeof *z);
  struct pack_value level;
  *why = "compress: no memory";
  if (z == NULL) {
    return NULL;
  }
  z->base.ops = &chunnel_compress;
  z->lz4 = strcmp(config->wire, "lz4/1") == 0;
  z->level = 3;
  if (pack_get(config->args, "level", &level) && level.kind == PACK_INT && level.number >= 1 &&
      level.number <= 19) {
    z->level = (int)level.number;
  }
  bool good = z->lz4 ? !LZ4F_isError(LZ4F_createDecompressionContext(&z->lz4_unpacker, LZ4F_VERSION))
                     : (z->packer = ZSTD_createCCtx()) != NULL && (z->unpacker = ZSTD_createDCtx()) != NULL;
  if (!good) {
    compress_close(&z->base);
    return NULL;
  }
  return &z->base;
}

/* The size of the frame, 0: it does not pay. */
static size_t pack(struct compress *z, void *to, size_t room, const void *from, size_t size) {
  size_t n;
  if (z->lz4) {
    /* zstd's default is lz4's fastest; from 4 on its high-compression levels are meant (as compress.py has it) */
    LZ4F_preferences_t how = {.compressionLevel = z->level <= 3 ? 0 : z->level > 12 ? 12 : z->level};
    how.frameInfo.contentSize = size;
    n = LZ4F_compressFrame(to, room, from, size, &how);
    return LZ4F_isError(n) || n >= size ? 0 : n;
  }
  n = ZSTD_compressCCtx(z->packer, to, room, from, size, z->level);
  return ZSTD_isError(n) || n >= size ? 0 : n;
}

static bool compress_down(struct chunnel *c, struct buffer *in, struct buffer *out, bool end) {
  struct compress *z = (struct compress *)c;
  while (buffer_size(in) > 0 && buffer_size(out) < CHUNNEL_ENOUGH) {
    size_t size = buffer_size(in) < PLAIN_MAX ? buffer_size(in) : PLAIN_MAX;
    uint8_t *to = buffer_reserve(out, HEAD + RECORD_MAX);
    if (to == NULL) {
      snprintf(c->why, sizeof c->why, "compress: no memory");
      return false;
    }
    size_t n = pack(z, to + HEAD, RECORD_MAX, buffer_data(in), size);
    uint32_t head = (uint32_t)n;
    if (n == 0) {
      memcpy(to + HEAD, buffer_data(in), size);
      n = size;
      head = STORED | (uint32_t)n;
    }
    for (int i = 0; i < HEAD; i++) {
      to[i] = (uint8_t)(head >> (8 * (HEAD - 1 - i)));
    }
    buffer_added(out, HEAD + n);
    buffer_take(in, size);
  }
  c->down_done = end && buffer_size(in) == 0;
  return true;
}

/* The plain size, or SIZE_MAX: not one of ours. */
static size_t unpack(struct compress *z, uint8_t *to, const uint8_t *from, size_t size) {
  if (!z->lz4) {
    if (ZSTD_getFrameContentSize(from, size) > PLAIN_MAX ||
        ZSTD_findFrameCompressedSize(from, size) != size) {
      return SIZE_MAX;
    }
    size_t n = ZSTD_decompressDCtx(z->unpacker, to, PLAIN_MAX, from, size);
    return ZSTD_isError(n) ? SIZE_MAX : n;
  }
  size_t got = 0;
  size_t at = 0;
  LZ4F_resetDecompressionContext(z->lz4_unpacker);
  for (;;) {
    size_t room = PLAIN_MAX - got;
    size_t left = size - at;
    size_t hint = LZ4F_decompress(z->lz4_unpacker, to + got, &room, from + at, &left, NULL);
    got += room;
    at += left;
    if (LZ4F_isError(hint) || (hint != 0 && room == 0 && left == 0)) {
      return SIZE_MAX;
    }
    if (hint == 0) {
      return at == size ? got : SIZE_MAX;
    }
  }
}

static bool compress_up(struct chunnel *c, struct buffer *in, struct buffer *out, struct buffer *back,
                        bool end) {
  struct compress *z = (struct compress *)c;
  (void)back;
  while (buffer_size(in) >= HEAD && buffer_size(out) < CHUNNEL_ENOUGH) {
    const uint8_t *from = buffer_data(in);
    uint32_t head = (uint32_t)from[0] << 24 | (uint32_t)from[1] << 16 | (uint32_t)from[2] << 8 | from[3];
    size_t size = head & ~STORED;
    if (size == 0 || size > ((head & STORED) ? PLAIN_MAX : RECORD_MAX)) {
      snprintf(c->why, sizeof c->why, "compress: a record of %zu bytes came", size);
      return false;
    }
    if (buffer_size(in) < HEAD + size) {
      break;
    }
    uint8_t *to = buffer_reserve(out, PLAIN_MAX);
    size_t n = SIZE_MAX;
    if (to != NULL && (head & STORED)) {
      memcpy(to, from + HEAD, size);
      n = size;
    } else if (to != NULL) {
      n = unpack(z, to, from + HEAD, size);
    }
    if (n == SIZE_MAX) {
      snprintf(c->why, sizeof c->why, "compress: a record came that cannot be unpacked");
      return false;
    }
    buffer_added(out, n);
    buffer_take(in, HEAD + size);
  }
  if (end && buffer_size(out) < CHUNNEL_ENOUGH) {
    if (buffer_size(in) > 0) {
      snprintf(c->why, sizeof c->why, "compress: the connection was cut off within a record");
      return false;
    }
    c->up_done = true;
  }
  return true;
}

const struct chunnel_ops chunnel_compress = {"compress",  compress_open,  compress_down,
                                             compress_up, compress_close, NULL};
