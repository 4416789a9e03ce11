/* Waiting for many descriptors at once, for poll and select: those on rings and the kernel's together. */
#include "carried.h"
#include "conn.h"
#include "trim.h"
#include "eset.h"
#include "unixpair.h"
#include "waiter.h"

enum { STACK_FDS = 64 };
#define KERNEL_EVERY_NS 20000 /* how often a spinning thread asks the kernel too */

enum class { KERNEL = 0, RING, BECOMING, NONE };

struct kernel_wait {
  struct conn *conn;
  uint32_t life;
};

struct poll_call {
  struct pollfd *user;
  nfds_t count;
  uint8_t *class;
  struct pollfd *kernel; /* count + 1 */
  struct waiter_room room;
  struct waiter *armed;      /* by arm(), and not yet taken back */
  struct kernel_wait *waits; /* who is counted among the kernel's waiters for the length of a call */
  unsigned rings;
  unsigned becoming;
  bool same_cpu;
  bool space; /* somebody waits for space in a ring */
  int64_t bound;
};

static bool is_stream(const struct conn *c) {
  uint32_t kind = conn_kind(c);
  return kind == BERTHA_CONN_SHM || kind == BERTHA_CONN_CLAIMED || kind == BERTHA_CONN_MAYBE ||
         (kind == BERTHA_CONN_UNIX && !unix_swapped(c));
}

static void classify(struct poll_call *p) {
  p->rings = p->becoming = 0;
  p->same_cpu = true;
  p->bound = 0;
  for (nfds_t i = 0; i < p->count; i++) {
    int fd = p->user[i].fd;
    struct conn *c = fd >= 0 ? conn_of(fd) : NULL;
    if (c != NULL && UNLIKELY(conn_flags(c) & CONN_CARRIED)) {
      carried_settle(c, fd); /* its carrier has to have it, or the other end waits for ever */
    }
    if (c != NULL && conn_kind(c) == BERTHA_CONN_CLAIMED) {
      conn_ripe(c, fd);
    }
    if (c != NULL && conn_kind(c) == BERTHA_CONN_UNIX && !unix_swapped(c)) {
      unix_settle(c, fd); /* its TCP socket may have nothing more to say */
    }
    p->class[i] = KERNEL;
    if (c == NULL || !is_stream(c)) {
      if (fd >= 0) {
        eset_polled(fd);
      }
      continue;
    }
    if (conn_kind(c) == BERTHA_CONN_CLAIMED ? conn_ripe(c, fd) : conn_kind(c) == BERTHA_CONN_SHM) {
      p->class[i] = RING;
      p->rings++;
      borrow_end(c);
      if (!same_processor(c->link)) {
        p->same_cpu = false;
      }
      int64_t bound = link_spin_bound(c->link);
      p->bound = bound > p->bound ? bound : p->bound;
    } else {
      p->class[i] = BECOMING;
      p->becoming++;
    }
  }
}

static int look_at_rings(struct poll_call *p) {
  int ready = 0;
  for (nfds_t i = 0; i < p->count; i++) {
    if (p->class[i] != RING) {
      continue;
    }
    struct conn *c = conn_of(p->user[i].fd);
    if (c == NULL || conn_kind(c) != BERTHA_CONN_SHM) {
      p->user[i].revents = POLLNVAL;
    } else {
      p->user[i].revents = conn_events(c, p->user[i].fd, p->user[i].events);
    }
    ready += p->user[i].revents != 0;
  }
  return ready;
}

static void fill_kernel(struct poll_call *p) {
  for (nfds_t i = 0; i < p->count; i++) {
    p->kernel[i] = p->user[i];
    p->kernel[i].revents = 0;
    if (p->class[i] == RING) {
      struct conn *c = conn_of(p->user[i].fd);
      short want = p->user[i].events & POLLPRI;
      if (c != NULL && !(conn_flags(c) & CONN_FIN)) {
        want |= p->user[i].events & (POLLIN | POLLRDNORM | POLLRDHUP) ? POLLIN | POLLRDHUP : POLLRDHUP;
      }
      if (c != NULL && c->tx_phase != PHASE_RING) {
        want |= p->user[i].events & (POLLOUT | POLLWRNORM);
      }
      p->kernel[i].events = want;
      if (c != NULL && conn_flags(c) & CONN_RST) {
        p->kernel[i].fd = -1; /* its POLLHUP stands for ever and has been taken note of */
      }
    }
  }
}

/* What the kernel said: of the rings' connections taken note, of the others passed on. */
static int take_kernel(struct poll_call *p) {
  int ready = 0;
  for (nfds_t i = 0; i < p->count; i++) {
    short r = p->kernel[i].revents;
    struct conn *u = p->class[i] == BECOMING && (r & (POLLIN | POLLOUT)) ? conn_of(p->user[i].fd) : NULL;
    if (u != NULL && conn_kind(u) == BERTHA_CONN_UNIX && unix_settle(u, p->user[i].fd)) {
      struct pollfd now = {.fd = p->user[i].fd, .events = p->user[i].events};
      r = conn_kind(u) == BERTHA_CONN_SHM ? conn_events(u, now.fd, now.events)
          : QUIET(poll)(&now, 1, 0) > 0   ? now.revents
                                          : 0; /* of the socket that has just come there */
    }
    if (p->class[i] != RING) {
      p->user[i].revents = r;
      ready += r != 0;
    } else if (r != 0) {
      struct conn *c = conn_of(p->user[i].fd);
      if (c == NULL) {
        continue;
      }
      if (r & (POLLERR | POLLHUP)) {
        conn_set_flag(c, CONN_RST);
      }
      if (r & POLLRDHUP) {
        conn_set_flag(c, CONN_FIN);
      } else if ((r & POLLIN) && c->rx_phase == PHASE_RING) {
        conn_look_at_kernel(c, p->user[i].fd);
        if (UNLIKELY(c->rcv_lowat > 1)) { /* too little is in the ring: the byte would wake us all the time */
          bell_clear(c, p->user[i].fd);
        }
      }
      if (r & POLLPRI) {
        p->user[i].revents |= POLLPRI & p->user[i].events;
      }
    }
  }
  return ready;
}

static void disarm(struct waiter *w) {
  for (uint32_t i = 0; i < w->count; i++) {
    const struct sleeper_place *place = waiter_place(w, i);
    struct link *l = place->link;
    if (l == NULL) {
      continue;
    }
    _Atomic uint32_t *armed = &l->sleepers[l->side][place->index].armed;
    if (atomic_load_explicit(armed, memory_order_relaxed)) {
      atomic_store(armed, 0);
    }
  }
}

static void unplace(struct waiter *w, struct poll_call *p) {
  disarm(w);
  p->armed = NULL;
  for (nfds_t i = 0; i < p->count; i++) {
    struct conn *c = p->class[i] == RING ? conn_of(p->user[i].fd) : NULL;
    if (p->class[i] == RING && p->waits[i].conn != NULL) {
      conn_kernel_awake(p->waits[i].conn, p->waits[i].life);
      p->waits[i].conn = NULL;
    }
    if (c == NULL || conn_kind(c) != BERTHA_CONN_SHM) {
      continue;
    }
    uint16_t index = (uint16_t)waiter_sleeper(w, c->link);
    struct bertha_watch *watch = &c->slot->watch[c->side];
    for (int k = 0; index != 0 && k < 2; k++) {
      uint16_t mine = index;
      atomic_compare_exchange_strong(k == 0 ? &watch->rx : &watch->tx, &mine, 0);
    }
  }
}

static void all_awake(struct poll_call *p) {
  for (nfds_t i = 0; p->becoming > 0 && i < p->count; i++) {
    if (p->class[i] == BECOMING && p->waits[i].conn != NULL) {
      conn_kernel_awake(p->waits[i].conn, p->waits[i].life);
    }
  }
}

/* The thread ends while it is asleep. */
static void cancelled(void *call) {
  struct poll_call *p = call;
  all_awake(p);
  if (p->armed != NULL) {
    unplace(p->armed, p);
  }
  waiter_room_back(&p->room);
}

static int kernel_poll_call(struct poll_call *p, int bell_fd, int64_t ns, const sigset_t *mask) {
  struct timespec timeout = {ns / 1000000000, ns % 1000000000};
  nfds_t n = p->count;
  if (bell_fd >= 0) {
    p->kernel[n++] = (struct pollfd){.fd = bell_fd, .events = POLLIN};
  }
  /* Waiting in the kernel on a descriptor whose other end may come to the rings: it must ring there. */
  for (nfds_t i = 0; p->becoming > 0 && i < p->count; i++) {
    struct conn *c = p->class[i] == BECOMING ? conn_of(p->user[i].fd) : NULL;
    if (p->class[i] == BECOMING) {
      p->waits[i].conn = c;
      p->waits[i].life = c != NULL ? conn_kernel_sleep(c) : 0;
    }
  }
  atomic_thread_fence(memory_order_seq_cst);
  for (nfds_t i = 0; p->becoming > 0 && i < p->count; i++) {
    struct conn *c = p->class[i] == BECOMING ? p->waits[i].conn : NULL;
    if (c != NULL && (conn_kind(c) == BERTHA_CONN_CLAIMED ? conn_ripe(c, p->user[i].fd)
                                                          : conn_kind(c) == BERTHA_CONN_SHM)) {
      timeout = (struct timespec){0, 0}; /* it was tied before the other end could see us here */
      ns = 0;
    }
  }
  int result = ns == 0 && mask == NULL
                   ? QUIET(poll)(p->kernel, n, 0)
                   : sleep_ppoll(p->kernel, n, ns >= 0 ? &timeout : NULL, mask, cancelled, p);
  int error = errno;
  all_awake(p);
  if (result > 0 && bell_fd >= 0 && p->kernel[p->count].revents != 0) {
    result -= bell_drain(bell_fd);
  }
  return result >= 0 ? result : -error;
}

/* False: another thread sleeps on this very thing, or this one has no entry there. */
static bool place(const struct conn *c, _Atomic uint16_t *at, uint32_t index) {
  if (index == 0 || sleeper_elsewhere(c, atomic_load(at), index)) {
    return false;
  }
  atomic_store(at, (uint16_t)index);
  return true;
}

/* Registers this thread with every ring it waits for; false: there is no bell for what is waited for: sleep by the
 * clock. */
static bool arm(struct waiter *w, struct poll_call *p) {
  bool sure = true;
  bool out = false;
  for (nfds_t i = 0; i < p->count; i++) {
    out |= p->class[i] == RING && (p->user[i].events & (POLLOUT | POLLWRNORM));
    p->waits[i].conn = NULL;
  }
  waiter_want_bell(w, out);
  waiter_empty_bell(w);
  for (nfds_t i = 0; i < p->count; i++) {
    struct conn *c = p->class[i] == RING ? conn_of(p->user[i].fd) : NULL;
    if (c == NULL) {
      continue;
    }
    uint32_t index = waiter_sleeper(w, c->link);
    struct bertha_watch *watch = &c->slot->watch[c->side];
    if ((p->user[i].events & (POLLIN | POLLRDNORM)) && !place(c, &watch->rx, index)) {
      if (c->rcv_lowat > 1) { /* the byte would come with too little, and stay */
        sure = false;
      } else { /* as for anybody who waits in the kernel */
        p->waits[i].conn = c;
        p->waits[i].life = conn_kernel_sleep(c);
        conn_watch_kernel(c);
      }
    }
    if (p->user[i].events & (POLLOUT | POLLWRNORM)) {
      sure &= place(c, &watch->tx, index);
      if (conn_flags(c) & CONN_FIN) {
        bell_on_connection(c, p->user[i].fd);
      }
      sure &= w->bell != 0 && !(conn_flags(c) & CONN_CARRIED); /* as in wait.c */
      p->space = true;
    }
    if (index != 0 && !atomic_load_explicit(&c->link->sleepers[c->side][index].armed, memory_order_relaxed)) {
      sleeper_arm(&c->link->sleepers[c->side][index]);
    }
  }
  atomic_thread_fence(memory_order_seq_cst);
  for (nfds_t i = 0; i < p->count; i++) {
    struct conn *c = p->class[i] == RING ? conn_of(p->user[i].fd) : NULL;
    if (c != NULL) {
      borrow_end(c); /* by a set, meanwhile: it would not be told */
    }
  }
  return sure;
}

static int poll_rings(struct poll_call *p, int64_t timeout_ns, const sigset_t *mask) {
  struct waiter *w = waiter_get();
  int64_t begin = bertha_now_ns();
  int64_t deadline = timeout_ns >= 0 ? begin + timeout_ns : -1;
  int64_t bound = p->same_cpu ? 0 : p->bound;
  int64_t spin_end = begin + (w != NULL ? spin_budget(&w->spin, begin, bound) : 0);
  /* Under load the kernel is not asked at each call, as in an epoll set of ours: what it has is told of a moment later.  A
   * sleep asks it too; who may not sleep has to know now. */
  int64_t asked = w != NULL ? w->kernel_seen : begin - KERNEL_EVERY_NS;
  bool paced = timeout_ns != 0 && p->becoming == 0;
  int64_t kernel_next = paced ? asked + KERNEL_EVERY_NS : begin;
  int ready;
  bool first = true;
  bool unmasked = false;
  int64_t last = begin;
  for (;;) {
    ready = look_at_rings(p);
    int64_t now = first ? begin : bertha_now_ns();
    if (ready > 0 && (!first || (paced && now - asked < KERNEL_EVERY_NS))) {
      break; /* a descriptor that is always writable must not hide the end of its connection for ever */
    }
    bool over = deadline >= 0 && now >= deadline;
    if (now >= kernel_next || (over && mask != NULL && !unmasked)) {
      fill_kernel(p);
      /* With nothing ready, signals that the program lets in now come before the spin, and before the end. */
      int n = kernel_poll_call(p, -1, 0, ready == 0 ? mask : NULL);
      if (n == -EINTR && ready == 0 && mask != NULL) {
        return n;
      }
      unmasked |= ready == 0;
      kernel_next = now + KERNEL_EVERY_NS;
      if (w != NULL) {
        w->kernel_seen = now;
      }
      if (n > 0) {
        int others = take_kernel(p);
        ready = look_at_rings(p) + others;
      }
    }
    first = false;
    if (ready > 0 || over) {
      break;
    }
    if (now - last > SPIN_GAP_NS && w != NULL) {
      spin_lost_processor(&w->spin);
    }
    last = now;
    if (now < spin_end) {
      for (int i = 0; i < LOOKS_PER_CLOCK / 4; i++) {
        bertha_pause();
      }
      continue;
    }
    if (w == NULL) {
      ready = -ENOMEM;
      break;
    }
    bool sure = arm(w, p);
    p->armed = w;
    ready = look_at_rings(p);
    if (ready == 0) {
      fill_kernel(p);
      int64_t ns = deadline >= 0 ? (deadline > now ? deadline - now : 0) : -1;
      if (!sure || p->space) {
        ns = at_most(deadline, now, (sure ? SPACE_MS : NO_BELL_MS) * 1000000);
        ns = ns > 0 ? ns : 0;
      }
      int n = kernel_poll_call(p, w->bell_fd, trim_before_sleep(ns), mask);
      unplace(w, p);
      if (n < 0) {
        return n;
      }
      int others = take_kernel(p);
      if (p->becoming > 0) {
        classify(p);
        others = 0; /* what has come to the rings is judged there, the rest asked again */
        for (nfds_t i = 0; i < p->count; i++) {
          others += p->class[i] != RING && p->user[i].revents != 0;
        }
      }
      ready = look_at_rings(p) + others;
    } else {
      unplace(w, p);
    }
    if (ready > 0) {
      break;
    }
  }
  if (bound > 0 && w != NULL && timeout_ns != 0) {
    spin_learn(&w->spin, bertha_now_ns() - begin, bound);
  }
  return ready;
}

int wait_fds(struct pollfd *fds, nfds_t count, int64_t timeout_ns, const sigset_t *mask) {
  CANCELLATION_POINT();
  bool any = false;
  for (nfds_t i = 0; i < count; i++) {
    struct conn *c = fds[i].fd >= 0 ? conn_of(fds[i].fd) : NULL;
    if (c != NULL && is_stream(c)) {
      any = true;
    } else if (fds[i].fd >= 0) {
      eset_polled(fds[i].fd);
    }
  }
  struct timespec timeout = {timeout_ns / 1000000000, timeout_ns % 1000000000};
  if (LIKELY(!any)) {
    int n = REAL(ppoll)(fds, count, timeout_ns >= 0 ? &timeout : NULL, mask);
    return n >= 0 ? n : -errno;
  }
  uint8_t class_space[STACK_FDS];
  struct pollfd kernel_space[STACK_FDS + 1];
  struct kernel_wait wait_space[STACK_FDS];
  struct poll_call p = {
      .user = fds, .count = count, .class = class_space, .kernel = kernel_space, .waits = wait_space};
  if (count > STACK_FDS) {
    p.room = waiter_room((count + 1) * (sizeof(struct pollfd) + sizeof(struct kernel_wait)) + count);
    if (p.room.at == NULL) {
      return -ENOMEM;
    }
    p.waits = p.room.at;
    p.kernel = (struct pollfd *)(void *)(p.waits + count + 1);
    p.class = (uint8_t *)(p.kernel + count + 1);
  }
  for (nfds_t i = 0; i < count; i++) {
    fds[i].revents = 0;
  }
  classify(&p);
  int64_t begin = bertha_now_ns();
  int result;
  for (;;) {
    int64_t left = timeout_ns;
    if (timeout_ns > 0) {
      left = timeout_ns - (bertha_now_ns() - begin);
      left = left > 0 ? left : 0;
    }
    if (p.rings > 0) {
      result = poll_rings(&p, left, mask);
      break;
    }
    fill_kernel(&p);
    result = kernel_poll_call(&p, -1, left, mask);
    if (result < 0) {
      break;
    }
    result = take_kernel(&p);
    if (result == 0 && (timeout_ns == 0 || left == 0)) {
      break;
    }
    classify(&p); /* a bell byte may be all there is: then the connection has come to the rings */
    if (p.rings == 0 && result > 0) {
      break;
    }
  }
  waiter_room_back(&p.room);
  return result;
}
