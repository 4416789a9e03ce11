#include "pack.h"

enum { DEPTH_MAX = 16 };

static uint64_t big_endian(const uint8_t *p, unsigned n) {
  uint64_t value = 0;
  for (unsigned i = 0; i < n; i++) {
    value = value << 8 | p[i];
  }
  return value;
}

/* What the first byte says: how long the head is, and what follows. */
struct head {
  enum pack_kind kind;
  unsigned length_bytes; /* of a length or a number behind the first byte */
  unsigned extra;        /* an ext type's byte */
  bool length_given;     /* in the first byte itself */
  bool is_signed;
  uint64_t length;
};

static struct head head_of(uint8_t b) {
  if (b <= 0x7f || b >= 0xe0) {
    return (struct head){.kind = PACK_INT, .length_given = true, .length = (uint64_t)(int64_t)(int8_t)b};
  }
  if (b <= 0x8f) {
    return (struct head){.kind = PACK_MAP, .length_given = true, .length = b & 0xf};
  }
  if (b <= 0x9f) {
    return (struct head){.kind = PACK_ARRAY, .length_given = true, .length = b & 0xf};
  }
  if (b <= 0xbf) {
    return (struct head){.kind = PACK_TEXT, .length_given = true, .length = b & 0x1f};
  }
  static const struct head others[32] = {
      [0x00] = {.kind = PACK_NIL, .length_given = true},
      [0x01] = {.kind = PACK_MAP, .length_bytes = 9}, /* never used: refused below */
      [0x02] = {.kind = PACK_BOOL, .length_given = true, .length = 0},
      [0x03] = {.kind = PACK_BOOL, .length_given = true, .length = 1},
      [0x04] = {.kind = PACK_BYTES, .length_bytes = 1},
      [0x05] = {.kind = PACK_BYTES, .length_bytes = 2},
      [0x06] = {.kind = PACK_BYTES, .length_bytes = 4},
      [0x07] = {.kind = PACK_OTHER, .length_bytes = 1, .extra = 1},
      [0x08] = {.kind = PACK_OTHER, .length_bytes = 2, .extra = 1},
      [0x09] = {.kind = PACK_OTHER, .length_bytes = 4, .extra = 1},
      [0x0a] = {.kind = PACK_OTHER, .length_given = true, .length = 4}, /* float 32 */
      [0x0b] = {.kind = PACK_REAL, .length_given = true, .length = 8},
      [0x0c] = {.kind = PACK_INT, .length_bytes = 1},
      [0x0d] = {.kind = PACK_INT, .length_bytes = 2},
      [0x0e] = {.kind = PACK_INT, .length_bytes = 4},
      [0x0f] = {.kind = PACK_INT, .length_bytes = 8},
      [0x10] = {.kind = PACK_INT, .length_bytes = 1, .is_signed = true},
      [0x11] = {.kind = PACK_INT, .length_bytes = 2, .is_signed = true},
      [0x12] = {.kind = PACK_INT, .length_bytes = 4, .is_signed = true},
      [0x13] = {.kind = PACK_INT, .length_bytes = 8, .is_signed = true},
      [0x14] = {.kind = PACK_OTHER, .length_given = true, .length = 1, .extra = 1},
      [0x15] = {.kind = PACK_OTHER, .length_given = true, .length = 2, .extra = 1},
      [0x16] = {.kind = PACK_OTHER, .length_given = true, .length = 4, .extra = 1},
      [0x17] = {.kind = PACK_OTHER, .length_given = true, .length = 8, .extra = 1},
      [0x18] = {.kind = PACK_OTHER, .length_given = true, .length = 16, .extra = 1},
      [0x19] = {.kind = PACK_TEXT, .length_bytes = 1},
      [0x1a] = {.kind = PACK_TEXT, .length_bytes = 2},
      [0x1b] = {.kind = PACK_TEXT, .length_bytes = 4},
      [0x1c] = {.kind = PACK_ARRAY, .length_bytes = 2},
      [0x1d] = {.kind = PACK_ARRAY, .length_bytes = 4},
      [0x1e] = {.kind = PACK_MAP, .length_bytes = 2},
      [0x1f] = {.kind = PACK_MAP, .length_bytes = 4},
  };
  return others[b - 0xc0];
}

static size_t read_deep(const uint8_t *data, size_t size, struct pack_value *value, unsigned depth) {
  if (size == 0 || depth > DEPTH_MAX || data[0] == 0xc1) {
    return 0;
  }
  struct head h = head_of(data[0]);
  size_t at = 1 + h.length_bytes + h.extra;
  if (at > size) {
    return 0;
  }
  uint64_t length = h.length_given ? h.length : big_endian(data + 1, h.length_bytes);
  if (h.is_signed && h.length_bytes < 8) {
    uint64_t sign = (uint64_t)1 << (8 * h.length_bytes - 1);
    length = (length ^ sign) - sign;
  }
  *value = (struct pack_value){.kind = h.kind, .number = length, .data = data + at};
  switch (h.kind) {
  case PACK_NIL:
  case PACK_BOOL:
  case PACK_INT:
    return at;
  case PACK_ARRAY:
  case PACK_MAP: {
    uint64_t items = h.kind == PACK_MAP ? 2 * length : length;
    if (items > size) { /* each has a byte at least */
      return 0;
    }
    size_t whole = at;
    for (uint64_t i = 0; i < items; i++) {
      struct pack_value item;
      size_t n = read_deep(data + whole, size - whole, &item, depth + 1);
      if (n == 0) {
        return 0;
      }
      whole += n;
    }
    value->size = whole - at;
    return whole;
  }
  default:
    if (length > size - at) {
      return 0;
    }
    value->size = (size_t)length;
    return at + (size_t)length;
  }
}

/* Of no bytes it has read all that there are: then the value is nil, and not what was in that place before. */
size_t pack_read(const uint8_t *data, size_t size, struct pack_value *value) {
  *value = (struct pack_value){.kind = PACK_NIL};
  return read_deep(data, size, value, 0);
}

bool pack_at(const struct pack_value *array, uint64_t index, struct pack_value *value) {
  const uint8_t *at = array->data;
  size_t left = array->size;
  if (array->kind != PACK_ARRAY || index >= array->number) {
    return false;
  }
  for (uint64_t i = 0; i <= index; i++) {
    size_t n = pack_read(at, left, value);
    if (n == 0) {
      return false;
    }
    at += n;
    left -= n;
  }
  return true;
}

bool pack_get(const struct pack_value *map, const char *name, struct pack_value *value) {
  const uint8_t *at = map->data;
  size_t left = map->size;
  for (uint64_t i = 0; map->kind == PACK_MAP && i < map->number; i++) {
    struct pack_value key;
    size_t n = pack_read(at, left, &key);
    size_t m = n > 0 ? pack_read(at + n, left - n, value) : 0;
    if (m == 0) {
      return false;
    }
    if (pack_is(&key, name)) {
      return true;
    }
    at += n + m;
    left -= n + m;
  }
  return false;
}

bool pack_is(const struct pack_value *value, const char *text) {
  size_t n = strlen(text);
  return value->kind == PACK_TEXT && value->size == n && memcmp(value->data, text, n) == 0;
}

bool pack_real(const struct pack_value *value, double *number) {
  if (value->kind == PACK_INT) {
    *number = (double)(int64_t)value->number;
    return true;
  }
  if (value->kind != PACK_REAL) {
    return false;
  }
  uint64_t bits = big_endian(value->data, 8);
  memcpy(number, &bits, sizeof *number);
  return true;
}

void pack_copy(const struct pack_value *value, char *to, size_t room) {
  size_t n = value->kind == PACK_TEXT ? value->size : 0;
  n = n < room ? n : room - 1;
  if (n > 0) { /* what is no text may have no bytes at all */
    memcpy(to, value->data, n);
  }
  to[n] = '\0';
}

void pack_printable(char *text) {
  size_t whole = 0, left = 0; /* bytes up to the end of a character; still to come of the one at hand */
  for (size_t i = 0; text[i] != '\0'; i++) {
    uint8_t c = (uint8_t)text[i];
    if (c < 0x20 || c == 0x7f) {
      text[i] = '?';
    }
    if ((c & 0xc0) == 0x80 && left > 0) {
      left--;
    } else {
      left = c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : c >= 0xc0 ? 1 : 0;
    }
    whole = left == 0 ? i + 1 : whole;
  }
  text[whole] = '\0';
}

static bool put(struct buffer *b, uint8_t first, uint64_t number, unsigned bytes) {
  uint8_t text[9] = {first};
  for (unsigned i = 0; i < bytes; i++) {
    text[1 + i] = (uint8_t)(number >> (8 * (bytes - 1 - i)));
  }
  return buffer_add(b, text, 1 + bytes);
}

bool pack_map(struct buffer *b, unsigned pairs) {
  return put(b, (uint8_t)(0x80 | pairs), 0, 0);
}

bool pack_text(struct buffer *b, const char *text) {
  size_t n = strlen(text);
  bool head = n < 32 ? put(b, (uint8_t)(0xa0 | n), 0, 0) : put(b, 0xda, n, 2);
  return head && buffer_add(b, text, n);
}

bool pack_bytes(struct buffer *b, const void *data, size_t size) {
  bool head = size < 256 ? put(b, 0xc4, size, 1) : put(b, 0xc6, size, 4);
  return head && buffer_add(b, data, size);
}

bool pack_uint(struct buffer *b, uint64_t n) {
  return n < 128 ? put(b, (uint8_t)n, 0, 0) : put(b, 0xcf, n, 8);
}

bool pack_bool(struct buffer *b, bool value) {
  return put(b, value ? 0xc3 : 0xc2, 0, 0);
}
