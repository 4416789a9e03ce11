/* What programs and the agent tell the native carrier: hellos, links, connections with plans, secrets, verdicts, of any
 * length, with descriptors of any sort.  The carrier serves on or ends what is wrong; nothing is read or written
 * elsewhere, and no descriptor is left over. */
#define main carrier_main
#include "../carrier/main.c"
#undef main

#include <sys/eventfd.h>

#include "rig.h"

enum { MESSAGES = 12, DESCRIPTORS = 1100 };

static int a_link(bool sound) {
  struct bertha_link_header h;
  rig_header(&h, 4, 65536);
  h.magic ^= !sound;
  return rig_memory((void *)&h, sizeof h, h.total_size, F_SEAL_SHRINK);
}

/* The other ends of what was given: they go on, or end, with the input. */
static int other_ends[MESSAGES * 4];
static unsigned other_count;

static int a_pair(int type) {
  int pair[2];
  rig_check(socketpair(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0, "socketpair");
  if (other_count < sizeof other_ends / sizeof *other_ends) {
    other_ends[other_count++] = pair[1];
  } else {
    close(pair[1]);
  }
  return pair[0];
}

static int a_udp(void) {
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  rig_check(fd >= 0 && bind(fd, (struct sockaddr *)&any, sizeof any) == 0, "bind");
  return fd;
}

static int some_descriptor(uint8_t kind) {
  switch (kind % 8) {
  case 7:
    return a_udp();
  case 0:
    return open("/dev/null", O_RDWR | O_CLOEXEC);
  case 1:
    return a_pair(SOCK_STREAM);
  case 2:
    return a_link(true);
  case 3:
    return a_link(false);
  case 4:
    return eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  case 5: {
    int fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    rig_check(fd >= 0 && ftruncate(fd, kind & 64 ? 100 : 1 << 20) == 0, "memfd");
    return fd;
  }
  default: {
    int fd[2];
    tcp_pair(fd);
    close(fd[1]);
    return fd[0];
  }
  }
}

/* A message of a program: of one of the sorts, with some of it from the input. */
static const uint8_t *shim_message(int to, const uint8_t *data, const uint8_t *end) {
  static uint8_t space[sizeof(struct bertha_carrier_carry_ring) + 256];
  uint8_t how = *data++, what = data < end ? *data++ : 0, more = data < end ? *data++ : 0;
  int fds[6], count = 2;
  size_t size;
  memset(space, 0, sizeof space);
  struct bertha_carrier_carry_ring ring = {.link = what % 3, .slot = more % 5};
  ring.carry.magic = BERTHA_CARRIER_MAGIC;
  ring.carry.version = BERTHA_CARRIER_VERSION;
  ring.carry.kind = how & 8 ? BERTHA_CARRIER_CARRY_RING : BERTHA_CARRIER_CARRY;
  ring.carry.side = what >> 4 & 1;
  ring.carry.mode = ring.carry.side == 0 ? BERTHA_CARRY_PLAN : what >> 5 & 3;
  ring.carry.status_index = more;
  switch (how % 4) {
  case 3: {
    size = sizeof ring.carry;
    ring.carry.kind = BERTHA_CARRIER_DATAGRAMS;
    memcpy(space, &ring, size);
    fds[0] = how & 16 ? some_descriptor(more) : a_udp();
    fds[1] = how & 32 ? some_descriptor(what) : a_pair(SOCK_SEQPACKET);
    break;
  }
  case 0: {
    struct bertha_carrier_hello hello = {.status_count = what};
    memcpy(space, &hello, sizeof hello);
    memcpy(space, &ring, 8);
    ((struct bertha_carrier_hello *)(void *)space)->kind = BERTHA_CARRIER_HELLO;
    size = sizeof hello;
    count = 1;
    fds[0] = some_descriptor(what & 128 ? more : 5);
    break;
  }
  case 1: {
    struct bertha_carrier_link link = {.number = what % 4, .index = what & 64 ? more : 1};
    memcpy(space, &link, sizeof link);
    memcpy(space, &ring, 8);
    ((struct bertha_carrier_link *)(void *)space)->kind = BERTHA_CARRIER_LINK;
    size = sizeof link;
    fds[0] = some_descriptor(what & 128 ? more : 2);
    fds[1] = some_descriptor(what & 128 ? more >> 3 : 4);
    break;
  }
  default: {
    size_t plan = (size_t)(end - data) < more ? (size_t)(end - data) : more;
    size = how & 8 ? sizeof ring : sizeof ring.carry;
    ring.carry.plan_size = (uint32_t)plan + (what == 255);
    memcpy(space, &ring, size);
    memcpy(space + size, data, plan);
    data += plan;
    size += plan;
    fds[0] = some_descriptor(how & 16 ? more : 6);
    fds[1] = some_descriptor(how & 32 ? what : 1);
  }
  }
  while (how & 64 && data < end && count < 6 && (*data & 1)) {
    fds[count++] = some_descriptor(*data++);
  }
  if (how & 128 && data < end) { /* and another byte somewhere, or cut short */
    size_t at = *data++ % (size + 1);
    if (data < end && (*data & 1)) {
      space[at % size] ^= *data;
      data++;
    } else {
      size = at;
    }
  }
  rig_post(to, space, size, fds, count);
  return data;
}

/* And of the agent, in msgpack. */
static const uint8_t *agent_message(int to, const uint8_t *data, const uint8_t *end) {
  uint8_t how = *data++;
  struct buffer b = {0};
  int fds[6], count = how >> 6;
  static const char *const ops[] = {"shim", "context", "verdict", "other"};
  size_t length = (size_t)(end - data) < 40 ? (size_t)(end - data) : 40;
  bool plain = how % 4 == 3 && (how & 8); /* why clients have no plan */
  char why[41] = "";
  memcpy(why, data, length);
  bool good = pack_map(&b, 4) && pack_text(&b, "op") && pack_text(&b, plain ? "plain" : ops[how % 4]) &&
              pack_text(&b, plain ? "listener" : "id") && pack_uint(&b, length > 0 ? data[0] % 4 : 0);
  if (plain) {
    good = good && pack_text(&b, "host") && pack_bytes(&b, data, length >= 16 ? 16 : length / 8) &&
           pack_text(&b, "why") && pack_text(&b, why);
  } else {
    good = good && pack_text(&b, how & 4 ? "ok" : "key") && pack_bytes(&b, data, length);
  }
  rig_check(good, "pack");
  size_t size = buffer_size(&b);
  uint8_t *bytes = malloc(size + length + 1);
  memcpy(bytes, buffer_data(&b), size);
  if (how & 16) { /* the fourth pair, and whatever follows, are the input's */
    memcpy(bytes + size, data, length);
    size += length;
  }
  if (how & 32 && length > 1) {
    bytes[data[0] % size] = data[1];
  }
  for (int i = 0; i < count; i++) {
    fds[i] = i + 1 == count && how % 4 == 0 ? a_pair(SOCK_SEQPACKET) : some_descriptor((uint8_t)(how >> 3));
  }
  rig_post(to, bytes, size, fds, count);
  buffer_free(&b);
  free(bytes);
  return data + length;
}

/* A turn of the carrier's loop. */
static void turn(void) {
  struct epoll_event events[EVENTS];
  rings_collect();
  bool sleeps = ready_first == NULL && !datagrams_ready() && rings_may_sleep();
  int n = epoll_wait(poller, events, EVENTS, 0);
  if (sleeps) {
    rings_awake();
  }
  for (int i = 0; i < n; i++) {
    happened((enum what)(events[i].data.u64 & WHAT),
             (void *)(uintptr_t)(events[i].data.u64 & ~(uint64_t)WHAT), events[i].events);
  }
  run_ready();
  timers_run(carrier_now());
  datagrams_run();
  for (int i = 0; i < n; i++) {
    enum what what = (enum what)(events[i].data.u64 & WHAT);
    if (what == CONTROL) {
      control_speaks();
    } else if (what == SHIM) {
      shim_speaks((struct shim *)(uintptr_t)(events[i].data.u64 & ~(uint64_t)WHAT));
    }
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static _Alignas(16) char control_mark[16];
  static bool begun;
  const uint8_t *end = data + (size < 400 ? size : 400);
  if (!begun) {
    begun = true;
    signal(SIGPIPE, SIG_IGN);
    poller = epoll_create1(EPOLL_CLOEXEC);
    rig_check(poller >= 0 && rings_init(), "the carrier");
    bertha_table_open();
    bertha_hide_fd(open("/dev/null", O_RDONLY)); /* what is opened once only is open by now */
  }
  int before = rig_descriptors(DESCRIPTORS);
  int pair[2], ours[2];
  rig_check(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0, "socketpair");
  rig_check(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ours) == 0, "socketpair");
  control_begin(pair[0]);
  rig_check(watch(carrier_control(), control_mark, CONTROL, EPOLLIN), "watch");
  carrier_new_shim(ours[0], 0);
  other_count = 0;
  for (int i = 0; i < MESSAGES && data < end; i++) {
    uint8_t which = *data++;
    if (data < end && which % 4 == 0) {
      data = agent_message(pair[1], data, end);
    } else if (data < end && which % 4 == 1 &&
               other_count > 0) { /* the program or the network says something */
      size_t n = (size_t)(end - data) < which ? (size_t)(end - data) : which;
      ssize_t sent = send(other_ends[which / 4 % other_count], data, n, MSG_DONTWAIT | MSG_NOSIGNAL);
      data += sent > 0 ? sent : 0;
    } else if (data < end) {
      data = shim_message(ours[1], data, end);
    }
    turn();
  }
  close(ours[1]);
  close(pair[1]);
  for (unsigned i = 0; i < other_count; i++) {
    close(other_ends[i]);
  }
  for (int i = 0; i < 6 && (session_count > 0 || shims != NULL || carrier_has_agent()); i++) {
    turn();
  }
  while (sessions != NULL) { /* what waits for a time-out */
    session_fail(sessions, "the end of the input");
  }
  datagrams_close_all();
  turn();
  if (shims != NULL || session_count != 0 || carrier_has_agent()) {
    abort();
  }
  pending = 0;
  if (rig_descriptors(DESCRIPTORS) != before) {
    abort();
  }
  return 0;
}
