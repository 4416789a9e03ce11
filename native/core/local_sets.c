/* Which epoll sets have a socket with pairs: one is waited for here, several and all who look from outside are the kernel's. */
#include "local.h"

enum { IN = LOCAL_IN };

static _Atomic uint32_t registrations; /* of sockets with pairs in epoll sets */
_Atomic bool local_any_outer;

bool local_in_sets(void) {
  return atomic_load_explicit(&registrations, memory_order_relaxed) != 0;
}

void local_keep_members_out(int epfd) {
  for (struct local *d = local_first(); d != NULL; d = d->next) {
    if (d->watched.epfd == epfd && !d->kernel_only && bertha_lock(&d->lock)) {
      local_keep_out(d); /* who watches a set from outside is woken by the kernel alone */
      bertha_unlock(&d->lock);
    }
  }
}

/* A set, and something lies in the boxes of a member: from before it was watched. */
struct local *local_ready_member(int epfd) {
  for (struct local *d = local_in_sets() && conn_of(epfd) == NULL ? local_first() : NULL; d != NULL;
       d = d->next) {
    if (d->watched.epfd == epfd && (d->watched.events & IN) && d->c != NULL && local_ready(d)) {
      return d;
    }
  }
  return NULL;
}

void local_registered(int epfd, int op, int fd, const struct epoll_event *event) {
  struct conn *c = conn_of(fd);
  if (UNLIKELY(c == NULL)) {
    return; /* another thread has closed it meanwhile */
  }
  struct local *d = local_mine(c, fd);
  if (op == EPOLL_CTL_ADD) {
    atomic_store(&c->kernel_regs, 1); /* for good: see local_mine() */
  }
  if (d == NULL || !bertha_lock(&d->lock)) {
    return;
  }
  struct watched *w = &d->watched;
  bool reads = op != EPOLL_CTL_DEL && (event->events & IN);
  bool read_before = w->epfd == epfd && (w->events & IN);
  if (!reads || !read_before) {
    local_cool(d); /* nobody reads for a while, and who begins again may do so while another thread waits */
  }
  if (op == EPOLL_CTL_DEL) {
    if (w->epfd == epfd) {
      local_unregister(d);
    }
  } else if (w->epfd >= 0 && w->epfd != epfd) {
    local_keep_out(d); /* in several sets */
  } else {
    if ((event->events & (EPOLLONESHOT | EPOLLEXCLUSIVE)) || local_is_never(epfd)) {
      local_keep_out(d); /* in a way that the kernel keeps the books of; what lies there already is told of */
    }
    if (w->epfd < 0) {
      atomic_fetch_add(&registrations, 1);
    }
    bool waited = !reads || (read_before && w->waited);
    *w = (struct watched){epfd, event->events, event->data.u64, waited};
  }
  bertha_unlock(&d->lock);
}

void local_unregister(struct local *d) {
  if (d->watched.epfd >= 0) {
    d->watched.epfd = d->outer.epfd = -1;
    atomic_fetch_sub(&registrations, 1);
  }
}

void local_set_created(int epfd) {
  local_never(epfd, false);
  for (struct local *d = local_in_sets() ? local_first() : NULL; d != NULL; d = d->next) {
    if (d->watched.epfd == epfd) { /* the one that had the number is closed */
      local_unregister(d);
    }
    if (d->outer.epfd == epfd) {
      d->outer.epfd = -1;
    }
  }
}

void local_set_watched(int epfd) {
  local_never(epfd, true); /* for those who are put there later, too */
  if (UNLIKELY(local_in_sets())) {
    local_keep_members_out(epfd);
  }
}

void local_set_within(int epfd, int outer, const struct epoll_event *event) {
  for (struct local *d = local_first(); d != NULL; d = d->next) {
    if (d->watched.epfd == epfd && bertha_lock(&d->lock)) {
      struct watched *w = &d->watched;
      if (outer < 0 || !local_ready(d) || !(w->events & IN) || (event != NULL && !(event->events & IN))) {
        d->outer.epfd = -1;
      } else {
        d->outer = (struct watched){outer, event != NULL ? event->events : w->events,
                                    event != NULL ? event->data.u64 : w->data, true};
        atomic_store(&local_any_outer, true);
      }
      bertha_unlock(&d->lock);
    }
  }
}
