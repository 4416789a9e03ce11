/* socket, bind, listen, accept, connect, shutdown. */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>

#include "../core/agentc.h"
#include "../core/carried.h"
#include "../core/stdfile.h"
#include "calls.h"

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262 /* glibc before 2.32 */
#endif

static bool is_tcp(int family, int type, int protocol) {
  return (family == AF_INET || family == AF_INET6) && (type & 0xf) == SOCK_STREAM &&
         (protocol == 0 || protocol == IPPROTO_TCP);
}

static bool is_udp(int family, int type, int protocol) {
  return (family == AF_INET || family == AF_INET6) && (type & 0xf) == SOCK_DGRAM &&
         (protocol == 0 || protocol == IPPROTO_UDP);
}

static int socket_protocol(int fd) {
  int protocol;
  socklen_t size = sizeof protocol;
  return REAL(getsockopt)(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &size) == 0 ? protocol : -1;
}

bool socket_is_tcp(int fd) {
  int protocol = socket_protocol(fd);
  return protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP;
}

static struct conn *track(int fd, int type, enum bertha_conn_kind kind) {
  struct conn *c = conn_new(fd, kind);
  if (c != NULL) {
    if (type & SOCK_NONBLOCK) {
      conn_set_flag(c, CONN_NONBLOCK);
    }
    conn_books_begin(); /* or a child that is just being made would know it without being counted */
    conn_track(fd, c);
    conn_books_end();
    stdfile_follow(fd);
  }
  return c;
}

BERTHA_EXPORT int socket(int family, int type, int protocol) {
  int fd = descriptor_fresh(REAL(socket)(family, type, protocol));
  if (fd >= 0) {
    dgram_made(fd, is_udp(family, type, protocol));
  }
  if (fd >= 0 && is_tcp(family, type, protocol) && bertha.enabled && !bertha_in_forked_stranger()) {
    int saved = errno;
    track(fd, type, BERTHA_CONN_SOCKET);
    errno = saved;
  }
  return fd;
}

/* A socket that came to us by inheritance or over a unix socket is not in the books yet. */
static struct conn *adopt_unknown(int fd) {
  int value;
  socklen_t size = sizeof value;
  if (!bertha.enabled || bertha_in_forked_stranger() || bertha_is_hidden(fd) ||
      REAL(getsockopt)(fd, SOL_SOCKET, SO_PROTOCOL, &value, &size) != 0 || value != IPPROTO_TCP ||
      REAL(getsockopt)(fd, SOL_SOCKET, SO_DOMAIN, &value, &size) != 0 ||
      (value != AF_INET && value != AF_INET6)) {
    return NULL;
  }
  int flags = REAL(fcntl)(fd, 3 /* F_GETFL */);
  return track(fd, flags >= 0 && (flags & SOCK_NONBLOCK) ? SOCK_NONBLOCK : 0, BERTHA_CONN_SOCKET);
}

BERTHA_EXPORT int bind(int fd, const struct sockaddr *address, socklen_t size) {
  int refused = dgram_binding(fd, address, size);
  if (UNLIKELY(refused != 0)) {
    return (int)errno_result(-refused);
  }
  struct conn *c = conn_of(fd);
  int result = REAL(bind)(UNLIKELY(c != NULL && (conn_flags(c) & CONN_DGRAM)) ? unix_tcp_fd(c, fd) : fd,
                          address, size);
  if (result == 0 && c != NULL) {
    conn_set_flag(c, CONN_BOUND);
  } else if (result == 0) {
    int saved = errno;
    refused = dgram_bound(fd, address, size);
    errno = saved;
    return (int)errno_result(-refused);
  }
  return result;
}

static void start_listening(struct conn *c, int fd) {
  uint32_t why = 0;
  const struct listener *l = listener_register(fd, &why);
  c->listener = l != NULL ? l->id : 0;
  c->info.reason = why;
  atomic_store(&c->info.kind, BERTHA_CONN_LISTENER);
  if (l == NULL && bertha_log_level > 0) {
    bertha_debug("listener on descriptor %d stays plain (reason %u)", fd, why);
  }
}

BERTHA_EXPORT int listen(int fd, int backlog) {
  if (UNLIKELY(bertha.must_serve) && conn_of(fd) == NULL && !carried_owns() &&
      socket_protocol(fd) == IPPROTO_MPTCP) {
    errno = EOPNOTSUPP; /* rather than to refuse whoever comes */
    return -1;
  }
  int result = REAL(listen)(fd, backlog);
  if (result == 0 && bertha.enabled) {
    int saved = errno;
    struct conn *c = conn_of(fd);
    if (c == NULL) {
      c = adopt_unknown(fd);
    }
    if (c != NULL && carried_owns()) { /* it tells the agent itself first */
      conn_set_flag(c, CONN_OWN);
    } else if (c != NULL && conn_kind(c) == BERTHA_CONN_SOCKET) {
      start_listening(c, fd);
    }
    errno = saved;
  }
  return result;
}

/* After an agent's death its successor has to be told anew; found out when somebody connects.  So has the agent of a
 * worker that has the socket by inheritance: only by showing it may it, perhaps under another user, serve there. */
static struct listener *listener_now(struct conn *c, int fd) {
  struct listener *l = listener_of(c);
  static _Atomic int64_t not_before;
  static _Atomic int asked_pid;
  uint64_t generation = directory_generation();
  if (generation == 0 || (l != NULL && l->generation == generation && l->pid == bertha.pid)) {
    return l;
  }
  int64_t now = bertha_now_ns();
  bool first = l != NULL && atomic_exchange(&l->asked, bertha.pid) != bertha.pid;
  if (!first && now < atomic_load(&not_before) && atomic_load(&asked_pid) == bertha.pid) {
    return l;
  }
  atomic_store(&not_before, now + 200000000);
  atomic_store(&asked_pid, bertha.pid);
  uint32_t why = 0;
  struct listener *fresh = listener_register(fd, &why);
  if (fresh != NULL) {
    if (l == NULL || l->generation != generation) {
      atomic_store(&fresh->known_since, now);
    }
    c->listener = fresh->id;
    if (l != NULL && l != fresh) {
      listener_closed(l);
    }
  }
  return fresh != NULL ? fresh : l;
}

static bool must_not_be_plain(const struct conn *l) {
  const struct listener *at = listener_of(l);
  return (bertha.must_serve && !(conn_flags(l) & CONN_OWN)) ||
         (at != NULL && atomic_load_explicit(&at->claims->dag, memory_order_acquire) == BERTHA_DAG_REQUIRED);
}

/* A connection that we cannot follow (too many, or in a child that bypassed fork()) and that may not be plain. */
static int refused(int fd) {
  struct linger now = {.l_onoff = 1};
  REAL(setsockopt)(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
  QUIET(close)(fd);
  errno = ECONNABORTED;
  return -1;
}

static int accepted(int listening, int fd, const struct sockaddr *from, int flags) {
  struct conn *l = conn_of(listening);
  if (l == NULL && bertha.enabled) {
    l = adopt_unknown(listening);
  }
  if (l == NULL) { /* MPTCP, or no room in the books */
    return UNLIKELY(bertha.must_serve && socket_is_tcp(fd)) ? refused(fd) : fd;
  }
  if (conn_kind(l) == BERTHA_CONN_SOCKET) {
    atomic_store(&l->info.kind, BERTHA_CONN_LISTENER); /* inherited from a parent that we do not know */
  }
  int saved = errno;
  struct conn *c = track(fd, flags, BERTHA_CONN_PLAIN);
  if (UNLIKELY(c == NULL && must_not_be_plain(l))) {
    return refused(fd);
  }
  if (c != NULL) {
    bool kernels =
        l->rcv_lowat > 1 || (conn_flags(l) & CONN_KERNELS); /* inherited, and the kernel's (option.c) */
    if (UNLIKELY(kernels)) {
      conn_set_flag(c, CONN_NO_ATTACH);
    }
    conn_accepted(c, fd, listener_now(l, listening), from);
    if (UNLIKELY(kernels)) {
      conn_stays_plain(c, BERTHA_WHY_KERNEL_ASKED);
    }
    if (l->listener == 0 && l->info.reason != 0 && c->info.reason == BERTHA_WHY_NO_AGENT) {
      c->info.reason = l->info.reason; /* what the agent said of the listener */
    }
    if (UNLIKELY(bertha.must_serve) && !(conn_flags(l) & CONN_OWN) && l->listener == 0 &&
        ((l->info.reason != BERTHA_WHY_POLICY && l->info.reason != BERTHA_WHY_SHM_PROHIBITED) ||
         agent_dags(BERTHA_HELLO_NO_POLICY))) {
      bool unread = l->info.reason == BERTHA_WHY_POLICY_UNREAD || agent_dags(BERTHA_HELLO_NO_POLICY);
      carried_refuse(c, fd, unread ? BERTHA_WHY_POLICY_UNREAD : BERTHA_WHY_NO_AGENT);
    }
    conn_set_flag(c, conn_flags(l) & CONN_INHERITED); /* the kernel's new socket is a copy of the listener */
    c->tx_bound = l->tx_bound;
    c->rcv_timeout_ns = l->rcv_timeout_ns;
    c->snd_timeout_ns = l->snd_timeout_ns;
    c->rcv_lowat = l->rcv_lowat > 1 ? l->rcv_lowat : 1;
  }
  errno = saved;
  return fd;
}

static int accept_with(int listening, struct sockaddr *address, socklen_t *size, int flags, bool plain_call) {
  struct sockaddr_storage from;
  socklen_t from_size = sizeof from;
  if (!bertha.enabled || (address != NULL && size == NULL)) {
    return descriptor_fresh(plain_call ? REAL(accept)(listening, address, size)
                                       : REAL(accept4)(listening, address, size, flags));
  }
  int fd = plain_call ? REAL(accept)(listening, (struct sockaddr *)&from, &from_size)
                      : REAL(accept4)(listening, (struct sockaddr *)&from, &from_size, flags);
  if (descriptor_fresh(fd) < 0) {
    return fd;
  }
  if (address != NULL) {
    memcpy(address, &from, *size < from_size ? *size : from_size);
    *size = from_size;
  }
  bool tcp = from_size >= sizeof(struct sockaddr_in) &&
             (from.ss_family == AF_INET || from.ss_family == AF_INET6) && !bertha_in_forked_stranger();
  if (UNLIKELY(bertha.must_serve) && (from.ss_family == AF_INET || from.ss_family == AF_INET6) && !tcp) {
    return refused(fd);
  }
  return tcp ? accepted(listening, fd, (struct sockaddr *)&from, flags) : fd;
}

BERTHA_EXPORT int accept(int fd, struct sockaddr *address, socklen_t *size) {
  return accept_with(fd, address, size, 0, true);
}

BERTHA_EXPORT int accept4(int fd, struct sockaddr *address, socklen_t *size, int flags) {
  return accept_with(fd, address, size, flags, false);
}

static bool to_tcp(int fd, const struct sockaddr *address) {
  return address != NULL && (address->sa_family == AF_INET || address->sa_family == AF_INET6) &&
         !bertha_is_hidden(fd) && socket_is_tcp(fd);
}

/* The TCP socket that connect() means, if it is one: only before its first connect(); a second one merely asks how the
 * first is doing, unless that has failed: then it is a connection of its own, with a plan of its own. */
static struct conn *to_connect(int fd, const struct sockaddr *address, socklen_t size) {
  if (!bertha.enabled || address == NULL || size < sizeof(struct sockaddr_in) ||
      (address->sa_family != AF_INET && address->sa_family != AF_INET6) ||
      (address->sa_family == AF_INET6 && size < sizeof(struct sockaddr_in6))) {
    return NULL;
  }
  int saved = errno;
  struct conn *c = conn_of(fd);
  if (c == NULL) {
    c = adopt_unknown(fd);
  }
  if (UNLIKELY(c != NULL && conn_came_to_nothing(c, fd))) {
    conn_dissolved(c, fd);
    c = conn_of(fd);
  }
  errno = saved;
  return c != NULL && conn_kind(c) == BERTHA_CONN_SOCKET ? c : NULL;
}

BERTHA_EXPORT int connect(int fd, const struct sockaddr *address, socklen_t size) {
  if (UNLIKELY(dgram_of(fd) != NULL || dgram_may_begin(fd, address))) {
    int refused = dgram_connecting(fd, address, size);
    if (refused != 0) {
      return (int)errno_result(-refused);
    }
    if (dgram_of(fd) != NULL) {
      return dgram_connected(fd, address, size);
    }
  }
  struct conn *c = to_connect(fd, address, size);
  enum carried_verdict verdict = CARRIED_NOT;
  if (c != NULL) {
    int saved = errno;
    verdict = carried_plan(c, fd, address);
    errno = saved;
  }
  if (UNLIKELY(verdict == CARRIED_REFUSED)) {
    errno = ECONNREFUSED;
    return -1;
  }
  struct conn *before = c == NULL ? conn_of(fd) : NULL;
  if (UNLIKELY(bertha.must_connect && c == NULL && (before == NULL || conn_came_to_nothing(before, fd)) &&
               to_tcp(fd, address))) {
    errno = ECONNREFUSED; /* a connection that we cannot follow, and that may not be plain */
    return -1;
  }
  int tcp = UNLIKELY(before != NULL && unix_stands(before)) ? unix_tcp_fd(before, fd) : fd;
  int result = REAL(connect)(tcp, address, size); /* of an earlier one: it asks how it is doing, or ends it */
  if (UNLIKELY(result == 0 && before != NULL && address != NULL && address->sa_family == AF_UNSPEC)) {
    conn_dissolved(before, fd);
    return result;
  }
  if (c == NULL || (result != 0 && errno != EINPROGRESS && errno != EINTR)) {
    return result;
  }
  int saved = errno;
  if (verdict == CARRIED_PLAN) {
    carried_connecting(c, fd);
  } else {
    conn_connecting(c, fd, address, result != 0);
  }
  errno = saved;
  return result;
}

static int shutdown_datagrams(struct conn *c, int fd, int how) {
  int result = REAL(shutdown)(unix_tcp_fd(c, fd), how);
  if (result == 0) {
    conn_set_flag(c, how == SHUT_RD   ? CONN_RD_SHUT
                     : how == SHUT_WR ? CONN_WR_SHUT
                                      : CONN_RD_SHUT | CONN_WR_SHUT);
    if (how != SHUT_WR) {
      REAL(shutdown)(fd, SHUT_RD); /* wakes up who waits */
    }
  }
  return result;
}

/* By this call, or by this and an earlier one. */
static bool shut_both_ways(const struct conn *c, int how) {
  return how == SHUT_RDWR || (conn_flags(c) & (how == SHUT_WR ? CONN_RD_SHUT : CONN_WR_SHUT)) != 0;
}

BERTHA_EXPORT int shutdown(int fd, int how) {
  struct conn *c = stream_of(fd);
  struct conn *d = c == NULL ? dgram_of(fd) : NULL;
  if (UNLIKELY(d != NULL)) {
    return shutdown_datagrams(d, fd, how);
  }
  bool ring = c != NULL && conn_ripe(c, fd);
  if (ring && (how == SHUT_WR || how == SHUT_RDWR)) {
    bool all_there = LIKELY(!(conn_flags(c) & CONN_RELAYED)) || relay_await(c, fd);
    bool locked = bertha_lock(&c->tx_lock); /* what other threads are putting in comes before the end */
    if (LIKELY(all_there)) {
      atomic_store_explicit(&conn_tx(c)->closed, 1, memory_order_release);
    }
    if (locked) { /* else it is the call's whose signal handler we are in */
      bertha_unlock(&c->tx_lock);
    }
  }
  /* Before it is done: who waits wakes up with the end, which is then one of our own making. */
  uint32_t reads = how != SHUT_WR && c != NULL && !(conn_flags(c) & CONN_RD_SHUT) ? CONN_RD_SHUT : 0;
  if (reads != 0) {
    conn_set_flag(c, reads);
  }
  if (c != NULL) {
    atomic_thread_fence(memory_order_seq_cst);
    borrow_end(c);
  }
  struct conn *by_unix = how == SHUT_RD ? conn_of(fd) : NULL;
  if (UNLIKELY(by_unix != NULL) && conn_kind(by_unix) == BERTHA_CONN_UNIX) {
    unix_hears_no_more(by_unix);
  }
  int result = REAL(shutdown)(fd, how);
  if (result != 0 && reads != 0) {
    conn_clear_flag(c, reads);
  }
  if (result == 0 && c != NULL &&
      how != SHUT_RD) { /* it may come to the ring, or to its unix socket, at any moment */
    conn_set_flag(c, CONN_WR_SHUT);
  }
  if (result == 0 && c != NULL && conn_kind(c) == BERTHA_CONN_UNIX) {
    unix_shutdown(c, fd, how); /* the socket that takes this one's place ends as well */
  }
  if (result == 0 && c != NULL && conn_kind(c) == BERTHA_CONN_SHM) {
    eset_shut(c, fd);
  }
  if (result == 0 && c != NULL && shut_both_ways(c, how)) {
    /* The kernel resets a connection that still sends to us, so it has to see what comes. */
    if (conn_decide(c, fd, BERTHA_WHY_KERNEL_ASKED) == BERTHA_CONN_SHM) {
      atomic_store(&conn_rx(c)->want_kernel, BERTHA_WANT_KERNEL);
    }
  }
  return result;
}
