/* poll, select and epoll on sockets that have pairs: the boxes first, the kernel with each look that finds something and
 * now and then, asleep in the kernel when there is nothing. */
#include <string.h>

#include "local.h"
#include "waiter.h"

enum { AT_ONCE = 256, IN = LOCAL_IN };
#define KERNEL_EVERY_NS 20000

struct found {
  struct local *local[AT_ONCE];
  uint32_t life[AT_ONCE];
  unsigned count;
};

/* False: another thread has closed it meanwhile. */
static bool lock(struct found *f, unsigned i) {
  struct local *d = f->local[i];
  if (!bertha_lock(&d->lock)) {
    return false;
  }
  if (d->c == NULL || atomic_load(&d->life) != f->life[i]) {
    bertha_unlock(&d->lock);
    return false;
  }
  return true;
}

static void unlock(struct found *f, unsigned i) {
  bertha_unlock(&f->local[i]->lock);
}

static bool any_ready(struct found *f) {
  for (unsigned i = 0; i < f->count; i++) {
    if (local_ready(f->local[i])) {
      return true;
    }
  }
  return false;
}

/* The kernel need not be asked with every look that finds something else. */
static bool kernel_is_due(struct found *f) {
  int64_t now = bertha_now_ns();
  if (now - f->local[0]->asked < KERNEL_EVERY_NS) {
    return false;
  }
  f->local[0]->asked = now;
  return true;
}

/* Served by boxes; who is not any more, is looked at until they are empty. */
static void include(struct found *f, struct local *d, int epfd) {
  if (!bertha_lock(&d->lock)) {
    return;
  }
  if (UNLIKELY(epfd >= 0 && (d->watched.epfd != epfd || d->edge_over ||
                             !(d->watched.events & IN)))) { /* it was another socket's a moment ago */
    bertha_unlock(&d->lock);
    return;
  }
  if (d->c != NULL && f->count == AT_ONCE) {
    local_keep_out(d);
  } else if (d->c != NULL) {
    local_alone(
        d); /* who sleeps here is the one that is to be woken, also by what comes from the first pair */
    d->watched.waited |= epfd >= 0;
    if (d->pair_count > 0) {
      f->life[f->count] = atomic_load(&d->life);
      f->local[f->count++] = d;
    }
  }
  bertha_unlock(&d->lock);
}

/* False: something came in the last moment. */
static bool fall_asleep(struct found *f) {
  for (unsigned i = 0; i < f->count; i++) {
    bool asleep = true;
    if (lock(f, i)) {
      asleep = local_fall_asleep(f->local[i]);
      unlock(f, i);
    }
    if (!asleep) {
      while (i-- > 0) {
        if (lock(f, i)) {
          local_awake(f->local[i]);
          unlock(f, i);
        }
      }
      return false;
    }
  }
  return true;
}

static void wake_up(struct found *f) {
  for (unsigned i = 0; i < f->count; i++) {
    if (lock(f, i)) {
      local_awake(f->local[i]);
      unlock(f, i);
    }
  }
}

static int64_t unread(struct found *f) {
  int64_t ns = 0;
  for (unsigned i = 0; i < f->count; i++) {
    if (lock(f, i)) {
      int64_t own = local_waits_for_readers(f->local[i]);
      ns = ns == 0 || (own > 0 && own < ns) ? own : ns;
      unlock(f, i);
    }
  }
  return ns;
}

static void rescue(struct found *f) {
  for (unsigned i = 0; i < f->count; i++) {
    if (lock(f, i)) {
      local_rescue(f->local[i], false);
      unlock(f, i);
    }
  }
}

struct kernel { /* the wait of everything else */
  int (*wait)(void *self, int64_t timeout_ns);
};

/* Until a box is ready, or the kernel's wait says something; what that says. */
static int wait_for(struct found *f, struct kernel *k, int64_t timeout_ns) {
  struct waiter *w = waiter_get();
  int64_t bound = 0;
  for (unsigned i = 0; i < f->count && w != NULL; i++) {
    int64_t b = local_spin_bound(f->local[i]);
    bound = b > bound ? b : bound;
  }
  int64_t begin = bound > 0 || timeout_ns >= 0 ? bertha_now_ns() : 0; /* nobody else looks at the clock */
  int64_t deadline = timeout_ns >= 0 ? begin + timeout_ns : -1;
  int64_t budget = bound > 0 ? spin_budget(&w->spin, begin, bound) : 0;
  int64_t now = begin;
  int64_t asked = begin;
  int n = 0;
  bool ready = false;
  while (!ready && n == 0 && now - begin < budget && (deadline < 0 || now < deadline)) {
    for (int i = 0; i < LOOKS_PER_CLOCK && !ready; i++) {
      bertha_pause();
      ready = any_ready(f);
    }
    int64_t last = now;
    now = bertha_now_ns();
    if (!ready && now - asked >= KERNEL_EVERY_NS) {
      asked = now;
      n = k->wait(k, 0);
    }
    if (now - last > SPIN_GAP_NS) {
      spin_lost_processor(&w->spin);
      break;
    }
  }
  if (budget > 0) {
    spin_learn(&w->spin, ready || n != 0 ? bertha_now_ns() - begin : 2 * bound, bound);
  }
  while (!ready && n == 0) {
    if (!fall_asleep(f)) {
      ready = any_ready(f); /* or it has been taken back, and comes by the kernel */
      continue;
    }
    int64_t ns = deadline < 0 ? -1 : deadline - bertha_now_ns();
    ns = deadline >= 0 && ns < 0 ? 0 : ns;
    int64_t watch = unread(f);
    bool cut = watch > 0 && (ns < 0 || ns > watch);
    n = k->wait(k, cut ? watch : ns);
    int saved = errno;
    wake_up(f);
    if (watch > 0 && n == 0) {
      rescue(f);
    }
    errno = saved;
    ready = any_ready(f);
    if (!cut && n == 0 && deadline >= 0) {
      break;
    }
  }
  return n;
}

/* Who put something into a box may have taken it back: then the wait goes on. */
static bool out_of_time(int64_t deadline, int64_t *timeout_ns) {
  if (deadline > 0) {
    *timeout_ns = deadline - bertha_now_ns();
  }
  return deadline >= 0 && *timeout_ns <= 0;
}

/* ---- poll and select ------------------------------------------------------------------------------ */

static struct local *at(int fd) {
  struct conn *c = conn_of(fd);
  return UNLIKELY(c != NULL && (conn_flags(c) & CONN_LOCAL)) ? local_of(c) : NULL;
}

bool local_polled(const struct pollfd *fds, nfds_t count) {
  bool any = false;
  for (nfds_t i = 0; i < count; i++) {
    any |= at(fds[i].fd) != NULL;
    if (UNLIKELY(local_in_sets()) && fds[i].fd >= 0 && conn_of(fds[i].fd) == NULL) {
      local_keep_members_out(fds[i].fd);
      any |= (fds[i].events & IN) && local_ready_member(fds[i].fd) != NULL;
    }
  }
  return any;
}

static bool any_set_ready(const struct pollfd *fds, nfds_t count) {
  for (nfds_t i = 0; i < count && UNLIKELY(local_in_sets()); i++) {
    if (fds[i].fd >= 0 && (fds[i].events & IN) && local_ready_member(fds[i].fd) != NULL) {
      return true;
    }
  }
  return false;
}

struct poll_wait {
  struct kernel kernel;
  struct pollfd *fds;
  nfds_t count;
  const sigset_t *mask;
};

static int kernel_poll(void *self, int64_t timeout_ns) {
  struct poll_wait *p = self;
  return wait_fds(p->fds, p->count, timeout_ns, timeout_ns == 0 ? NULL : p->mask);
}

static int add_boxes(struct pollfd *fds, nfds_t count, int n, bool asked) {
  for (nfds_t i = 0; i < count; i++) {
    struct local *d = fds[i].events & IN ? at(fds[i].fd) : NULL;
    struct local *member =
        d == NULL && fds[i].fd >= 0 && (fds[i].events & IN) ? local_ready_member(fds[i].fd) : NULL;
    if (UNLIKELY(member != NULL) && !(fds[i].revents & IN) && local_tell(member)) {
      n += fds[i].revents == 0;
      fds[i].revents |= fds[i].events & IN;
    }
    if (d != NULL) {
      if (fds[i].revents & IN) {
        d->empty = 0;
      } else if (asked) {
        local_kernel_empty(d);
      }
      if (!(fds[i].revents & IN) && local_tell(d)) {
        n += fds[i].revents == 0;
        fds[i].revents |= fds[i].events & IN;
      }
    }
  }
  return n;
}

int local_poll(struct pollfd *fds, nfds_t count, int64_t timeout_ns, const sigset_t *mask) {
  struct found f;
  f.count = 0;
  for (nfds_t i = 0; i < count; i++) {
    struct local *d = fds[i].events & IN ? at(fds[i].fd) : NULL;
    if (d != NULL) {
      include(&f, d, -1);
    }
  }
  struct poll_wait p = {{kernel_poll}, fds, count, mask};
  bool more = false; /* is asked for that only the kernel can tell */
  for (nfds_t i = 0; i < count; i++) {
    more |= fds[i].fd >= 0 && (fds[i].events & ~IN) != 0;
  }
  int64_t deadline = timeout_ns > 0 ? bertha_now_ns() + timeout_ns : timeout_ns;
  for (;;) {
    bool told = any_set_ready(fds, count);
    if (f.count == 0 && !told) {
      return wait_fds(fds, count, timeout_ns, mask);
    }
    bool ready = told || any_ready(&f);
    bool due = false;
    int n = 0;
    if (ready || timeout_ns == 0) {
      due = timeout_ns == 0 || more || told || kernel_is_due(&f); /* who does not wait is to know now */
      n = due ? wait_fds(fds, count, 0, mask) : 0;
    } else {
      n = wait_for(&f, &p.kernel, timeout_ns);
      n = n == 0 && more ? wait_fds(fds, count, 0, mask) : n;
    }
    for (nfds_t i = 0; i < count && n == 0; i++) { /* what is there may be of an earlier look */
      fds[i].revents = 0;
    }
    n = n < 0 ? n : add_boxes(fds, count, n, due);
    if (n != 0 || out_of_time(deadline, &timeout_ns)) {
      return n;
    }
  }
}

/* ---- epoll ---------------------------------------------------------------------------------------- */

struct set_wait {
  struct kernel kernel;
  int epfd;
  struct epoll_event *events;
  int max; /* of what is the kernel's */
  int most;
  const sigset_t *mask;
  local_epoll_wait *wait;
};

static int kernel_epoll(void *self, int64_t timeout_ns) {
  struct set_wait *s = self;
  return s->wait(s->epfd, s->events, s->max, timeout_ns, timeout_ns == 0 ? NULL : s->mask);
}

/* What the program has been told of by an edge, and leaves where it is, is not told again.  From here on the kernel keeps
 * these books: what comes sends what lies there before it. */
static bool told_before(struct found *f, unsigned i) {
  struct local *d = f->local[i];
  if (!lock(f, i)) {
    return true;
  }
  const struct pair *p = local_next(d);
  bool again = p != NULL && p == d->edge_pair && p->head == d->edge_head;
  d->edge_pair = p;
  d->edge_head = p != NULL ? p->head : 0;
  if (again) {
    local_keep_out(d);
    d->edge_over = true;
  }
  unlock(f, i);
  return again;
}

static void forget_told(struct found *f) {
  for (unsigned i = 0; i < f->count;) {
    if (UNLIKELY(f->local[i]->edge_over)) {
      f->local[i] = f->local[--f->count];
      f->life[i] = f->life[f->count];
    } else {
      i++;
    }
  }
}

/* Told once. */
static void off(struct local *d, int epfd) {
  struct epoll_event none = {.events = EPOLLONESHOT, .data.u64 = d->watched.data};
  d->watched.events = EPOLLONESHOT;
  REAL(epoll_ctl)(epfd, EPOLL_CTL_MOD, d->fd, &none);
}

static int add_events(struct found *f, const struct set_wait *s, int n, bool asked) {
  struct epoll_event *events = s->events;
  int max = s->most;
  for (unsigned i = 0; i < f->count; i++) {
    struct local *d = f->local[i];
    const struct watched w = d->watched;
    atomic_thread_fence(memory_order_acquire);
    if (UNLIKELY(atomic_load_explicit(&d->life, memory_order_relaxed) != f->life[i] || w.epfd != s->epfd)) {
      continue; /* another thread has closed it: its record may be another socket's, in another set */
    }
    uint32_t in = w.events & IN;
    int at = 0;
    while (at < n && events[at].data.u64 != w.data) {
      at++;
    }
    bool kernel = at < n && (events[at].events & IN);
    if (at < n && UNLIKELY(w.events & EPOLLONESHOT)) {
      d->watched.events = EPOLLONESHOT;
    }
    if (kernel) {
      d->empty = 0; /* until a receive finds out */
    } else if (asked && n < max && !(w.events & EPOLLET)) {
      local_kernel_empty(d);
    }
    if (in == 0 || kernel || !local_ready(d) || (at == n && n == max) ||
        (UNLIKELY(w.events & EPOLLET) && told_before(f, i)) || !local_tell(d)) {
      continue;
    }
    if (at == n) {
      events[n].events = 0;
      events[n++].data.u64 = w.data;
    }
    events[at].events |= in;
    if (UNLIKELY(w.events & EPOLLONESHOT)) {
      off(d, s->epfd);
    }
  }
  return n;
}

static int wait_in_set(int epfd, struct epoll_event *events, int max, int64_t timeout_ns,
                       const sigset_t *mask, local_epoll_wait *wait) {
  struct found f;
  bool more = false;
  f.count = 0;
  for (struct local *d = local_first(); d != NULL && max > 0; d = d->next) {
    if (d->watched.epfd == epfd && d->c != NULL) {
      include(&f, d, epfd);
      more |= (d->watched.events & (EPOLLOUT | EPOLLWRNORM)) != 0;
    }
  }
  if (f.count == 0) {
    return wait(epfd, events, max, timeout_ns, mask);
  }
  struct set_wait s = {{kernel_epoll}, epfd, events, max, max, mask, wait};
  int64_t deadline = timeout_ns > 0 ? bertha_now_ns() + timeout_ns : timeout_ns;
  for (;;) {
    bool ready = any_ready(&f);
    bool due = false;
    int n = 0;
    s.max = ready && max > 1 ? max / 2 : max; /* neither keeps the other from being told of */
    if (ready || timeout_ns == 0) {
      due = (timeout_ns == 0 || more || kernel_is_due(&f)) &&
            !(ready && max == 1 && f.local[0]->turn++ % 2 == 0);
      n = due ? kernel_epoll(&s, 0) : 0;
    } else {
      n = wait_for(&f, &s.kernel, timeout_ns);
      n = n == 0 && more ? kernel_epoll(&s, 0) : n;
    }
    n = n < 0 ? n : add_events(&f, &s, n, due && n < s.max);
    if (n != 0 || out_of_time(deadline, &timeout_ns)) {
      return n;
    }
    forget_told(&f);
    if (UNLIKELY(f.count == 0)) {
      return wait(epfd, events, max, timeout_ns, mask);
    }
  }
}

static bool lies_within(int epfd) {
  for (struct local *d = local_first(); d != NULL; d = d->next) {
    if (d->outer.epfd == epfd && d->c != NULL && local_ready(d)) {
      return true;
    }
  }
  return false;
}

/* What lay in a member's box when its set was put into this one, or got this number as well: told of until it has been read. */
static int add_within(int epfd, struct epoll_event *events, int max, int n) {
  for (struct local *d = local_first(); d != NULL && n >= 0; d = d->next) {
    const struct watched o = d->outer;
    int at = 0;
    if (o.epfd != epfd || d->c == NULL || !local_tell(d)) {
      continue;
    }
    while (at < n && events[at].data.u64 != o.data) {
      at++;
    }
    if (at == max) {
      continue;
    }
    if (at == n) {
      events[n++] = (struct epoll_event){.data.u64 = o.data};
    }
    events[at].events |= o.events & IN;
    if (o.events & (EPOLLET | EPOLLONESHOT)) {
      d->outer.epfd = -1; /* once */
    }
  }
  return n;
}

/* Something lies in the boxes of a socket whose registration does not ask for it now. */
static bool lies_there(int epfd) {
  for (struct local *d = local_first(); d != NULL; d = d->next) {
    if (UNLIKELY(d->watched.epfd == epfd && !(d->watched.events & IN) && d->c != NULL) && local_ready(d)) {
      return true;
    }
  }
  return false;
}

int local_epoll(int epfd, struct epoll_event *events, int max, int64_t timeout_ns, const sigset_t *mask,
                local_epoll_wait *wait) {
  int64_t deadline = timeout_ns > 0 ? bertha_now_ns() + timeout_ns : timeout_ns;
  for (;;) {
    /* The kernel wakes nobody for that when another thread asks for it again: look whether one has. */
    bool brief = timeout_ns != 0 && lies_there(epfd);
    int64_t most = RESCUE_NS;
    brief = brief && (timeout_ns < 0 || timeout_ns > most);
    bool within = UNLIKELY(atomic_load_explicit(&local_any_outer, memory_order_relaxed)) && lies_within(epfd);
    int n = wait_in_set(epfd, events, max, within ? 0 : brief ? most : timeout_ns, mask, wait);
    n = within ? add_within(epfd, events, max, n) : n;
    brief |= within;
    if (n != 0 || !brief || out_of_time(deadline, &timeout_ns)) {
      return n;
    }
  }
}
