/* A connection that is passed on to another process over a unix socket (SCM_RIGHTS).
 *
 * Its receiver gets the kernel's connection and nothing of ours, so the connection goes back to the kernel: at once
 * where shared memory has not been used yet, and from here on for what we send.  What the peer sends comes back to
 * the kernel with its next send; what lies unread in the ring at that moment, the receiver does not get
 * (docs/users/limits.md).  The descriptors that come to us this way are the kernel's, too. */
#include <netinet/in.h>
#include <string.h>

#include "calls.h"

static void leaves(int fd) {
  struct conn *c = conn_of(fd);
  if (c == NULL) {
    return;
  }
  uint32_t kind = conn_kind(c);
  if (c->listener != NULL && kind != BERTHA_CONN_LISTENER) {
    atomic_store(&c->listener->passes_on, true);
  }
  if (kind == BERTHA_CONN_SOCKET) { /* to be connected by the other process, or by us: nobody can tell */
    conn_set_flag(c, CONN_NO_ATTACH);
    c->info.reason = BERTHA_WHY_PASSED_ON;
  } else if (kind == BERTHA_CONN_UNIX) {
    unix_settle(c, fd);
  } else if (kind == BERTHA_CONN_MAYBE && conn_stays_plain(c, BERTHA_WHY_PASSED_ON)) {
    return; /* without a last look for a claim: there may be one */
  } else if (conn_decide(c, fd, BERTHA_WHY_PASSED_ON) == BERTHA_CONN_SHM) {
    if (bertha_log_level > 0 && conn_readable_bytes(c) > 0) {
      bertha_debug("descriptor %d is passed on with bytes unread in its ring: the receiver will not get them",
                   fd);
    }
    conn_leave_ring(c, BERTHA_WHY_PASSED_ON);
  }
}

void rights_leaving(const struct msghdr *msg) {
  if (!bertha.table_ready || bertha_in_forked_stranger()) {
    return;
  }
  int saved = errno;
  for (struct cmsghdr *m = CMSG_FIRSTHDR(msg); m != NULL;
       m = CMSG_NXTHDR((struct msghdr *)(uintptr_t)msg, m)) {
    if (m->cmsg_level != SOL_SOCKET || m->cmsg_type != SCM_RIGHTS || m->cmsg_len < CMSG_LEN(0)) {
      continue;
    }
    size_t count = (m->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; i++) {
      int fd;
      memcpy(&fd, CMSG_DATA(m) + i * sizeof fd, sizeof fd);
      leaves(fd);
    }
  }
  errno = saved;
}
