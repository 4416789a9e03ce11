/* What becomes of epoll sets and their members when descriptors are closed or duplicated, and of sets that are watched. */
#include <string.h>
#include <sys/mman.h>

#include "agentc.h"
#include "conn.h"
#include "eset_members.h"
#include "eset_wait.h"

extern void bertha_close_hidden(int fd);

static void forget_in(struct eset *s, int fd, struct conn *c) {
  if (fd >= ESET_FDS || !bertha_lock(&s->lock)) {
    return;
  }
  struct reg *r = &s->regs[fd];
  bool mine = r->conn == conn_index(c) + 1;
  if (mine) {
    borrow_end(c);
  }
  bool lives_on = atomic_load(&c->info.refs) > 1; /* so does the kernel's registration (epoll(7), Q6) */
  if (mine && r->state == REG_RING && lives_on && !s->inherited) {
    eset_to_kernel(s, fd);
  } else if (mine && r->state == REG_RING) {
    eset_leave_ring(s, r, c);
  }
  bool kernel = mine && r->state == REG_KERNEL;
  if (mine && r->state == REG_OFF) {
    parted_end(r->slink, c->slot_index);
  }
  if (mine && r->state == REG_OFF && lives_on && !s->inherited) {
    REAL(epoll_ctl)(s->epfd, EPOLL_CTL_DEL, fd, NULL);
  }
  if (kernel && lives_on) { /* the other end goes on ringing for it */
    s->kernel_streams--;
    if (r->lent || r->held) { /* nobody could give it back */
      struct epoll_event e = {.events = r->events, .data.u64 = reg_data(r, fd)};
      eset_kernel_mod(s, fd, &e);
      r->lent = r->held = 0;
    }
  } else if (kernel) {
    eset_kernel_reg(s, c, -1);
  }
  r->state = kernel ? REG_GONE : REG_NONE;
  bertha_unlock(&s->lock);
}

static void forget_set(struct eset *s) {
  if (!bertha_lock(&s->lock)) {
    return;
  }
  nest_drop_all(s);
  borrow_end_all(s);
  parted_all_end(s);
  for (struct slink *k = s->slinks; k != NULL;) {
    struct slink *next = k->next;
    for (uint32_t slot = 0; k->count > 0 && slot < BERTHA_LINK_SLOTS; slot++) {
      int fd = k->fd[slot];
      if ((k->in[slot / 64] >> (slot % 64) & 1) && s->regs[fd].state == REG_RING) {
        struct conn *c = conn_by_index(s->regs[fd].conn - 1);
        eset_leave_ring(s, &s->regs[fd], c);
        s->regs[fd].state = REG_NONE;
        if (eset_by_entry(eset_entry(fd)) == s) {
          eset_set_entry(fd, 0);
        }
      }
    }
    eset_drop_slink(s, k);
    k = next;
  }
  s->slinks = s->warm = NULL;
  s->slink_count = 0;
  s->ring_count = 0;
  if (s->kernel_streams > 0) {
    for (uint32_t fd = 0; fd < ESET_FDS && fd < bertha.max_fd; fd++) {
      struct conn *c = conn_of((int)fd);
      if (s->regs[fd].state == REG_KERNEL && c != NULL && s->regs[fd].conn == conn_index(c) + 1) {
        eset_kernel_reg(s, c, -1);
        conn_refresh_watch(c);
        if (eset_by_entry(eset_entry((int)fd)) == s) {
          eset_set_entry((int)fd, 0);
        }
      }
    }
  }
  memset(s->regs, 0, sizeof(struct reg) * (bertha.max_fd < ESET_FDS ? bertha.max_fd : ESET_FDS));
  if (s->bell_fd >= 0) {
    bertha_close_hidden(s->bell_fd);
  }
  s->bell_fd = -1;
  s->bell = 0;
  atomic_store(&s->upgrades, 0);
  s->kernel_streams = 0;
  s->starved = false;
  s->byte_left = false;
  atomic_store(&s->sharing, false);
  s->plain = false;
  s->inherited = s->adopted = false;
  atomic_store(&s->asleep, 0);
  s->asleep_outside = 0;
  kin_forget(s);
  s->life++;
  s->epfd = -1;
  bertha_unlock(&s->lock);
}

static int duplicate_of(uint32_t e) {
  for (uint32_t i = 0; i < bertha.max_fd; i++) {
    if (atomic_load(&bertha.fds[i].set) == e && conn_of((int)i) == NULL) {
      return (int)i;
    }
  }
  return -1;
}

/* The program closes `fd`, by which the set was put into others.  If a duplicate lives on, the kernel goes on to tell those
 * others of it under the old number. */
static void forget_inner(struct eset *inner, int fd, bool lives_on) {
  bool within = false;
  for (uint32_t i = 0; i < eset_count() && fd < ESET_FDS; i++) {
    struct eset *s = eset_by_entry(i + 1);
    if (s->epfd >= 0 && s->inner_count > 0 && s->regs[fd].inner == inner && bertha_lock(&s->lock)) {
      if (s->regs[fd].state == REG_SET && s->regs[fd].inner == inner) {
        nest_drop(s, fd);
        s->regs[fd].state = lives_on ? REG_GONE : REG_NONE;
        within = true;
      }
      bertha_unlock(&s->lock);
    }
  }
  if (within && lives_on) {
    eset_plain(inner);
  }
}

void eset_forget(int fd) {
  uint32_t e = eset_entry(fd);
  if (LIKELY(e == 0) || e == SET_HIDDEN) {
    return;
  }
  struct conn *c = conn_of(fd);
  if (c == NULL) {
    struct eset *s = eset_by_entry(e);
    eset_set_entry(fd, 0);
    if (s != NULL) {
      int other = duplicate_of(e);
      if (atomic_load(&s->outers) != 0) {
        forget_inner(s, fd, other >= 0);
      }
      if (other >= 0) {
        s->epfd = other;
      } else {
        forget_set(s);
      }
    }
    return;
  }
  if (e == SET_MANY) {
    for (uint32_t i = 0; i < eset_count(); i++) {
      if (eset_by_entry(i + 1)->epfd >= 0) {
        forget_in(eset_by_entry(i + 1), fd, c);
      }
    }
  } else if (eset_by_entry(e) != NULL) {
    forget_in(eset_by_entry(e), fd, c);
  }
  eset_set_entry(fd, 0);
}

/* The file behind `fd` is about to change for another one that stands for the same connection: `begin` takes
 * it out of the sets, the second call puts it in again, served by the kernel from then on. */
void eset_swap(int fd, bool begin) {
  for (uint32_t i = 0; i < eset_count(); i++) {
    struct eset *s = eset_by_entry(i + 1);
    if (s->epfd < 0 || fd >= ESET_FDS || s->regs[fd].state != REG_KERNEL) {
      continue;
    }
    bool taken = bertha_lock(&s->lock); /* or this thread is going through the set */
    struct epoll_event e = eset_kernel_event(&s->regs[fd], fd);
    REAL(epoll_ctl)(s->epfd, begin ? EPOLL_CTL_DEL : EPOLL_CTL_ADD, fd, &e);
    if (taken) {
      bertha_unlock(&s->lock);
    }
  }
}

void eset_dup(int from, int to) {
  uint32_t e = eset_entry(from);
  if (e != 0 && e != SET_HIDDEN && conn_of(from) == NULL && (unsigned)to < BERTHA_FDS) {
    if (eset_by_entry(e) == NULL && eset_new(from) != NULL) { /* what becomes of one becomes of both */
      e = eset_entry(from);
    }
    eset_set_entry(to, e);
    conn_reach(to);
  }
}

static bool kernel_for_good(int fd) {
  uint32_t e = eset_entry(fd);
  for (uint32_t i = e == SET_MANY ? 0 : e - 1; fd < ESET_FDS && i < eset_count(); i++) {
    const struct eset *s = eset_by_entry(i + 1);
    const struct reg *r = &s->regs[fd];
    if (s->epfd >= 0 && r->state == REG_KERNEL && (s->plain || r->stays)) {
      return true;
    }
    if (e != SET_MANY) {
      break;
    }
  }
  return false;
}

/* The next of its descriptors, from `from` on, that is in a set; -1: none.  `fd`: one of them. */
static int next_in_sets(const struct conn *c, int fd, int from) {
  if (LIKELY(atomic_load(&c->info.refs) == 1)) {
    return from <= fd && fd < ESET_FDS && eset_entry(fd) != 0 ? fd : -1;
  }
  for (; (uint32_t)from < bertha.max_fd && from < ESET_FDS; from++) {
    if (conn_of(from) == c && eset_entry(from) != 0) {
      return from;
    }
  }
  return -1;
}

bool eset_kernel_for_good(const struct conn *c, int fd) {
  bool good = false;
  for (int i = next_in_sets(c, fd, 0); i >= 0 && !good; i = next_in_sets(c, fd, i + 1)) {
    good = kernel_for_good(i);
  }
  return good;
}

static void ask_for_room(struct eset *s, int fd, const struct conn *c, bool anew) {
  struct reg *r = &s->regs[fd];
  if (!bertha_lock(&s->lock)) {
    return;
  }
  bool mine = s->epfd >= 0 && r->conn == conn_index(c) + 1 && (r->events & EPOLL_ROOM);
  if (mine && r->state == REG_RING) {
    eset_kernels_room(s, fd, c);
  } else if (mine && r->state == REG_KERNEL && edge_only(r) && (anew || r->held)) {
    r->held = 0;
    struct epoll_event e = eset_kernel_event(r, fd);
    eset_kernel_mod(s, fd, &e);
  }
  bertha_unlock(&s->lock);
}

void eset_lacks_room(const struct conn *c, int fd, bool anew) {
  for (int i = next_in_sets(c, fd, 0); i >= 0; i = next_in_sets(c, fd, i + 1)) {
    uint32_t e = eset_entry(i);
    uint32_t last = e == SET_MANY ? eset_count() : e;
    for (uint32_t k = e == SET_MANY ? 1 : e; k <= last && eset_by_entry(k) != NULL; k++) {
      ask_for_room(eset_by_entry(k), i, c, anew);
    }
  }
}

void eset_shut(struct conn *c, int fd) {
  atomic_fetch_add(&c->shuts, 1);
  conn_changed_here(c);
  if (UNLIKELY(atomic_load(&c->kernel_regs) != 0)) {
    eset_lacks_room(c, fd, true);
  }
}

/* The kernel alone can tell others that this set has events: its members go back to it. */
void eset_polled(int fd) {
  if (LIKELY(bertha.fds == NULL || (unsigned)fd >= BERTHA_FDS) || conn_of(fd) != NULL) {
    return;
  }
  uint32_t e = SET_FRESH;
  if (eset_entry(fd) == SET_FRESH) { /* so that it is known when it gets members of ours */
    atomic_compare_exchange_strong(&bertha.fds[fd].set, &e, SET_PLAIN);
  }
  struct eset *s = eset_by_entry(eset_entry(fd));
  if (UNLIKELY(s != NULL)) {
    eset_plain(s);
  }
}

void eset_plain(struct eset *s) {
  struct eset *inner[INNER_MOST];
  unsigned count = 0;
  if (s->plain || !bertha_lock(&s->lock)) {
    return;
  }
  s->plain = true;
  parted_all_end(s);
  for (struct slink *k = s->slinks; k != NULL; k = k->next) {
    for (uint32_t slot = 0; slot < BERTHA_LINK_SLOTS; slot++) {
      const struct reg *r = &s->regs[k->fd[slot]]; /* also one that has fired its one shot */
      if (r->state == REG_RING && r->slink == k && conn_by_index(r->conn - 1)->slot_index == slot) {
        eset_to_kernel(s, k->fd[slot]);
      }
    }
  }
  borrow_end_all(s); /* also what it has out of it for now */
  for (; count < s->inner_count; count++) {
    inner[count] = s->regs[s->inner_fd[count]].inner;
  }
  bertha_unlock(&s->lock);
  for (unsigned i = 0; i < count; i++) {
    eset_plain(inner[i]);
  }
}
