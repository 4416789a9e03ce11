/* TCP_INQ: recvmsg() tells in a control message how many bytes are left (tcp_inq_hint() in Linux' net/ipv4/tcp.c; no manual page
 * has it).  gRPC sets it on each of its connections, and waits for an edge where nothing is left. */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>

#include "calls.h"

#ifndef TCP_CM_INQ
#define TCP_CM_INQ TCP_INQ
#endif

/* What comes is in a ring: what the kernel's connection has is no data. */
static bool in_ring(const struct conn *c) {
  return conn_kind(c) == BERTHA_CONN_SHM && c->rx_phase == PHASE_RING &&
         atomic_load_explicit(&conn_rx(c)->ring_end, memory_order_acquire) == UINT64_MAX;
}

static bool kernel_ended(int fd) {
  struct pollfd p = {.fd = fd, .events = POLLRDHUP};
  return QUIET(poll)(&p, 1, 0) == 1;
}

/* As put_cmsg() does it where there is too little room. */
static void put(struct msghdr *msg, int value) {
  struct cmsghdr head = {.cmsg_len = CMSG_LEN(sizeof value), .cmsg_level = SOL_TCP, .cmsg_type = TCP_CM_INQ};
  size_t room = msg->msg_control != NULL ? msg->msg_controllen : 0;
  msg->msg_controllen = 0;
  if (room < sizeof head) {
    msg->msg_flags |= MSG_CTRUNC;
    return;
  }
  if (room < head.cmsg_len) {
    msg->msg_flags |= MSG_CTRUNC;
    head.cmsg_len = room;
  }
  memcpy(msg->msg_control, &head, sizeof head);
  memcpy((uint8_t *)msg->msg_control + CMSG_LEN(0), &value, head.cmsg_len - CMSG_LEN(0));
  msg->msg_controllen = room < CMSG_SPACE(sizeof value) ? room : CMSG_SPACE(sizeof value);
}

/* The end has a number in the stream, too, and so is something to read: who waits for an edge may have had that of the end
 * together with that of the last bytes. */
void inq_tell(struct conn *c, int fd, struct msghdr *msg, ssize_t n) {
  bool ended = n == 0 || (conn_flags(c) & CONN_FIN);
  int left = 0;
  if (LIKELY(in_ring(c))) {
    left = (int)conn_readable_bytes(c);
  } else {
    int saved = errno;
    left = ioctl(fd, FIONREAD, &left) == 0 ? left : 0;
    ended = ended || kernel_ended(fd);
    errno = saved;
  }
  put(msg, left + (ended ? 1 : 0));
}

void inq_by_unix(int fd, struct msghdr *msg, size_t room, ssize_t n) {
  struct conn *c = conn_of(fd);
  if (c != NULL && conn_kind(c) == BERTHA_CONN_UNIX && (conn_flags(c) & CONN_INQ)) {
    msg->msg_controllen = room;
    inq_tell(c, fd, msg, n);
  }
}
