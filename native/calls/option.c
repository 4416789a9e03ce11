/* Socket options and ioctl: the kernel's socket keeps them; what concerns the ring we learn in passing. */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/time.h>

#include <linux/sockios.h>

#include "../core/abroad.h"
#include "../core/local.h"
#include "../core/guard.h"
#include "calls.h"

static int64_t timeout_ns(const void *value, socklen_t size) {
  struct timeval t;
  if (size < (socklen_t)sizeof t) {
    return 0;
  }
  memcpy(&t, value, sizeof t);
  if (t.tv_sec < 0) {
    return 1; /* the kernel does not wait at all then */
  }
  return (int64_t)t.tv_sec * 1000000000 + (int64_t)t.tv_usec * 1000;
}

static void flag_by(struct conn *c, uint32_t flag, bool on) {
  if (on) {
    conn_set_flag(c, flag);
  } else {
    conn_clear_flag(c, flag);
  }
}

/* A bell is one byte, and the kernel would not tell of it: on a ring the mark is ours to keep.  A connection that is not
 * there yet stays in the kernel. */
static void keep_low_water(struct conn *c, int fd) {
  int one = 1;
  uint32_t kind = conn_kind(c);
  if (kind == BERTHA_CONN_CLAIMED || kind == BERTHA_CONN_MAYBE) {
    kind = conn_decide(c, fd, BERTHA_WHY_KERNEL_ASKED);
  }
  if (kind == BERTHA_CONN_SHM) {
    REAL(setsockopt)(fd, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof one);
  } else if (kind == BERTHA_CONN_SOCKET || kind == BERTHA_CONN_LISTENER) {
    conn_set_flag(c, CONN_NO_ATTACH);
    c->info.reason = BERTHA_WHY_KERNEL_ASKED;
  }
}

/* Completions, times of arrival and a place to peek at come from the kernel alone. */
static bool kernels_option(int name, int number) {
  switch (name) {
  case SO_PEEK_OFF:
    return number >= 0;
  case SO_ZEROCOPY:
  case SO_TIMESTAMP:
  case SO_TIMESTAMPNS:
  case SO_TIMESTAMPING:
#ifdef SO_TIMESTAMP_NEW
  case SO_TIMESTAMP_NEW:
  case SO_TIMESTAMPNS_NEW:
  case SO_TIMESTAMPING_NEW:
#endif
    return number != 0;
  default:
    return false;
  }
}

static void note_option(struct conn *c, int fd, int level, int name, const void *value, socklen_t size) {
  int number = 0;
  if (value != NULL && size >= (socklen_t)sizeof number) {
    memcpy(&number, value, sizeof number);
  }
  if (level == SOL_SOCKET) {
    if (name == SO_RCVTIMEO) {
      c->rcv_timeout_ns = timeout_ns(value, size);
    } else if (name == SO_SNDTIMEO) {
      c->snd_timeout_ns = timeout_ns(value, size);
    } else if (name == SO_SNDBUF) {
      socklen_t length = sizeof number; /* what the kernel made of it (socket(7): twice the number) */
      if (REAL(getsockopt)(fd, SOL_SOCKET, SO_SNDBUF, &number, &length) == 0 && number > 0) {
        c->tx_bound = (uint32_t)number;
      }
    } else if (name == SO_RCVLOWAT) {
      c->rcv_lowat = number > 0 ? number : 1;
      if (number > 1) {
        keep_low_water(c, fd);
      }
    } else if (name == SO_LINGER && size >= (socklen_t)sizeof(struct linger)) {
      struct linger linger;
      memcpy(&linger, value, sizeof linger);
      flag_by(c, CONN_LINGER_0, linger.l_onoff && linger.l_linger == 0);
    } else if (kernels_option(name, number)) {
      conn_stay_in_kernel(c, fd, BERTHA_WHY_KERNEL_ASKED);
    }
  } else if (level == IPPROTO_TCP) {
    if (name == TCP_NODELAY) {
      conn_set_flag(c, CONN_NODELAY_KNOWN);
      flag_by(c, CONN_NODELAY_SET, number != 0);
      conn_clear_flag(c, CONN_NODELAY_FORCED);
    } else if (name == TCP_CORK) {
      flag_by(c, CONN_CORK_SET, number != 0);
    } else if (name == TCP_INQ) {
      flag_by(c, CONN_INQ, number != 0);
    } else if (name == TCP_REPAIR || name == TCP_ULP) {
      conn_stay_in_kernel(c, fd, BERTHA_WHY_KERNEL_ASKED);
    }
  }
}

/* Behind the descriptor there may be a unix socket by now: what it has of its own it is asked, all else is
 * the TCP socket's.  That one a carrier may be waiting for, so its low-water mark is none of the program's. */
static int option_fd(struct conn *c, int fd, int level, int name) {
  if (LIKELY(c == NULL) || !unix_stands(c) || !unix_swapped(c)) {
    return fd;
  }
  bool own = level == SOL_SOCKET && (name == SO_RCVTIMEO || name == SO_SNDTIMEO || name == SO_ERROR ||
                                     name == SO_RCVBUF || name == SO_SNDBUF || name == SO_RCVLOWAT);
  return own ? fd : unix_tcp_fd(c, fd);
}

/* Addresses are the TCP connection's (only a descriptor that has been exchanged needs to be told). */
BERTHA_EXPORT int getpeername(int fd, struct sockaddr *address, socklen_t *size) {
  struct conn *c = conn_of(fd);
  bool other = c != NULL && unix_stands(c);
  return REAL(getpeername)(other ? unix_tcp_fd(c, fd) : fd, address, size);
}

BERTHA_EXPORT int getsockname(int fd, struct sockaddr *address, socklen_t *size) {
  struct conn *c = conn_of(fd);
  bool other = c != NULL && unix_stands(c);
  return REAL(getsockname)(other ? unix_tcp_fd(c, fd) : fd, address, size);
}

/* Of a carried UDP socket: the carrier is told with each datagram, and sends its own by the same socket. */
static bool is_segment(const struct conn *c, int level, int name) {
  return level == IPPROTO_UDP && name == UDP_SEGMENT && (conn_flags(c) & CONN_DGRAM) &&
         !(conn_flags(c) & CONN_LOCAL);
}

static int set_segment(struct conn *c, const void *value, socklen_t size) {
  int number = -1;
  if (size < (socklen_t)sizeof number) {
    return -EINVAL;
  }
  if (value == NULL) {
    return -EFAULT;
  }
  memcpy(&number, value, sizeof number);
  if (number < 0 || number > UINT16_MAX) {
    return -EINVAL;
  }
  c->segment = (uint16_t)number;
  return 0;
}

BERTHA_EXPORT int setsockopt(int fd, int level, int name, const void *value, socklen_t size) {
  struct conn *c = conn_of(fd);
  if (UNLIKELY(c != NULL) && level == IPPROTO_TCP && name == TCP_CORK && conn_kind(c) == BERTHA_CONN_SHM &&
      size >= (socklen_t)sizeof(int)) {
    note_option(c, fd, level, name, value, size); /* a corked connection would hold bell bytes back */
    return 0;
  }
  if (UNLIKELY(c != NULL) && is_segment(c, level, name)) {
    return (int)errno_result(set_segment(c, value, size));
  }
  bool linger = UNLIKELY(c != NULL) && level == SOL_SOCKET && name == SO_LINGER && guard_stands(c);
  int result = UNLIKELY(linger) ? (int)errno_result(guard_set_linger(c, value, size))
                                : REAL(setsockopt)(option_fd(c, fd, level, name), level, name, value, size);
  if (result == 0 && c != NULL) {
    note_option(c, fd, level, name, value, size);
  }
  if (UNLIKELY(((unsigned)fd < BERTHA_FDS && dgram_states[fd] != DGRAM_NOT) ||
               (c != NULL && (conn_flags(c) & CONN_LOCAL)))) { /* a duplicate is known by that alone */
    local_option(fd, level, name);
  }
  return result;
}

/* What the program has set, where a bell needed it otherwise (also one before a unix socket took the place); else -1. */
static int own_nodelay(const struct conn *c) {
  if (c == NULL || !(conn_flags(c) & CONN_NODELAY_FORCED)) {
    return -1;
  }
  return conn_flags(c) & CONN_NODELAY_SET ? 1 : 0;
}

BERTHA_EXPORT int getsockopt(int fd, int level, int name, void *value, socklen_t *size) {
  struct conn *c = stream_of(fd);
  bool room = value != NULL && size != NULL && *size >= sizeof(int);
  bool nodelay = level == IPPROTO_TCP && name == TCP_NODELAY;
  int answer = nodelay && room ? own_nodelay(conn_of(fd)) : -1;
  if (c != NULL && conn_kind(c) == BERTHA_CONN_SHM && room) {
    if (level == IPPROTO_TCP && name == TCP_CORK) {
      answer = conn_flags(c) & CONN_CORK_SET ? 1 : 0;
    } else if (level == SOL_SOCKET && name == SO_RCVLOWAT) {
      answer = c->rcv_lowat;
    } else if (level == SOL_SOCKET && name == SO_ERROR && c->error != 0) {
      answer = conn_take_error(c);
    }
  }
  struct conn *d = conn_of(fd);
  if (UNLIKELY(d != NULL) && level == SOL_SOCKET && name == SO_LINGER && guard_stands(d)) {
    return (int)errno_result(guard_get_linger(d, value, size));
  }
  d = dgram_of(fd);
  if (d != NULL && is_segment(d, level, name) && room) {
    answer = d->segment;
  }
  if (answer < 0) {
    return REAL(getsockopt)(option_fd(conn_of(fd), fd, level, name), level, name, value, size);
  }
  memcpy(value, &answer, sizeof answer);
  *size = sizeof answer;
  return 0;
}

BERTHA_EXPORT int ioctl(int fd, unsigned long request, ...) {
  va_list args;
  va_start(args, request);
  void *argument = va_arg(args, void *);
  va_end(args);
  struct conn *c = conn_of(fd);
  if (UNLIKELY(c != NULL) && request == FIONREAD) {
    conn_ripe(c, fd);
    if (conn_flags(c) & CONN_DGRAM) {
      *(int *)argument = dgram_unread(c, fd);
      return 0;
    }
    if (conn_kind(c) == BERTHA_CONN_UNIX && !(conn_flags(c) & CONN_CARRIED) && !unix_swapped(c)) {
      *(int *)argument = unix_unread(c, fd);
      return 0;
    }
  }
  if (UNLIKELY(c != NULL) && request == SIOCATMARK && conn_kind(c) == BERTHA_CONN_SHM &&
      conn_before_mark(c, fd)) {
    *(int *)argument = 0;
    return 0;
  }
  if (UNLIKELY(c != NULL) && request == FIOASYNC) {
    unix_signals(c, fd);
  }
  int result = REAL(ioctl)(fd, request, argument);
  if (LIKELY(c == NULL) || result != 0) {
    return result;
  }
  if (request == FIONBIO) {
    flag_by(c, CONN_NONBLOCK, *(int *)argument != 0);
    if (conn_kind(c) == BERTHA_CONN_UNIX) {
      unix_nonblock(c, *(int *)argument != 0);
    }
  } else if (request == FIOASYNC) {
    if (*(int *)argument != 0) {
      conn_stay_in_kernel(c, fd, BERTHA_WHY_KERNEL_ASKED); /* SIGIO comes from there alone */
    }
  } else if (conn_kind(c) == BERTHA_CONN_SHM || conn_kind(c) == BERTHA_CONN_CLAIMED) {
    bool ring = conn_ripe(c, fd);
    abroad_leave(c, ring && abroad_enter(c));
    if (request == FIONREAD &&
        ring) { /* the kernel's count is bell bytes, but for what came before the ring */
      int kernel = *(int *)argument;
      uint64_t before = atomic_load(&conn_rx(c)->switch_at) - atomic_load(&c->krx);
      if (atomic_load_explicit(&conn_rx(c)->ring_end, memory_order_acquire) != UINT64_MAX) {
        uint32_t bells =
            atomic_load(&conn_rx(c)->bells) - c->bells_seen; /* those that are yet to be skipped */
        kernel = bells < (uint32_t)kernel ? kernel - (int)bells : 0;
      } else if (c->rx_phase == PHASE_RING) {
        kernel = 0;
      } else if (c->rx_phase == PHASE_BEFORE && before < (uint64_t)kernel) {
        kernel = (int)before;
      }
      if (UNLIKELY(conn_borrows(c))) {
        borrow_in(c, false);
      }
      *(int *)argument = kernel + (int)conn_readable_bytes(c);
    } else if (request == SIOCOUTQ && ring && c->tx_phase == PHASE_RING) {
      *(int *)argument = 0; /* what is in the ring has been delivered */
    }
  }
  return result;
}

/* The C library's calls its own ioctl(). */
BERTHA_EXPORT int sockatmark(int fd) {
  int is;
  return ioctl(fd, SIOCATMARK, &is) == 0 ? is : -1;
}
