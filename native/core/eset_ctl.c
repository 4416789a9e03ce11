/* epoll_ctl: what the program asks for is kept here; the kernel is told where it serves the member. */
#include "conn.h"
#include "eset_members.h"
#include "unixpair.h"

/* What may go with EPOLLEXCLUSIVE (epoll_ctl(2)). */
#define EXCLUSIVE_BITS (EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLWAKEUP | EPOLLET | EPOLLEXCLUSIVE)

static void clear_stale(struct eset *s, int fd, struct conn *c) {
  struct reg *r = &s->regs[fd];
  if (r->state == REG_SET) {
    if (r->inner != eset_of(fd)) {
      nest_drop(s, fd);
    }
    return;
  }
  if (r->state == REG_NONE || r->state == REG_GONE || (c != NULL && r->conn == conn_index(c) + 1)) {
    return;
  }
  r->state = REG_NONE; /* the number was closed and given out anew behind our back */
}

static int real_ctl(int epfd, int op, int fd, struct epoll_event *event) {
  return REAL(epoll_ctl)(epfd, op, fd, event) == 0 ? 0 : -errno;
}

static int other_descriptor(const struct eset *s, const struct conn *c, int fd) {
  for (struct slink *k = s->slinks; k != NULL; k = k->next) {
    if (k->link != c->link || k->fd[c->slot_index] == fd) {
      continue;
    }
    parted_end(k, c->slot_index); /* that one was taken out */
    if (k->in[c->slot_index / 64] >> (c->slot_index % 64) & 1) {
      return k->fd[c->slot_index];
    }
  }
  return -1;
}

static int ctl_add(struct eset *s, int fd, struct conn *c, struct epoll_event *event) {
  struct reg *r = &s->regs[fd];
  if (r->state == REG_RING || r->state == REG_KERNEL) {
    return -EEXIST;
  }
  uint32_t in = eset_entry(fd);
  const struct eset *other = eset_by_entry(in);
  bool many = in == SET_MANY || (other != NULL && other != s);
  int twin = conn_kind(c) == BERTHA_CONN_SHM ? other_descriptor(s, c, fd) : -1;
  r->stays = twin >= 0;
  if (twin >= 0) { /* a duplicate of it is in the set: the map of changes knows one descriptor only */
    eset_to_kernel(s, twin);
    s->regs[twin].stays = 1;
  }
  bool was_off = r->state == REG_OFF;
  r->events = event->events;
  r->data = event->data.u64;
  r->conn = conn_index(c) + 1;
  r->use += !was_off;
  bool exclusive = event->events & EPOLLEXCLUSIVE;
  if (was_off && !r->stays && !s->plain && conn_kind(c) == BERTHA_CONN_SHM &&
      (parted_again(r->slink, c->slot_index, exclusive) || share_join(r->slink, c->slot_index, exclusive))) {
    borrow_keep(c, s);
    r->state = REG_RING;
    r->slink->fd[c->slot_index] = fd;
    s->ring_count++;
    r->slink->count++;
    eset_ring_on(r->slink, c->slot_index);
    if (many) {
      eset_set_entry(fd, SET_MANY);
    }
    return 0;
  }
  if (was_off) {
    parted_end(r->slink, c->slot_index);
  }
  int op = was_off ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
  if (was_off && exclusive) { /* which cannot be modified */
    struct epoll_event none = {0};
    real_ctl(s->epfd, EPOLL_CTL_DEL, fd, &none);
    op = EPOLL_CTL_ADD;
  }
  if (!r->stays && !s->plain && conn_kind(c) == BERTHA_CONN_SHM) {
    int result = eset_to_ring(s, fd, c, op);
    if (result != -ENOSPC) {
      if (result == 0) {
        eset_set_entry(fd, many ? SET_MANY : eset_entry(s->epfd));
      }
      return result;
    }
    r->stays = 1;
  }
  eset_kernel_reg(s, c, 1); /* before the look: who ties it from now on sees us */
  atomic_thread_fence(memory_order_seq_cst);
  uint32_t now = conn_kind(c);
  if (now == BERTHA_CONN_SHM ||
      now == BERTHA_CONN_CLAIMED) { /* a claim: another thread may spin (wait_claimed) */
    conn_watch_kernel(c);
  }
  uint8_t before = r->state;
  r->fired = r->held = 0;
  r->ready = 0;
  struct epoll_event e = eset_kernel_event(r, fd);
  r->state = REG_KERNEL; /* first: a thread that sleeps in the set may have the event before we are back */
  int result = was_off ? eset_kernel_mod(s, fd, &e) : real_ctl(s->epfd, op, fd, &e);
  if (result != 0) {
    r->state = before;
    eset_kernel_reg(s, c, -1);
    conn_refresh_watch(c);
  } else {
    eset_set_entry(fd, many ? SET_MANY : eset_entry(s->epfd));
    if (conn_kind(c) == BERTHA_CONN_SHM) {
      eset_queue_upgrade(s, fd);
    }
  }
  return result;
}

static int ctl_mod(struct eset *s, int fd, struct conn *c, struct epoll_event *event) {
  struct reg *r = &s->regs[fd];
  if (r->state != REG_KERNEL && r->state != REG_RING) {
    return r->state == REG_OFF ? -ENOENT : real_ctl(s->epfd, EPOLL_CTL_MOD, fd, event);
  }
  if (r->events & EPOLLEXCLUSIVE) {
    return -EINVAL; /* it stays as it was added */
  }
  if (r->state == REG_KERNEL) {
    struct reg before = *r;
    r->events = event->events;
    r->data = event->data.u64;
    r->fired = r->held = 0;
    r->ready = 0;
    if (conn_kind(c) == BERTHA_CONN_SHM && !s->plain && !r->stays &&
        eset_to_ring(s, fd, c, EPOLL_CTL_MOD) == 0) {
      eset_kernel_reg(s, c, -1);
      conn_refresh_watch(c);
      return 0;
    }
    struct epoll_event e = eset_kernel_event(r, fd);
    int result = before.fired ? eset_kernel_mod(s, fd, &e) : real_ctl(s->epfd, EPOLL_CTL_MOD, fd, &e);
    if (result != 0) {
      *r = before;
    }
    return result;
  }
  bool pri = (r->events ^ event->events) & EPOLLPRI;
  r->events = event->events;
  r->data = event->data.u64;
  eset_ring_on(r->slink, c->slot_index);
  if (pri) {
    r->kernel_out = 0;
    struct epoll_event e = {.events = eset_sticky(r->events), .data.u64 = reg_data(r, fd)};
    return real_ctl(s->epfd, EPOLL_CTL_MOD, fd, &e);
  }
  return 0;
}

static int ctl_del(struct eset *s, int fd, struct conn *c, struct epoll_event *event) {
  struct reg *r = &s->regs[fd];
  if (r->state != REG_KERNEL && r->state != REG_RING) {
    return r->state == REG_OFF ? -ENOENT : real_ctl(s->epfd, EPOLL_CTL_DEL, fd, event);
  }
  if (r->state == REG_KERNEL) {
    int result = real_ctl(s->epfd, EPOLL_CTL_DEL, fd, event);
    result = result == -ENOENT && r->fired ? 0 : result;
    r->state = REG_NONE;
    eset_kernel_reg(s, c, -1);
    if (eset_entry(fd) != SET_MANY) {
      eset_set_entry(fd, 0);
    }
    conn_refresh_watch(c);
    return result;
  }
  eset_take_out(s, r, c);
  return 0;
}

/* In a set of which we keep no books: its peer rings, and goes on ringing. */
static void kernels_for_good(struct conn *c, uint32_t kind) {
  if (c == NULL || (kind != BERTHA_CONN_SHM && kind != BERTHA_CONN_CLAIMED && kind != BERTHA_CONN_MAYBE)) {
    return;
  }
  atomic_fetch_add(&c->kernel_regs, 1);
  atomic_thread_fence(memory_order_seq_cst);
  if (conn_kind(c) == BERTHA_CONN_SHM || conn_kind(c) == BERTHA_CONN_CLAIMED) {
    conn_watch_kernel(c);
  }
}

int eset_ctl(int epfd, int op, int fd, struct epoll_event *event) {
  struct conn *c = conn_of(fd);
  uint32_t kind = c != NULL ? conn_kind(c) : BERTHA_CONN_FREE;
  if (kind == BERTHA_CONN_UNIX && op == EPOLL_CTL_ADD && !unix_swapped(c)) {
    unix_settle(c, fd);
  }
  struct eset *s = eset_of(epfd);
  bool known = s != NULL && (unsigned)fd < ESET_FDS && s->regs[fd].state != REG_NONE;
  int nested;
  if (c == NULL && nest_ctl(epfd, op, fd, event, &nested)) {
    return nested;
  }
  if (c == NULL && op == EPOLL_CTL_ADD) {
    eset_polled(fd); /* a set within a set, but not one whose rings its outer set looks at */
  }
  if (!known &&
      (kind == BERTHA_CONN_FREE || kind == BERTHA_CONN_LISTENER || kind == BERTHA_CONN_PLAIN ||
       (kind == BERTHA_CONN_UNIX && unix_swapped(c)) || (unsigned)fd >= ESET_FDS || op != EPOLL_CTL_ADD)) {
    if ((unsigned)fd >= ESET_FDS && op == EPOLL_CTL_ADD) {
      kernels_for_good(c, kind); /* a number too high for us */
    }
    return real_ctl(epfd, op, fd, event);
  }
  if (op != EPOLL_CTL_DEL && event == NULL) {
    return -EFAULT;
  }
  if (op != EPOLL_CTL_DEL && (event->events & EPOLLEXCLUSIVE) &&
      (op == EPOLL_CTL_MOD || (event->events & ~EXCLUSIVE_BITS) != 0)) {
    return eset_of(epfd) != NULL ? -EINVAL : real_ctl(epfd, op, fd, event); /* EBADF, perhaps */
  }
  if (s == NULL && conn_of(epfd) == NULL && !bertha_is_hidden(epfd)) {
    s = eset_new(epfd);
  }
  if (s == NULL || !bertha_lock(&s->lock)) {
    if (op == EPOLL_CTL_ADD) {
      kernels_for_good(c, kind); /* more sets than we have room for */
    }
    return real_ctl(epfd, op, fd, event);
  }
  if (s->inherited) {
    eset_adopt(s);
  }
  clear_stale(s, fd, c);
  if (c != NULL && kind == BERTHA_CONN_CLAIMED) {
    bertha_unlock(&s->lock); /* it may have come to the rings by now */
    conn_ripe(c, fd);
    bertha_lock(&s->lock);
    eset_upgrade_queued(s);
  }
  int result;
  if (c == NULL) {
    result = real_ctl(epfd, op, fd, event);
  } else if (op == EPOLL_CTL_ADD) {
    result = ctl_add(s, fd, c, event);
  } else if (op == EPOLL_CTL_MOD) {
    result = ctl_mod(s, fd, c, event);
  } else if (op == EPOLL_CTL_DEL) {
    result = ctl_del(s, fd, c, event);
  } else {
    result = real_ctl(epfd, op, fd, event);
  }
  if (result == 0 && op == EPOLL_CTL_ADD && c != NULL && conn_kind(c) == BERTHA_CONN_CLAIMED) {
    bertha_unlock(&s->lock); /* what came before the other end knew that it has to ring (wait_claimed) */
    conn_ripe(c, fd);
    bertha_lock(&s->lock);
    eset_upgrade_queued(s);
  }
  if (result == 0 && op != EPOLL_CTL_DEL && c != NULL && s->regs[fd].state == REG_RING) {
    eset_pass_on(s); /* a thread that sleeps in the set must see the new interest */
  }
  bertha_unlock(&s->lock);
  return result;
}
