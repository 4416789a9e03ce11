/* When a UDP socket goes to a carrier, and which plan its datagrams have. */
#include "dgram.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

#include "../carrier/carrier.h"
#include "agentc.h"
#include "carried.h"
#include "connlog.h"
#include "local.h"
#include "reason.h"
#include "unixpair.h"

enum { ROUTES = 1024, CLOSE_MS = 300 };

uint8_t dgram_states[BERTHA_FDS];

/* What is known of a destination of a carried socket; a plan has been told to its carrier. */
struct route {
  uint32_t conn; /* index + 1 */
  uint32_t life;
  uint16_t port;
  bool refused;
  uint8_t addr[16];
  uint32_t scope;
  uint32_t news; /* of the directory */
  uint64_t generation;
  int64_t until;
};
static struct {
  _Atomic uint32_t lock;
  uint32_t changes;    /* routes that were good are not any more: nor is what was asked for before */
  struct route *slots; /* made with the first carried client */
} routes;

static _Atomic uint32_t reviving; /* lock: one thread at a time gets a socket another carrier */

/* Another thread of the parent's may have been in the middle of a change: then no route is known. */
void dgram_after_fork(void) {
  if (atomic_load(&routes.lock) != 0) {
    routes.slots = NULL;
    atomic_store(&routes.lock, 0);
  }
  atomic_store(&reviving, 0);
}

static uint32_t scope_of(const struct sockaddr *sa) {
  return sa->sa_family == AF_INET6 ? ((const struct sockaddr_in6 *)(const void *)sa)->sin6_scope_id : 0;
}

static bool is_udp(int fd, int *family) {
  int protocol = 0;
  socklen_t size = sizeof protocol;
  if (REAL(getsockopt)(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &size) != 0 || protocol != IPPROTO_UDP) {
    return false;
  }
  size = sizeof *family;
  return REAL(getsockopt)(fd, SOL_SOCKET, SO_DOMAIN, family, &size) == 0;
}

int64_t dgram_timeout(int fd, int name) {
  struct timeval t = {0, 0};
  socklen_t size = sizeof t;
  REAL(getsockopt)(fd, SOL_SOCKET, name, &t, &size);
  return (int64_t)t.tv_sec * 1000000000 + (int64_t)t.tv_usec * 1000;
}

/* A record for a UDP socket that goes to a carrier now; NULL: no room. */
static struct conn *track(int fd, int family, uint32_t side) {
  struct conn *c = conn_new(fd, BERTHA_CONN_UNIX);
  if (c == NULL) {
    return NULL;
  }
  int flags = REAL(fcntl)(fd, F_GETFL);
  conn_set_flag(c, CONN_DGRAM | CONN_CARRIED | (flags >= 0 && (flags & O_NONBLOCK) ? CONN_NONBLOCK : 0));
  c->side = (uint8_t)side;
  c->info.role = side;
  c->info.family = (uint32_t)family | BERTHA_FAMILY_DATAGRAMS;
  c->info.opened_ns = connlog_clock();
  c->rcv_timeout_ns = dgram_timeout(fd, SO_RCVTIMEO);
  c->snd_timeout_ns = dgram_timeout(fd, SO_SNDTIMEO);
  if (side == BERTHA_SIDE_SERVER) { /* for bertha ps: it has its name already */
    connlog_addresses(c, fd);
  }
  conn_books_begin();
  conn_track(fd, c);
  conn_books_end();
  return c;
}

static void untrack(struct conn *c) {
  conn_books_begin();
  for (uint32_t fd = 0; fd < bertha.max_fd; fd++) {
    if (conn_of((int)fd) == c) {
      conn_forget((int)fd);
    }
  }
  conn_books_end();
  conn_free(c);
}

/* What is sent by the socket is the carrier's from now on, and no run of the program's datagrams. */
static uint16_t take_segment(int fd) {
  int segment = 0, none = 0;
  socklen_t size = sizeof segment;
  if (REAL(getsockopt)(fd, IPPROTO_UDP, UDP_SEGMENT, &segment, &size) != 0 || segment <= 0) {
    return 0;
  }
  REAL(setsockopt)(fd, IPPROTO_UDP, UDP_SEGMENT, &none, sizeof none);
  return (uint16_t)segment;
}

/* To a carrier: NULL when that cannot be.  `which`: a client's. */
static struct conn *hand_over(int fd, int family, struct listener *l, uint32_t which, bool required) {
  struct conn *c = track(fd, family, l != NULL ? BERTHA_SIDE_SERVER : BERTHA_SIDE_CLIENT);
  if (c == NULL) {
    return NULL;
  }
  int64_t began = bertha_now_ns();
  c->listener = l != NULL ? l->id : 0;
  c->carrier = (uint8_t)(l != NULL ? atomic_load(&l->claims->dag_carrier) : which);
  bool done = false;
  if (!atomic_load(&bertha.io_uring) && bertha_lock(&c->rx_lock)) {
    struct dgram_late late;
    c->segment = take_segment(fd);
    conn_books_begin();
    dgram_late_begin(&late, c, fd);
    done = carried_datagrams(c, fd, l != NULL ? l->id : 0, required, false);
    dgram_late_end(&late);
    conn_books_end();
    bertha_unlock(&c->rx_lock);
  }
  if (!done) {
    int segment = c->segment;
    if (segment > 0) {
      REAL(setsockopt)(fd, IPPROTO_UDP, UDP_SEGMENT, &segment, sizeof segment);
    }
    untrack(c);
    return NULL;
  }
  c->info.setup_us = (uint32_t)((bertha_now_ns() - began) / 1000);
  return c;
}

/* What may not be says so in the log, in a line of its own. */
static void log_refused(int fd, int family, uint32_t side, const uint8_t addr[16], uint16_t port,
                        const char *detail) {
  struct conn *c = conn_of(fd) == NULL ? conn_new(fd, BERTHA_CONN_UNIX) : NULL;
  if (c != NULL) {
    c->info.role = side;
    c->info.family = (uint32_t)family | BERTHA_FAMILY_DATAGRAMS;
    memcpy(side == BERTHA_SIDE_CLIENT ? c->info.peer_addr : c->info.local_addr, addr, 16);
    *(side == BERTHA_SIDE_CLIENT ? &c->info.peer_port : &c->info.local_port) = port;
    connlog_refused(c, fd, detail);
    conn_free(c);
  }
}

/* What never has chunnels unless a policy says so: what configures networks, and asks for names and the time. */
static bool is_infrastructure(uint16_t port) {
  static const uint16_t ports[] = {53, 67, 68, 123, 137, 138, 161, 162, 514, 546, 547, 1900, 5353, 5355};
  for (size_t i = 0; i < sizeof ports / sizeof *ports; i++) {
    if (port == ports[i]) {
      return true;
    }
  }
  return false;
}

/* ---- a socket that others send to ---------------------------------------------------------------- */

int dgram_binding(int fd, const struct sockaddr *address, socklen_t size) {
  uint8_t addr[16];
  uint16_t port;
  if (LIKELY(!bertha.must_serve_datagrams) || address == NULL || size < sizeof(struct sockaddr_in) ||
      (unsigned)fd >= BERTHA_FDS || dgram_states[fd] == DGRAM_NOT || directory_generation() != 0 ||
      !address_of(address, addr, &port) || port == 0) {
    return 0;
  }
  log_refused(fd, address->sa_family, BERTHA_SIDE_SERVER, addr, port,
              bertha_reason_text(BERTHA_WHY_NO_AGENT));
  return EACCES; /* its policy requires chunnels: who cannot have them serves nobody */
}

int dgram_bound(int fd, const struct sockaddr *address, socklen_t size) {
  uint8_t addr[16];
  uint16_t port;
  int family;
  if (LIKELY((unsigned)fd >= BERTHA_FDS || dgram_states[fd] == DGRAM_NOT) || address == NULL ||
      size < sizeof(struct sockaddr_in) || !address_of(address, addr, &port) || port == 0 ||
      !bertha.enabled || bertha_in_forked_stranger()) {
    return 0; /* bound to any port: a client as yet */
  }
  dgram_states[fd] = DGRAM_PLAIN;
  if (directory_generation() == 0 || !is_udp(fd, &family)) {
    return 0;
  }
  agent_greet();
  if (is_infrastructure(port) && !agent_dags(BERTHA_HELLO_SERVER_DATAGRAMS)) {
    return 0;
  }
  uint32_t why = 0;
  struct listener *l = listener_register(fd, &why);
  uint32_t need = l != NULL ? atomic_load_explicit(&l->claims->dag, memory_order_acquire) : BERTHA_DAG_NONE;
  bool ours = why != BERTHA_WHY_POLICY && why != BERTHA_WHY_SHM_PROHIBITED;
  bool required = l != NULL ? need == BERTHA_DAG_REQUIRED : bertha.must_serve_datagrams && ours;
  if (need != BERTHA_DAG_NONE && hand_over(fd, family, l, 0, required) != NULL) {
    return 0;
  }
  if (!required) {
    if (l != NULL && need == BERTHA_DAG_NONE) {
      local_serve(fd, family, l);
    }
    return 0;
  }
  log_refused(fd, family, BERTHA_SIDE_SERVER, addr, port,
              bertha_reason_text(l != NULL ? BERTHA_WHY_NO_CARRIER : why));
  return EACCES;
}

/* An agent that has come since, and processes that got the socket by inheritance, have to be told of it. */
struct listener *dgram_listed_again(struct listener *l, int fd) {
  uint64_t generation = directory_generation();
  static _Atomic int64_t not_before;
  int64_t now = bertha_now_ns();
  if (l == NULL || generation == 0 || (l->generation == generation && l->pid == bertha.pid) ||
      (atomic_exchange(&l->asked, bertha.pid) == bertha.pid && now < atomic_load(&not_before))) {
    return NULL;
  }
  atomic_store(&not_before, now + 200000000);
  uint32_t why = 0;
  struct listener *fresh = listener_register(fd, &why);
  return fresh != l ? fresh : NULL;
}

/* Before another carrier gets it: a process that has it by inheritance, perhaps under another user, may serve there once
 * it has shown it. */
static void show_inherited(struct conn *c, int fd) {
  struct listener *l = listener_of(c);
  struct listener *fresh =
      l != NULL && l->pid != bertha.pid ? dgram_listed_again(l, unix_tcp_fd(c, fd)) : NULL;
  if (fresh != NULL) {
    c->listener = fresh->id;
    listener_closed(l);
  }
}

void dgram_register_again(struct conn *c, int fd) {
  struct listener *l = listener_of(c);
  struct listener *fresh = dgram_listed_again(l, unix_tcp_fd(c, fd));
  if (fresh != NULL) { /* another agent: its carrier knows the plans that it has made */
    c->listener = fresh->id;
    listener_closed(l);
    dgram_revive(c, fd);
  }
}

/* ---- a socket that sends first ------------------------------------------------------------------- */

static bool is_one_host(const uint8_t a[16]) {
  static const uint8_t v4[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  static const uint8_t any[16];
  if (memcmp(a, v4, 12) == 0) {
    return a[12] < 224 && a[12] != 0; /* neither multicast nor broadcast to all */
  }
  return a[0] != 0xff && memcmp(a, any, 16) != 0;
}

static bool worth_asking(const uint8_t addr[16], uint16_t port) {
  if (!is_one_host(addr) || port == 0) {
    return false;
  }
  if (bertha.policy[0] != '\0' || bertha.must_send_datagrams) {
    agent_greet();
  }
  return bertha.must_send_datagrams /* the agent may not have been able to read why */ ||
         agent_dags(BERTHA_HELLO_CLIENT_DATAGRAMS) || directory_datagrams(addr, port) ||
         (carried_is_private(addr) && !is_infrastructure(port));
}

/* The verdict about a destination; PLAIN as well where it is not known and nothing is required. */
static uint32_t decide(int fd, int family, const uint8_t addr[16], uint16_t port, struct carried_answer *a) {
  a->verdict = BERTHA_VERDICT_PLAIN;
  a->until = bertha_now_ns() + 1000000000;
  a->detail[0] = '\0';
  bool agent = directory_generation() != 0;
  if (agent ? !worth_asking(addr, port) : !(bertha.must_send_datagrams && is_one_host(addr))) {
    a->until = bertha_now_ns() + 10000000000;
    return a->verdict;
  }
  if (!agent || !carried_ask_datagrams(addr, port, family, fd, a)) {
    if (bertha.must_send_datagrams) {
      a->verdict = BERTHA_VERDICT_REFUSED;
      strncpy(a->detail, bertha_reason_text(BERTHA_WHY_NO_AGENT), sizeof a->detail - 1);
    }
  } else if (a->verdict == BERTHA_VERDICT_PLAIN && bertha.must_send_datagrams &&
             agent_dags(BERTHA_HELLO_NO_POLICY)) {
    a->verdict = BERTHA_VERDICT_REFUSED;
  }
  return a->verdict;
}

static struct route *route_of(const struct conn *c, const uint8_t addr[16], uint16_t port) {
  if (routes.slots == NULL && (routes.slots = calloc(ROUTES, sizeof *routes.slots)) == NULL) {
    return NULL;
  }
  return &routes.slots[(bertha_dir_hash(addr, port) ^ conn_index(c) * 2654435761u) % ROUTES];
}

/* Tells the carrier the plan, in the pair's own order: before what is sent by it. */
static int tell_plan(int fd, const uint8_t addr[16], uint16_t port, uint32_t scope,
                     const struct carried_answer *a) {
  struct bertha_dgram head = {.magic = BERTHA_DGRAM_MAGIC,
                              .kind = BERTHA_DGRAM_PLAN,
                              .port = port,
                              .scope = scope,
                              .value = a->context};
  memcpy(head.addr, addr, 16);
  struct iovec parts[2] = {{&head, sizeof head}, {(void *)(uintptr_t)a->plan, a->size}};
  struct msghdr msg = {.msg_iov = parts, .msg_iovlen = 2};
  return QUIET(sendmsg)(fd, &msg, MSG_NOSIGNAL) < 0 ? errno : 0;
}

static bool leads_there(const struct route *r, const struct route *to) {
  return r->conn == to->conn && r->life == to->life && r->port == to->port && r->scope == to->scope &&
         r->generation == to->generation && r->news == to->news && memcmp(r->addr, to->addr, 16) == 0 &&
         bertha_now_ns() < r->until;
}

/* Without the lock: the agent may take its time, and the carrier may have a full socket. */
static int find_route(struct conn *c, int fd, struct route *to) {
  struct carried_answer *a = calloc(1, sizeof *a);
  if (a == NULL) {
    return ENOBUFS;
  }
  int family = (int)(c->info.family & ~BERTHA_FAMILY_DATAGRAMS);
  uint32_t verdict = decide(unix_tcp_fd(c, fd), family, to->addr, to->port, a);
  int result = verdict == BERTHA_VERDICT_REFUSED ? ECONNREFUSED : 0;
  if (verdict == BERTHA_VERDICT_PLAN) {
    bool other = c->carrier == BERTHA_CARRIER_NATIVE && a->carrier != BERTHA_CARRIER_NATIVE;
    bool there =
        !other || BERTHA_CARRIED_BESIDE(c->info.carried) != 0 || carried_beside(c, fd, 0, true, a->carrier);
    /* One of them is gone: others may be had. */
    result = there ? tell_plan(fd, to->addr, to->port, to->scope, a) : EPIPE;
  }
  to->refused = result != 0;
  to->until = a->until;
  free(a);
  return result;
}

int dgram_route(struct conn *c, int fd, const uint8_t addr[16], uint16_t port, uint32_t scope) {
  if (c->side == BERTHA_SIDE_SERVER) { /* answers those who have come, or speaks plainly */
    dgram_register_again(c, fd);
    return 0;
  }
  struct route to = {.conn = conn_index(c) + 1,
                     .life = conn_life(c),
                     .port = port,
                     .scope = scope,
                     .news = directory_news(),
                     .generation = directory_generation()};
  memcpy(to.addr, addr, 16);
  if (!bertha_lock(&routes.lock)) {
    return 0;
  }
  struct route *r = route_of(c, addr, port);
  bool known = r != NULL && leads_there(r, &to);
  int result = r == NULL ? ENOBUFS : known && r->refused ? ECONNREFUSED : 0;
  uint32_t changes = routes.changes;
  bertha_unlock(&routes.lock);
  if (known || result != 0) {
    return result;
  }
  result = find_route(c, fd, &to);
  if ((result == 0 || result == ECONNREFUSED) && bertha_lock(&routes.lock)) {
    r = route_of(c, addr, port);
    if (r != NULL && changes == routes.changes) { /* else the next one asks again */
      *r = to;
    }
    bertha_unlock(&routes.lock);
  }
  return result;
}

void dgram_reroute(const uint8_t addr[16], uint16_t port) {
  carried_refused_datagrams(addr, port);
  if (bertha_lock(&routes.lock)) {
    routes.changes++;
    for (int i = 0; routes.slots != NULL && i < ROUTES; i++) {
      if (routes.slots[i].port == port && memcmp(routes.slots[i].addr, addr, 16) == 0) {
        routes.slots[i].until = 0;
      }
    }
    bertha_unlock(&routes.lock);
  }
}

/* A carrier binds to no address: the program may ask for its port as soon as it has sent (udp(7)). */
static void bind_to_any(int fd, int family) {
  struct sockaddr_in6 any = {.sin6_family = (sa_family_t)family};
  REAL(bind)
  (fd, (struct sockaddr *)&any, family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6));
}

static bool deserves_a_look(int fd, const struct sockaddr *to, socklen_t size, bool *fresh) {
  if ((unsigned)fd >= BERTHA_FDS || dgram_states[fd] == DGRAM_NOT || to == NULL ||
      size < sizeof(struct sockaddr_in) || (to->sa_family != AF_INET && to->sa_family != AF_INET6) ||
      (to->sa_family == AF_INET6 && size < sizeof(struct sockaddr_in6)) || conn_of(fd) != NULL ||
      !bertha.enabled || bertha_in_forked_stranger()) {
    return false;
  }
  *fresh = dgram_states[fd] == DGRAM_FRESH;
  dgram_states[fd] = DGRAM_PLAIN;
  return *fresh || bertha.must_send_datagrams || agent_dags(BERTHA_HELLO_CLIENT_DATAGRAMS);
}

/* Whether a socket that nobody carries yet is to be carried: for what is to be sent to that address. */
static uint32_t look(int fd, const struct sockaddr *to, socklen_t size, int *family, uint32_t *carrier) {
  uint8_t addr[16];
  uint16_t port;
  bool fresh;
  if (!deserves_a_look(fd, to, size, &fresh) || !address_of(to, addr, &port)) {
    return BERTHA_VERDICT_PLAIN;
  }
  int saved = errno;
  struct carried_answer *a = calloc(1, sizeof *a);
  uint32_t verdict = BERTHA_VERDICT_PLAIN;
  if (a != NULL && is_udp(fd, family)) {
    verdict = decide(fd, *family, addr, port, a);
    *carrier = a->carrier;
    if (verdict == BERTHA_VERDICT_REFUSED) {
      log_refused(fd, *family, BERTHA_SIDE_CLIENT, addr, port, a->detail);
      dgram_states[fd] = DGRAM_FRESH; /* the next one is asked about again */
    } else if (verdict == BERTHA_VERDICT_PLAIN) {
      local_dial(fd, *family, addr, port, fresh);
    }
  }
  free(a);
  errno = saved;
  return verdict;
}

int dgram_connecting(int fd, const struct sockaddr *address, socklen_t size) {
  struct conn *c = dgram_of(fd);
  if (c != NULL && (conn_flags(c) & CONN_LOCAL)) {
    return 0;
  }
  uint8_t addr[16];
  uint16_t port;
  if (c != NULL && address != NULL && size >= sizeof(struct sockaddr_in) &&
      address_of(address, addr, &port)) {
    return dgram_route(c, fd, addr, port, scope_of(address));
  }
  int family;
  uint32_t which = BERTHA_CARRIER_PYTHON;
  uint32_t verdict = c == NULL ? look(fd, address, size, &family, &which) : BERTHA_VERDICT_PLAIN;
  if (verdict == BERTHA_VERDICT_PLAN) {
    struct conn *made = hand_over(fd, family, NULL, which, true);
    return made == NULL ? ECONNREFUSED : dgram_connecting(fd, address, size);
  }
  return verdict == BERTHA_VERDICT_REFUSED ? ECONNREFUSED : 0;
}

int dgram_connected(int fd, const struct sockaddr *address, socklen_t size) {
  struct conn *c = dgram_of(fd);
  if (conn_flags(c) & CONN_LOCAL) {
    local_reconnecting(c);
  }
  int result = QUIET(connect)(unix_tcp_fd(c, fd), address, size);
  if (result == 0 && address != NULL && address->sa_family == AF_UNSPEC) {
    c->info.peer_port = 0;
  } else if (result == 0) {
    address_of(address, c->info.peer_addr, &c->info.peer_port);
    c->scope = scope_of(address);
  }
  if (result == 0 && (conn_flags(c) & CONN_LOCAL)) {
    local_reconnected(c);
  }
  return result;
}

int dgram_first_send(int fd, const struct sockaddr *to, socklen_t size) {
  int family;
  uint32_t which = BERTHA_CARRIER_PYTHON;
  uint32_t verdict = look(fd, to, size, &family, &which);
  if (verdict == BERTHA_VERDICT_PLAN) {
    bind_to_any(fd, family); /* fails where it has a port */
    if (hand_over(fd, family, NULL, which, true) == NULL) {
      return ECONNREFUSED;
    }
  }
  return verdict == BERTHA_VERDICT_REFUSED ? ECONNREFUSED : 0;
}

/* ---- later --------------------------------------------------------------------------------------- */

/* Nobody carries it: it takes nothing and brings nothing, and wakes nobody up, until somebody sends again. */
static void put_to_rest(struct conn *c) {
  int pair[2];
  if (REAL(socketpair)(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, pair) == 0) {
    QUIET(close)(pair[1]);
    unix_replace(c, pair[0]);
  }
}

void dgram_beside(struct conn *c, int fd) {
  show_inherited(c, fd);
  const struct listener *l = listener_of(c);
  if (l != NULL && c->carrier == BERTHA_CARRIER_NATIVE) {
    uint32_t which = atomic_load(&l->claims->dag_carrier);
    which = which == BERTHA_CARRIER_NATIVE ? BERTHA_CARRIER_PYTHON : which;
    carried_beside(c, fd, c->listener, atomic_load(&l->claims->dag) != BERTHA_DAG_MAYBE, which);
  }
}

bool dgram_revive(struct conn *c, int fd) {
  static struct {
    uint32_t conn;
    int64_t at;
  } last;
  if (!bertha_lock(&reviving)) {
    return false;
  }
  bool done =
      last.conn == conn_index(c) && bertha_now_ns() - last.at < 50000000; /* another thread was quicker */
  if (!done) {
    show_inherited(c, fd);
    const struct listener *l = listener_of(c);
    uint32_t need = l != NULL ? atomic_load(&l->claims->dag) : BERTHA_DAG_REQUIRED;
    c->carrier = l != NULL ? (uint8_t)atomic_load(&l->claims->dag_carrier) : c->carrier;
    done = carried_datagrams(c, fd, c->listener, need != BERTHA_DAG_MAYBE, true);
    if (!done) {
      put_to_rest(c);
    }
    last.conn = done ? conn_index(c) : UINT32_MAX;
    last.at = bertha_now_ns();
    if (done && bertha_lock(&routes.lock)) { /* the new one has to be told all plans */
      routes.changes++;
      for (int i = 0; routes.slots != NULL && i < ROUTES; i++) {
        if (routes.slots[i].conn == conn_index(c) + 1) {
          routes.slots[i].until = 0;
        }
      }
      bertha_unlock(&routes.lock);
    }
  }
  bertha_unlock(&reviving);
  return done;
}

void dgram_closing(struct conn *c, int fd) {
  if (conn_flags(c) & CONN_LOCAL) {
    local_closing(c, fd);
    return;
  }
  if (c->side == BERTHA_SIDE_SERVER) {
    int saved = errno;
    struct pollfd p = {.fd = fd};
    REAL(shutdown)(fd, SHUT_WR);
    QUIET(poll)(&p, 1, CLOSE_MS);
    errno = saved;
  }
}

void dgram_closed(struct conn *c) {
  struct listener *l = listener_of(c);
  if (l != NULL && l->generation == directory_generation()) {
    struct bertha_unlisten body = {.listener = l->id};
    agent_call(BERTHA_OP_UNLISTEN, &body, sizeof body, NULL, 0, NULL, 0, NULL, 0);
  }
  if (l != NULL) {
    listener_closed(l); /* what this connection still needs of it is spared: it is yet to be freed */
  }
}
