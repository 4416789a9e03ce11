/* What a program sends and receives on a carried UDP socket: behind a header that names the other end. */
#include <limits.h>
#include <netinet/in.h>
#include <string.h>

#include "../carrier/carrier.h"
#include "dgram.h"
#include "local.h"
#include "unixpair.h"

#ifndef IOV_MAX
#define IOV_MAX 1024
#endif
enum { SEGMENTS_MAX = 128 }; /* of one call, as in Linux */

static const uint8_t v4_prefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

static int family_of(const struct conn *c) {
  return (int)(c->info.family & ~BERTHA_FAMILY_DATAGRAMS);
}

/* As the kernel writes a datagram's origin: cut where there is no room, with its whole length told. */
void dgram_put_name(const struct conn *c, const struct bertha_dgram *head, struct msghdr *msg) {
  struct sockaddr_storage name = {0};
  socklen_t size;
  if (family_of(c) == AF_INET) {
    struct sockaddr_in *in = (void *)&name;
    in->sin_family = AF_INET;
    in->sin_port = htons(head->port);
    memcpy(&in->sin_addr, head->addr + 12, 4);
    size = sizeof *in;
  } else {
    struct sockaddr_in6 *in6 = (void *)&name;
    in6->sin6_family = AF_INET6;
    in6->sin6_port = htons(head->port);
    in6->sin6_scope_id = head->scope;
    memcpy(&in6->sin6_addr, head->addr, 16);
    size = sizeof *in6;
  }
  if (msg->msg_name != NULL) {
    memcpy(msg->msg_name, &name, msg->msg_namelen < size ? msg->msg_namelen : size);
    msg->msg_namelen = size;
  }
}

static bool take(int fd) { /* what is next, and not for the program */
  char byte;
  return QUIET(recv)(fd, &byte, 1, MSG_DONTWAIT) > 0;
}

ssize_t dgram_recv(struct conn *c, int fd, struct msghdr *msg, int flags) {
  if (UNLIKELY(atomic_load_explicit(&c->error, memory_order_relaxed) !=
               0)) {                /* came behind what was told of */
    int error = conn_take_error(c); /* 0: another thread has it */
    if (error != 0) {
      return -error;
    }
  }
  if (conn_flags(c) & CONN_LOCAL) {
    return local_recv(c, fd, msg, flags);
  }
  if (msg->msg_iovlen > IOV_MAX) {
    return -EMSGSIZE;
  }
  int count = (int)msg->msg_iovlen;
  struct iovec parts[count + 1];
  struct bertha_dgram head;
  parts[0] = (struct iovec){&head, sizeof head};
  memcpy(parts + 1, msg->msg_iov, (size_t)count * sizeof *parts);
  size_t room = iov_bytes(msg->msg_iov, count);
  for (;;) {
    struct msghdr inner = {.msg_iov = parts, .msg_iovlen = (size_t)count + 1};
    ssize_t n = REAL(recvmsg)(fd, &inner, (flags & (MSG_DONTWAIT | MSG_PEEK)) | MSG_TRUNC);
    if (n < 0 && errno != ECONNRESET) {
      return -errno;
    }
    if (n <= 0) {
      if (conn_flags(c) & CONN_RD_SHUT) {
        return (flags & MSG_DONTWAIT) || (conn_flags(c) & CONN_NONBLOCK) ? -EAGAIN : 0;
      }
      dgram_revive(c, fd); /* in vain: it waits, as a socket does to which nobody sends */
      continue;
    }
    bool whole = (size_t)n >= sizeof head && head.magic == BERTHA_DGRAM_MAGIC;
    if (whole && head.kind == BERTHA_DGRAM_DATA) {
      size_t size = (size_t)n - sizeof head;
      if (!(flags & MSG_PEEK)) {
        count_bytes(&c->info.rx_bytes, size);
      }
      dgram_put_name(c, &head, msg);
      msg->msg_controllen = 0;
      msg->msg_flags = size > room ? MSG_TRUNC : 0;
      return (ssize_t)(size > room && !(flags & MSG_TRUNC) ? room : size);
    }
    if (flags & MSG_PEEK) {
      take(fd);
    }
    if (whole && head.kind == BERTHA_DGRAM_ERROR && head.value > 0 && head.value < 4096) {
      return -(ssize_t)head.value;
    }
    if (whole && head.kind == BERTHA_DGRAM_REFUSED) {
      dgram_reroute(head.addr, head.port);
    } else if (whole && head.kind == BERTHA_DGRAM_NO_AGENT) {
      dgram_register_again(c, fd);
    } else if (whole && head.kind == BERTHA_DGRAM_BESIDE) {
      dgram_beside(c, fd);
    }
  }
}

static int destination(const struct conn *c, const struct msghdr *msg, struct bertha_dgram *head) {
  const struct sockaddr *to = msg->msg_name;
  if (to == NULL || msg->msg_namelen == 0) {
    if (c->info.peer_port == 0) {
      return EDESTADDRREQ;
    }
    memcpy(head->addr, c->info.peer_addr, 16);
    head->port = c->info.peer_port;
    head->scope = c->scope;
    return 0;
  }
  if (msg->msg_namelen < sizeof(struct sockaddr_in) ||
      (to->sa_family == AF_INET6 && msg->msg_namelen < sizeof(struct sockaddr_in6))) {
    return EINVAL;
  }
  if (!address_of(to, head->addr, &head->port) ||
      (family_of(c) == AF_INET && memcmp(head->addr, v4_prefix, 12) != 0)) {
    return EAFNOSUPPORT;
  }
  head->scope =
      to->sa_family == AF_INET6 ? ((const struct sockaddr_in6 *)(const void *)to)->sin6_scope_id : 0;
  return head->port == 0 ? EINVAL : 0;
}

/* As the kernel reads it (udp(7)): bytes of each of the datagrams that one call sends; 0: it is one.  Below 0: -errno. */
static int segment_of(const struct conn *c, const struct msghdr *msg, size_t size) {
  struct msghdr *m = (struct msghdr *)(uintptr_t)msg;
  uint16_t segment = c->segment;
  for (struct cmsghdr *h = CMSG_FIRSTHDR(m); h != NULL; h = CMSG_NXTHDR(m, h)) {
    if (h->cmsg_level == IPPROTO_UDP) {
      if (h->cmsg_type != UDP_SEGMENT || h->cmsg_len != CMSG_LEN(sizeof segment)) {
        return -EINVAL;
      }
      memcpy(&segment, CMSG_DATA(h), sizeof segment);
    }
  }
  return size <= segment ? 0 : size > (size_t)segment * SEGMENTS_MAX && segment > 0 ? -EINVAL : segment;
}

static bool carrier_gone(int error) {
  return error == EPIPE || error == ECONNRESET || error == ECONNREFUSED || error == ENOTCONN;
}

ssize_t dgram_send(struct conn *c, int fd, const struct msghdr *msg, int flags) {
  if (conn_flags(c) & CONN_LOCAL) {
    return local_send(c, fd, msg, flags);
  }
  if (msg->msg_iovlen > IOV_MAX) {
    return -EMSGSIZE;
  }
  int count = (int)msg->msg_iovlen;
  size_t size = iov_bytes(msg->msg_iov, count);
  struct bertha_dgram head = {.magic = BERTHA_DGRAM_MAGIC, .kind = BERTHA_DGRAM_DATA};
  int problem = destination(c, msg, &head);
  if (problem == 0 && size > BERTHA_DGRAM_MAX) {
    problem = EMSGSIZE;
  }
  if (problem == 0 && (conn_flags(c) & CONN_WR_SHUT)) {
    problem = EPIPE;
  }
  int segment = problem == 0 ? segment_of(c, msg, size) : 0;
  if (problem != 0 || segment < 0) {
    return problem != 0 ? -problem : segment;
  }
  head.value = (uint64_t)segment; /* the carrier cuts it: all of them are sent, or none */
  struct iovec parts[count + 1];
  parts[0] = (struct iovec){&head, sizeof head};
  memcpy(parts + 1, msg->msg_iov, (size_t)count * sizeof *parts);
  for (int tries = 0;; tries++) {
    int why = dgram_route(c, fd, head.addr, head.port, head.scope);
    ssize_t n = -1;
    if (why == 0) {
      struct msghdr inner = {.msg_iov = parts, .msg_iovlen = (size_t)count + 1};
      n = REAL(sendmsg)(fd, &inner, (flags & MSG_DONTWAIT) | MSG_NOSIGNAL);
      why = n < 0 ? errno : 0;
    } else if (why == ECONNREFUSED) {
      return -why;
    }
    if (n >= 0) {
      count_bytes(&c->info.tx_bytes, size);
      return (ssize_t)size;
    }
    if (!carrier_gone(why)) {
      return -why;
    }
    if (tries > 0 || !dgram_revive(c, fd)) {
      return -ENETDOWN;
    }
  }
}

int dgram_unread(struct conn *c, int fd) {
  struct bertha_dgram head;
  if (conn_flags(c) & CONN_LOCAL) {
    return local_unread(c, fd);
  }
  for (;;) {
    ssize_t n = QUIET(recv)(fd, &head, sizeof head, MSG_PEEK | MSG_TRUNC | MSG_DONTWAIT);
    if (n < (ssize_t)sizeof head) {
      return 0;
    }
    if (head.magic == BERTHA_DGRAM_MAGIC && head.kind == BERTHA_DGRAM_DATA) {
      return (int)(n - (ssize_t)sizeof head);
    }
    if (head.kind == BERTHA_DGRAM_REFUSED) {
      dgram_reroute(head.addr, head.port);
    } else if (head.kind == BERTHA_DGRAM_BESIDE) {
      dgram_beside(c, fd);
    } else if (head.kind == BERTHA_DGRAM_ERROR || head.kind == BERTHA_DGRAM_NO_AGENT) {
      return 0; /* a call that receives is to see it */
    }
    take(fd);
  }
}
