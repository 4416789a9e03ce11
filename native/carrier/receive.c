/* A message with descriptors, from a unix socket that keeps messages apart. */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "session.h"

ssize_t carrier_receive(int from, void *to, size_t room, int fds[CARRIER_FDS_MAX], int *count, bool *cut) {
  union {
    struct cmsghdr align;
    char space[CMSG_SPACE(sizeof(int) * CARRIER_FDS_MAX)];
  } ancillary;
  struct iovec part = {to, room};
  struct msghdr msg = {.msg_iov = &part,
                       .msg_iovlen = 1,
                       .msg_control = ancillary.space,
                       .msg_controllen = sizeof ancillary.space};
  *count = 0;
  ssize_t n;
  do { /* ECONNRESET: the other end closed with something unread.  Told once, and before what it had said. */
    n = recvmsg(from, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  } while (n < 0 && (errno == EINTR || errno == ECONNRESET));
  *cut = n >= 0 && (msg.msg_flags & MSG_CTRUNC) != 0;
  if (n < 0) {
    return errno == EAGAIN ? -1 : 0;
  }
  bool whole = (msg.msg_flags & MSG_TRUNC) == 0;
  for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c != NULL; c = CMSG_NXTHDR(&msg, c)) {
    if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
      size_t got = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (size_t i = 0; i < got; i++) {
        int fd;
        memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
        if (*count < CARRIER_FDS_MAX) {
          fds[(*count)++] = fd;
        } else {
          close(fd);
        }
      }
    }
  }
  return whole ? n : 0;
}
