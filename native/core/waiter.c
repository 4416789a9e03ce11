/* A thread's means to sleep (waiter.h), and what becomes of them at its end, in a fork, and when descriptors move. */
#include "waiter.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "agentc.h"
#include "conn.h"
#include "eset.h"
#include "trim.h"
#include "unixpair.h"

enum { EDGES_AFTER = 32, EDGES_MOST = 16 };
static _Atomic uint32_t edge_sets;

enum { BELL_AFTER = 16 }; /* sleeps on the connection's own byte before an eventfd is worth its set-up */
#define NO_SLEEPER_NS 200000000 /* how long a link that had no entry left is not searched again */

static BERTHA_TLS struct waiter *my_waiter;
static pthread_key_t at_thread_end;
static pthread_once_t key_once = PTHREAD_ONCE_INIT;
static struct waiter *_Atomic all_waiters;

extern void bertha_close_hidden(int fd);

static _Atomic uint32_t own_bells; /* of this process's threads */

static void drop_sleepers(struct waiter *w) {
  for (uint32_t i = 0; i < w->count; i++) {
    struct sleeper_place *p = waiter_place(w, i);
    if (p->link != NULL) {
      sleeper_give_back(p->link, p->index);
    }
    p->link = NULL;
  }
  w->count = 0;
}

static void drop_edges(struct waiter *w) {
  if (w->edges.set >= 0) {
    bertha_close_hidden(w->edges.set);
    atomic_fetch_sub(&edge_sets, 1);
  }
  w->edges = (struct edges){.set = -1};
}

/* The record itself stays, for the next thread that has none. */
static void thread_ended(void *p) {
  struct waiter *w = p;
  if (__atomic_load_n(&w->pid, __ATOMIC_RELAXED) == bertha.pid) {
    drop_sleepers(w);
    if (w->bell_fd >= 0) {
      bertha_close_hidden(w->bell_fd);
      atomic_fetch_sub(&own_bells, 1);
    }
    drop_edges(w);
  }
  w->bell_fd = -1;
  w->bell = 0;
  w->edges.set = -1;
  my_waiter = NULL;
  __atomic_store_n(&w->pid, 0, __ATOMIC_RELEASE);
}

static void make_key(void) {
  pthread_key_create(&at_thread_end, thread_ended);
}

struct waiter *waiter_get(void) {
  struct waiter *w = my_waiter;
  if (LIKELY(w != NULL && __atomic_load_n(&w->pid, __ATOMIC_RELAXED) == bertha.pid)) {
    return w;
  }
  for (w = atomic_load(&all_waiters); w != NULL; w = atomic_load(&w->next)) {
    int none = 0;
    if (__atomic_compare_exchange_n(&w->pid, &none, bertha.pid, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) {
      break;
    }
  }
  if (w == NULL) {
    w = mmap(NULL, sizeof *w, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (w == MAP_FAILED) {
      return NULL;
    }
    w->pid = bertha.pid;
    struct waiter *head = atomic_load(&all_waiters);
    do {
      atomic_store(&w->next, head);
    } while (!atomic_compare_exchange_weak(&all_waiters, &head, w));
  }
  w->bell_fd = -1;
  w->bell_full = false;
  w->bell = 0;
  w->sleeps = 0;
  w->look = 0;
  w->count = 0;
  for (int i = 0; i < WAITER_ROOMS; i++) {
    w->rooms[i].used = false;
  }
  w->edges = (struct edges){.set = -1};
  pthread_once(&key_once, make_key);
  pthread_setspecific(at_thread_end, w);
  my_waiter = w;
  return w;
}

/* The child has one thread; the bells and sleepers are the parent's. */
void wait_after_fork(void) {
  for (struct waiter *w = atomic_load(&all_waiters); w != NULL; w = atomic_load(&w->next)) {
    if (w->bell_fd >= 0) {
      bertha_close_hidden(w->bell_fd);
      w->bell_fd = -1;
    }
    for (uint32_t i = 0; i < w->count; i++) {
      waiter_place(w, i)->link = NULL;
    }
    if (__atomic_load_n(&w->pid, __ATOMIC_RELAXED) != 0) {
      drop_edges(w);
    }
    w->count = 0;
    w->pid = 0;
  }
  my_waiter = NULL;
  atomic_store(&own_bells, 0);
  link_after_fork();
  directory_after_fork();
  bell_after_fork();
  eset_after_fork();
  trim_after_fork();
}

void wait_fd_moved(int from, int to) {
  for (struct waiter *w = atomic_load(&all_waiters); w != NULL; w = atomic_load(&w->next)) {
    if (w->bell_fd == from) {
      w->bell_fd = to;
    }
    if (__atomic_load_n(&w->pid, __ATOMIC_RELAXED) != 0 && w->edges.set == from) {
      w->edges.set = to;
    }
  }
  bell_fd_moved(from, to);
  unix_fd_moved(from, to);
  eset_fd_moved(from, to);
}

static bool one_more_place(struct waiter *w) {
  uint32_t i = w->count - PLACES_FIRST;
  if (w->count < PLACES_FIRST) {
    return true;
  }
  if (i >= PLACES_PARTS * PLACES_MORE) {
    return false;
  }
  struct sleeper_place *_Atomic *part = &w->more[i / PLACES_MORE];
  if (atomic_load(part) == NULL) {
    size_t size = PLACES_MORE * sizeof **part;
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct sleeper_place *none = NULL;
    if (p != MAP_FAILED && !atomic_compare_exchange_strong(part, &none, p)) {
      munmap(p, size); /* a handler of ours was quicker */
    }
  }
  return atomic_load(part) != NULL;
}

uint32_t waiter_sleeper(struct waiter *w, struct link *l) {
  uint32_t i = w->hint;
  for (uint32_t looked = 0; looked < w->count; looked++, i++) {
    i = i < w->count ? i : 0;
    const struct sleeper_place *p = waiter_place(w, i);
    if (p->link == l) {
      w->hint = i + 1;
      return p->index;
    }
  }
  for (i = w->count; i-- > 0;) {
    struct sleeper_place *p = waiter_place(w, i);
    if (p->link != NULL && atomic_load_explicit(&p->link->retired, memory_order_relaxed)) {
      sleeper_give_back(p->link, p->index);
      struct sleeper_place *last = waiter_place(w, --w->count);
      *p = *last;
      last->link = NULL;
    }
  }
  _Atomic int64_t *not_before = &l->no_sleeper_before;
  if (UNLIKELY(atomic_load_explicit(not_before, memory_order_relaxed) != 0) &&
      bertha_now_ns() < atomic_load_explicit(not_before, memory_order_relaxed)) {
    return 0; /* to find that out takes a look at every entry, and at every process that has one */
  }
  uint32_t index = one_more_place(w) ? sleeper_take(l, w->bell) : 0;
  if (index != 0) {
    struct sleeper_place *p = waiter_place(w, w->count++);
    p->index = index;
    p->link = l;
  }
  atomic_store_explicit(not_before, index != 0 ? 0 : bertha_now_ns() + NO_SLEEPER_NS, memory_order_relaxed);
  return index;
}

/* They are the program's descriptors that go.  Who waits for data can do without: a byte on the connection wakes it. */
static bool may_have_bell(bool space) {
  uint64_t have = atomic_load(&own_bells);
  struct rlimit limit;
  if (have < 16) {
    return true;
  }
  uint64_t n = getrlimit(RLIMIT_NOFILE, &limit) == 0 ? limit.rlim_cur / 32 : 0;
  n = n > 1024 ? 1024 : n;
  return have < (space ? 2 * n : n);
}

void waiter_want_bell(struct waiter *w, bool space) {
  static _Atomic int
      asking; /* the process in which a thread asks the agent for a bell that it can do without */
  if (w->bell != 0 || (!space && (++w->sleeps % BELL_AFTER != 0 || atomic_load(&asking) == bertha.pid)) ||
      !may_have_bell(space)) {
    return;
  }
  int fd;
  if (!space) {
    atomic_store(&asking, bertha.pid);
  }
  uint32_t bell = bell_create(&fd);
  if (!space) {
    atomic_store(&asking, 0);
  }
  if (bell != 0) {
    atomic_fetch_add(&own_bells, 1);
    w->bell = bell;
    w->bell_fd = fd;
    w->bell_full = false;
    for (uint32_t i = 0; i < w->count; i++) {
      const struct sleeper_place *p = waiter_place(w, i);
      if (p->link != NULL) {
        atomic_store(&p->link->sleepers[p->link->side][p->index].bell, bell);
      }
    }
  }
}

static void *map(size_t bytes) {
  void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return p != MAP_FAILED ? p : NULL;
}

struct waiter_room waiter_room(size_t bytes) {
  struct waiter *w = waiter_get();
  for (int i = 0; w != NULL && i < WAITER_ROOMS; i++) {
    if (w->rooms[i].used) { /* by what a handler has interrupted, or for the same call */
      continue;
    }
    w->rooms[i].used = true;
    if (w->rooms[i].size < bytes) {
      void *larger = map(2 * bytes);
      if (larger == NULL) {
        w->rooms[i].used = false;
        break;
      }
      if (w->rooms[i].at != NULL) {
        munmap(w->rooms[i].at, w->rooms[i].size);
      }
      w->rooms[i].at = larger;
      w->rooms[i].size = 2 * bytes;
    }
    return (struct waiter_room){w, w->rooms[i].at, bytes};
  }
  return (struct waiter_room){NULL, map(bytes), bytes};
}

void waiter_room_back(void *p) {
  struct waiter_room *room = p;
  for (int i = 0; room->waiter != NULL && i < WAITER_ROOMS; i++) {
    if (room->waiter->rooms[i].at == room->at) {
      room->waiter->rooms[i].used = false;
    }
  }
  if (room->waiter == NULL && room->at != NULL) {
    munmap(room->at, room->bytes);
  }
  room->at = NULL;
}

static bool edge_of(struct waiter *w, int op, int fd, uint64_t data) {
  struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET, .data.u64 = data};
  return REAL(epoll_ctl)(w->edges.set, op, fd, &e) == 0;
}

/* Who is woken has something to do; the count that woke it can be taken back when it has nothing to do. */
void waiter_empty_bell(struct waiter *w) {
  if (w->bell_full) {
    w->bell_full = false;
    bell_drain(w->bell_fd);
  }
}

static bool make_edges(struct waiter *w) {
  int set = atomic_fetch_add(&edge_sets, 1) < EDGES_MOST ? REAL(epoll_create1)(EPOLL_CLOEXEC) : -1;
  if (set >= 0) {
    w->edges.set = bertha_hide_fd(set);
    if (edge_of(w, EPOLL_CTL_ADD, w->bell_fd, 0)) {
      return true;
    }
    bertha_close_hidden(w->edges.set);
    w->edges.set = -1;
  }
  atomic_fetch_sub(&edge_sets, 1);
  return false;
}

bool waiter_edges(struct waiter *w, const struct conn *c, int fd, uint32_t life) {
  struct edges *e = &w->edges;
  if (e->conn != conn_index(c) + 1 || e->life != life) {
    /* The last one may be closed, and gone from the set by that, or live on elsewhere: then it wakes us now and then. */
    e->conn = conn_index(c) + 1;
    e->life = life;
    e->times = 0;
    e->in = false;
  }
  if (e->in) {
    return true;
  }
  if (++e->times != EDGES_AFTER || w->bell_fd < 0 || (e->set < 0 && !make_edges(w))) {
    return false;
  }
  e->in = edge_of(w, EPOLL_CTL_ADD, fd, 1) || (errno == EEXIST && edge_of(w, EPOLL_CTL_MOD, fd, 1));
  return e->in;
}
