/* reliable: two ends and a network that loses, doubles, reorders and alters, as the input says; and whatever else
 * somebody sends.  Counts stay what they count, memory stays bounded, and while nothing was altered, messages come out
 * as they went in. */
#include "../chunnels/reliable.c"
#include "../chunnels/reliable_receive.c"
#include "../chunnels/reliable_send.c"

enum { FLYING = 64, DATAGRAM = 300 };

static const uint8_t *at, *end;

static uint8_t next_byte(void) {
  return at < end ? *at++ : 0;
}

struct flying {
  uint8_t bytes[DATAGRAM];
  size_t size;
};

static struct reliable *ends[2];
static struct flying flying[2][FLYING]; /* towards that end */
static int count[2];
static uint32_t sent[2], got[2];
static bool altered;
static struct reliable_held held[2];

static size_t size_of(uint32_t n) {
  return (size_t)n * 97 % 1500;
}

static void check(const struct reliable *r) {
  uint32_t outstanding = 0, lost = 0, early = 0;
  size_t bytes = 0, kept = r->early != NULL ? RELIABLE_WINDOW * sizeof *r->early : 0;
  for (uint64_t n = r->acknowledged; n < r->next; n++) {
    const struct packet *p = packet_of(r, n);
    outstanding += !p->arrived && !p->lost;
    lost += p->lost;
    bytes += p->size;
  }
  for (uint64_t n = r->wanted; r->early != NULL && n < r->wanted + RELIABLE_WINDOW; n++) {
    const struct early *e = &r->early[n % RELIABLE_WINDOW];
    early += e->there;
    kept += e->there ? e->size + RELIABLE_PIECE : 0;
  }
  bool ringed = r->byte_past - r->byte_first <= r->byte_room && r->byte_next - r->byte_first == bytes;
  if (outstanding != r->outstanding || lost != r->lost || early != r->early_count || !ringed ||
      r->next - r->acknowledged > RELIABLE_WINDOW || r->up.room > 2 * RELIABLE_MESSAGE_MAX ||
      kept != r->held->early || kept > r->held->early_max || r->held->begun != r->counted ||
      (r->begun > 0) > (r->counted > 0) || r->counted > r->begun + RELIABLE_ROOM ||
      !(r->window >= 1 && r->window <= RELIABLE_WINDOW) || !(r->rto >= 0.2 && r->rto <= 8)) {
    abort();
  }
}

static void take_all(int side) {
  const uint8_t *data;
  size_t size;
  struct flying one;
  while (reliable_message(ends[side], &data, &size)) {
    uint32_t n = got[side]++;
    if (altered) {
      continue;
    }
    if (n >= sent[!side] || size != size_of(n) || (size > 0 && data[size - 1] != (uint8_t)n)) {
      abort();
    }
  }
  while ((one.size = reliable_datagram(ends[side], one.bytes, sizeof one.bytes)) > 0) {
    if (count[!side] < FLYING) { /* else it is lost */
      flying[!side][count[!side]++] = one;
    }
  }
  check(ends[side]);
  double deadline = reliable_state(ends[side]).deadline;
  if (!(deadline > 0)) {
    abort();
  }
}

static void alter(struct flying *one) {
  altered = true;
  size_t place = next_byte() % RELIABLE_ACK_MAX;
  if (place < one->size) {
    one->bytes[place] ^= next_byte();
  } else {
    one->size = next_byte() % one->size;
  }
}

static void act(double *now) {
  static uint8_t message[1500];
  uint8_t what = next_byte();
  int side = what & 1;
  switch (what >> 1 & 7) {
  case 0: { /* a message */
    size_t size = size_of(sent[side]);
    memset(message, (uint8_t)sent[side], size);
    if (!reliable_state(ends[side]).full && reliable_send(ends[side], message, size, *now)) {
      sent[side]++;
    }
    break;
  }
  case 1: /* time */
    *now += (what >> 4) * 0.013;
    break;
  case 2: {
    double due = reliable_state(ends[side]).deadline;
    *now = due < INFINITY && due > *now ? due : *now;
    reliable_tick(ends[side], *now);
    break;
  }
  case 3: /* somebody else's bytes */
    if (what >> 4 == 0) {
      size_t size = next_byte();
      size = size < (size_t)(end - at) ? size : (size_t)(end - at);
      altered = true;
      reliable_came(ends[side], at, size, *now);
      at += size;
    }
    break;
  case 4:
    if (what >> 4 == 15) {
      reliable_end(ends[side], *now);
      break;
    }      /* fall through */
  default: /* something arrives, is doubled, or lost */
    if (count[side] > 0) {
      int i = (what >> 5) % count[side];
      struct flying one = flying[side][i];
      uint8_t how = next_byte();
      if ((how & 3) != 3) {
        flying[side][i] = flying[side][--count[side]];
      }
      if ((how & 0xf4) == 0xf4) {
        alter(&one);
      }
      if ((how & 8) == 0) {
        reliable_came(ends[side], one.bytes, one.size, *now);
      }
    }
  }
  take_all(side);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  double now = 1;
  at = data;
  end = data + size;
  uint64_t first = (next_byte() & 1) != 0 ? ((uint64_t)1 << 32) - next_byte() : 1;
  altered = false;
  for (int side = 0; side < 2; side++) {
    held[side].early_max = 40 * 1024; /* a ring, and not much in it */
    struct reliable_config config = {side != 0, DATAGRAM - 50, 9, 1000, first, 0, &held[side]};
    ends[side] = reliable_open(&config);
    if (ends[side] == NULL || !reliable_start(ends[side], now)) {
      abort();
    }
    count[side] = 0;
    sent[side] = got[side] = 0;
  }
  take_all(0);
  take_all(1);
  while (at < end) {
    act(&now);
  }
  reliable_close(ends[0]);
  reliable_close(ends[1]);
  if (held[0].early + held[0].begun + held[1].early + held[1].begun != 0) {
    abort();
  }
  return 0;
}
