/* The other end of a mailbox (`unix`) posts anything: letters of any length and for any claim, with any number of
 * descriptors or none.  Nothing is read or written elsewhere, and no descriptor is left over. */
#include "rig.h"

#include "../core/unixmail.h"

enum { SLOTS = 8, DESCRIPTORS = 1100 };

static int some_descriptor(uint8_t kind) {
  switch (kind % 3) {
  case 0:
    return open("/dev/null", O_RDWR | O_CLOEXEC);
  case 1:
    return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  default:
    return dup(0);
  }
}

/* A letter as unixmail.c has it: slot, use, number. */
static const uint8_t *post_anything(int to, const uint8_t *data, const uint8_t *end) {
  struct {
    uint32_t slot, use;
    uint64_t number;
    uint8_t more[16];
  } letter = {.slot = UINT32_MAX, .number = 1};
  uint8_t how = *data++;
  int count = how % 6;
  size_t length = how & 8 ? 16 : how >> 4 & 15;
  uint8_t what = data < end ? *data++ : 0;
  uint8_t value = data < end ? *data++ : 0;
  switch (what % 5) {
  case 0:
    letter.number = value;
    break;
  case 1:
    letter.slot = value % (SLOTS + 2);
    letter.use = (value >> 4) % 4;
    break;
  case 2:
    letter.slot = UINT32_MAX - value;
    break;
  default:
    for (size_t i = 0; i < sizeof letter && data < end; i++) {
      ((uint8_t *)&letter)[i] = *data++;
    }
    length = (size_t)value % sizeof letter;
  }
  int fds[6];
  for (int i = 0; i < count; i++) {
    fds[i] = some_descriptor((uint8_t)(value + i));
  }
  rig_post(to, &letter, length, fds, count);
  return data;
}

static void close_taken(int fd) {
  extern void bertha_close_hidden(int);
  if (fd >= 0) {
    bertha_close_hidden(fd);
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static struct rig r;
  const uint8_t *end = data + (size < 200 ? size : 200);
  if (size < 2) {
    return 0;
  }
  if (r.header == NULL) {
    rig_open(&r, SLOTS, 4096, 0);
    r.link[0].mail = calloc(SLOTS, sizeof *r.link[0].mail);
  }
  int before = rig_descriptors(DESCRIPTORS);
  int pair[2];
  rig_check(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0, "socketpair");
  struct link *l = &r.link[0];
  l->mailbox = bertha_hide_fd(pair[0]);
  l->spares.count = 0;
  l->spares.target = 1;
  uint64_t number = 0;
  while (data < end) {
    uint8_t what = *data++;
    switch (what % 8) {
    case 0:
      close_taken(mail_take(l, (what >> 3) % SLOTS));
      break;
    case 1:
      close_taken(spare_fetch(l, &number));
      break;
    case 2:
      close_taken(spare_find(l, number + (what >> 3) % 3));
      break;
    case 3:
      spare_missed(l);
      break;
    case 4: { /* another claim */
      uint32_t use = (uint32_t)(what >> 5), slot = (what >> 3) % SLOTS;
      atomic_store(&l->slots[slot].state, BERTHA_SLOT_WORD(use, BERTHA_SLOT_CLAIMED));
      break;
    }
    default:
      if (data < end) {
        data = post_anything(pair[1], data, end);
      }
    }
  }
  for (uint32_t slot = 0; slot < SLOTS; slot++) {
    close_taken(mail_take(l, slot));
  }
  mail_forget(l);
  close_taken(l->mailbox);
  close(pair[1]);
  l->mailbox = -1;
  if (rig_descriptors(DESCRIPTORS) != before) {
    abort();
  }
  return 0;
}
