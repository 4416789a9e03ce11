/* What a program wrote by a relay's end comes before what others write afterwards by the connection itself: its parent, say,
 * that has waited for its end.  The relay has it a moment later than the kernel would.
 *
 * Where it may still be is asked in the order in which it gets on: the queue of the program's end, that of the relay's
 * end, the relay's hands. */
#include "relay.h"

#include <arpa/inet.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <string.h>

#include "carried.h"
#include "conn.h"

#define LOOK_NS 20000
#define PATIENCE_NS                                                                                          \
  1000000000 /* the relay cannot go on, or the program writes all the time: then there is no order */

enum { UNKNOWN = -1, NO_SOCKET = -2 };

static bool are_relay;
static uint64_t own_ends; /* the relay's */

static struct conn *truth(struct conn *c) {
  return c->home != NULL ? c->home : c;
}

/* Both are on loopback.  0: they have no ports, or are no more. */
static uint64_t ends_at(int end, bool programs) {
  struct sockaddr_in6 own, far; /* its port stands where an IPv4 address has it */
  socklen_t size = sizeof own, far_size = sizeof far;
  if (REAL(getsockname)(end, (struct sockaddr *)&own, &size) != 0 ||
      REAL(getpeername)(end, (struct sockaddr *)&far, &far_size) != 0 || own.sin6_family == AF_UNIX) {
    return 0;
  }
  uint64_t six = own.sin6_family == AF_INET6;
  uint64_t program = programs ? own.sin6_port : far.sin6_port;
  return six << 32 | program << 16 | (programs ? far.sin6_port : own.sin6_port);
}

static void made_no_more(struct conn *c, uint64_t ends) {
  if (ends == 0 || atomic_compare_exchange_strong(&truth(c)->relay_ends, &ends, 0)) {
    conn_clear_flag(c, CONN_RELAYED);
  }
}

void relay_has(struct conn *c, int something) {
  if (!are_relay) {
    are_relay = true;
    own_ends = ends_at(RELAY_END, false);
  }
  if (something >= 0) {
    atomic_store(&truth(c)->relay_has, (uint32_t)something);
  } else {
    made_no_more(c, own_ends);
  }
}

static void write_loopback(uint32_t to[4], bool six) {
  if (six) {
    memcpy(to, &in6addr_loopback, sizeof in6addr_loopback);
  } else {
    to[0] = htonl(INADDR_LOOPBACK);
  }
}

static int ask_kernel(void) {
  return REAL(socket)(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
}

/* What lies in the queue of the program's, or the relay's, end. */
static int64_t queued(int diag, uint64_t ends, bool programs, bool to_be_read) {
  bool six = ends >> 32;
  uint16_t program = (uint16_t)(ends >> 16), relay = (uint16_t)ends;
  struct {
    struct nlmsghdr head;
    struct inet_diag_req_v2 body;
  } question = {
      .head = {.nlmsg_len = sizeof question, .nlmsg_type = SOCK_DIAG_BY_FAMILY, .nlmsg_flags = NLM_F_REQUEST},
      .body = {.sdiag_family = six ? AF_INET6 : AF_INET,
               .sdiag_protocol = IPPROTO_TCP,
               .idiag_states = ~0u,
               .id = {.idiag_sport = programs ? program : relay,
                      .idiag_dport = programs ? relay : program,
                      .idiag_cookie = {INET_DIAG_NOCOOKIE, INET_DIAG_NOCOOKIE}}}};
  write_loopback(question.body.id.idiag_src, six);
  write_loopback(question.body.id.idiag_dst, six);
  union {
    struct nlmsghdr head;
    struct {
      struct nlmsghdr head;
      struct nlmsgerr body;
    } error;
    uint8_t space[4096];
  } answer = {.space = {0}};
  ssize_t n = QUIET(send)(diag, &question, sizeof question, MSG_DONTWAIT) == (ssize_t)sizeof question
                  ? QUIET(recv)(diag, &answer, sizeof answer, MSG_DONTWAIT)
                  : -1;
  if (n >= (ssize_t)sizeof answer.error && answer.head.nlmsg_type == NLMSG_ERROR &&
      answer.error.body.error == -ENOENT) {
    return NO_SOCKET;
  }
  if (n < (ssize_t)NLMSG_LENGTH(sizeof(struct inet_diag_msg)) ||
      answer.head.nlmsg_type != SOCK_DIAG_BY_FAMILY) {
    return UNKNOWN;
  }
  const struct inet_diag_msg *said = NLMSG_DATA(&answer.head);
  return to_be_read ? said->idiag_rqueue : said->idiag_wqueue;
}

/* Not if the kernel's word is not to be had: later, who is not told of an end of it takes that one for gone. */
void relay_made(struct conn *c, int end) {
  uint64_t ends = ends_at(end, true);
  int diag = ends != 0 ? ask_kernel() : -1;
  if (diag < 0) {
    return;
  }
  if (queued(diag, ends, true, true) >= 0) {
    atomic_store(&truth(c)->relay_ends, ends);
    conn_set_flag(c, CONN_RELAYED);
  }
  QUIET(close)(diag);
}

/* A relay that ends says so before its socket is gone.  One that did not was killed, and what it had would be a gap before
 * what comes now: nothing comes any more. */
static void lost(struct conn *c, int fd) {
  conn_set_flag(c, CONN_RST | CONN_LINGER_0);
  conn_keep_error(c, -ECONNRESET);
  if (!(conn_flags(c) & CONN_CARRIED)) {
    carried_reset(fd);
  }
}

static bool has_it_all(struct conn *c, int fd, int diag) {
  struct conn *h = truth(c);
  uint64_t ends = atomic_load(&h->relay_ends);
  if (ends == 0) {
    return true;
  }
  if (queued(diag, ends, true, false) > 0) {
    return false;
  }
  int64_t there = queued(diag, ends, false, true);
  if (there < 0) {
    if (atomic_compare_exchange_strong(&h->relay_ends, &ends, 0)) {
      conn_clear_flag(c, CONN_RELAYED);
      atomic_store(&h->relay_has, 0);
      if (there == NO_SOCKET) {
        lost(c, fd);
      }
    }
    return true;
  }
  return there == 0 && atomic_load(&h->relay_has) == 0;
}

bool relay_await(struct conn *c, int fd) {
  if (are_relay) {
    return true;
  }
  int saved = errno;
  int diag = ask_kernel();
  int64_t until = bertha_now_ns() + PATIENCE_NS;
  while (diag >= 0 && !has_it_all(c, fd, diag) && bertha_now_ns() < until) {
    QUIET(nap)(LOOK_NS);
  }
  if (diag >= 0) {
    QUIET(close)(diag);
  }
  errno = saved;
  return !(conn_flags(c) & CONN_RST);
}
