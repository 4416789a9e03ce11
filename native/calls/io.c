/* read, write, recv, send and their families. */
#include <limits.h>
#include <string.h>

#include "calls.h"
#include "../core/local.h"

#ifndef IOV_MAX
#define IOV_MAX 1024
#endif

/* What the kernel's own call has read, which may have been of the unix socket in a TCP socket's place. */
static ssize_t plain_received(int fd, ssize_t got, size_t want) {
  struct conn *c;
  if (UNLIKELY(got == 0) && want > 0 && (c = conn_of(fd)) != NULL && unix_was_reset(c)) {
    return errno_result(-ECONNRESET);
  }
  plain_count(fd, got, false);
  return got;
}

static inline ssize_t one_recv(struct conn *c, int fd, void *buf, size_t n, int flags) {
  if (conn_kind(c) == BERTHA_CONN_UNIX && n > 0) {
    ssize_t got = unix_first_recv(c, fd, buf, n, flags);
    if (LIKELY(got != UNIX_ELSEWHERE)) {
      return got;
    }
  }
  struct iovec iov = {buf, n};
  return errno_result(stream_recv(c, fd, &iov, 1, flags));
}

static inline ssize_t one_send(struct conn *c, int fd, const void *buf, size_t n, int flags) {
  if (conn_kind(c) == BERTHA_CONN_UNIX) {
    ssize_t sent = unix_first_send(c, buf, n, flags);
    if (LIKELY(sent != UNIX_ELSEWHERE)) {
      return sent;
    }
  }
  struct iovec iov = {(void *)(uintptr_t)buf, n};
  return errno_result(stream_send(c, fd, &iov, 1, flags));
}

BERTHA_EXPORT ssize_t read(int fd, void *buf, size_t n) {
  struct conn *c = stream_of(fd);
  if (LIKELY(c == NULL) || n == 0) {
    struct conn *d = dgram_of(fd);
    if (UNLIKELY(d != NULL) && n > 0) { /* of no bytes, it takes nothing */
      return dgram_one(d, fd, &(struct iovec){buf, n}, 1, 0, false);
    }
    return plain_received(fd, REAL(read)(fd, buf, n), n);
  }
  return one_recv(c, fd, buf, n, 0);
}

BERTHA_EXPORT ssize_t write(int fd, const void *buf, size_t n) {
  struct conn *c = stream_of(fd);
  if (LIKELY(c == NULL)) {
    struct conn *d = dgram_of(fd);
    if (UNLIKELY(d != NULL)) {
      return dgram_one(d, fd, &(struct iovec){(void *)(uintptr_t)buf, n}, 1, 0, true);
    }
    ssize_t sent = REAL(write)(fd, buf, n);
    plain_count(fd, sent, true);
    return sent;
  }
  return n == 0 ? REAL(write)(fd, buf, 0) : one_send(c, fd, buf, n, 0);
}

static bool bad_vector(const struct iovec *iov, int count) {
  if (count < 0 || count > IOV_MAX) {
    return true;
  }
  size_t total = 0;
  for (int i = 0; i < count; i++) {
    if (iov[i].iov_len > SSIZE_MAX - total) {
      return true;
    }
    total += iov[i].iov_len;
  }
  return false;
}

BERTHA_EXPORT ssize_t readv(int fd, const struct iovec *iov, int count) {
  struct conn *c = stream_of(fd);
  if (LIKELY(c == NULL) || bad_vector(iov, count) || iov_bytes(iov, count) == 0) {
    struct conn *d = dgram_of(fd);
    if (UNLIKELY(d != NULL) && (bad_vector(iov, count) || iov_bytes(iov, count) > 0)) {
      return bad_vector(iov, count) ? REAL(readv)(fd, iov, -1)
                                    : dgram_one(d, fd, iov, (size_t)count, 0, false);
    }
    ssize_t got = REAL(readv)(fd, iov, count);
    return plain_received(fd, got, got == 0 ? iov_bytes(iov, count) : 0);
  }
  return errno_result(stream_recv(c, fd, iov, count, 0));
}

BERTHA_EXPORT ssize_t writev(int fd, const struct iovec *iov, int count) {
  struct conn *c = stream_of(fd);
  if (LIKELY(c == NULL) || bad_vector(iov, count)) {
    struct conn *d = dgram_of(fd);
    if (UNLIKELY(d != NULL)) {
      return bad_vector(iov, count) ? REAL(writev)(fd, iov, -1)
                                    : dgram_one(d, fd, iov, (size_t)count, 0, true);
    }
    ssize_t sent = REAL(writev)(fd, iov, count);
    plain_count(fd, sent, true);
    return sent;
  }
  return errno_result(iov_bytes(iov, count) == 0 ? 0 : stream_send(c, fd, iov, count, 0));
}

/* On a socket the position must be -1 (preadv2(2)); RWF_NOWAIT is MSG_DONTWAIT. */
#define KNOWN_FLAGS 0x1f /* RWF_HIPRI, _DSYNC, _SYNC, _NOWAIT, _APPEND */
#define NOWAIT_FLAG(flags) ((flags)&8 /* RWF_NOWAIT */ ? MSG_DONTWAIT : 0)

#define PREADV2(name, off_type)                                                                              \
  BERTHA_EXPORT ssize_t name(int fd, const struct iovec *iov, int count, off_type at, int flags) {           \
    struct conn *c = stream_of(fd);                                                                          \
    if (LIKELY(c == NULL) || at != -1 || bad_vector(iov, count) || iov_bytes(iov, count) == 0) {             \
      struct conn *d = dgram_of(fd);                                                                         \
      if (UNLIKELY(d != NULL) && at == -1 && !bad_vector(iov, count) && iov_bytes(iov, count) > 0) {         \
        return dgram_one(d, fd, iov, (size_t)count, NOWAIT_FLAG(flags), false);                              \
      }                                                                                                      \
      ssize_t got = REAL(name)(fd, iov, count, at, flags);                                                   \
      plain_count(fd, got, false);                                                                           \
      return got;                                                                                            \
    }                                                                                                        \
    return errno_result(flags & ~KNOWN_FLAGS ? -EOPNOTSUPP                                                   \
                                             : stream_recv(c, fd, iov, count, NOWAIT_FLAG(flags)));          \
  }
#define PWRITEV2(name, off_type)                                                                             \
  BERTHA_EXPORT ssize_t name(int fd, const struct iovec *iov, int count, off_type at, int flags) {           \
    struct conn *c = stream_of(fd);                                                                          \
    if (LIKELY(c == NULL) || at != -1 || bad_vector(iov, count)) {                                           \
      struct conn *d = dgram_of(fd);                                                                         \
      if (UNLIKELY(d != NULL) && at == -1 && !bad_vector(iov, count)) {                                      \
        return dgram_one(d, fd, iov, (size_t)count, NOWAIT_FLAG(flags), true);                               \
      }                                                                                                      \
      ssize_t sent = REAL(name)(fd, iov, count, at, flags);                                                  \
      plain_count(fd, sent, true);                                                                           \
      return sent;                                                                                           \
    }                                                                                                        \
    return errno_result(flags & ~KNOWN_FLAGS ? -EOPNOTSUPP                                                   \
                                             : stream_send(c, fd, iov, count, NOWAIT_FLAG(flags)));          \
  }
PREADV2(preadv2, off_t)
PREADV2(preadv64v2, off64_t)
PWRITEV2(pwritev2, off_t)
PWRITEV2(pwritev64v2, off64_t)

/* What only the kernel's half knows about: urgent data, its error queue. */
#define KERNELS_OWN (MSG_OOB | MSG_ERRQUEUE)

static bool rx_special(struct conn *c, int fd, int flags) {
  (void)c;
  (void)fd;
  return flags & KERNELS_OWN;
}

/* Urgent data has its place among the bytes: from here on the kernel carries this connection. */
static void tx_special(struct conn *c, int fd, int flags) {
  if (flags & MSG_OOB) {
    conn_stay_in_kernel(c, fd, BERTHA_WHY_KERNEL_ASKED);
  }
}

/* A unix socket in the connection's place is the kernel's, but for one thing: it does not wait for all that is to be
 * looked at. */
static struct conn *stream_read(int fd, int flags) {
  struct conn *c = stream_of(fd);
  if (LIKELY(c != NULL || !(flags & MSG_PEEK))) {
    return c;
  }
  c = conn_of(fd);
  return c != NULL && conn_kind(c) == BERTHA_CONN_UNIX && !(conn_flags(c) & CONN_DGRAM) &&
                 ((flags & MSG_WAITALL) || c->rcv_lowat > 1)
             ? c
             : NULL;
}

/* Where the kernel's own answers are, of a carried UDP socket too; a unix socket has no error queue, and gives its bytes. */
static int kernels_fd(const struct conn *d, int fd, int flags) {
  if (UNLIKELY(flags & MSG_ERRQUEUE) && d == NULL) {
    d = conn_of(fd);
    d = d != NULL && unix_stands(d) ? d : NULL;
  }
  return UNLIKELY(d != NULL) ? unix_tcp_fd(d, fd) : fd;
}

/* tcp(7): the bytes are thrown away, which a unix socket does otherwise. */
static bool discards(int fd, int flags) {
  const struct conn *c = UNLIKELY(flags & MSG_TRUNC) ? conn_of(fd) : NULL;
  return UNLIKELY(c != NULL) && unix_stands(c) && !(flags & KERNELS_OWN) && !(conn_flags(c) & CONN_DGRAM);
}

BERTHA_EXPORT ssize_t recv(int fd, void *buf, size_t n, int flags) {
  struct conn *c = stream_read(fd, flags);
  if (LIKELY(c == NULL) || rx_special(c, fd, flags)) {
    struct conn *d = dgram_of(fd);
    if (UNLIKELY(d != NULL) && !(flags & KERNELS_OWN)) {
      return dgram_one(d, fd, &(struct iovec){buf, n}, 1, flags, false);
    }
    ssize_t got = UNLIKELY(discards(fd, flags)) ? errno_result(unix_discard(fd, n, flags))
                                                : REAL(recv)(kernels_fd(d, fd, flags), buf, n, flags);
    return flags & (MSG_PEEK | KERNELS_OWN) ? got : plain_received(fd, got, n);
  }
  return one_recv(c, fd, buf, n, flags);
}

BERTHA_EXPORT ssize_t send(int fd, const void *buf, size_t n, int flags) {
  struct conn *c = stream_of(fd);
  if (LIKELY(c == NULL)) {
    struct conn *d = dgram_of(fd);
    if (UNLIKELY(d != NULL)) {
      return dgram_one(d, fd, &(struct iovec){(void *)(uintptr_t)buf, n}, 1, flags, true);
    }
    ssize_t sent = REAL(send)(fd, buf, n, flags);
    plain_count(fd, sent, true);
    return sent;
  }
  tx_special(c, fd, flags);
  return one_send(c, fd, buf, n, flags);
}

static ssize_t recvfrom_carried(struct conn *d, int fd, struct iovec iov, int flags, struct sockaddr *from,
                                socklen_t *size) {
  struct msghdr msg = {.msg_name = size != NULL ? from : NULL,
                       .msg_namelen = from != NULL && size != NULL ? *size : 0,
                       .msg_iov = &iov,
                       .msg_iovlen = 1};
  ssize_t got = dgram_recv(d, fd, &msg, flags);
  if (got >= 0 && from != NULL && size != NULL) {
    *size = msg.msg_namelen;
  }
  return errno_result(got);
}

BERTHA_EXPORT ssize_t recvfrom(int fd, void *buf, size_t n, int flags, struct sockaddr *from,
                               socklen_t *size) {
  struct conn *c = stream_read(fd, flags);
  if (LIKELY(c == NULL) || rx_special(c, fd, flags)) {
    struct conn *d = dgram_of(fd);
    if (UNLIKELY(d != NULL) && !(flags & KERNELS_OWN)) {
      return recvfrom_carried(d, fd, (struct iovec){buf, n}, flags, from, size);
    }
    bool thrown = UNLIKELY(discards(fd, flags));
    ssize_t got = thrown ? errno_result(unix_discard(fd, n, flags))
                         : REAL(recvfrom)(kernels_fd(d, fd, flags), buf, n, flags, from, size);
    if (thrown && got >= 0 && from != NULL && size != NULL) {
      *size = 0;
    }
    return flags & (MSG_PEEK | KERNELS_OWN) ? got : plain_received(fd, got, n);
  }
  struct iovec iov = {buf, n};
  ssize_t got = stream_recv(c, fd, &iov, 1, flags);
  if (got >= 0 && from != NULL && size != NULL) {
    *size = 0; /* a connected stream gives none (recvfrom(2)) */
  }
  return errno_result(got);
}

/* TCP Fast Open (tcp(7)): data with the request for a connection, which is plain then.  Where it may not be, it is as if
 * the kernel could not do that, and the program connects first. */
static bool fast_open_barred(int fd, int flags) {
  if (LIKELY(!(flags & MSG_FASTOPEN) || !bertha.must_connect)) {
    return false;
  }
  struct conn *c = conn_of(fd);
  if (c != NULL ? conn_kind(c) != BERTHA_CONN_SOCKET && !conn_came_to_nothing(c, fd) : !socket_is_tcp(fd)) {
    return false;
  }
  errno = EOPNOTSUPP;
  return true;
}

static void plain_sent(int fd, int flags, ssize_t sent) {
  struct conn *c = UNLIKELY(flags & MSG_FASTOPEN) && (sent >= 0 || errno == EINPROGRESS) ? conn_of(fd) : NULL;
  if (UNLIKELY(c != NULL) && conn_kind(c) == BERTHA_CONN_SOCKET) {
    conn_make_plain(c, BERTHA_WHY_FASTOPEN);
  }
  plain_count(fd, sent, true);
}

BERTHA_EXPORT ssize_t sendto(int fd, const void *buf, size_t n, int flags, const struct sockaddr *to,
                             socklen_t size) {
  struct conn *c = stream_of(fd);
  if (LIKELY(c == NULL) || (flags & MSG_FASTOPEN)) {
    int refused = dgram_may_begin(fd, to) ? dgram_first_send(fd, to, size) : 0;
    struct conn *d = dgram_of(fd);
    if (UNLIKELY(refused != 0)) {
      return errno_result(-refused);
    }
    if (UNLIKELY(d != NULL)) {
      struct iovec iov = {(void *)(uintptr_t)buf, n};
      struct msghdr msg = {
          .msg_name = (void *)(uintptr_t)to, .msg_namelen = size, .msg_iov = &iov, .msg_iovlen = 1};
      return errno_result(dgram_send(d, fd, &msg, flags));
    }
    if (UNLIKELY(fast_open_barred(fd, flags))) {
      return -1;
    }
    ssize_t sent = REAL(sendto)(fd, buf, n, flags, to, size);
    plain_sent(fd, flags, sent);
    return sent;
  }
  tx_special(c, fd, flags);
  struct iovec iov = {(void *)(uintptr_t)buf, n};
  return errno_result(stream_send(c, fd, &iov, 1, flags));
}

/* Of a stream there is nothing to say but its bytes. */
static ssize_t bytes_alone(struct msghdr *msg, ssize_t n) {
  if (n >= 0) {
    msg->msg_namelen = msg->msg_name != NULL ? 0 : msg->msg_namelen;
    msg->msg_controllen = 0;
    msg->msg_flags = 0;
  }
  return n;
}

static ssize_t recvmsg_stream(struct conn *c, int fd, struct msghdr *msg, int flags) {
  size_t space = msg->msg_controllen;
  ssize_t n = bytes_alone(msg, stream_recv(c, fd, msg->msg_iov, (int)msg->msg_iovlen, flags));
  if (UNLIKELY(conn_flags(c) & CONN_INQ) && n >= 0) {
    msg->msg_controllen = space;
    inq_tell(c, fd, msg, n);
  }
  return n;
}

/* What comes with the bytes (times) the kernel alone can say, and does when they are all its own again. */
static bool has_gone_back(struct conn *c, int fd, const struct msghdr *msg) {
  if (LIKELY(msg->msg_controllen == 0) || conn_kind(c) != BERTHA_CONN_SHM || c->home != NULL ||
      atomic_load_explicit(&conn_rx(c)->ring_end, memory_order_acquire) == UINT64_MAX) {
    return false;
  }
  char byte;
  struct iovec one = {&byte, 1};
  stream_recv(c, fd, &one, 1, MSG_PEEK | MSG_DONTWAIT); /* past the ring's end, and the bells behind it */
  return c->rx_phase == PHASE_AFTER && c->bells_seen >= atomic_load(&conn_rx(c)->bells);
}

BERTHA_EXPORT ssize_t recvmsg(int fd, struct msghdr *msg, int flags) {
  struct conn *c = stream_read(fd, flags);
  if (LIKELY(c == NULL) || rx_special(c, fd, flags) || bad_vector(msg->msg_iov, (int)msg->msg_iovlen)) {
    struct conn *d = dgram_of(fd);
    if (UNLIKELY(d != NULL) && !(flags & KERNELS_OWN)) {
      return errno_result(dgram_recv(d, fd, msg, flags));
    }
    size_t space = msg->msg_controllen;
    bool thrown = UNLIKELY(discards(fd, flags)) && !bad_vector(msg->msg_iov, (int)msg->msg_iovlen);
    size_t room = thrown ? iov_bytes(msg->msg_iov, (int)msg->msg_iovlen) : 0;
    ssize_t got = thrown ? errno_result(bytes_alone(msg, unix_discard(fd, room, flags)))
                         : REAL(recvmsg)(kernels_fd(d, fd, flags), msg, flags);
    if (UNLIKELY(got >= 0 && msg->msg_controllen > 0)) {
      rights_received(msg);
    } else if (UNLIKELY(got >= 0 && space > 0)) {
      inq_by_unix(fd, msg, space, got);
    }
    bool bytes = got == 0 && !(flags & (MSG_PEEK | KERNELS_OWN)) && msg->msg_iovlen > 0;
    return plain_received(fd, got, bytes ? iov_bytes(msg->msg_iov, (int)msg->msg_iovlen) : 0);
  }
  if (UNLIKELY(has_gone_back(c, fd, msg))) {
    ssize_t got = REAL(recvmsg)(fd, msg, flags);
    plain_count(fd, got, false);
    return got;
  }
  return errno_result(recvmsg_stream(c, fd, msg, flags));
}

static __attribute__((noinline)) ssize_t sendmsg_with_control(int fd, const struct msghdr *msg, int flags) {
  struct rights rights;
  ssize_t sent = REAL(sendmsg)(fd, rights_begin(&rights, msg), flags);
  rights_end(&rights, sent >= 0);
  return sent;
}

BERTHA_EXPORT ssize_t sendmsg(int fd, const struct msghdr *msg, int flags) {
  struct conn *c = stream_of(fd);
  if (LIKELY(c == NULL) || bad_vector(msg->msg_iov, (int)msg->msg_iovlen)) {
    if (msg != NULL && dgram_may_begin(fd, msg->msg_name)) {
      int refused = dgram_first_send(fd, msg->msg_name, msg->msg_namelen);
      if (UNLIKELY(refused != 0)) {
        return errno_result(-refused);
      }
    }
    struct conn *d = dgram_of(fd);
    if (UNLIKELY(d != NULL)) {
      return errno_result(dgram_send(d, fd, msg, flags));
    }
    if (UNLIKELY(fast_open_barred(fd, flags))) {
      return -1;
    }
    bool control = msg != NULL && msg->msg_controllen > 0;
    ssize_t sent = UNLIKELY(control) ? sendmsg_with_control(fd, msg, flags) : REAL(sendmsg)(fd, msg, flags);
    plain_sent(fd, flags, sent);
    return sent;
  }
  tx_special(c, fd, flags);
  return errno_result(stream_send(c, fd, msg->msg_iov, (int)msg->msg_iovlen, flags));
}

/* recvmmsg() alone reports an error before anything that is there to read. */
static int error_before_data(struct conn *c, int fd) {
  bool in_order = conn_kind(c) == BERTHA_CONN_SHM && atomic_load(&conn_rx(c)->closed) == 1 &&
                  c->tx_phase == PHASE_RING && atomic_load(&conn_tx(c)->head) == c->tx_tail;
  int error = 0;
  socklen_t size = sizeof error;
  if (in_order || getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0) {
    return 0; /* a reset then only answers a bell byte that came after the close */
  }
  return error;
}

static int throw_away_many(int fd, struct mmsghdr *messages, unsigned int count, int flags) {
  unsigned int done = 0;
  for (ssize_t n; done < count && (n = recvmsg(fd, &messages[done].msg_hdr, flags & ~MSG_WAITFORONE)) >= 0;) {
    messages[done++].msg_len = (unsigned int)n;
    flags |= flags & MSG_WAITFORONE ? MSG_DONTWAIT : 0;
  }
  return done > 0 || count == 0 ? (int)done : -1;
}

BERTHA_EXPORT int recvmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags,
                           struct timespec *timeout) {
  struct conn *c = stream_of(fd);
  struct conn *d = c == NULL && !(flags & KERNELS_OWN) ? dgram_of(fd) : NULL;
  if (LIKELY(d == NULL) && (LIKELY(c == NULL) || rx_special(c, fd, flags))) {
    if (UNLIKELY(discards(fd, flags))) {
      return throw_away_many(fd, messages, count, flags);
    }
    int got = REAL(recvmmsg)(kernels_fd(dgram_of(fd), fd, flags), messages, count, flags, timeout);
    for (int i = 0; i < got; i++) {
      if (!(flags & (MSG_PEEK | KERNELS_OWN))) {
        plain_count(fd, messages[i].msg_len, false);
      }
      if (UNLIKELY(messages[i].msg_hdr.msg_controllen > 0)) {
        rights_received(&messages[i].msg_hdr);
      }
    }
    return got;
  }
  if (timeout != NULL && (timeout->tv_sec < 0 || timeout->tv_nsec < 0 || timeout->tv_nsec >= 1000000000)) {
    return (int)errno_result(-EINVAL);
  }
  int error = c != NULL ? error_before_data(c, fd) : 0;
  if (UNLIKELY(error != 0)) {
    return (int)errno_result(-error);
  }
  int64_t end =
      timeout != NULL ? bertha_now_ns() + (int64_t)timeout->tv_sec * 1000000000 + timeout->tv_nsec : 0;
  unsigned int done = 0;
  while (done < count) {
    struct msghdr *m = &messages[done].msg_hdr;
    if (UNLIKELY(d != NULL && done > 0 && (conn_flags(d) & CONN_LOCAL)) && local_error_is_next(d, fd)) {
      break; /* it is the next call's; and poll has to tell of it */
    }
    ssize_t n = d != NULL ? dgram_recv(d, fd, m, flags & ~MSG_WAITFORONE)
                          : recvmsg_stream(c, fd, m, flags & ~MSG_WAITFORONE);
    if (n < 0 && done > 0) {
      conn_keep_error(c != NULL ? c : d, n);
      break;
    }
    if (n < 0) {
      return (int)errno_result(n);
    }
    messages[done++].msg_len = (unsigned int)n;
    if (flags & MSG_WAITFORONE) {
      flags |= MSG_DONTWAIT;
    }
    if (timeout != NULL && bertha_now_ns() >= end) {
      break;
    }
  }
  return (int)done;
}

BERTHA_EXPORT int sendmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags) {
  struct conn *c = stream_of(fd);
  if (LIKELY(c == NULL)) {
    bool control = (flags & MSG_FASTOPEN) != 0;
    for (unsigned int i = 0; messages != NULL && i < count; i++) {
      control |= messages[i].msg_hdr.msg_controllen > 0;
    }
    bool begins = count > 0 && messages != NULL && dgram_may_begin(fd, messages[0].msg_hdr.msg_name);
    if (LIKELY(!control && !begins && dgram_of(fd) == NULL)) {
      int done = REAL(sendmmsg)(fd, messages, count, flags);
      for (int i = 0; i < done; i++) {
        plain_count(fd, messages[i].msg_len, true);
      }
      return done;
    }
    unsigned int sent = 0;
    for (ssize_t n; sent < count && (n = sendmsg(fd, &messages[sent].msg_hdr, flags)) >= 0; sent++) {
      messages[sent].msg_len = (unsigned int)n;
    }
    return sent > 0 || count == 0 ? (int)sent : -1;
  }
  tx_special(c, fd, flags);
  unsigned int done = 0;
  while (done < count) {
    struct msghdr *m = &messages[done].msg_hdr;
    size_t want = iov_bytes(m->msg_iov, (int)m->msg_iovlen);
    ssize_t n = stream_send(c, fd, m->msg_iov, (int)m->msg_iovlen, flags);
    if (n < 0) {
      return done > 0 ? (int)done : (int)errno_result(n);
    }
    messages[done++].msg_len = (unsigned int)n;
    if ((size_t)n < want) {
      break;
    }
  }
  return (int)done;
}

/* ---- the fortified forms (gcc -D_FORTIFY_SOURCE) ------------------------------------------------ */

__attribute__((noreturn)) void __chk_fail(void);
BERTHA_EXPORT ssize_t __read_chk(int fd, void *buf, size_t n, size_t size);
BERTHA_EXPORT ssize_t __recv_chk(int fd, void *buf, size_t n, size_t size, int flags);
BERTHA_EXPORT ssize_t __recvfrom_chk(int fd, void *buf, size_t n, size_t size, int flags,
                                     struct sockaddr *from, socklen_t *from_size);

ssize_t __read_chk(int fd, void *buf, size_t n, size_t size) {
  if (n > size) {
    __chk_fail();
  }
  return read(fd, buf, n);
}

ssize_t __recv_chk(int fd, void *buf, size_t n, size_t size, int flags) {
  if (n > size) {
    __chk_fail();
  }
  return recv(fd, buf, n, flags);
}

ssize_t __recvfrom_chk(int fd, void *buf, size_t n, size_t size, int flags, struct sockaddr *from,
                       socklen_t *from_size) {
  if (n > size) {
    __chk_fail();
  }
  return recvfrom(fd, buf, n, flags, from, from_size);
}
