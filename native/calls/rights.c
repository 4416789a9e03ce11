/* A connection that is passed on to another process over a unix socket (SCM_RIGHTS).
 *
 * Who receives it, and whether our library is there, nobody can tell, so its receiver gets what works everywhere: the
 * kernel's connection, which has stayed plain or to which the ring has been given back (core/takeback.c), or else one
 * end of a relay (core/relay.c).  The descriptors that come to us this way are the kernel's, too. */
#include <netinet/in.h>
#include <string.h>

#include "../core/local.h"
#include "calls.h"

/* True: the receiver is to have a relay's end instead. */
static bool leaves(int fd, struct relay *relay) {
  struct conn *c = conn_of(fd);
  if (c == NULL) {
    return false;
  }
  local_kernels(c);
  uint32_t kind = conn_kind(c);
  struct listener *l = kind != BERTHA_CONN_LISTENER ? listener_of(c) : NULL;
  if (l != NULL) {
    atomic_store(&l->passes_on, true);
  }
  if (kind == BERTHA_CONN_SOCKET) { /* to be connected by the other process, or by us: nobody can tell */
    conn_set_flag(c, CONN_NO_ATTACH);
    c->info.reason = BERTHA_WHY_PASSED_ON;
  } else if (kind == BERTHA_CONN_UNIX) {
    unix_settle(c, fd);
  } else if (kind == BERTHA_CONN_MAYBE && conn_stays_plain(c, BERTHA_WHY_PASSED_ON)) {
    return false; /* without a last look for a claim: there may be one */
  } else if (conn_decide(c, fd, BERTHA_WHY_PASSED_ON) == BERTHA_CONN_SHM &&
             !conn_take_back(c, fd, BERTHA_WHY_PASSED_ON)) {
    c->info.reason = BERTHA_WHY_PASSED_ON;
    if (relay_begin(relay, c, fd)) {
      return true;
    }
    conn_leave_ring(c, BERTHA_WHY_PASSED_ON);
  }
  return false;
}

/* The end of a relay that the connection has got for another number in this message; -1: none.  Two relays would share out
 * what comes. */
static int relays_end(const struct rights *r, int fd) {
  for (unsigned i = 0; i < r->relay_count; i++) {
    if (r->relayed[i] == conn_of(fd)) {
      return r->relays[i].end;
    }
  }
  return -1;
}

const struct msghdr *rights_begin(struct rights *r, const struct msghdr *msg) {
  r->relay_count = 0;
  if (!bertha.table_ready || bertha_in_forked_stranger()) {
    return msg;
  }
  int saved = errno;
  bool own = msg->msg_controllen <= sizeof r->control;
  if (own) {
    memcpy(&r->control, msg->msg_control, msg->msg_controllen);
    r->msg = *msg;
    r->msg.msg_control = &r->control;
  }
  struct msghdr *m = own ? &r->msg : (struct msghdr *)(uintptr_t)msg;
  for (struct cmsghdr *head = CMSG_FIRSTHDR(m); head != NULL; head = CMSG_NXTHDR(m, head)) {
    if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS || head->cmsg_len < CMSG_LEN(0)) {
      continue;
    }
    size_t count = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; i++) {
      int fd;
      struct relay relay;
      memcpy(&fd, CMSG_DATA(head) + i * sizeof fd, sizeof fd);
      int end = relays_end(r, fd);
      if (end >= 0) {
        memcpy(CMSG_DATA(head) + i * sizeof fd, &end, sizeof fd);
        continue;
      }
      if (!leaves(fd, &relay)) {
        continue;
      }
      if (!own || r->relay_count == RIGHTS_RELAYS) {
        relay_cancel(&relay);
        conn_leave_ring(conn_of(fd), BERTHA_WHY_PASSED_ON);
        continue;
      }
      memcpy(CMSG_DATA(head) + i * sizeof fd, &relay.end, sizeof fd);
      r->relayed[r->relay_count] = conn_of(fd);
      r->relays[r->relay_count++] = relay;
    }
  }
  errno = saved;
  return r->relay_count > 0 ? m : msg;
}

void rights_end(struct rights *r, bool sent) {
  int saved = errno;
  for (unsigned i = 0; i < r->relay_count; i++) {
    if (sent) {
      relay_go(&r->relays[i]);
    } else {
      relay_cancel(&r->relays[i]);
    }
  }
  errno = saved;
}

void rights_received(struct msghdr *msg) {
  for (struct cmsghdr *head = CMSG_FIRSTHDR(msg); head != NULL; head = CMSG_NXTHDR(msg, head)) {
    if (head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS && head->cmsg_len >= CMSG_LEN(0)) {
      for (size_t i = 0; i < (head->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
        int fd;
        memcpy(&fd, CMSG_DATA(head) + i * sizeof fd, sizeof fd);
        descriptor_fresh(fd);
      }
    }
  }
}

/* For bertha-relay (native/relay): it is about to take bytes of its program, or has passed on what it took, or
 * (-1) ends. */
BERTHA_EXPORT void bertha_relay_has(int fd, int something);
void bertha_relay_has(int fd, int something) {
  struct conn *c = conn_of(fd);
  if (c != NULL) {
    relay_has(c, something);
  }
}

/* The same: how many descriptors a connection has, in all processes. */
BERTHA_EXPORT unsigned bertha_connection_holders(int fd);
unsigned bertha_connection_holders(int fd) {
  struct conn *c = conn_of(fd);
  if (c == NULL) {
    return 0;
  }
  unsigned own = atomic_load(&c->info.refs);
  return c->home != NULL ? own + atomic_load(&c->home->info.refs) - 1 : own;
}
