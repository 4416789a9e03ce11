/* A thread's means to sleep (waiter.h), and what becomes of them at its end, in a fork, and when descriptors move. */
#include "waiter.h"

#include <pthread.h>
#include <sys/mman.h>

#include "agentc.h"
#include "conn.h"
#include "eset.h"
#include "unixpair.h"

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

/* The record itself stays, for the next thread that has none. */
static void thread_ended(void *p) {
  struct waiter *w = p;
  if (w->pid == bertha.pid) {
    drop_sleepers(w);
    if (w->bell_fd >= 0) {
      bertha_close_hidden(w->bell_fd);
    }
  }
  w->bell_fd = -1;
  w->bell = 0;
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
  static _Atomic int
      asking; /* the process in which a thread asks the agent for a bell that it can do without */
  if (w->bell != 0 || (!now && (++w->sleeps % BELL_AFTER != 0 || atomic_load(&asking) == bertha.pid))) {
    return;
  }
  int fd;
  if (!now) {
    atomic_store(&asking, bertha.pid);
  }
  uint32_t bell = bell_create(&fd);
  if (!now) {
    atomic_store(&asking, 0);
  }
  if (bell != 0) {
    w->bell = bell;
    w->bell_fd = fd;
    for (uint32_t i = 0; i < w->count; i++) {
      struct link *l = w->sleepers[i].link;
      atomic_store(&l->sleepers[l->side][w->sleepers[i].index].bell, bell);
    }
  }
}
