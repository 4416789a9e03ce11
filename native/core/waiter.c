/* A thread's means to sleep (waiter.h), and what becomes of them at its end, in a fork, and when descriptors move. */
#include "waiter.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/mman.h>

#include "agentc.h"
#include "conn.h"
#include "eset.h"
#include "unixpair.h"

enum { EDGES_AFTER = 32, EDGES_MOST = 16 };
static _Atomic uint32_t edge_sets;

enum { BELL_AFTER = 16 }; /* sleeps on the connection's own byte before an eventfd is worth its set-up */

static BERTHA_TLS struct waiter *my_waiter;
static pthread_key_t at_thread_end;
static pthread_once_t key_once = PTHREAD_ONCE_INIT;
static struct waiter *_Atomic all_waiters;

extern void bertha_close_hidden(int fd);

static void drop_sleepers(struct waiter *w) {
  for (uint32_t i = 0; i < w->count; i++) {
    sleeper_give_back(w->sleepers[i].link, w->sleepers[i].index);
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
  if (w->pid == bertha.pid) {
    drop_sleepers(w);
    if (w->bell_fd >= 0) {
      bertha_close_hidden(w->bell_fd);
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
  if (LIKELY(w != NULL && w->pid == bertha.pid)) {
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
  w->bell = 0;
  w->sleeps = 0;
  w->count = 0;
  w->edges = (struct edges){.set = -1};
  w->spin.score = 0;
  w->first.score = 0;
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
    if (w->pid != 0) {
      drop_edges(w);
    }
    w->count = 0;
    w->pid = 0;
  }
  my_waiter = NULL;
  link_after_fork();
  directory_after_fork();
  bell_after_fork();
  eset_after_fork();
}

void wait_fd_moved(int from, int to) {
  for (struct waiter *w = atomic_load(&all_waiters); w != NULL; w = atomic_load(&w->next)) {
    if (w->bell_fd == from) {
      w->bell_fd = to;
    }
    if (w->pid != 0 && w->edges.set == from) {
      w->edges.set = to;
    }
  }
  bell_fd_moved(from, to);
  unix_fd_moved(from, to);
  eset_fd_moved(from, to);
}

uint32_t waiter_sleeper(struct waiter *w, struct link *l) {
  for (uint32_t i = 0; i < w->count; i++) {
    if (w->sleepers[i].link == l) {
      return w->sleepers[i].index;
    }
  }
  for (uint32_t i = w->count; i-- > 0;) {
    if (atomic_load_explicit(&w->sleepers[i].link->retired, memory_order_relaxed)) {
      sleeper_give_back(w->sleepers[i].link, w->sleepers[i].index);
      w->sleepers[i] = w->sleepers[--w->count];
    }
  }
  if (w->count == SLEEPERS_PER_THREAD) {
    drop_sleepers(w); /* the slots that name them are set anew at each sleep */
  }
  uint32_t index = sleeper_take(l, w->bell);
  if (index != 0) {
    w->sleepers[w->count].link = l;
    w->sleepers[w->count++].index = index;
  }
  return index;
}

void waiter_want_bell(struct waiter *w, bool now) {
  if (w->bell != 0 || (!now && ++w->sleeps % BELL_AFTER != 0)) {
    return;
  }
  int fd;
  uint32_t bell = bell_create(&fd);
  if (bell != 0) {
    w->bell = bell;
    w->bell_fd = fd;
    for (uint32_t i = 0; i < w->count; i++) {
      struct link *l = w->sleepers[i].link;
      atomic_store(&l->sleepers[l->side][w->sleepers[i].index].bell, bell);
    }
  }
}

static bool edge_of(struct waiter *w, int op, int fd, uint64_t data) {
  struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET, .data.u64 = data};
  return REAL(epoll_ctl)(w->edges.set, op, fd, &e) == 0;
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
