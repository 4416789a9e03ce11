/* What a program sends and receives on a socket that has pairs (local.h). */
#include <limits.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <string.h>

#include "../carrier/carrier.h"
#include "dgram.h"
#include "local.h"
#include "waiter.h"

#ifndef IOV_MAX
#define IOV_MAX 1024
#endif

#define KERNEL_EVERY_NS 20000
#define KNOWN_FLAGS (MSG_DONTWAIT | MSG_PEEK | MSG_TRUNC | MSG_CMSG_CLOEXEC | MSG_WAITALL | MSG_NOSIGNAL)

/* ---- in ------------------------------------------------------------------------------------------- */

/* With its lock. */
static void local_boxed(struct local *d) {
  _Atomic uint32_t *carried = &d->c->info.carried;
  if (UNLIKELY(atomic_load_explicit(carried, memory_order_relaxed) != BERTHA_CARRIED_BOXED)) {
    atomic_store_explicit(carried, BERTHA_CARRIED_BOXED, memory_order_relaxed); /* no carrier has it */
  }
}

static ssize_t taken(struct local *d, const struct pair *p, struct msghdr *msg, int size, int flags) {
  struct bertha_dgram head = {.port = p->port, .scope = p->scope};
  memcpy(head.addr, p->addr, 16);
  size_t room = iov_bytes(msg->msg_iov, (int)msg->msg_iovlen);
  dgram_put_name(d->c, &head, msg);
  msg->msg_controllen = 0;
  msg->msg_flags = ((size_t)size > room ? MSG_TRUNC : 0) | (flags & MSG_CMSG_CLOEXEC);
  if (!(flags & MSG_PEEK)) {
    count_bytes(&d->c->info.rx_bytes, (uint64_t)size);
    local_boxed(d);
  }
  d->looked = flags & MSG_PEEK ? LOOKED_IN_BOX : LOOKED_NOWHERE;
  d->looked_at = flags & MSG_PEEK ? p : NULL;
  return (size_t)size > room && !(flags & MSG_TRUNC) ? (ssize_t)room : size;
}

static int from_pair(struct pair *p, const struct msghdr *msg, int flags) {
  return box_take(p->in, &p->head, msg->msg_iov, (int)msg->msg_iovlen, flags & MSG_PEEK);
}

/* One slot after the other, behind the one that was read last: nobody keeps the others from being read. */
static ssize_t from_inlet(struct local *d, struct inlet *in, struct msghdr *msg, int flags) {
  struct link *l = in->link;
  unsigned from = in->next_slot / 64 < in->words ? in->next_slot : 0;
  for (unsigned k = 0; k <= in->words && in->words > 0; k++) {
    unsigned w = (from / 64 + k) % in->words;
    uint64_t behind = ~(uint64_t)0 << (from % 64);
    uint64_t which = k == 0 ? behind : k == in->words ? ~behind : ~(uint64_t)0;
    _Atomic uint64_t *dirty = &l->dirty[BERTHA_SIDE_SERVER][w];
    if (atomic_load_explicit(dirty, memory_order_relaxed) != 0) {
      in->pending[w] |= atomic_exchange(dirty, 0); /* before the look: a later one sets it again */
      atomic_thread_fence(memory_order_seq_cst);
    }
    for (uint64_t bits; (bits = in->pending[w] & which) != 0;) {
      unsigned bit = (unsigned)__builtin_ctzll(bits);
      unsigned slot = w * 64 + bit;
      struct pair *p = slot < BERTHA_LINK_SLOTS ? in->pair[slot] : NULL;
      int size = p != NULL ? from_pair(p, msg, flags) : -1;
      if (size >= 0) {
        in->next_slot = flags & MSG_PEEK ? slot : slot + 1;
        return taken(d, p, msg, size, flags);
      }
      in->pending[w] &= ~((uint64_t)1 << bit);
    }
  }
  return -EAGAIN;
}

static ssize_t from_servers(struct local *d, struct msghdr *msg, int flags) {
  for (int round = 0; round < 2; round++) { /* those behind the one that was read last, and then the others */
    unsigned i = 0;
    for (struct pair *p = d->pairs, *next; p != NULL; p = next, i++) {
      next = p->sibling;
      if ((i >= d->next_read) != (round == 0)) {
        continue;
      }
      int size = local_client_tied(p) ? from_pair(p, msg, flags) : -1;
      if (size >= 0) {
        d->next_read = flags & MSG_PEEK ? i : i + 1;
        local_heat(d, p);
        return taken(d, p, msg, size, flags);
      }
      if (UNLIKELY(p->ended)) {
        pair_drop(d, p);
        i--;
      }
    }
  }
  return -EAGAIN;
}

static ssize_t from_boxes(struct local *d, struct msghdr *msg, int flags) {
  if (UNLIKELY(d->looked == LOOKED_IN_BOX)) { /* else it has been taken back, and comes by the kernel */
    struct pair *p = (struct pair *)(uintptr_t)d->looked_at;
    int size = from_pair(p, msg, flags);
    if (size >= 0) {
      return taken(d, p, msg, size, flags);
    }
    d->looked = LOOKED_NOWHERE;
  }
  if (!d->server) {
    return from_servers(d, msg, flags);
  }
  for (unsigned i = 0; i < d->inlet_count; i++) {
    unsigned at = (d->next_read + i) % d->inlet_count;
    ssize_t n = from_inlet(d, d->inlet[at], msg, flags);
    if (n >= 0) {
      d->next_read = flags & MSG_PEEK ? at : at + 1;
      return n;
    }
  }
  return -EAGAIN;
}

/* A call, which another thread may close the socket under. */
struct call {
  struct local *d;
  const struct conn *c;
  uint32_t life;
  int fd;
};

static bool lock_again(const struct call *k) {
  return local_lock_again(k->d, k->c, k->life);
}

/* By the kernel, whose datagrams have to be known by their origin. */
static ssize_t from_kernel(const struct call *k, struct msghdr *msg, int flags, bool sleeps) {
  struct local *d = k->d;
  int fd = k->fd;
  struct sockaddr_storage name;
  struct msghdr inner = *msg;
  inner.msg_name = &name;
  inner.msg_namelen = sizeof name;
  ssize_t n = sleeps ? REAL(recvmsg)(fd, &inner, flags) : QUIET(recvmsg)(fd, &inner, flags | MSG_DONTWAIT);
  if (n < 0) {
    n = -errno;
    if (n == -EAGAIN && lock_again(k)) {
      d->takes = 0;
      local_kernel_empty(d);
      bertha_unlock(&d->lock);
    }
    return n;
  }
  if (msg->msg_name != NULL && inner.msg_namelen > 0) {
    memcpy(msg->msg_name, &name, msg->msg_namelen < inner.msg_namelen ? msg->msg_namelen : inner.msg_namelen);
  }
  msg->msg_namelen = msg->msg_name != NULL ? inner.msg_namelen : msg->msg_namelen;
  msg->msg_controllen = inner.msg_controllen;
  msg->msg_flags = inner.msg_flags;
  uint8_t addr[16];
  uint16_t port;
  bool named =
      inner.msg_namelen >= sizeof(struct sockaddr_in) && address_of((struct sockaddr *)&name, addr, &port);
  if (!lock_again(k)) {
    return n;
  }
  bool known = true;
  d->takes = 0;
  d->looked = flags & MSG_PEEK ? LOOKED_IN_KERNEL : LOOKED_NOWHERE;
  d->looked_at = NULL;
  d->empty = 0;
  if (!(flags & MSG_PEEK)) {
    known = !named || local_heard(d, addr, port);
    count_bytes(&d->c->info.rx_bytes, (uint64_t)n);
  }
  bertha_unlock(&d->lock);
  if (UNLIKELY(!known)) {
    uint32_t scope = name.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)(void *)&name)->sin6_scope_id : 0;
    size_t room = iov_bytes(msg->msg_iov, (int)msg->msg_iovlen);
    local_meet(d, addr, port, scope, msg, (size_t)n < room ? (size_t)n : room);
  }
  return n;
}

/* Until something is in a box, or the kernel has something; -EAGAIN: neither, so far. */
static ssize_t spin(const struct call *k, struct msghdr *msg, int flags) {
  struct local *d = k->d;
  struct waiter *w = waiter_get();
  int64_t bound = w != NULL ? local_spin_bound(d) : 0;
  if (bound == 0) {
    return -EAGAIN;
  }
  int64_t begin = bertha_now_ns();
  int64_t budget = spin_budget(&w->spin, begin, bound);
  int64_t asked = begin;
  ssize_t n = -EAGAIN;
  for (int64_t now = begin, last; n == -EAGAIN && now - begin < budget;) {
    for (int i = 0; i < LOOKS_PER_CLOCK && n == -EAGAIN; i++) {
      bertha_pause();
      if (local_ready(d) && lock_again(k)) {
        n = from_boxes(d, msg, flags);
        bertha_unlock(&d->lock);
      }
    }
    last = now;
    now = bertha_now_ns();
    if (n == -EAGAIN && now - asked >= KERNEL_EVERY_NS) {
      asked = now;
      n = from_kernel(k, msg, flags, false);
    }
    if (now - last > SPIN_GAP_NS) {
      spin_lost_processor(&w->spin);
      break;
    }
  }
  if (budget > 0) {
    spin_learn(&w->spin, n != -EAGAIN ? bertha_now_ns() - begin : 2 * bound, bound);
  }
  return n;
}

/* Until the kernel has something, but no longer than what others have not read may lie there: as ppoll(2). */
static int sleep_briefly(int fd, int64_t deadline, int64_t watch) {
  struct pollfd p = {.fd = fd, .events = POLLIN};
  int64_t ns = watch > 0 ? watch : INT64_MAX;
  int64_t left = deadline >= 0 ? deadline - bertha_now_ns() : ns;
  ns = left < ns ? left : ns;
  ns = ns > 0 ? ns : 0;
  struct timespec t = {ns / 1000000000, ns % 1000000000};
  return REAL(ppoll)(&p, 1, &t, NULL);
}

/* Nothing is there: asleep in the kernel, until there is.  As a rule in its receiving call, which keeps the time. */
static ssize_t sleep_and_take(const struct call *k, struct msghdr *msg, int flags) {
  struct local *d = k->d;
  int fd = k->fd;
  int64_t deadline = -1;
  for (bool ours = false;;) { /* whether we keep the time */
    if (!lock_again(k)) {
      return -EBADF; /* another thread has closed it */
    }
    bool asleep = local_fall_asleep(d);
    int64_t watch = asleep ? local_waits_for_readers(d) : 0;
    ssize_t n = !asleep ? from_boxes(d, msg, flags) : -EAGAIN;
    bertha_unlock(&d->lock);
    if (!asleep && n != -EAGAIN) {
      return n;
    }
    if (!asleep) {
      continue;
    }
    if (watch > 0 && !ours) {
      int64_t patience = k->c->rcv_timeout_ns;
      deadline = patience > 0 ? bertha_now_ns() + patience : -1;
      ours = true;
    }
    bool brief = watch > 0 || deadline >= 0;
    int ready = brief ? sleep_briefly(fd, deadline, watch) : 1;
    bool interrupted =
        ready < 0 && errno == EINTR && (deadline >= 0 || wait_is_interrupted()); /* signal(7) */
    n = ready > 0 ? from_kernel(k, msg, flags, !brief) : -EAGAIN;
    int saved = errno;
    if (lock_again(k)) {
      if (ready <= 0) {
        local_rescue(d, false);
      }
      local_awake(d);
      bertha_unlock(&d->lock);
    }
    errno = saved;
    if (interrupted) {
      return -EINTR;
    }
    if (n != -EAGAIN || !brief) {
      return n;
    }
    if (deadline >= 0 && bertha_now_ns() >= deadline) {
      return -EAGAIN;
    }
  }
}

ssize_t local_recv(struct conn *c, int fd, struct msghdr *msg, int flags) {
  CANCELLATION_POINT();
  struct local *d = local_mine(c, fd);
  if (msg->msg_iovlen > IOV_MAX) {
    return -EMSGSIZE;
  }
  if (UNLIKELY((flags & ~KNOWN_FLAGS) != 0)) {
    local_kernels(c);
  }
  if (d == NULL || (flags & ~KNOWN_FLAGS) != 0 || !bertha_lock(&d->lock)) {
    ssize_t n = REAL(recvmsg)(fd, msg, flags);
    return n >= 0 ? n : -errno;
  }
  if (UNLIKELY(d->c != c)) {
    bertha_unlock(&d->lock);
    return -EBADF; /* another thread has closed it */
  }
  struct call k = {d, c, atomic_load_explicit(&d->life, memory_order_relaxed), fd};
  d->edge_pair = NULL;
  bool ours = local_alone(d);
  ssize_t n = -EAGAIN;
  bool due = ++d->takes >= KERNEL_EVERY; /* neither keeps the other from being read */
  bool kernel_first = d->looked == LOOKED_IN_KERNEL || (due && d->looked != LOOKED_IN_BOX);
  if (!kernel_first) {
    n = from_boxes(d, msg, flags);
  }
  bool patient = !(flags & MSG_DONTWAIT) && !(conn_flags(c) & CONN_NONBLOCK);
  bool nothing = n == -EAGAIN && !patient && !kernel_first && local_kernel_is_empty(d);
  bertha_unlock(&d->lock);
  if (n != -EAGAIN || nothing) {
    return n;
  }
  if (kernel_first || !patient) {
    n = from_kernel(&k, msg, flags, false);
    if (n != -EAGAIN || !kernel_first) {
      return n;
    }
    if (lock_again(&k)) { /* somebody else has read what was looked at */
      d->looked = LOOKED_NOWHERE;
      bertha_unlock(&d->lock);
    }
    return local_recv(c, fd, msg, flags);
  }
  if (!ours) {
    return from_kernel(&k, msg, flags, true);
  }
  n = d->hot != NULL ? spin(&k, msg, flags) : -EAGAIN;
  return n != -EAGAIN ? n : sleep_and_take(&k, msg, flags);
}

bool local_error_is_next(struct conn *c, int fd) {
  struct local *d = local_of(c);
  if (d == NULL || (d->looked != LOOKED_IN_KERNEL &&
                    (d->looked == LOOKED_IN_BOX || d->takes + 1 < KERNEL_EVERY) && local_ready(d))) {
    return false; /* from a box, as far as can be known */
  }
  struct pollfd p = {.fd = fd};
  return QUIET(poll)(&p, 1, 0) == 1 && (p.revents & POLLERR) != 0;
}

int local_unread(struct conn *c, int fd) {
  struct local *d = local_of(c);
  int there = 0;
  if (d == NULL || !bertha_lock(&d->lock)) {
    return REAL(ioctl)(fd, FIONREAD, &there) == 0 ? there : 0;
  }
  struct msghdr msg = {.msg_iovlen = 0};
  ssize_t n =
      d->c == c && d->looked != LOOKED_IN_KERNEL ? from_boxes(d, &msg, MSG_PEEK | MSG_TRUNC) : -EAGAIN;
  if (n < 0 && REAL(ioctl)(fd, FIONREAD, &there) == 0 && there > 0) {
    d->looked = LOOKED_IN_KERNEL;
  }
  bertha_unlock(&d->lock);
  return n >= 0 ? (int)n : there;
}

/* ---- out ------------------------------------------------------------------------------------------ */

/* What is put behind another one is on the way of a burst: each look at the clock gives its reader time to find nothing more, and to
 * fall asleep. */
static bool is_time_to_look(uint32_t behind) {
  return behind == 1 || behind == 4 || behind == 16;
}

static int64_t coarse_now_ns(void) { /* a third of the cost, some ms behind */
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static bool into_box(struct local *d, struct pair *p, const struct msghdr *msg, size_t size) {
  if (d->asleep ||
      !box_open(p->out)) { /* asleep: another thread, which nothing but the kernel would tell of a refusal */
    return false;
  }
  bool first = !box_unread(p->out, p->tail);
  uint32_t behind = first ? 0 : p->tail - p->put_tail;
  bool marks = first || behind >= BOX_ITEMS;
  if (!marks && UNLIKELY(is_time_to_look(behind)) && coarse_now_ns() - p->put_at >= RESCUE_LATE_NS) {
    if (box_unread(p->out, p->put_tail)) {
      return false; /* its reader may be gone: a program that only sends has no other moment to find out */
    }
    marks = true;
  }
  struct box_mark mark = {NULL, 0};
  if (!d->server) {
    mark.word = &p->link->dirty[BERTHA_SIDE_SERVER][p->slot / 64];
    mark.bit = (uint64_t)1 << (p->slot % 64);
  }
  if (!box_put(p->out, &p->tail, msg->msg_iov, (int)msg->msg_iovlen, size, mark)) {
    return false;
  }
  if (marks) {
    p->put_at = bertha_now_ns();
    p->put_tail = p->tail;
  }
  return true;
}

/* With the lock held, which is given up only for a send that waits for space (`*locked`). */
static ssize_t by_kernel(struct local *d, int fd, struct pair *p, uint16_t port, const struct msghdr *msg,
                         int flags, bool *locked) {
  const struct conn *c = d->c;
  if (p != NULL && p->tied && box_unread(p->out, p->tail)) {
    local_take_back(d, p); /* what is older goes first */
  }
  if (UNLIKELY(flags & MSG_MORE) && !d->corked) {
    local_rescue(d, true); /* once a datagram has been begun, all that is sent is a part of it */
    d->vague = true;
  }
  local_begin_send(d, p, port, msg);
  atomic_fetch_add_explicit(&local_stir, 1, memory_order_relaxed);
  ssize_t n = QUIET(sendmsg)(fd, msg, flags | MSG_DONTWAIT);
  local_end_send(d, p, port);
  if (n < 0 && errno == EAGAIN && !(flags & MSG_DONTWAIT) && !(conn_flags(c) & CONN_NONBLOCK)) {
    uint32_t life = atomic_load(&d->life);
    d->blocked++; /* it may come behind what others send meanwhile, and be counted for that */
    d->vague = true;
    bertha_unlock(&d->lock);
    n = REAL(sendmsg)(fd, msg, flags);
    int error = errno;
    *locked = local_lock_again(d, c, life);
    if (*locked) {
      d->blocked--;
      local_begin_send(d, NULL, port, NULL);
      local_end_send(d, NULL, port);
    }
    errno = error;
  }
  if (n >= 0 && *locked) {
    count_bytes(&d->c->info.tx_bytes, (uint64_t)n);
    d->corked = flags & MSG_MORE;
  }
  return n >= 0 ? n : -errno;
}

static bool destination(const struct local *d, const struct conn *c, const struct msghdr *msg,
                        uint8_t addr[16], uint16_t *port, uint32_t *scope) {
  const struct sockaddr *to = msg->msg_name;
  *scope = 0;
  if (to == NULL || msg->msg_namelen == 0) {
    memcpy(addr, c->info.peer_addr, 16);
    *port = c->info.peer_port;
    *scope = c->scope;
    return !d->server && *port != 0;
  }
  if (msg->msg_namelen < sizeof(struct sockaddr_in) ||
      (to->sa_family == AF_INET6 && (msg->msg_namelen < sizeof(struct sockaddr_in6) ||
                                     (c->info.family & ~BERTHA_FAMILY_DATAGRAMS) != AF_INET6)) ||
      !address_of(to, addr, port)) {
    return false;
  }
  if (to->sa_family == AF_INET6) {
    *scope = ((const struct sockaddr_in6 *)(const void *)to)->sin6_scope_id;
  }
  return true;
}

/* UDP_SEGMENT: many datagrams of one, which nobody counts. */
static bool has_segments(const struct msghdr *msg) {
  struct msghdr *m = (struct msghdr *)(uintptr_t)msg;
  for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c != NULL; c = CMSG_NXTHDR(m, c)) {
    if (c->cmsg_level == IPPROTO_UDP) {
      return true;
    }
  }
  return false;
}

/* A signal handler has interrupted this thread in a call on the same socket. */
static ssize_t send_within(struct local *d, int fd, const struct msghdr *msg, int flags,
                           const uint8_t addr[16], uint16_t port) {
  struct pair *p = local_pair(d, addr, port); /* nothing changes meanwhile */
  d->vague = true;
  local_begin_send(d, p, port, NULL);
  ssize_t n = REAL(sendmsg)(fd, msg, flags);
  if (p != NULL) {
    atomic_fetch_add(&p->out->sent, 1);
  }
  return n >= 0 ? n : -errno;
}

ssize_t local_send(struct conn *c, int fd, const struct msghdr *msg, int flags) {
  CANCELLATION_POINT();
  struct local *d = local_of(c);
  uint8_t addr[16];
  uint16_t port;
  uint32_t scope;
  if (d == NULL || msg->msg_iovlen > IOV_MAX || !destination(d, c, msg, addr, &port, &scope)) {
    ssize_t n = REAL(sendmsg)(fd, msg, flags);
    if (d != NULL && n >= 0 && !d->kernel_only) {
      local_kernels(c); /* wherever that was */
    }
    return n >= 0 ? n : -errno;
  }
  if (!bertha_lock(&d->lock)) {
    return send_within(d, fd, msg, flags, addr, port);
  }
  if (UNLIKELY(d->c != c)) {
    bertha_unlock(&d->lock);
    return -EBADF; /* another thread has closed it */
  }
  if (UNLIKELY(msg->msg_controllen > 0) && has_segments(msg)) {
    local_keep_out(d);
  }
  size_t size = local_bytes(msg);
  struct pair *p = local_pair(d, addr, port);
  bool tied = p != NULL && (d->server || local_client_tied(p));
  bool box = !local_is_shared(d) && tied && !d->kernel_only && !d->corked && d->blocked == 0 &&
             msg->msg_controllen == 0 && size <= BOX_ROOM &&
             (flags & ~(MSG_DONTWAIT | MSG_NOSIGNAL | MSG_CONFIRM)) == 0 && !(conn_flags(c) & CONN_WR_SHUT);
  bool locked = true, unknown = false;
  ssize_t n;
  if (box && into_box(d, p, msg, size)) {
    count_bytes(&c->info.tx_bytes, size);
    local_boxed(d);
    n = (ssize_t)size;
  } else {
    if (tied && local_stale(d, p, fd)) {
      local_take_back(d, p);
      pair_drop(d, p);
      p = NULL;
      d->tried = false;
    }
    n = by_kernel(d, fd, p, port, msg, flags, &locked);
    unknown = p == NULL && n >= 0;
  }
  if (locked) {
    bertha_unlock(&d->lock);
  }
  if (UNLIKELY(unknown)) {
    local_claim(d, fd, addr, port, scope);
  }
  return n;
}
