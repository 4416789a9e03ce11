/* What a carrier that is killed leaves behind: a reset, and no end.
 *
 * The kernel ends a killed process's connections in order.  What the program had sent may still have been in the carrier, or in
 * the ring to it, and then the other end would take a part for the whole.  A socket that is closed with SO_LINGER and no time
 * resets (socket(7)), whoever closes it last: the carrier's, or the program's duplicate of it.  So the socket has that from
 * before a carrier gets it, until the carrier has sent the end of the stream.  SO_LINGER with a time the socket must not have
 * either: it would make the carrier, which has other connections, wait in close().
 *
 * The program's own setting is kept in the record. */
#include "guard.h"

#include <errno.h>
#include <string.h>

#include "carried.h"
#include "real.h"
#include "unixpair.h"

bool guard_stands(const struct conn *c) {
  return (conn_flags(c) & (CONN_CARRIED | CONN_DGRAM)) == CONN_CARRIED && unix_swapped(c);
}

void guard_set(struct conn *c, int tcp) {
  static const struct linger resets = {.l_onoff = 1};
  socklen_t size = sizeof c->linger;
  if (REAL(getsockopt)(tcp, SOL_SOCKET, SO_LINGER, &c->linger, &size) == 0) {
    REAL(setsockopt)(tcp, SOL_SOCKET, SO_LINGER, &resets, sizeof resets);
  }
}

void guard_lift(const struct conn *c, int tcp) {
  REAL(setsockopt)(tcp, SOL_SOCKET, SO_LINGER, &c->linger, sizeof c->linger);
}

int guard_set_linger(struct conn *c, const void *value, socklen_t size) {
  if (size < (socklen_t)sizeof(struct linger)) {
    return -EINVAL;
  }
  if (value == NULL) {
    return -EFAULT;
  }
  memcpy(&c->linger, value, sizeof c->linger);
  c->linger.l_onoff = c->linger.l_onoff != 0;
  return 0;
}

int guard_get_linger(const struct conn *c, void *value, socklen_t *size) {
  if (value == NULL || size == NULL) {
    return -EFAULT;
  }
  *size = *size < sizeof(struct linger) ? *size : (socklen_t)sizeof(struct linger);
  memcpy(value, &c->linger, *size);
  return 0;
}

/* A ring says to its carrier that it is closed with a reset; a unix socket cannot. */
void guard_last_close(const struct conn *c, int fd) {
  if (guard_stands(c) && conn_kind(c) == BERTHA_CONN_UNIX && c->linger.l_onoff && c->linger.l_linger == 0) {
    carried_reset(unix_tcp_fd(c, fd));
  }
}
