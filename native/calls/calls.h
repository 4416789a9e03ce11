/* Shared by the interposed calls. */
#ifndef BERTHA_CALLS_H
#define BERTHA_CALLS_H

#include "../core/brief.h"
#include "../core/conn.h"
#include "../core/connlog.h"
#include "../core/dgram.h"
#include "../core/eset.h"
#include "../core/relay.h"
#include "../core/shim.h"
#include "../core/unixpair.h"

/* A connection that may be, or become, something else than the kernel's: else NULL. */
static inline struct conn *stream_of(int fd) {
  struct conn *c = conn_of(fd);
  if (LIKELY(c == NULL)) {
    return NULL;
  }
  uint32_t kind = conn_kind(c);
  return kind == BERTHA_CONN_SHM || kind == BERTHA_CONN_CLAIMED || kind == BERTHA_CONN_MAYBE ||
                 (kind == BERTHA_CONN_UNIX && (!unix_swapped(c) || unix_unheard(c)))
             ? c
             : NULL;
}

/* descriptor.c */
static inline bool tracked(int fd) {
  return bertha.fds != NULL && (unsigned)fd < BERTHA_FDS &&
         (atomic_load_explicit(&bertha.fds[fd].conn, memory_order_relaxed) != 0 ||
          atomic_load_explicit(&bertha.fds[fd].set, memory_order_relaxed) != 0);
}
struct conn *descriptor_forget(int fd); /* before the kernel's close; conn_after_close() what it returns */
void descriptor_stale(int fd);
/* For a number that the kernel has just given out: nothing may be known of it yet. */
static inline int descriptor_fresh(int fd) {
  if (UNLIKELY(tracked(fd))) {
    descriptor_stale(fd);
  }
  return fd;
}

/* rights.c: around the sending of a message with control data, which may have to carry other descriptors. */
enum { RIGHTS_RELAYS = 8, RIGHTS_ROOM = 2048 };
struct rights {
  unsigned relay_count;
  struct relay relays[RIGHTS_RELAYS];
  struct conn *relayed[RIGHTS_RELAYS];
  struct msghdr msg;
  union {
    struct cmsghdr align;
    char space[RIGHTS_ROOM];
  } control;
};
const struct msghdr *rights_begin(struct rights *r, const struct msghdr *msg);
void rights_end(struct rights *r, bool sent);
void rights_received(struct msghdr *msg); /* descriptors have come */

/* The result of a call in the form that programs know. */
static inline ssize_t errno_result(ssize_t n) {
  if (UNLIKELY(n < 0)) {
    errno = (int)-n;
    return -1;
  }
  return n;
}

/* On a carried UDP socket, one datagram. */
static inline ssize_t dgram_one(struct conn *c, int fd, const struct iovec *iov, size_t count, int flags,
                                bool sends) {
  struct msghdr msg = {.msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = count};
  return errno_result(sends ? dgram_send(c, fd, &msg, flags) : dgram_recv(c, fd, &msg, flags));
}

/* inq.c: of a connection that has TCP_INQ, what recvmsg() says of what is left; `n` is what it returns. */
void inq_tell(struct conn *c, int fd, struct msghdr *msg, ssize_t n);
/* The same, if a unix socket stands there, whose message has nothing in its `room`. */
void inq_by_unix(int fd, struct msghdr *msg, size_t room, ssize_t n);

bool socket_is_tcp(int fd); /* or MPTCP, which we do not follow */

/* Counts what the kernel carried for a plain connection. */
static inline void plain_count(int fd, ssize_t n, bool sent) {
  struct conn *c;
  if (sent && UNLIKELY(atomic_load_explicit(&local_count, memory_order_relaxed) != 0) &&
      (unsigned)fd < BERTHA_FDS && dgram_states[fd] != DGRAM_NOT) {
    atomic_fetch_add_explicit(&local_stir, 1, memory_order_relaxed);
  }
  if (n > 0 && (c = conn_of(fd)) != NULL) {
    count_bytes(sent ? &c->info.tx_bytes : &c->info.rx_bytes, (uint64_t)n);
    if (sent) {
      brief_sent(c);
    }
  }
}

#endif
