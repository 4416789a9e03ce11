/* A set within a set.
 *
 * The kernel tells the outer one of what the kernel has for the inner one.  What the inner one's rings have is found by
 * looking there: whoever waits for the outer set looks at the inner sets' rings as well, and before it sleeps it is counted
 * among the sleepers of each of them, whose bell, or a byte on a connection, makes the inner descriptor readable for the
 * outer set.  So what wakes is the kernel's, and needs no rule of ours.  What the kernel then says of the inner set is judged
 * again: its bell may have rung for what somebody else has read.
 *
 * One level only: an outer set that is itself in a set, a set that has sets already, and EPOLLONESHOT (which the kernel
 * would not know to have fired) are left to the kernel, as is a set that poll() waits for.
 *
 * The lock of an outer set is taken before that of an inner one. */
#include <sys/epoll.h>

#include "conn.h"
#include "eset_members.h"
#include "eset_wait.h"

#define READABLE (EPOLLIN | EPOLLRDNORM)

static _Atomic uint32_t
    nesting; /* so that two sets do not come into each other's way, each within another one */

void nest_after_fork(void) {
  atomic_store(&nesting, 0);
}

/* False: not to be looked at just now, by a signal handler of the thread that does. */
static bool enter(struct eset *inner) {
  if (!bertha_lock(&inner->lock)) {
    return false;
  }
  if (inner->inherited) {
    eset_adopt(inner);
  }
  kin_enter(inner);
  eset_upgrade_queued(inner);
  return true;
}

static struct reg *inner_reg(const struct eset *s, unsigned i) {
  return &s->regs[s->inner_fd[i]];
}

bool nest_has_rings(const struct eset *s) {
  for (unsigned i = 0; i < s->inner_count; i++) {
    if (inner_reg(s, i)->inner->ring_count > 0) {
      return true;
    }
  }
  return false;
}

void nest_all_told(struct eset *s) {
  for (unsigned i = 0; i < s->inner_count; i++) {
    inner_reg(s, i)->just = 0;
  }
}

/* An edge of the inner set is any change of a member that leaves something to be told of. */
static bool tells(struct reg *r, bool ready, uint32_t news) {
  bool fresh = news != r->seen;
  r->seen = news;
  return ready && (fresh || !(r->events & EPOLLET));
}

int nest_collect(struct eset *s, struct epoll_event *events, int max) {
  int n = 0;
  for (unsigned i = 0; i < s->inner_count && n < max; i++) {
    struct reg *r = inner_reg(s, (s->inner_turn + i) % s->inner_count);
    if (r->just || r->inner->ring_count == 0 || !enter(r->inner)) {
      continue;
    }
    bool ready = eset_peek(r->inner);
    uint32_t news = r->inner->news;
    bertha_unlock(&r->inner->lock);
    if (tells(r, ready, news) && (r->events & READABLE)) {
      events[n].events = r->events & READABLE;
      events[n++].data.u64 = r->data;
    }
  }
  s->inner_turn++;
  nest_all_told(s);
  return n;
}

bool nest_changed(struct eset *s) {
  bool found = false;
  for (unsigned i = 0; i < s->inner_count && !found; i++) {
    struct eset *inner = inner_reg(s, i)->inner;
    if (inner->ring_count > 0 && bertha_try_lock(&inner->lock)) {
      found = eset_changed(inner);
      bertha_unlock(&inner->lock);
    }
  }
  return found;
}

int64_t nest_spin_bound(struct eset *s) {
  int64_t bound = 0;
  for (unsigned i = 0; i < s->inner_count; i++) {
    struct eset *inner = inner_reg(s, i)->inner;
    if (inner->ring_count > 0 && enter(inner)) {
      int64_t b = eset_spin_bound(inner);
      bound = b > bound ? b : bound;
      bertha_unlock(&inner->lock);
    }
  }
  return bound;
}

/* ---- asleep -------------------------------------------------------------------------------------- */

void nest_asleep(struct eset *s, struct nap *nap) {
  for (unsigned i = 0; i < s->inner_count; i++) {
    struct eset *inner = inner_reg(s, i)->inner;
    if (enter(inner)) {
      if (inner->ring_count > 0) {
        eset_want_bell(inner);
      }
      atomic_fetch_add(&inner->asleep, 1);
      inner->asleep_outside++;
      nap->kicked |= inner->kicked != 0;
      nap->inner[nap->count].deep = !inner->kin;
      inner->deep += !inner->kin;
      eset_set_armed(inner, 1);
      nap->inner[nap->count].set = inner;
      nap->inner[nap->count++].life = inner->life;
      bertha_unlock(&inner->lock);
    }
  }
}

static void no_longer_deep(struct eset *s, bool deep) {
  if (deep && s->deep > 0) {
    s->deep--;
  }
}

void nest_awake(struct nap *nap) {
  no_longer_deep(nap->set, nap->deep);
  nap->deep = false;
  for (unsigned i = 0; i < nap->count; i++) {
    struct eset *inner = nap->inner[i].set;
    if (bertha_lock(&inner->lock)) {
      if (inner->life == nap->inner[i].life) { /* else it was closed meanwhile */
        atomic_fetch_sub(&inner->asleep, 1);
        inner->asleep_outside--;
        no_longer_deep(inner, nap->inner[i].deep);
        eset_woken(inner);
      }
      bertha_unlock(&inner->lock);
    }
  }
  nap->count = 0;
}

int64_t nest_sleep_cap(struct nap *nap, int64_t cap) {
  for (unsigned i = 0; i < nap->count; i++) {
    struct eset *inner = nap->inner[i].set;
    if (bertha_lock(&inner->lock)) {
      int64_t other = inner->ring_count > 0 ? eset_sleep_cap(inner) : -1;
      cap = other >= 0 && (cap < 0 || other < cap) ? other : cap;
      bertha_unlock(&inner->lock);
    }
  }
  return cap;
}

void nest_pass_on(struct eset *s) {
  for (unsigned i = 0; i < s->inner_count; i++) {
    struct eset *inner = inner_reg(s, i)->inner;
    if (inner->ring_count > 0 && enter(inner)) {
      eset_pass_on(inner);
      bertha_unlock(&inner->lock);
    }
  }
}

/* The bell is never read by those who sleep in the inner set itself: they get its edge, and that takes it off.  Where there
 * are none, it is read here, or the inner set would be readable until somebody waits for it. */
uint32_t nest_judge(struct reg *r, uint32_t seen) {
  struct eset *inner = r->inner;
  if ((inner->ring_count == 0 && inner->bell_fd < 0) || !enter(inner)) {
    return seen;
  }
  if (inner->bell_fd >= 0 && atomic_load(&inner->asleep) == inner->asleep_outside) {
    bell_drain(inner->bell_fd);
  }
  bool tell = tells(r, eset_peek(inner), inner->news);
  if (!tell) {
    tell = kin_readable(inner);
  }
  bertha_unlock(&inner->lock);
  r->just = tell;
  return tell ? seen : 0;
}

/* ---- members ------------------------------------------------------------------------------------- */

void nest_drop(struct eset *s, int fd) {
  struct reg *r = &s->regs[fd];
  for (unsigned i = 0; i < s->inner_count; i++) {
    if (s->inner_fd[i] == fd) {
      s->inner_fd[i] = s->inner_fd[--s->inner_count];
      break;
    }
  }
  atomic_fetch_sub(&r->inner->outers, 1);
  r->inner = NULL;
  r->state = REG_NONE;
}

void nest_drop_all(struct eset *s) {
  while (s->inner_count > 0) {
    nest_drop(s, s->inner_fd[0]);
  }
}

void nest_give(struct eset *s, int fd) {
  const struct reg *r = &s->regs[fd];
  struct epoll_event e = {.events = r->events, .data.u64 = r->data};
  REAL(epoll_ctl)(s->epfd, EPOLL_CTL_MOD, fd, &e);
  nest_drop(s, fd);
}

static int tell_kernel(struct eset *s, int op, int fd, const struct epoll_event *event) {
  struct epoll_event e = {.events = event->events, .data.u64 = reg_data(&s->regs[fd], fd)};
  return REAL(epoll_ctl)(s->epfd, op, fd, &e) == 0 ? 0 : -errno;
}

/* Threads that sleep in the outer set do not hear the inner one's bell yet. */
static bool may_be_within(struct eset *s, struct eset *inner) {
  if (s == inner || s->plain || inner->plain || atomic_load(&s->outers) != 0 || inner->inner_count != 0 ||
      s->inner_count == INNER_MOST) {
    return false;
  }
  if (atomic_load(&s->asleep) != 0) {
    eset_want_bell(s);
  }
  return atomic_load(&s->asleep) == 0 || s->bell_fd >= 0;
}

/* With the locks held. */
static bool add(struct eset *s, int fd, struct eset *inner, struct epoll_event *event, int *result) {
  struct reg *r = &s->regs[fd];
  if (r->state == REG_SET && r->inner != inner) {
    nest_drop(s, fd); /* the number was closed and given out anew behind our back */
  }
  if (r->state == REG_SET) {
    *result = -EEXIST;
    return true;
  }
  if (!may_be_within(s, inner)) {
    return false;
  }
  r->use++;
  *result = tell_kernel(s, EPOLL_CTL_ADD, fd, event);
  if (*result != 0) {
    return true;
  }
  r->events = event->events;
  r->data = event->data.u64;
  r->inner = inner;
  r->conn = 0;
  r->fired = r->lent = r->just = 0;
  r->seen = inner->news - 1;
  r->state = REG_SET;
  s->inner_fd[s->inner_count++] = fd;
  atomic_fetch_add(&inner->outers, 1);
  borrow_end_all(inner);
  borrow_end_all(s);
  uint64_t one = 1;
  int saved = errno;
  if (atomic_load(&s->asleep) != 0 && QUIET(write)(s->bell_fd, &one, sizeof one) < 0) {
    errno = saved;
  }
  return true;
}

static bool add_within(int epfd, int fd, struct epoll_event *event, int *result) {
  if (event == NULL || (event->events & (EPOLLONESHOT | EPOLLEXCLUSIVE)) || (unsigned)fd >= ESET_FDS ||
      epfd == fd || (unsigned)epfd >= BERTHA_FDS || eset_entry(epfd) == 0 || conn_of(epfd) != NULL ||
      bertha_is_hidden(epfd) || eset_entry(fd) == SET_PLAIN) {
    return false;
  }
  struct eset *inner = eset_of(fd) != NULL ? eset_of(fd) : eset_new(fd);
  struct eset *s = eset_of(epfd) != NULL ? eset_of(epfd) : eset_new(epfd);
  if (inner == NULL || s == NULL || !bertha_lock(&nesting)) {
    return false;
  }
  bool within = false;
  if (bertha_lock(&s->lock)) {
    if (s->inherited) {
      eset_adopt(s);
    }
    if (s != inner && enter(inner)) {
      within = add(s, fd, inner, event, result);
      bertha_unlock(&inner->lock);
    }
    bertha_unlock(&s->lock);
  }
  bertha_unlock(&nesting);
  return within;
}

bool nest_ctl(int epfd, int op, int fd, struct epoll_event *event, int *result) {
  uint32_t e = eset_entry(fd);
  if (op == EPOLL_CTL_ADD && e != 0 && e != SET_HIDDEN) {
    return add_within(epfd, fd, event, result);
  }
  struct eset *s = eset_of(epfd);
  if (s == NULL || (unsigned)fd >= ESET_FDS || s->regs[fd].state != REG_SET || !bertha_lock(&s->lock)) {
    return false;
  }
  struct reg *r = &s->regs[fd];
  struct eset *to_kernel = NULL;
  bool ours = r->state == REG_SET;
  if (ours && op == EPOLL_CTL_DEL) {
    *result = REAL(epoll_ctl)(s->epfd, op, fd, NULL) == 0 ? 0 : -errno;
    nest_drop(s, fd);
  } else if (ours && op == EPOLL_CTL_MOD && event == NULL) {
    *result = -EFAULT;
  } else if (ours && op == EPOLL_CTL_MOD && (event->events & (EPOLLONESHOT | EPOLLEXCLUSIVE))) {
    to_kernel = r->inner;
    nest_drop(s, fd);
    ours = false;
  } else if (ours && op == EPOLL_CTL_MOD) {
    *result = tell_kernel(s, op, fd, event);
    if (*result == 0) {
      r->events = event->events;
      r->data = event->data.u64;
      r->seen = r->inner->news - 1;
      eset_pass_on(s); /* who sleeps may have something to tell now */
    }
  } else {
    ours = false;
  }
  bertha_unlock(&s->lock);
  if (to_kernel != NULL) {
    eset_plain(to_kernel);
  }
  return ours;
}
