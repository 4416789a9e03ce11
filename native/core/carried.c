#include "carried.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/mman.h>

#include "../carrier/carrier.h"
#include "agentc.h"
#include "conn.h"
#include "connlog.h"
#include "hop.h"
#include "plans.h"
#include "fsize.h"
#include "reason.h"
#include "unixpair.h"

enum {
  CARRIER_PATIENCE_MS = 200, /* for room in a carrier's queue */
  CARRIERS = 3,
  BUSY_LOOKS = 20000,
};

extern void bertha_close_hidden(int fd);

/* ---- carriers ----------------------------------------------------------------------------------- */

static struct {
  _Atomic uint32_t lock;
  struct carrier {
    int fd;  /* hidden; 0: none */
    int pid; /* the process that got it: a forked child gets its own, so that its end is seen */
    uint64_t generation;
    bool rings; /* it can be reached over them */
    struct link *links[BERTHA_CARRIER_LINKS];
    uint32_t link_count;
  } carriers[CARRIERS];
  int status_fd;
  struct bertha_carrier_status *_Atomic statuses;
} here = {.status_fd = -1};

void carried_after_fork(void) {
  atomic_store(&here.lock, 0);
  plans_after_fork();
}

void carried_fd_moved(int from, int to) {
  for (int i = 0; i < CARRIERS; i++) {
    if (here.carriers[i].fd == from) {
      here.carriers[i].fd = to;
    }
  }
  if (here.status_fd == from) {
    here.status_fd = to;
  }
}

/* One array for this process and those forked from it, whose connections have the same numbers. */
static bool open_statuses(void) {
  if (atomic_load_explicit(&here.statuses, memory_order_acquire) != NULL) {
    return true;
  }
  size_t size = (size_t)BERTHA_CONNS * sizeof(struct bertha_carrier_status);
  int fd = REAL(memfd_create)("bertha-carried", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) {
    return false;
  }
  void *p = MAP_FAILED;
  if (fsize_make(fd, size) == 0 && REAL(fcntl)(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0) {
    p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  }
  if (p == MAP_FAILED) {
    QUIET(close)(fd);
    return false;
  }
  madvise(p, size, MADV_DONTDUMP);
  here.status_fd = bertha_hide_fd(fd);
  atomic_store_explicit(&here.statuses, p, memory_order_release);
  return true;
}

static bool send_message(int to, const void *message, size_t size, const int *fds, size_t count) {
  union {
    struct cmsghdr align;
    char space[CMSG_SPACE(3 * sizeof(int))];
  } control = {.space = {0}};
  struct iovec part = {(void *)(uintptr_t)message, size};
  struct msghdr msg = {.msg_iov = &part,
                       .msg_iovlen = 1,
                       .msg_control = control.space,
                       .msg_controllen = CMSG_SPACE(count * sizeof(int))};
  struct cmsghdr *head = CMSG_FIRSTHDR(&msg);
  head->cmsg_level = SOL_SOCKET;
  head->cmsg_type = SCM_RIGHTS;
  head->cmsg_len = CMSG_LEN(count * sizeof(int));
  memcpy(CMSG_DATA(head), fds, count * sizeof(int));
  for (int tries = 0; tries < 2; tries++) {
    ssize_t n = QUIET(sendmsg)(to, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n >= 0 || errno != EAGAIN) {
      return n == (ssize_t)size;
    }
    struct pollfd p = {.fd = to, .events = POLLOUT};
    QUIET(poll)(&p, 1, CARRIER_PATIENCE_MS);
  }
  return false;
}

/* With the lock held. */
static bool open_carrier(uint32_t which) {
  struct carrier *k = &here.carriers[which];
  if (k->fd > 0) {
    bertha_close_hidden(k->fd);
    k->fd = 0;
  }
  struct bertha_carrier_request body = {.carrier = which};
  struct bertha_carrier_request reply = {.rings = 0};
  int fd = -1;
  if (!open_statuses() ||
      agent_call(BERTHA_OP_CARRIER, &body, sizeof body, &here.status_fd, 1, &reply, sizeof reply, &fd, 1) !=
          0 ||
      fd < 0) {
    return false;
  }
  struct bertha_carrier_hello hello = {.magic = BERTHA_CARRIER_MAGIC,
                                       .version = BERTHA_CARRIER_VERSION,
                                       .kind = BERTHA_CARRIER_HELLO,
                                       .pid = (uint32_t)bertha.pid,
                                       .status_count = BERTHA_CONNS};
  if (!send_message(fd, &hello, sizeof hello, &here.status_fd, 1)) {
    QUIET(close)(fd);
    return false;
  }
  k->fd = bertha_hide_fd(fd);
  k->rings = reply.rings != 0;
  k->link_count = 0; /* those before serve the connections that they have */
  k->pid = bertha.pid;
  k->generation = directory_generation();
  return true;
}

static bool send_link(const struct carrier *k, const struct link *l, uint32_t index) {
  struct bertha_carrier_link message = {
      .magic = BERTHA_CARRIER_MAGIC,
      .version = BERTHA_CARRIER_VERSION,
      .kind = BERTHA_CARRIER_LINK,
      .number = k->link_count,
      .index = index,
      .spin_us = bertha.spin_given || bertha.spin_ns == 0 ? (uint32_t)(bertha.spin_ns / 1000) : UINT32_MAX};
  int fds[2] = {l->fd, l->bell_fd};
  return send_message(k->fd, &message, sizeof message, fds, l->apart ? 1 : 2);
}

/* Where a connection's rings are to be. */
struct place {
  struct link *link; /* NULL: it does without */
  uint32_t number;
  int slot;
  int bell;     /* of that slot; -1: it is the link's */
  uint32_t why; /* enum bertha_reason */
};

static struct place place_in(struct link *l, uint32_t number, int slot) {
  int bell = l->apart && slot >= 0 ? hop_bell(l, (uint32_t)slot) : -1;
  if (slot >= 0 && l->apart && bell < 0) {
    slot_give_back(l, (uint32_t)slot);
    return (struct place){.why = BERTHA_WHY_NO_DESCRIPTOR};
  }
  return (struct place){l, number, slot, bell, 0};
}

/* With the lock held. */
static struct place take_place(struct carrier *k) {
  if (!k->rings) {
    return (struct place){.why = BERTHA_WHY_NO_RINGS};
  }
  for (uint32_t i = k->link_count; i > 0; i--) {
    int slot = slot_take(k->links[i - 1]);
    if (slot >= 0) {
      return place_in(k->links[i - 1], i - 1, slot);
    }
  }
  if (k->link_count == BERTHA_CARRIER_LINKS) {
    return (struct place){.why = BERTHA_WHY_LINK_FULL};
  }
  uint32_t index;
  struct link *l = hop_make(k != &here.carriers[BERTHA_CARRIER_NATIVE], &index);
  if (l == NULL) {
    return (struct place){.why = BERTHA_WHY_NO_MEMORY};
  }
  if (!send_link(k, l, index)) {
    link_drop(l);
    return (struct place){.why = BERTHA_WHY_NO_CARRIER};
  }
  k->links[k->link_count++] = l;
  return place_in(l, k->link_count - 1, slot_take(l));
}

/* One message.  With the lock held. */
static bool send_carry(struct carrier *k, const struct bertha_carrier_carry *head, const void *plan,
                       const int fds[2], struct place *place) {
  struct bertha_carrier_carry_ring ring = {.carry = *head};
  uint8_t message[sizeof ring + BERTHA_CARRIER_PLAN_MAX];
  size_t size = sizeof *head;
  if (place->link != NULL) {
    *place = take_place(k);
  }
  if (place->link != NULL && place->slot < 0) {
    *place = (struct place){.why = BERTHA_WHY_LINK_FULL};
  }
  if (place->link != NULL) {
    hop_prepare(place->link, (uint32_t)place->slot);
    ring.carry.kind = BERTHA_CARRIER_CARRY_RING;
    ring.link = place->number;
    ring.slot = (uint32_t)place->slot;
    size = sizeof ring;
  }
  memcpy(message, &ring, size);
  memcpy(message + size, plan, head->plan_size);
  int given[3] = {fds[0], fds[1], place->bell};
  bool bell = place->link != NULL && place->bell >= 0;
  if (send_message(k->fd, message, size + head->plan_size, given, bell ? 3 : 2)) {
    return true;
  }
  if (place->link != NULL) {
    slot_give_back(place->link, (uint32_t)place->slot);
  }
  return false;
}

/* Sends a connection to a carrier; one that is gone, or knows an agent that is gone, is replaced.  `place->link` says
 * whether a ring is wanted, and then whether there is one. */
static bool carry(uint32_t which, const struct bertha_carrier_carry *head, const void *plan, int tcp, int end,
                  struct place *place) {
  int fds[2] = {tcp, end};
  if (which >= CARRIERS || !bertha_lock(&here.lock)) {
    return false;
  }
  struct carrier *k = &here.carriers[which];
  uint64_t generation = directory_generation();
  bool current = k->fd > 0 && k->pid == bertha.pid && (k->generation == generation || generation == 0);
  struct place wanted = *place;
  bool sent = current && send_carry(k, head, plan, fds, place);
  if (!sent && open_carrier(which)) {
    *place = wanted;
    sent = send_carry(k, head, plan, fds, place);
  }
  bertha_unlock(&here.lock);
  return sent;
}

void carried_why_not(const struct conn *c, char *to, size_t size) {
  plan_detail(conn_flags(c) & CONN_CARRIED ? 0 : c->plan, to, size);
}

const struct bertha_carrier_status *carried_status(const struct conn *c) {
  struct bertha_carrier_status *all = atomic_load_explicit(&here.statuses, memory_order_acquire);
  return all != NULL && (conn_flags(c) & (CONN_CARRIED | CONN_NAMED)) ? &all[conn_index(c)] : NULL;
}

static struct bertha_carrier_status *new_status(struct conn *c) {
  if (!open_statuses()) {
    return NULL;
  }
  struct bertha_carrier_status *s = &atomic_load(&here.statuses)[conn_index(c)];
  s->state = BERTHA_CARRIED_PENDING;
  s->chunnels[0] = s->detail[0] = '\0';
  s->life = atomic_load(&c->life);
  return s;
}

/* ---- a program's own chunnels ------------------------------------------------------------------- */

static __thread __attribute__((tls_model("initial-exec"))) bool own_chunnels;

bool carried_own(bool own) {
  bool before = own_chunnels;
  own_chunnels = own;
  return before;
}

bool carried_owns(void) {
  return own_chunnels;
}

bool carried_name(struct conn *c, const char *chunnels) {
  struct bertha_carrier_status *s = conn_flags(c) & CONN_CARRIED ? NULL : new_status(c);
  if (s == NULL || strlen(chunnels) >= sizeof s->chunnels) {
    return false;
  }
  strcpy(s->chunnels, chunnels);
  __atomic_store_n(&s->state, BERTHA_CARRIED_READY, __ATOMIC_RELEASE);
  conn_set_flag(c, CONN_NAMED);
  return true;
}

/* With the rx lock held: the TCP socket to the carrier, the other end of a pair into its place. */
static bool hand_over(struct conn *c, int fd, uint32_t which, struct bertha_carrier_carry *head,
                      const void *plan) {
  static struct link any;
  int pair[2];
  int type = conn_flags(c) & CONN_DGRAM ? SOCK_SEQPACKET : SOCK_STREAM;
  bool again = unix_swapped(c);
  bool ring = type == SOCK_STREAM && !again && !bertha.io_uring && !(conn_flags(c) & CONN_NO_ATTACH);
  if (ring && !bertha_lock(&c->tx_lock)) {
    return false;
  }
  if (REAL(socketpair)(AF_UNIX, type | SOCK_CLOEXEC, 0, pair) != 0) {
    if (ring) {
      bertha_unlock(&c->tx_lock);
    }
    return false;
  }
  new_status(c);
  head->magic = BERTHA_CARRIER_MAGIC;
  head->version = BERTHA_CARRIER_VERSION;
  head->kind = conn_flags(c) & CONN_DGRAM ? BERTHA_CARRIER_DATAGRAMS : BERTHA_CARRIER_CARRY;
  head->status_index = conn_index(c);
  struct place place = {.link = ring ? &any : NULL,
                        .why = bertha.io_uring && type == SOCK_STREAM ? BERTHA_WHY_IO_URING : 0};
  bool good = carry(which, head, plan, unix_tcp_fd(c, fd), pair[1], &place);
  QUIET(close)(pair[1]);
  if (!good) {
    QUIET(close)(pair[0]);
  } else {
    c->info.carried = 1 + which;
    c->carrier = (uint8_t)which;
    c->slot = NULL;           /* of a claim that came to nothing */
    if (place.link != NULL) { /* before the unix socket stands there: who comes now finds the locks taken */
      hop_tie(c, place.link, (uint32_t)place.slot);
      atomic_store(&c->cookie,
                   bertha_cookie(pair[0])); /* by which a descriptor is known for this connection's */
    }
    if (again) {
      unix_replace(c, pair[0]);
    } else {
      good = unix_put(c, fd, pair[0]);
    }
    if (!good && place.link != NULL) {
      atomic_store_explicit(&c->info.kind, BERTHA_CONN_UNIX, memory_order_release);
      c->slot = NULL;
      slot_give_back(place.link, (uint32_t)place.slot);
    }
    c->info.reason = place.why != 0 ? place.why : c->info.reason;
  }
  if (ring) {
    bertha_unlock(&c->tx_lock);
  }
  return good;
}

/* ---- client ------------------------------------------------------------------------------------- */

void carried_ended(struct conn *c) {
  const struct bertha_carrier_status *s = carried_status(c);
  if (s == NULL || c->info.role != BERTHA_SIDE_CLIENT || c->plan == 0 ||
      __atomic_load_n(&s->state, __ATOMIC_ACQUIRE) != BERTHA_CARRIED_REFUSED) {
    return;
  }
  plan_refused(c->plan);
}

static bool worth_asking(const uint8_t addr[16], uint16_t port) {
  struct dir_hit hits[BERTHA_RESOLVE_MAX];
  int n = directory_find(addr, port, hits, BERTHA_RESOLVE_MAX);
  for (int i = 0; i < n; i++) {
    if (hits[i].flags & BERTHA_DIR_DAG) {
      return true;
    }
  }
  if (n > 0 || bertha.policy[0] != '\0') { /* the first would greet it in any case */
    agent_greet();
  }
  return agent_client_dags() || (n == 0 && carried_is_private(addr));
}

static enum carried_verdict refused(struct conn *c, int fd, const char *detail) {
  c->info.opened_ns = connlog_clock();
  connlog_refused(c, fd, detail);
  return CARRIED_REFUSED;
}

enum carried_verdict carried_plan(struct conn *c, int fd, const struct sockaddr *to) {
  uint64_t generation = directory_generation();
  uint8_t addr[16];
  uint16_t port;
  bool stays = (conn_flags(c) & CONN_NO_ATTACH) != 0;
  if (own_chunnels || !address_of(to, addr, &port) ||
      (!bertha.must_connect && (stays || generation == 0 || !worth_asking(addr, port)))) {
    return CARRIED_NOT;
  }
  memcpy(c->info.peer_addr, addr, 16);
  c->info.peer_port = port;
  c->info.role = BERTHA_SIDE_CLIENT;
  c->info.family = to->sa_family;
  if (stays) { /* another process has this socket too, and would speak plainly on it */
    return refused(c, fd, bertha_reason_text(c->info.reason));
  }
  struct plan_answer answer = {.verdict = BERTHA_VERDICT_PLAIN};
  if ((generation == 0 || !plan_get(addr, port, to->sa_family, fd, &answer)) && bertha.must_connect) {
    return refused(c, fd, bertha_reason_text(BERTHA_WHY_NO_AGENT));
  }
  c->plan = answer.number; /* for the log, too: it may say why not */
  bool unread = bertha.must_connect && agent_dags(BERTHA_HELLO_NO_POLICY); /* this may be what it is about */
  if (answer.verdict == BERTHA_VERDICT_PLAIN && !unread) {
    return CARRIED_NOT;
  }
  if (answer.verdict != BERTHA_VERDICT_PLAN) {
    return refused(c, fd, answer.detail);
  }
  c->info.opened_ns = connlog_clock();
  return CARRIED_PLAN;
}

void carried_connecting(struct conn *c, int fd) {
  c->side = BERTHA_SIDE_CLIENT;
  conn_set_flag(c, CONN_CARRIED);
  unix_drop(c);
  atomic_store_explicit(&c->info.kind, BERTHA_CONN_UNIX, memory_order_release);
  carried_settle(c, fd);
}

/* Sends a RST, whoever else has the socket (tcp(7)). */
static void reset(int fd) {
  struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
  QUIET(connect)(fd, &nowhere, sizeof nowhere);
}

/* With the rx lock held. */
static void refuse(struct conn *c, int fd, uint32_t why) {
  c->info.reason = why;
  reset(fd);
  int pair[2];
  if (REAL(socketpair)(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0) {
    if (QUIET(write)(pair[0], "", 1) < 0) {
      errno = 0;
    }
    QUIET(close)(pair[1]); /* with a byte unread: ECONNRESET */
    unix_put(c, fd, pair[0]);
  }
}

void carried_refuse(struct conn *c, int fd, uint32_t why) {
  if (bertha_lock(&c->rx_lock)) {
    conn_set_flag(c, CONN_CARRIED);
    connlog_addresses(c, fd);
    atomic_store_explicit(&c->info.kind, BERTHA_CONN_UNIX, memory_order_release);
    refuse(c, fd, why);
    bertha_unlock(&c->rx_lock);
  } else {
    reset(fd);
  }
}

bool carried_settle(struct conn *c, int fd) {
  if (unix_swapped(c)) {
    return true;
  }
  struct pollfd p = {.fd = fd, .events = POLLOUT};
  int saved = errno;
  uint32_t nobody = 0;
  if (QUIET(poll)(&p, 1, 0) != 1 || (p.revents & (POLLERR | POLLHUP)) || !(p.revents & POLLOUT) ||
      !atomic_compare_exchange_strong(&c->rx_lock, &nobody, bertha_tid())) {
    errno = saved;
    return false;
  }
  if (!unix_swapped(c)) {
    int64_t began = bertha_now_ns();
    const struct plan *plan = plan_numbered(c->plan);
    struct bertha_carrier_carry head = {.side = BERTHA_SIDE_CLIENT,
                                        .mode = BERTHA_CARRY_PLAN,
                                        .listener = plan != NULL ? plan->context : 0,
                                        .plan_size = plan != NULL ? plan->size : 0};
    connlog_addresses(c, fd);
    if (plan == NULL || !hand_over(c, fd, plan->carrier, &head, plan->bytes)) {
      refuse(c, fd, BERTHA_WHY_NO_CARRIER);
    }
    c->info.setup_us = (uint32_t)((bertha_now_ns() - began) / 1000);
  }
  bertha_unlock(&c->rx_lock);
  conn_after_tied(c, fd);
  errno = saved;
  return unix_swapped(c);
}

int carried_await(struct conn *c, int fd, int flags, int64_t timeout_ns) {
  bool patient = !(flags & MSG_DONTWAIT) && !(conn_flags(c) & CONN_NONBLOCK);
  for (int busy = 0; !carried_settle(c, fd); busy++) {
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    int ms = !patient ? 0 : timeout_ns > 0 ? (int)(timeout_ns / 1000000) + 1 : -1;
    int n = REAL(poll)(&p, 1, ms);
    if (n <= 0) {
      return n < 0 ? -errno : -EAGAIN;
    }
    if (p.revents & (POLLERR | POLLHUP | POLLNVAL)) {
      return 0;
    }
    if (!patient) {
      return -EAGAIN;
    }
    if (busy > BUSY_LOOKS) { /* no descriptor is left, not even for a refusal */
      return -ECONNRESET;
    }
    struct timespec moment = {0, 50000}; /* another thread is handing it over */
    REAL(syscall)(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &moment, NULL);
  }
  return 1;
}

/* ---- datagrams ---------------------------------------------------------------------------------- */

static struct bertha_carrier_carry head_of(uint64_t listener, bool required) {
  return (struct bertha_carrier_carry){.side = listener != 0 ? BERTHA_SIDE_SERVER : BERTHA_SIDE_CLIENT,
                                       .mode = listener == 0 ? BERTHA_CARRY_PLAN
                                               : required    ? BERTHA_CARRY_REQUIRED
                                                             : BERTHA_CARRY_MAYBE,
                                       .listener = listener};
}

bool carried_datagrams(struct conn *c, int fd, uint64_t listener, bool required, bool again) {
  struct bertha_carrier_carry head = head_of(listener, required);
  c->info.carried = BERTHA_CARRIED_BY(c->info.carried); /* none beside it */
  return again == unix_swapped(c) && hand_over(c, fd, c->carrier, &head, "");
}

bool carried_beside(struct conn *c, int fd, uint64_t listener, bool required, uint32_t which) {
  int pair[2];
  struct place none = {.link = NULL};
  struct bertha_dgram word = {.magic = BERTHA_DGRAM_MAGIC, .kind = BERTHA_DGRAM_BESIDE};
  struct bertha_carrier_carry head = head_of(listener, required);
  head.magic = BERTHA_CARRIER_MAGIC;
  head.version = BERTHA_CARRIER_VERSION;
  head.kind = BERTHA_CARRIER_DATAGRAMS_BESIDE;
  head.status_index = conn_index(c);
  if (REAL(socketpair)(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) {
    return false;
  }
  bool good = carry(which, &head, "", unix_tcp_fd(c, fd), pair[1], &none) &&
              send_message(fd, &word, sizeof word, &pair[0], 1);
  QUIET(close)(pair[0]);
  QUIET(close)(pair[1]);
  if (good) {
    c->info.carried = BERTHA_CARRIED_BY(c->info.carried) | which << 4;
  }
  return good;
}

/* ---- server ------------------------------------------------------------------------------------- */

bool carried_accepted(struct conn *c, int fd, struct listener *l) {
  uint32_t need = atomic_load_explicit(&l->claims->dag, memory_order_acquire);
  if (LIKELY(need == BERTHA_DAG_NONE)) {
    return false;
  }
  bool required = need == BERTHA_DAG_REQUIRED;
  if (!bertha_lock(&c->rx_lock)) {
    if (required) {
      reset(fd);
    }
    return required;
  }
  struct bertha_carrier_carry head = {.side = BERTHA_SIDE_SERVER,
                                      .mode = required ? BERTHA_CARRY_REQUIRED : BERTHA_CARRY_MAYBE,
                                      .listener = l->id};
  int64_t began = bertha_now_ns();
  conn_set_flag(c, CONN_CARRIED);
  connlog_addresses(c, fd);
  atomic_store_explicit(&c->info.kind, BERTHA_CONN_UNIX, memory_order_release);
  bool carried = hand_over(c, fd, atomic_load(&l->claims->dag_carrier), &head, "");
  if (!carried && required) {
    refuse(c, fd, BERTHA_WHY_NO_CARRIER);
    carried = true;
  } else if (!carried) {
    conn_clear_flag(c, CONN_CARRIED);
    conn_make_plain(c, BERTHA_WHY_NO_CARRIER);
  }
  c->info.setup_us = (uint32_t)((bertha_now_ns() - began) / 1000);
  bertha_unlock(&c->rx_lock);
  conn_after_tied(c, fd);
  return carried;
}
