/* What strangers and programs tell the native carrier of UDP sockets: envelopes with and without sense from several
 * addresses, heads, plans, verdicts, and what the carrier beside says.  It serves on; nothing is read or written elsewhere,
 * and nothing is left over. */
#include "../carrier/datagrams.h"

#include <sys/epoll.h>

#include "rig.h"

enum { DESCRIPTORS = 300 }; /* that are counted */

/* ---- in the place of main.c, of trust.c and of the agent ---- */

static int64_t now = 1000 * SECOND_NS;
static unsigned held;
static uint64_t questions;
static bool agent;
static struct secrets keyed = {.has_cluster_key = true, .cluster_key_size = 32};
static struct secrets *secrets;

int64_t carrier_now(void) {
  return now;
}
bool carrier_has_agent(void) {
  return agent;
}
int carrier_control(void) {
  return -1;
}
uint64_t carrier_ask(uint64_t listener, const uint8_t *plan, size_t size, const char *peer) {
  (void)listener, (void)plan, (void)size, (void)peer;
  return ++questions % 16 == 0 ? 0 : questions;
}
void carrier_hold(struct shim *shim) {
  (void)shim;
  held++;
}
void carrier_let_go(struct shim *shim) {
  (void)shim;
  held--;
}
bool carrier_watch_datagrams(struct datagrams *d, int udp, int program) {
  (void)d, (void)udp, (void)program;
  return true;
}
bool carrier_watch_beside(struct datagrams *d, int fd) {
  (void)d, (void)fd;
  return true;
}
void carrier_unwatch(int fd) {
  (void)fd;
}
struct secrets *trust_secrets(uint64_t listener, bool server, uint64_t uid) {
  (void)listener, (void)server, (void)uid;
  return secrets;
}
bool trust_serves(uint64_t listener, uint64_t uid, const char **why) {
  (void)listener, (void)uid, (void)why;
  return true;
}
void trust_give_back(struct secrets *k) {
  (void)k;
}
bool trust_knows(uint64_t listener, const uint8_t *plan, size_t size, bool has_agent) {
  (void)listener, (void)plan, (void)has_agent;
  return size % 2 == 0;
}
void trust_remember(uint64_t listener, const uint8_t *plan, size_t size, bool good) {
  (void)listener, (void)plan, (void)size, (void)good;
}
uint64_t trust_salt(void) {
  return 1;
}

bool session_push(struct session *s, const char *type, const char *wire, const struct pack_value *args,
                  const char **why) {
  (void)s, (void)type, (void)wire, (void)args, (void)why;
  return false;
}

/* ---- what is said ---- */

static void a_chunnel(struct buffer *b, const char *type, const char *wire, uint8_t how) {
  rig_check(pack_map(b, 7) && pack_text(b, "type") && pack_text(b, type) && pack_text(b, "args") &&
                pack_map(b, 1) && pack_text(b, "mtu") && pack_uint(b, how & 4 ? 100 + how : 1200) &&
                pack_text(b, "wire") && pack_text(b, wire) && pack_text(b, "client") &&
                pack_text(b, "native") && pack_text(b, "server") &&
                pack_text(b, how & 8 ? "python" : "native") && pack_text(b, "client_where") &&
                pack_text(b, "host") && pack_text(b, "server_where") && pack_text(b, "host"),
            "pack");
}

static void a_plan(struct buffer *b, uint8_t how) {
  static const char *const types[] = {"reliable", "reliable", "frame", ""};
  bool chain = (how & 48) == 48; /* frame() |> compress() |> reliable() */
  rig_check(pack_map(b, 2) && pack_text(b, "chunnels") && buffer_add(b, chain ? "\x93" : "\x91", 1), "pack");
  if (chain) {
    a_chunnel(b, "frame", "u32be/1", how);
    a_chunnel(b, "compress", how & 64 ? "lz4/1" : "zstd/1", how);
  }
  a_chunnel(b, types[how & 3], "brel/1", how);
  rig_check(pack_text(b, "v") && pack_uint(b, 1), "pack");
}

static struct place a_place(uint8_t which) {
  struct place p = {.port = (uint16_t)(9 + which % 4)};
  memcpy(p.addr, "\0\0\0\0\0\0\0\0\0\0\xff\xff\x7f\0\0\1", 16);
  if (which & 64) {
    p.addr[0] = 0xfd; /* of the other family */
  }
  return p;
}

static void a_head(struct buffer *b, uint8_t kind, uint8_t which) {
  struct place p = a_place(which);
  struct bertha_dgram head = {
      .magic = BERTHA_DGRAM_MAGIC, .kind = kind % 12, .port = p.port, .value = which / 32};
  memcpy(head.addr, p.addr, sizeof head.addr);
  rig_check(buffer_add(b, &head, sizeof head), "head");
}

static void tell(int to, const struct buffer *b, int fd) {
  rig_post(to, buffer_data(b), buffer_size(b), &fd, fd >= 0);
}

static const uint8_t *step(struct datagrams *d, int program, int *beside, const uint8_t *data,
                           const uint8_t *end) {
  uint8_t what = *data++, how = data < end ? *data++ : 0, more = data < end ? *data++ : 0;
  size_t length = (size_t)(end - data) < more % 64 ? (size_t)(end - data) : more % 64;
  struct buffer b = {0};
  struct place from = a_place(how);
  uint8_t head[ENVELOPE_HEAD];
  switch (what % 8) {
  case 0: { /* a HELLO that makes sense */
    struct buffer plan = {0};
    a_plan(&plan, more);
    rig_check(envelope_hello(&b, how / 8 % 8, buffer_data(&plan), buffer_size(&plan), secrets), "hello");
    buffer_free(&plan);
    break;
  }
  case 1: /* some other envelope */
    envelope_seal(head, (enum envelope_kind)(what / 8 % 10), how / 8 % 8);
    rig_check(buffer_add(&b, head, sizeof head) && buffer_add(&b, data, length), "envelope");
    break;
  case 2: /* of the program, or of whoever has its end */
  case 3:
    a_head(&b, what / 8, how);
    if (what / 8 % 12 == BERTHA_DGRAM_PLAN && (more & 128)) {
      a_plan(&b, more);
    }
    rig_check(buffer_add(&b, data, length), "message");
    int fd = -1;
    if (what & 4 && what & 2 && *beside < 0) {
      int pair[2];
      rig_check(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0, "socketpair");
      *beside = pair[1];
      fd = pair[0];
    }
    tell(program, &b, fd);
    buffer_free(&b);
    datagrams_event(d, false, EPOLLIN | EPOLLOUT);
    return data + length;
  case 4: /* of the carrier beside */
    a_head(&b, what / 8, how);
    rig_check(buffer_add(&b, data, length), "message");
    if (*beside >= 0) {
      tell(*beside, &b, -1);
      beside_event(d, EPOLLIN | EPOLLOUT);
    }
    buffer_free(&b);
    return data + length;
  case 5: /* time */
    now += (int64_t)how * how * how * 20000;
    timers_run(now);
    if (more & 1) { /* the program reads what there is */
      char space[100];
      while (recv(program, space, sizeof space, MSG_DONTWAIT) > 0) {
      }
      datagrams_event(d, false, EPOLLOUT);
    }
    return data;
  case 6:
    exchange_verdict(questions - how % 3, more & 1, "no");
    if (how == 255) {
      agent = false;
      datagrams_agent_gone();
    }
    return data;
  default: /* anything */
    rig_check(buffer_add(&b, data, length), "bytes");
  }
  if (!d->over) {
    uint8_t *exact = malloc(buffer_size(&b) + 1); /* so that the sanitizer sees its end */
    memcpy(exact, buffer_size(&b) > 0 ? buffer_data(&b) : (const uint8_t *)"", buffer_size(&b));
    from.addr[0] = 0;
    peers_network_said(d, &from, exact, buffer_size(&b));
    free(exact);
  }
  buffer_free(&b);
  return data + length;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size < 2) {
    return 0;
  }
  const uint8_t *end = data + size;
  struct bertha_carrier_status status = {.state = 0};
  struct shim shim = {.fd = -1, .statuses = &status, .status_count = 1};
  int pair[2], beside = -1, before = rig_descriptors(DESCRIPTORS);
  int udp = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  rig_check(udp >= 0 && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0, "sockets");
  uint8_t how = *data++;
  agent = !(how & 8);
  secrets = how & 4 ? &keyed : NULL;
  struct bertha_carrier_carry head = {
      .side = how & 1, .mode = how & 1 ? 1 + (how >> 1 & 1) : 0, .listener = 7};
  datagrams_carry(&shim, &head, udp, pair[0]);
  struct datagrams *d = datagrams_first();
  rig_check(d != NULL && held == 1, "carried");
  datagrams_run();
  while (data < end && held > 0) {
    data = step(d, pair[1], &beside, data, end);
    datagrams_run();
  }
  close(pair[1]);
  if (beside >= 0) {
    close(beside);
  }
  datagrams_close_all();
  if (held != 0 || datagrams_first() != NULL || timers_wait(now) >= 0 ||
      rig_descriptors(DESCRIPTORS) != before ||
      strnlen(status.detail, sizeof status.detail) == sizeof status.detail ||
      strnlen(status.chunnels, sizeof status.chunnels) == sizeof status.chunnels) {
    abort();
  }
  return 0;
}
