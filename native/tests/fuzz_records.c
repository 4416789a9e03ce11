/* TLS's records of a stranger: any bytes, and any content of any type that was sealed with the right keys.  What is refused
 * is refused with a reason, and nothing is written elsewhere. */
#include "../core/records.c"

#include <stdio.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t wire[RECORD_MAX + 2 * RECORD_REPLY_MAX], reply[RECORD_REPLY_MAX];

/* Into a room that is as large as is promised, so that the sanitizer sees what is beyond. */
static enum record_what opened(struct record_keys *k, struct bertha_records *r, const uint8_t *in,
                               size_t size, size_t *n) {
  const char *why = NULL;
  size_t reply_size;
  uint8_t *to = malloc(size);
  enum record_what what = record_open(k, r, in, size, to, n, reply, &reply_size, &why);
  free(to);
  if ((what == RECORD_BAD && why == NULL) || *n > RECORD_BYTES_MAX || reply_size > RECORD_REPLY_MAX) {
    abort();
  }
  return what;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size < 2 || libcrypto() == NULL) {
    return 0;
  }
  struct bertha_records ours = {.suite = 0x1301 + data[0] % 3}, theirs = ours;
  struct record_keys *us = records_open(&ours), *them = records_open(&theirs);
  uint8_t type = data[1];
  size_t n;
  if (us == NULL || them == NULL) {
    abort();
  }
  data += 2;
  size -= 2;
  size_t whole = record_size(data, size);
  if (whole != 0 && whole != SIZE_MAX && whole <= size && opened(us, &ours, data, whole, &n) != RECORD_BAD) {
    abort(); /* nobody has sealed that */
  }
  size = size < RECORD_BYTES_MAX ? size : RECORD_BYTES_MAX;
  size_t sealed = seal(them, &theirs, type, data, size / 2, data + size / 2, size - size / 2, wire);
  if (sealed == 0 || record_size(wire, sealed) != sealed) {
    abort();
  }
  enum record_what what = opened(us, &ours, wire, sealed, &n);
  if (type == TYPE_DATA && (what != RECORD_BYTES || n != size)) {
    abort();
  }
  records_close(us);
  records_close(them);
  return 0;
}
