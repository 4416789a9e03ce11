/* A link's memory comes from the agent, and the other side has written its header: it is used as checked, or not. */
#include "../core/link.c" /* map_link() */

#include "rig.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  struct bertha_link_header h;
  uint8_t how = size > 0 ? data[0] : 0;
  rig_header(&h, 2, 4096);
  size_t total = h.total_size;
  if (size > 1 && (how & 1)) { /* all of it, but for what would end the look at once */
    memcpy((uint8_t *)&h + 24, data + 1, size - 1 < sizeof h - 24 ? size - 1 : sizeof h - 24);
  } else { /* single fields */
    for (size_t i = 1; i + 9 <= size; i += 9) {
      memcpy((uint8_t *)&h + data[i] % (sizeof h - 8), data + i + 1, 8);
    }
  }
  int fd = memfd_create("fuzz-link", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  rig_check(fd >= 0 && ftruncate(fd, (off_t)(how & 2 ? total : total / (how | 1))) == 0, "memfd");
  ssize_t n = pwrite(fd, (void *)&h, sizeof h, 0);
  fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK);
  struct bertha_link_reply reply = {.listener = 7, .index = 1};
  struct link *l = n == sizeof h ? map_link(fd, -1, &reply, how >> 2 & 1) : (close(fd), NULL);
  if (l == NULL) {
    return 0;
  }
  memset((void *)l->header, 0xff, sizeof h); /* whatever is there from now on */
  for (uint32_t s = 0; s < l->slot_count; s++) {
    slot_reset(&l->slots[s]);
    for (int side = 0; side < 2; side++) {
      uint8_t *ring = link_ring(l, s, side);
      ring[0] = 1;
      ring[l->ring_max - 1] = 1;
    }
  }
  uint32_t index = sleeper_take(l, 1);
  if (index != 0) {
    sleeper_arm(&l->sleepers[l->side][index]);
  }
  same_processor(l);
  for (uint32_t word = 0; word < (l->slot_count + 63) / 64; word++) {
    atomic_fetch_or(&l->dirty[0][word], 1);
    atomic_fetch_or(&l->dirty[1][word], 1);
  }
  if (l->side == BERTHA_SIDE_CLIENT) {
    int s = slot_take(l);
    if (s >= 0) {
      slot_give_back(l, (uint32_t)s);
    }
  }
  mapped.links = l->next; /* this process would have as many as there are inputs */
  bertha_close_hidden(l->fd);
  munmap(l->header, l->size);
  free(l->free_slots);
  free(l);
  return 0;
}
