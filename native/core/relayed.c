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

#include "conn.h"

#define LOOK_NS 20000
#define PATIENCE_NS                                                                                          \
  1000000000 /* the relay cannot go on, or the program writes all the time: then there is no order */

static bool are_relay;

static struct conn *truth(struct conn *c) {
  return c->home != NULL ? c->home : c;
}

/* Both ends are on loopback. */
void relay_made(struct conn *c, int end) {
  struct sockaddr_in6 own, far; /* its port stands where an IPv4 address has it */
  socklen_t size = sizeof own, far_size = sizeof far;
  if (REAL(getsockname)(end, (struct sockaddr *)&own, &size) != 0 ||
      REAL(getpeername)(end, (struct sockaddr *)&far, &far_size) != 0 || own.sin6_family == AF_UNIX) {
    return;
  }
  uint64_t six = own.sin6_family == AF_INET6;
  atomic_store(&truth(c)->relay_ends, six << 32 | (uint64_t)own.sin6_port << 16 | far.sin6_port);
  conn_set_flag(c, CONN_RELAYED);
}

void relay_has(struct conn *c, bool something) {
  are_relay = true;
  atomic_store(&truth(c)->relay_has, something);
}

static void write_loopback(uint32_t to[4], bool six) {
  if (six) {
    memcpy(to, &in6addr_loopback, sizeof in6addr_loopback);
  } else {
    to[0] = htonl(INADDR_LOOPBACK);
  }
}

/* What lies in this end's queue; -1: there is no such end, or nobody tells. */
static int64_t queued(int diag, bool six, uint16_t own, uint16_t far, bool to_be_read) {
  struct {
    struct nlmsghdr head;
    struct inet_diag_req_v2 body;
  } question = {
      .head = {.nlmsg_len = sizeof question, .nlmsg_type = SOCK_DIAG_BY_FAMILY, .nlmsg_flags = NLM_F_REQUEST},
      .body = {.sdiag_family = six ? AF_INET6 : AF_INET,
               .sdiag_protocol = IPPROTO_TCP,
               .idiag_states = ~0u,
               .id = {.idiag_sport = own,
                      .idiag_dport = far,
                      .idiag_cookie = {INET_DIAG_NOCOOKIE, INET_DIAG_NOCOOKIE}}}};
  write_loopback(question.body.id.idiag_src, six);
  write_loopback(question.body.id.idiag_dst, six);
  union {
    struct nlmsghdr head;
    uint8_t space[4096];
  } answer;
  if (QUIET(send)(diag, &question, sizeof question, MSG_DONTWAIT) != (ssize_t)sizeof question ||
      QUIET(recv)(diag, &answer, sizeof answer, MSG_DONTWAIT) <
          (ssize_t)NLMSG_LENGTH(sizeof(struct inet_diag_msg)) ||
      answer.head.nlmsg_type != SOCK_DIAG_BY_FAMILY) {
    return -1;
  }
  const struct inet_diag_msg *said = NLMSG_DATA(&answer.head);
  return to_be_read ? said->idiag_rqueue : said->idiag_wqueue;
}

static bool has_it_all(struct conn *c, int diag) {
  struct conn *h = truth(c);
  uint64_t ends = atomic_load(&h->relay_ends);
  bool six = ends >> 32;
  uint16_t programs = (uint16_t)(ends >> 16), relays = (uint16_t)ends;
  if (queued(diag, six, programs, relays, false) > 0) {
    return false;
  }
  int64_t there = queued(diag, six, relays, programs, true);
  if (there < 0) { /* the relay has ended */
    if (atomic_compare_exchange_strong(&h->relay_ends, &ends, 0)) {
      conn_clear_flag(c, CONN_RELAYED);
      atomic_store(&h->relay_has, 0);
    }
    return true;
  }
  return there == 0 && atomic_load(&h->relay_has) == 0;
}

void relay_await(struct conn *c) {
  if (are_relay) {
    return;
  }
  int saved = errno;
  int diag = REAL(socket)(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
  int64_t until = bertha_now_ns() + PATIENCE_NS;
  while (diag >= 0 && !has_it_all(c, diag) && bertha_now_ns() < until) {
    QUIET(nap)(LOOK_NS);
  }
  if (diag >= 0) {
    QUIET(close)(diag);
  }
  errno = saved;
}
