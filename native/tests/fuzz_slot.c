/* The other side of a connection writes what it likes into the slot and the link's maps: nothing that we do with it
 * reads or writes elsewhere, crashes, or does not come back. */
#include "rig.h"

#include "../core/eset.h"

enum { RING = 4096 };

static struct rig r;
static struct pair p;

/* The peer's words, from the input; then one of our calls; and again. */
struct word {
  size_t offset;
  size_t size;
};
#define IN_DIR(d, field)                                                                                     \
  { offsetof(struct bertha_slot, dir[d].field), sizeof(((struct bertha_direction *)0)->field) }
#define IN_WATCH(s, field)                                                                                   \
  { offsetof(struct bertha_slot, watch[s].field), sizeof(((struct bertha_watch *)0)->field) }
static const struct word words[] = {
    IN_DIR(0, tail),
    IN_DIR(0, base),
    IN_DIR(0, size),
    IN_DIR(0, closed),
    IN_DIR(0, switch_at),
    IN_DIR(0, ring_end),
    IN_DIR(0, space_wanted),
    IN_DIR(0, head),
    IN_DIR(0, want_kernel),
    IN_DIR(0, bell_out),
    IN_DIR(0, bells),
    IN_DIR(1, tail),
    IN_DIR(1, base),
    IN_DIR(1, size),
    IN_DIR(1, closed),
    IN_DIR(1, switch_at),
    IN_DIR(1, ring_end),
    IN_DIR(1, space_wanted),
    IN_DIR(1, head),
    IN_DIR(1, want_kernel),
    IN_DIR(1, bell_out),
    IN_DIR(1, bells),
    IN_WATCH(0, epoll),
    IN_WATCH(0, rx),
    IN_WATCH(0, tx),
    IN_WATCH(0, kernel),
    IN_WATCH(0, done),
    IN_WATCH(0, cpu),
    IN_WATCH(1, epoll),
    IN_WATCH(1, rx),
    IN_WATCH(1, tx),
    IN_WATCH(1, kernel),
    IN_WATCH(1, done),
    IN_WATCH(1, cpu),
    {offsetof(struct bertha_slot, state), 4},
};

static uint64_t number(const uint8_t **at, const uint8_t *end) {
  if (*at >= end) {
    return 0;
  }
  uint8_t kind = *(*at)++;
  static const uint64_t likely[] = {0,         1,     2,        64,         255,
                                    256,       4095,  4096,     4097,       8192,
                                    65535,     65536, 1u << 31, UINT32_MAX, (uint64_t)1 << 63,
                                    UINT64_MAX};
  if (kind < 128) {
    return likely[kind % 16] + (kind >> 4) % 8 - (kind & 64 ? 4 : 0);
  }
  uint64_t v = 0;
  for (int i = 0; i < (kind & 7) + 1 && *at < end; i++) {
    v = v << 8 | *(*at)++;
  }
  return v;
}

static void write_word(uint32_t which, uint64_t value) {
  uint8_t *slot = (uint8_t *)p.conn[0]->slot;
  const struct word *w = &words[which % (sizeof words / sizeof *words)];
  memcpy(slot + w->offset, &value, w->size);
}

static void our_call(uint8_t what, uint64_t n) {
  static uint8_t data[3 * RING];
  int side = what & 1;
  struct conn *c = p.conn[side];
  int fd = p.fd[side];
  size_t size = n % sizeof data + 1;
  struct pollfd at = {.fd = fd, .events = POLLIN | POLLOUT | POLLRDHUP};
  size_t room = size;
  int error;
  uint8_t *to;
  switch (what >> 1 & 7) {
  case 0:
    get(&p, side, data, size, MSG_DONTWAIT);
    break;
  case 1:
    get(&p, side, data, size, MSG_DONTWAIT | MSG_PEEK);
    break;
  case 2:
    put(&p, side, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    break;
  case 3:
    conn_events(c, fd, POLLIN | POLLOUT | POLLRDHUP);
    if (conn_readable_bytes(c) > RING) {
      abort();
    }
    break;
  case 4:
    wait_fds(&at, 1, 0, NULL);
    break;
  case 5:
    conn_look_at_kernel(c, fd);
    break;
  case 6:
    to = tx_reserve(c, fd, &room, &error);
    if (to != NULL) {
      memset(to, 1, room);
      tx_commit(c, fd, room);
    }
    break;
  default:
    if (n % 16 == 0) {
      conn_leave_ring(c, BERTHA_WHY_KERNEL_ASKED);
    } else if (n % 16 == 1) {
      wait_conn(c, fd, POLLIN, bertha_now_ns() + 100000);
    } else if (n % 16 == 2) {
      conn_last_close(c, fd);
    } else {
      conn_ripe(c, fd);
    }
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  const uint8_t *end = data + (size < 200 ? size : 200);
  if (size == 0) {
    return 0;
  }
  if (r.header == NULL) {
    rig_open(&r, 2, RING, 0);
  }
  uint8_t how = *data++;
  if (how & 1) {
    pair_tied(&p, &r, 1); /* the last rings: what is behind them is not ours */
  } else {
    pair_open(&p, &r, 1);
  }
  while (data < end) {
    uint8_t what = *data++;
    uint64_t n = number(&data, end);
    if (what & 128) {
      our_call(what, n);
    } else if (what == 127) {
      memset((void *)r.header, (int)n,
             r.link[0].ring_offset - 2 * sizeof(struct bertha_slot)); /* maps, sleepers */
    } else {
      write_word(what, n);
    }
  }
  pair_close(&p);
  memset((void *)r.header, 0, r.link[0].ring_offset);
  return 0;
}
