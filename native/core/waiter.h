/* What a thread needs to sleep: its bell, its entries among the links' sleepers, what it has learnt of spinning.  Shared by
 * the waits for one connection (wait.c) and for many descriptors (wait_fds.c). */
#ifndef BERTHA_WAITER_H
#define BERTHA_WAITER_H

#include "wait.h"

enum {
  PLACES_FIRST = 200, /* as many links as most threads ever sleep on */
  PLACES_MORE = 256,
  PLACES_PARTS = 64,
  WAITER_ROOMS = 2,
  LOOKS_PER_CLOCK = 32,
  NO_BELL_MS = 1, /* how long to sleep where nobody can wake us */
  SPACE_MS = 20,  /* and at most for space in a ring */
};

struct sleeper_place {
  struct link *link; /* NULL: being made */
  uint32_t index;
};

/* A thread that sleeps on one and the same connection again and again has an epoll set of its own for that, with the
 * connection and its bell in it, edge-triggered: one call a sleep, where ppoll() and a read that takes the bell's count
 * back are two.  It is worth a descriptor to some threads of a process. */
struct edges {
  int set;       /* hidden; -1: none */
  uint32_t conn; /* index + 1 of what is in it, or slept on last */
  uint32_t life;
  uint32_t times;
  bool in;
};

struct waiter { /* of a thread */
  struct spinner spin;
  struct spinner first; /* for the first answer on a connection */
  uint32_t sleeps;
  int look; /* where a socket has to be asked: how often it paid to look before the sleep (unixfirst.c); < 0: not now */
  int64_t kernel_seen; /* when poll last asked the kernel too */
  uint32_t bell;
  int bell_fd;
  bool bell_full; /* rung, and left so until there is time: before the next sleep */
  int pid;
  struct edges edges;
  uint32_t count;
  uint32_t hint;               /* behind the place last found: a poll asks in the same order each time */
  struct waiter *_Atomic next; /* all of the process, for fork and moved descriptors */
  struct {
    void *at;
    size_t size;
    bool used;
  } rooms[WAITER_ROOMS];
  struct sleeper_place *_Atomic more[PLACES_PARTS]; /* each stays where it is: a handler may be looking */
  struct sleeper_place first_places[PLACES_FIRST];
};

static inline struct sleeper_place *waiter_place(struct waiter *w, uint32_t i) {
  if (LIKELY(i < PLACES_FIRST)) {
    return &w->first_places[i];
  }
  i -= PLACES_FIRST;
  return &atomic_load_explicit(&w->more[i / PLACES_MORE], memory_order_relaxed)[i % PLACES_MORE];
}

struct waiter *waiter_get(void);                           /* this thread's; NULL: no memory */
uint32_t waiter_sleeper(struct waiter *w, struct link *l); /* its entry there; 0: none left */
void waiter_want_bell(struct waiter *w, bool space); /* for space in a ring: there is no byte for that */
void waiter_empty_bell(struct waiter *w);            /* before what it is to tell of is looked for */
bool waiter_edges(struct waiter *w, const struct conn *c, int fd,
                  uint32_t life); /* its edges are to be slept on */

/* Memory for the length of a call, without malloc, which a signal handler must not wait for. */
struct waiter_room {
  struct waiter *waiter;
  void *at; /* NULL: none */
  size_t bytes;
};
struct waiter_room waiter_room(size_t bytes);
void waiter_room_back(void *room);

/* Another thread of this side is asleep on the same thing.  The number lies in shared memory: it may be any. */
static inline bool sleeper_elsewhere(const struct conn *c, uint32_t other, uint32_t mine) {
  return other != 0 && other != mine && other < BERTHA_SLEEPERS &&
         atomic_load(&c->link->sleepers[c->side][other].armed) != 0;
}

static inline int64_t at_most(int64_t deadline, int64_t now, int64_t ns) {
  return deadline >= 0 && deadline - now < ns ? deadline - now : ns;
}

#endif
