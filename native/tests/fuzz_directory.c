/* The directory file is an agent's of this user or root, but it may be anything: an older version, cut, half written. */
#include "../core/directory.c"

#include "rig.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  enum { SIZE = sizeof(struct bertha_dir_header) + BERTHA_DIR_ENTRIES * sizeof(struct bertha_dir_entry) };
  static struct bertha_dir_header *map;
  static const uint8_t addr[16] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1};
  if (map == NULL) {
    map = malloc(SIZE); /* the sanitizer knows its end */
    rig_check(map != NULL, "malloc");
    atomic_store(&directory.map, map);
  }
  memset((void *)map, 0, SIZE);
  memcpy((void *)map, data, size < sizeof *map ? size : sizeof *map);
  atomic_store(&map->generation, 1);
  struct bertha_dir_entry *e = entries(map);
  uint32_t at = bertha_dir_hash(addr, 80) % BERTHA_DIR_ENTRIES;
  for (size_t i = sizeof *map; i < size; i += sizeof *e, at = (at + 1) % BERTHA_DIR_ENTRIES) {
    memcpy((void *)&e[at], data + i, size - i < sizeof *e ? size - i : sizeof *e);
    if (data[i] & 1) { /* so that some are looked at */
      e[at].port = 80;
      memcpy(e[at].addr, addr, 16);
    }
  }
  if (size > 0 && data[size - 1] == 0xff) { /* no end anywhere */
    for (uint32_t i = 0; i < BERTHA_DIR_ENTRIES; i++) {
      e[i].port |= 1;
    }
  }
  struct dir_hit hits[BERTHA_RESOLVE_MAX];
  for (uint16_t port = 79; port < 82; port++) {
    int n = directory_find(addr, port, hits, BERTHA_RESOLVE_MAX);
    if (n < 0 || n > BERTHA_RESOLVE_MAX) {
      abort();
    }
    for (int i = 0; i < n; i++) {
      if (hits[i].listener == 0) {
        abort();
      }
    }
  }
  return 0;
}
