/* Bytes out: into the kernel until the other end is there, into the ring from then on. */
#include <string.h>

#include "abroad.h"
#include "brief.h"
#include "conn.h"
#include "copy.h"
#include "eset.h"
#include "relay.h"
#include "trim.h"
#include "unixpair.h"
#include "wait.h"

#define TCP_LEVEL 6
#define TCP_CORK_OPTION 3

/* A thread that is cancelled while it is asleep in here stays counted among `kernel_sends`: how much it had sent nobody
 * knows, so this direction cannot change its carrier any more. */
static ssize_t kernel_send(int fd, const struct iovec *iov, int count, int flags, bool patient) {
  struct msghdr msg = {.msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = (size_t)count};
  ssize_t n = patient ? REAL(sendmsg)(fd, &msg, flags) : QUIET(sendmsg)(fd, &msg, flags);
  return n >= 0 ? n : -errno;
}

static void kernel_begins(struct conn *c, struct tx_kernel *k) {
  *k = (struct tx_kernel){.life = conn_life(c), .home = c->home};
  atomic_fetch_add(&c->kernel_sends, 1);
  c->kernel_began++;
  if (UNLIKELY(k->home != NULL)) {
    k->home_life = conn_life(k->home);
    abroad_kernel_send(k->home, 1, 0);
  }
}

void tx_kernel_end(struct conn *c, const struct tx_kernel *k, ssize_t sent) {
  uint64_t bytes = sent > 0 ? (uint64_t)sent : 0;
  if (LIKELY(conn_life(c) == k->life)) {
    if (bytes > 0) {
      atomic_fetch_add(&c->ktx, bytes);
    }
    atomic_fetch_sub(&c->kernel_sends, 1);
  }
  if (UNLIKELY(k->home != NULL) && conn_life(k->home) == k->home_life) {
    abroad_kernel_send(k->home, -1, bytes);
  }
}

/* The kernel's own verdict on a send: EPIPE with its SIGPIPE, ECONNRESET, or nothing wrong. */
static int kernel_verdict(int fd, int flags) {
  return QUIET(send)(fd, "", 0, flags & MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* Bell bytes must always find room behind what the kernel holds.  One small send leaves some in the smallest buffer that
 * there is (SOCK_MIN_SNDBUF of Linux: 4.5 KiB).  Where others send as well (`home`), their sends are not counted here. */
enum { ONE_SMALL = 512 };
static bool room_is_sure(const struct conn *c) {
  return c->kernel_began == 1 && atomic_load(&c->ktx) <= ONE_SMALL && c->home == NULL;
}

/* With the tx lock held: from this byte on, the ring.  Not while a thread is inside a kernel send, whose
 * bytes would come after ours. */
static bool switch_to_ring(struct conn *c, int fd) {
  if (atomic_load(&c->kernel_sends) != 0) {
    return false;
  }
  if (atomic_load(&c->ktx) != 0 && !room_is_sure(c)) {
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    if (QUIET(poll)(&p, 1, 0) != 1 || (p.revents & (POLLERR | POLLHUP))) {
      return false;
    }
  }
  if (conn_flags(c) & CONN_CORK_SET) {
    int off = 0;
    REAL(setsockopt)(fd, TCP_LEVEL, TCP_CORK_OPTION, &off, sizeof off);
  }
  atomic_store_explicit(&conn_tx(c)->size, c->tx_size, memory_order_relaxed);
  atomic_store_explicit(&conn_tx(c)->switch_at, atomic_load(&c->ktx), memory_order_release);
  c->tx_phase = PHASE_RING;
  return true;
}

bool tx_switched(struct conn *c, int fd) {
  if (LIKELY(c->tx_phase != PHASE_BEFORE)) {
    return true;
  }
  if (conn_kind(c) != BERTHA_CONN_SHM) {
    return false;
  }
  bool switched = false;
  bool abroad = abroad_enter(c);
  if (bertha_lock(&c->tx_lock)) {
    switched = c->tx_phase != PHASE_BEFORE || switch_to_ring(c, fd);
    bertha_unlock(&c->tx_lock);
  }
  abroad_leave(c, abroad);
  return switched;
}

/* A bell that another thread is just ringing has not seen the end of the ring, and must not come behind what we send next
 * (while we give back, bells wait for us).  Who was killed while it rang is not waited for for ever. */
static void await_bells(const struct conn *c) {
  enum { LOOKS = 1000, LOOK_NS = 10000 };
  bool giving = atomic_load(&conn_tx(c)->want_kernel) == BERTHA_WANT_GIVING;
  for (int i = 0; i < LOOKS && !giving && tx_kernel_sends(c) != 0; i++) {
    QUIET(nap)(LOOK_NS);
  }
}

void tx_to_kernel(struct conn *c) {
  if (c->tx_phase == PHASE_RING) {
    atomic_store(&conn_tx(c)->ring_end, c->tx_tail);
    await_bells(c);
    c->tx_phase = PHASE_AFTER; /* our own epoll set has to ask the kernel for room from now on */
    conn_changed_here(c);
  }
  c->tx_phase = PHASE_AFTER;
}

/* With the tx lock held: free bytes; < 0: the other side has written nonsense. */
static int64_t ring_room(struct conn *c) {
  c->tx_head = atomic_load_explicit(&conn_tx(c)->head, memory_order_acquire);
  uint64_t used = c->tx_tail - c->tx_head;
  if (used > c->tx_size) {
    conn_broken(c);
    return -ECONNRESET;
  }
  uint32_t room = ring_bound(c);
  return used < room ? (int64_t)(room - used) : 0;
}

static bool ring_empty(const struct conn *c) {
  return atomic_load_explicit(&conn_tx(c)->head, memory_order_acquire) == c->tx_tail;
}

enum { COLOURED = 2048, COLOURS = 16384 };

/* While the ring is empty it may start over, and grow: a small request finds the same cache lines each time,
 * bulk gets the room it needs. */
static void ring_restart(struct conn *c, size_t want) {
  struct bertha_direction *d = conn_tx(c);
  if (want >= c->tx_size / 2 && c->tx_size < c->tx_limit) {
    c->tx_size = c->tx_size * 4 < c->tx_limit ? c->tx_size * 4 : c->tx_limit;
    atomic_store_explicit(&d->size, c->tx_size, memory_order_relaxed);
  }
  /* Rings lie at a power of two from one another: small messages that all began at offset 0 would meet in a few sets of the
   * cache. */
  uint32_t colour = want < COLOURED ? (c->slot_index * 576 + (c->side ? 2112u : 0)) & (COLOURS - 64) : 0;
  c->tx_base = c->tx_tail - colour;
  atomic_store_explicit(&d->base, c->tx_base, memory_order_relaxed);
}

/* Room for `want` bytes, if it need not be asked of the consumer: `head` is in a cache line of its processor, and to
 * fetch that for each small message costs both of us more than the message does.  0: it has to be. */
static int64_t room_known(const struct conn *c, size_t want) {
  uint64_t used = c->tx_tail - c->tx_head;
  uint32_t bound = ring_bound(c);
  bool known = c->tx_tail + want <= c->tx_look_at && used < bound && want <= bound - used;
  return known ? (int64_t)(bound - used) : 0;
}

/* How far small messages walk before the ring is looked at, and starts over if it is empty. */
enum { LOOK_AFTER = 512 };

static int64_t ring_write(struct conn *c, const struct iovec *iov, int count, size_t skip, size_t want) {
  int64_t room = room_known(c, want);
  if (room == 0) {
    room = ring_room(c);
    if (room < 0) {
      return room;
    }
    if (room > 0 && c->tx_head == c->tx_tail) {
      ring_restart(c, want);
      room = ring_bound(c);
    }
    c->tx_look_at = c->tx_tail + LOOK_AFTER;
  }
  size_t left = (size_t)room;
  uint64_t tail = c->tx_tail;
  for (int i = 0; i < count && left > 0; i++) {
    if (skip >= iov[i].iov_len) {
      skip -= iov[i].iov_len;
      continue;
    }
    const uint8_t *from = (const uint8_t *)iov[i].iov_base + skip;
    size_t part = iov[i].iov_len - skip;
    skip = 0;
    part = part < left ? part : left;
    uint32_t at = (uint32_t)(tail - c->tx_base) & (c->tx_size - 1);
    size_t first = part < c->tx_size - at ? part : c->tx_size - at;
    copy_in(c->tx_mem + at, from, first);
    copy_in(c->tx_mem, from + first, part - first);
    tail += part;
    left -= part;
  }
  int64_t n = (int64_t)(tail - c->tx_tail);
  c->tx_tail = tail;
  atomic_store_explicit(&conn_tx(c)->tail, tail, memory_order_release);
  return n;
}

/* With the tx lock held: may this direction go by the ring just now? */
static bool on_ring(struct conn *c, int fd) {
  if (c->tx_phase == PHASE_BEFORE && !switch_to_ring(c, fd)) {
    return false;
  }
  if (UNLIKELY(conn_asked_back(c))) {
    tx_give_back(c, fd);
  }
  if (c->tx_phase == PHASE_RING &&
      UNLIKELY(atomic_load_explicit(&conn_tx(c)->want_kernel, memory_order_relaxed) == BERTHA_WANT_KERNEL ||
               atomic_load_explicit(&c->slot->watch[1 - c->side].done, memory_order_relaxed))) {
    tx_to_kernel(c); /* asked to, or nobody is there to read: the kernel knows what to answer */
  }
  return c->tx_phase == PHASE_RING;
}

/* A full ring: ask to be told, then look again (the consumer does it in the other order). */
static bool ask_for_space(struct conn *c) {
  conn_want_space(c);
  return ring_room(c) > 0;
}

void tx_cut_short(struct conn *c, int fd) {
  conn_set_flag(c, CONN_TX_SHORT);
  eset_lacks_room(c, fd, false);
}

/* A send to the ring was cut short.  Whoever waits for room in the kernel's terms (a set that is watched) has to be told in them. */
static void lacked_room(struct conn *c, int fd) {
  if (LIKELY(atomic_load(&c->kernel_regs) == 0) || !eset_kernel_for_good(c, fd)) {
    return;
  }
  bool abroad = abroad_enter(c);
  bool ring = false;
  if (bertha_lock(&c->tx_lock)) {
    ring = c->tx_phase == PHASE_RING;
    if (ring) {
      tx_to_kernel(c);
    }
    bertha_unlock(&c->tx_lock);
  }
  abroad_leave(c, abroad);
  if (ring) {
    eset_lacks_room(c, fd, true);
  }
}

static ssize_t send_by_kernel(struct conn *c, uint32_t life, int fd, const struct iovec *iov, int count,
                              int flags) {
  bool patient = !(flags & MSG_DONTWAIT) && !(conn_flags(c) & CONN_NONBLOCK);
  ssize_t n = kernel_send(fd, iov, count, flags, patient);
  if (UNLIKELY(conn_life(c) != life)) {
    return n;
  }
  if (n > 0) {
    count_bytes(&c->info.tx_bytes, (uint64_t)n);
  }
  if (n < 0 || (size_t)n < iov_bytes(iov, count)) {
    tx_cut_short(c, fd);
  }
  return n;
}

/* One try: > 0, -EAGAIN, another -errno, or -EINPROGRESS: the kernel has to carry this one. */
static ssize_t send_ring(struct conn *c, int fd, const struct iovec *iov, int count, size_t skip, size_t want,
                         int flags, struct tx_kernel *k) {
  bool fin = conn_flags(c) & CONN_FIN;
  int error = conn_take_error(c); /* taken from the kernel in a look at it, and not told to the program yet */
  if (UNLIKELY(error != 0)) {
    return -error;
  }
  if (UNLIKELY(fin || (conn_flags(c) & (CONN_WR_SHUT | CONN_RST)))) {
    /* after a part has gone, the signal is the next call's */
    int verdict = kernel_verdict(fd, skip > 0 ? flags | MSG_NOSIGNAL : flags);
    if (verdict < 0) {
      return verdict;
    }
  }
  if (!bertha_lock(&c->tx_lock)) {
    return OWN_LOCK;
  }
  if (UNLIKELY(conn_of(fd) != c)) {
    bertha_unlock(&c->tx_lock);
    return -EBADF;
  }
  if (!on_ring(c, fd)) {
    kernel_begins(c, k);
    bertha_unlock(&c->tx_lock);
    return -EINPROGRESS;
  }
  /* A consumer that is behind may be dead, and its ring big: TCP would tell a sender at its second send. */
  brief_sent(c);
  bool look =
      (c->sends & 7) == 0 && atomic_load_explicit(&conn_tx(c)->head, memory_order_relaxed) != c->tx_tail;
  int64_t n = ring_write(c, iov, count, skip, want);
  if (n >= 0 && (size_t)n < want && ask_for_space(c)) {
    int64_t more = ring_write(c, iov, count, skip + (size_t)n, want - (size_t)n);
    n += more > 0 ? more : 0;
  }
  if (n > 0) {
    count_bytes(&c->info.tx_bytes, (uint64_t)n);
  } else if (n == 0 && atomic_load(&c->kernel_regs) != 0 && eset_kernel_for_good(c, fd)) {
    tx_to_kernel(c); /* as lacked_room(), but the kernel may take it all */
    kernel_begins(c, k);
    n = -EINPROGRESS;
  }
  bertha_unlock(&c->tx_lock);
  if (n > 0) {
    signal_data(c, fd);
    if (UNLIKELY(c->tx_size > TRIM_WARM)) {
      trim_note(fd);
    }
    if (UNLIKELY(look) && c->rx_phase == PHASE_RING) { /* before, its bytes are no bells */
      conn_look_at_kernel(c, fd);
    }
    if (UNLIKELY(fin)) {
      /* After a FIN the peer may be gone or may have closed only its half.  A byte on the connection tells:
       * a reader takes it off, a dead end answers with a RST. */
      bell_on_connection(c, fd);
    }
  }
  return n == 0 ? -EAGAIN : n;
}

ssize_t conn_send(struct conn *c, int fd, const struct iovec *iov, int count, int flags) {
  size_t want = iov_bytes(iov, count);
  size_t sent = 0;
  bool patient = !(flags & MSG_DONTWAIT) && !(conn_flags(c) & CONN_NONBLOCK);
  int64_t deadline = patient && c->snd_timeout_ns > 0 ? bertha_now_ns() + c->snd_timeout_ns : -1;
  if (want == 0) {
    int error = conn_take_error(c);
    return error != 0 ? -error : kernel_verdict(fd, flags);
  }
  if (UNLIKELY(conn_flags(c) & CONN_RELAYED)) {
    relay_await(c, fd);
  }
  for (;;) {
    struct tx_kernel k;
    bool abroad = abroad_enter(c);
    ssize_t n = send_ring(c, fd, iov, count, sent, want - sent, flags, &k);
    abroad_leave(c, abroad);
    if (n == -EINPROGRESS) {
      struct iovec rest[64];
      int parts = 0;
      size_t skip = sent;
      for (int i = 0; i < count && parts < 64; i++) {
        if (skip >= iov[i].iov_len) {
          skip -= iov[i].iov_len;
          continue;
        }
        rest[parts].iov_base = (uint8_t *)iov[i].iov_base + skip;
        rest[parts++].iov_len = iov[i].iov_len - skip;
        skip = 0;
      }
      n = send_by_kernel(c, k.life, fd, rest, parts, flags);
      tx_kernel_end(c, &k, n);
      if (UNLIKELY(conn_life(c) != k.life)) { /* closed by another thread meanwhile */
        return n > 0 ? n + (ssize_t)sent : sent > 0 ? (ssize_t)sent : n;
      }
      if (n > 0 && sent + (size_t)n < want && patient) {
        sent += (size_t)n;
        continue;
      }
      if (sent > 0) {
        conn_keep_error(c, n);
      }
      return n > 0 ? n + (ssize_t)sent : sent > 0 ? (ssize_t)sent : n;
    }
    if (n > 0) {
      sent += (size_t)n;
      if (sent == want || !patient) {
        if (UNLIKELY(sent < want)) {
          lacked_room(c, fd);
        }
        return (ssize_t)sent;
      }
      continue;
    }
    if (n != -EAGAIN || !patient) {
      if (sent > 0) {
        conn_keep_error(c, n);
        return (ssize_t)sent;
      }
      return UNLIKELY(n == OWN_LOCK) ? -EAGAIN : n;
    }
    n = wait_conn(c, fd, POLLOUT, deadline);
    if (n < 0) {
      return sent > 0 ? (ssize_t)sent : n;
    }
  }
}

ssize_t stream_send(struct conn *c, int fd, const struct iovec *iov, int count, int flags) {
  CANCELLATION_POINT();
  if (conn_ripe(c, fd)) {
    return conn_send(c, fd, iov, count, flags);
  }
  uint32_t kind = conn_kind(c);
  if (kind == BERTHA_CONN_UNIX) {
    return unix_send(c, fd, iov, count, flags);
  }
  if (kind != BERTHA_CONN_CLAIMED && kind != BERTHA_CONN_MAYBE) {
    return send_by_kernel(c, conn_life(c), fd, iov, count, flags);
  }
  /* Counted in and out, so that another thread that finds the tie made does not put ring bytes before ours. */
  if (!bertha_lock(&c->tx_lock)) {
    return -EAGAIN;
  }
  kind = conn_kind(c);
  bool tied = kind == BERTHA_CONN_SHM || kind == BERTHA_CONN_UNIX;
  struct tx_kernel k;
  if (!tied) {
    brief_sent(c);
    kernel_begins(c, &k);
  }
  bertha_unlock(&c->tx_lock);
  if (tied) {
    return kind == BERTHA_CONN_SHM ? conn_send(c, fd, iov, count, flags)
                                   : unix_send(c, fd, iov, count, flags);
  }
  ssize_t n = send_by_kernel(c, k.life, fd, iov, count, flags);
  tx_kernel_end(c, &k, n);
  return n;
}

bool tx_kernel_begin(struct conn *c, int fd, struct tx_kernel *k) {
  bool abroad = abroad_enter(c);
  bool kernel = false;
  if (bertha_lock(&c->tx_lock)) {
    uint32_t kind = conn_kind(c);
    kernel = kind != BERTHA_CONN_UNIX && (kind != BERTHA_CONN_SHM || !on_ring(c, fd));
    if (kernel) {
      kernel_begins(c, k);
    }
    bertha_unlock(&c->tx_lock);
  } else if (conn_kind(c) == BERTHA_CONN_CLAIMED || conn_kind(c) == BERTHA_CONN_MAYBE) {
    kernel_begins(c, k); /* the call that we interrupt has yet to look */
    kernel = true;
  }
  abroad_leave(c, abroad);
  return kernel;
}

static uint8_t *reserve(struct conn *c, int fd, size_t *room, int *error) {
  *error = -(int)OWN_LOCK;
  if (!bertha_lock(&c->tx_lock)) {
    return NULL;
  }
  if (conn_of(fd) != c || !on_ring(c, fd)) {
    *error = ENOTCONN; /* the kernel has to carry it */
    bertha_unlock(&c->tx_lock);
    return NULL;
  }
  int64_t free_bytes = ring_room(c);
  if (free_bytes > 0 && ring_empty(c)) {
    ring_restart(c, *room);
    free_bytes = ring_room(c);
  }
  if (free_bytes <= 0 && !(free_bytes == 0 && ask_for_space(c))) {
    *error = free_bytes < 0 ? ECONNRESET : EAGAIN;
    bertha_unlock(&c->tx_lock);
    return NULL;
  }
  uint32_t at = (uint32_t)(c->tx_tail - c->tx_base) & (c->tx_size - 1);
  size_t straight = c->tx_size - at;
  free_bytes = ring_room(c);
  *room = *room < straight ? *room : straight;
  *room = *room < (size_t)free_bytes ? *room : (size_t)free_bytes;
  return c->tx_mem + at;
}

uint8_t *tx_reserve(struct conn *c, int fd, size_t *room, int *error) {
  if (UNLIKELY(conn_flags(c) & CONN_RELAYED)) {
    relay_await(c, fd);
  }
  bool abroad = abroad_enter(c);
  uint8_t *to = reserve(c, fd, room, error);
  if (to == NULL) {
    abroad_leave(c, abroad);
    if (*error == EAGAIN) {
      lacked_room(c, fd);
    }
  }
  return to;
}

/* Ends the reservation. */
void tx_commit(struct conn *c, int fd, size_t n) {
  if (n > 0) {
    c->tx_tail += n;
    atomic_store_explicit(&conn_tx(c)->tail, c->tx_tail, memory_order_release);
    count_bytes(&c->info.tx_bytes, n);
  }
  bertha_unlock(&c->tx_lock);
  abroad_leave(c, c->home != NULL);
  if (n > 0) {
    signal_data(c, fd);
    if (UNLIKELY(c->tx_size > TRIM_WARM)) {
      trim_note(fd);
    }
  }
}

void conn_leave_ring(struct conn *c, uint32_t why) {
  if (conn_kind(c) != BERTHA_CONN_SHM) {
    return;
  }
  bool abroad = abroad_enter(c);
  c->info.reason = why;
  uint32_t none = BERTHA_WANT_RING; /* who has asked for more meanwhile (takeback.c) waits for that */
  atomic_compare_exchange_strong(&conn_rx(c)->want_kernel, &none, BERTHA_WANT_KERNEL);
  atomic_thread_fence(memory_order_seq_cst);
  borrow_end(c);
  if (bertha_lock(&c->tx_lock)) {
    if (atomic_load(&c->kernel_sends) == 0 && c->tx_phase == PHASE_BEFORE) {
      atomic_store_explicit(&conn_tx(c)->switch_at, atomic_load(&c->ktx), memory_order_release);
      c->tx_phase = PHASE_RING;
    }
    tx_to_kernel(c);
    bertha_unlock(&c->tx_lock);
  }
  abroad_leave(c, abroad);
}
