#include "carried.h"

#include <netinet/in.h>
#include <string.h>

#include "agentc.h"
#include "brief.h"
#include "carriers.h"
#include "conn.h"
#include "connlog.h"
#include "hop.h"
#include "plans.h"
#include "reason.h"
#include "guard.h"
#include "unixpair.h"

enum { BUSY_LOOKS = 20000 };

void carried_why_not(const struct conn *c, char *to, size_t size) {
  plan_detail(conn_flags(c) & CONN_CARRIED ? 0 : c->plan, to, size);
}

const struct bertha_carrier_status *carried_status(const struct conn *c) {
  struct bertha_carrier_status *all = carrier_statuses();
  return all != NULL && (conn_flags(c) & (CONN_CARRIED | CONN_NAMED)) ? &all[conn_index(c)] : NULL;
}

static struct bertha_carrier_status *new_status(struct conn *c) {
  if (!carrier_open_statuses()) {
    return NULL;
  }
  struct bertha_carrier_status *s = &carrier_statuses()[conn_index(c)];
  s->state = BERTHA_CARRIED_PENDING;
  s->ended = 0;
  s->chunnels[0] = s->detail[0] = '\0';
  s->life = atomic_load(&c->life);
  return s;
}

bool carried_cut(struct conn *c) {
  const struct bertha_carrier_status *s = carried_status(c);
  bool read_on = (conn_flags(c) & (CONN_CARRIED | CONN_DGRAM | CONN_CUT | CONN_RD_SHUT)) == CONN_CARRIED;
  if (!read_on || s == NULL || c->home != NULL || __atomic_load_n(&s->ended, __ATOMIC_ACQUIRE)) {
    return false;
  }
  conn_set_flag(c, CONN_CUT);
  return true;
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

bool carried_name(struct conn *c, const char *chunnels, const char *left_out) {
  struct bertha_carrier_status *s = conn_flags(c) & CONN_CARRIED ? NULL : new_status(c);
  if (s == NULL || strlen(chunnels) >= sizeof s->chunnels) {
    return false;
  }
  strcpy(s->chunnels, chunnels);
  snprintf(s->detail, sizeof s->detail, "%s", left_out);
  __atomic_store_n(&s->state, BERTHA_CARRIED_READY, __ATOMIC_RELEASE);
  conn_set_flag(c, CONN_NAMED);
  return true;
}

/* With the rx lock held: the TCP socket to the carrier, the other end of a pair into its place. */
static bool hand_over(struct conn *c, int fd, uint32_t which, struct bertha_carrier_carry *head,
                      const void *plan, uint32_t spin_us) {
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
                        .why = bertha.io_uring && type == SOCK_STREAM ? BERTHA_WHY_IO_URING : 0,
                        .spin_us = spin_us};
  int tcp = unix_tcp_fd(c, fd);
  if (type == SOCK_STREAM) {
    guard_set(c, tcp);
  }
  bool good = carrier_carry(which, head, plan, tcp, pair[1], &place);
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
  if (!good && type == SOCK_STREAM) {
    guard_lift(c, tcp);
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

static bool worth_asking(struct conn *c, const uint8_t addr[16], uint16_t port) {
  struct dir_hit hits[BERTHA_RESOLVE_MAX];
  int n = directory_find(addr, port, hits, BERTHA_RESOLVE_MAX);
  for (int i = 0; i < n; i++) {
    if (hits[i].flags & BERTHA_DIR_DAG) {
      return true;
    }
  }
  if (n > 0 && UNLIKELY(hits[0].brief != 0) && brief_process(&hits[0])) {
    c->info.reason = BERTHA_WHY_BRIEF_PROCESS;
    conn_set_flag(c, CONN_NO_ATTACH);
    return false;
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
      (!bertha.must_connect && (stays || generation == 0 || !worth_asking(c, addr, port)))) {
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

/* By dissolving the association (tcp(7)). */
void carried_reset(int tcp) {
  struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
  QUIET(connect)(tcp, &nowhere, sizeof nowhere);
}

/* With the rx lock held. */
static void refuse(struct conn *c, int fd, uint32_t why) {
  c->info.reason = why;
  carried_reset(fd);
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
    carried_reset(fd);
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
    if (plan == NULL || !hand_over(c, fd, plan->carrier, &head, plan->bytes, plan->spin_us)) {
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
  return again == unix_swapped(c) && hand_over(c, fd, c->carrier, &head, "", UINT32_MAX);
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
  bool good = carrier_carry(which, &head, "", unix_tcp_fd(c, fd), pair[1], &none) &&
              carrier_tell(fd, &word, sizeof word, &pair[0], 1);
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
      carried_reset(fd);
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
  bool carried =
      hand_over(c, fd, atomic_load(&l->claims->dag_carrier), &head, "", atomic_load(&l->claims->dag_spin_us));
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
