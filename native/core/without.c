#include "without.h"

#include <fcntl.h>

#include "agentc.h"
#include "conn.h"
#include "connlog.h"
#include "eset_members.h"
#include "hop.h"
#include "local.h"
#include "relay.h"
#include "stdfile.h"
#include "unixpair.h"

enum { RELAYS = 8 };
#define PATIENCE_NS 1000000000 /* for all connections together: other ends that compute do not answer */

/* ---- epoll sets ---------------------------------------------------------------------------------- */

static void give_member(struct eset *s, int fd) {
  struct reg *r = &s->regs[fd];
  if (r->state == REG_SET) {
    nest_give(s, fd);
    return;
  }
  if (r->state == REG_RING) {
    eset_to_kernel(s, fd);
  }
  if (r->state == REG_KERNEL) {
    struct epoll_event e = eset_kernel_event(r, fd);
    e.data.u64 = r->data;
    if (REAL(epoll_ctl)(s->epfd, EPOLL_CTL_MOD, fd, &e) != 0) { /* EPOLLEXCLUSIVE */
      REAL(epoll_ctl)(s->epfd, EPOLL_CTL_DEL, fd, NULL);
      REAL(epoll_ctl)(s->epfd, EPOLL_CTL_ADD, fd, &e);
    }
    struct conn *c = conn_of(fd);
    if (c != NULL && conn_index(c) + 1 == r->conn) {
      eset_kernel_reg(s, c, -1);
    }
  } else if (r->state == REG_OFF || r->state == REG_GONE) {
    REAL(epoll_ctl)(s->epfd, EPOLL_CTL_DEL, fd, NULL);
  }
  r->state = REG_NONE;
}

static void give_sets(void) {
  for (uint32_t i = 0; i < bertha.max_fd; i++) {
    struct eset *s = conn_of((int)i) == NULL ? eset_by_entry(eset_entry((int)i)) : NULL;
    if (s == NULL || s->epfd != (int)i || s->inherited || !bertha_lock(&s->lock)) {
      continue;
    }
    parted_all_end(s);
    for (uint32_t fd = 0; fd < bertha.max_fd && fd < ESET_FDS; fd++) {
      give_member(s, (int)fd);
    }
    if (s->bell_fd >= 0) {
      REAL(epoll_ctl)(s->epfd, EPOLL_CTL_DEL, s->bell_fd, NULL);
    }
    for (uint32_t fd = 0; fd < bertha.max_fd;
         fd++) { /* with its duplicates; a connection's is its own (leave_one) */
      if (conn_of((int)fd) == NULL && eset_by_entry(eset_entry((int)fd)) == s) {
        eset_set_entry((int)fd, 0);
      }
    }
    bertha_unlock(&s->lock);
  }
}

/* ---- connections --------------------------------------------------------------------------------- */

struct leaving {
  uint32_t why;
  int64_t until;
  unsigned count;
  struct {
    uint64_t cookie;
    struct relay relay;
  } relays[RELAYS];
};

static unsigned relay_number(const struct leaving *l, uint64_t cookie) {
  unsigned i = 0;
  while (i < l->count && l->relays[i].cookie != cookie) {
    i++;
  }
  return i;
}

static bool relayed(struct leaving *l, struct conn *c, int fd) {
  uint64_t cookie = conn_cookie(c, fd);
  unsigned i = relay_number(l, cookie);
  if (i == RELAYS || (i == l->count && !relay_begin(&l->relays[i].relay, c, fd))) {
    return false;
  }
  l->relays[i].cookie = cookie;
  l->count += i == l->count;
  int flags = REAL(fcntl)(fd, F_GETFD);
  int status = REAL(fcntl)(fd, F_GETFL);
  REAL(fcntl)(l->relays[i].relay.end, F_SETFL, status);
  return REAL(dup3)(l->relays[i].relay.end, fd, flags & FD_CLOEXEC ? O_CLOEXEC : 0) == fd;
}

/* Another thread waits for it just now, and goes on to do so by our calls: to forget it would tell that thread EBADF. */
static bool waited_for(const struct conn *c) {
  if (atomic_load(&c->kernel_waiters) != 0) {
    return true;
  }
  if (conn_kind(c) != BERTHA_CONN_SHM) {
    return false;
  }
  const struct bertha_watch *w = &c->slot->watch[c->side];
  return atomic_load(&w->rx) != 0 || atomic_load(&w->tx) != 0;
}

static void leave_one(struct leaving *l, struct conn *c, int fd) {
  hop_leave(c, fd);
  uint32_t kind = conn_decide(c, fd, l->why);
  if (kind == BERTHA_CONN_UNIX) {
    unix_settle(c, fd);
  } else if (kind == BERTHA_CONN_SHM) {
    c->info.reason = l->why;
    bool has_relay = relay_number(l, conn_cookie(c, fd)) < l->count;
    if ((has_relay || bertha_now_ns() > l->until || !conn_take_back(c, fd, l->why)) &&
        (waited_for(c) || !relayed(l, c, fd))) {
      conn_leave_ring(
          c, l->why); /* what lies in the ring is read by calls of ours, and may be the program's end */
      return;
    }
  }
  if (kind == BERTHA_CONN_PLAIN) {
    c->info.reason = c->info.reason != 0 ? c->info.reason : l->why;
  }
  if (waited_for(c)) {
    return;
  }
  conn_forget(fd);
  stdfile_follow(fd);
  eset_set_entry(fd, 0);
  conn_release(c, fd);
}

void bertha_goes_without(uint32_t why) {
  if (!bertha.enabled || bertha.fds == NULL || bertha_in_forked_stranger()) {
    return;
  }
  int saved = errno;
  struct leaving l = {.why = why, .until = bertha_now_ns() + PATIENCE_NS};
  bool must =
      bertha.must_serve || bertha.must_connect || bertha.must_serve_datagrams || bertha.must_send_datagrams;
  give_sets();
  for (uint32_t fd = 0; fd < bertha.max_fd; fd++) {
    struct conn *c = conn_of((int)fd);
    uint32_t kind = c != NULL ? conn_kind(c) : BERTHA_CONN_FREE;
    bool later = kind == BERTHA_CONN_LISTENER || kind == BERTHA_CONN_SOCKET;
    if (c != NULL && UNLIKELY(conn_flags(c) & CONN_LOCAL)) {
      if (atomic_load(&c->info.refs) == 1) {
        connlog_write(c, (int)fd);
        local_closing(c, (int)fd);
      } else {
        local_forgotten(c, (int)fd, true);
      }
      conn_forget((int)fd);
      conn_release(c, (int)fd);
    } else if (c != NULL && !(conn_flags(c) & CONN_DGRAM) && !(must && later)) {
      leave_one(&l, c, (int)fd);
    }
  }
  for (unsigned i = 0; i < l.count; i++) {
    relay_go(&l.relays[i].relay);
  }
  bertha.enabled = must; /* what is yet to come must not be plain then, whatever the filter says of it */
  errno = saved;
}
