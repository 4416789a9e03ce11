/* When to spin, and for how long.
 *
 * A short wait is a gain: to sleep and to be woken would cost both ends more.  What is short is what waking costs here, and
 * never more than the bound: it takes a waker 3 us where idle processors are kept awake by the host, and 7 to 14 where
 * they are halted; the sleeper some three times that.  A wait of up to some bounds is a loss (the spin was for
 * nothing and shows in the CPU time), a wait of very many bounds is neither (idle: the spin is lost in it), unless there
 * is nothing but those.  To lose the processor while spinning means that another task wants it: that counts for some
 * losses.  A thread that has lost often stops; since both ends have to spin for either to gain, those that have stopped
 * try again at the same moments, which the common clock gives them, a few times each.
 *
 * Always for the bound: who asks one that sleeps waits for as long as waking takes before the first answer comes. */
#include <sched.h>
#include <unistd.h>

#include "wait.h"

/* Waker's times that a wait may take to be worth the spin: sleeping costs four, and makes the other end wait for as long. */
enum { WORTH = 8, WAKE_MAX_NS = 50000, WAKE_AVERAGE = 8 };
enum { SCORE_MAX = 16, LONG_WAIT = 50, LONG_WAITS = 8, TRIALS = 8, LOST_PROCESSOR = 4 };

static _Atomic int64_t wake_ns; /* the waker's time, on average; 0: not known yet */

void spin_note_wake(int64_t ns) {
  int64_t was = atomic_load_explicit(&wake_ns, memory_order_relaxed);
  ns = ns < WAKE_MAX_NS ? ns : WAKE_MAX_NS; /* it lost its processor meanwhile */
  atomic_store_explicit(&wake_ns, was == 0 ? ns : was + (ns - was) / WAKE_AVERAGE, memory_order_relaxed);
}

static int64_t worth(int64_t bound_ns) {
  int64_t wake = atomic_load_explicit(&wake_ns, memory_order_relaxed);
  return wake == 0 || WORTH * wake > bound_ns ? bound_ns : WORTH * wake;
}

int64_t spin_budget(struct spinner *s, int64_t now, int64_t bound_ns) {
  if (s->score >= 0) {
    return bound_ns;
  }
  uint64_t moment = (uint64_t)now >> 22;
  if ((moment & 15) != 0) { /* 4 ms in every 67 */
    return 0;
  }
  if (s->moment != (uint32_t)moment) {
    s->moment = (uint32_t)moment;
    s->trials = 0;
  }
  return s->trials++ < TRIALS ? bound_ns : 0;
}

static void lose(struct spinner *s, int32_t by) {
  s->score = s->score - by > -SCORE_MAX ? s->score - by : -SCORE_MAX;
}

void spin_learn(struct spinner *s, int64_t waited_ns, int64_t bound_ns) {
  if (waited_ns < worth(bound_ns)) {
    s->score = s->score < 0 ? 0 : s->score < SCORE_MAX ? s->score + 1 : s->score;
    s->idle = 0;
  } else if (waited_ns < LONG_WAIT * bound_ns) {
    lose(s, 1);
    s->idle = 0;
  } else if (++s->idle >= LONG_WAITS) {
    s->idle = 0;
    s->score = s->score < 0 ? s->score : -1;
  }
}

void spin_lost_processor(struct spinner *s) {
  lose(s, LOST_PROCESSOR);
}

/* Not when the library is loaded: most processes that are started never have a link, and the answer is in a file of sysfs. */
void spin_once_linked(void) {
  static _Atomic bool asked;
  if (!atomic_exchange_explicit(&asked, true, memory_order_relaxed) && sysconf(_SC_NPROCESSORS_ONLN) < 2) {
    bertha.spin_ns = 0; /* nobody could fill a ring while we look at it */
  }
}

int64_t link_spin_bound(const struct link *l) {
  int64_t bound = bertha.spin_ns;
  if (l->plan.spin_us != UINT32_MAX) {
    int64_t policy = (int64_t)l->plan.spin_us * 1000;
    bool least = bertha.spin_given || bound == 0; /* 0 without being told: there is one processor */
    bound = least && bound < policy ? bound : policy;
  }
  return bound;
}

bool same_processor(struct link *l) {
  /* sleeper 0 is nobody's: it carries the processor */
  uint32_t me = (uint32_t)sched_getcpu() + 1;
  _Atomic uint32_t *mine = &l->sleepers[l->side][0].owner;
  if (atomic_load_explicit(mine, memory_order_relaxed) != me) {
    atomic_store_explicit(mine, me, memory_order_relaxed);
  }
  return atomic_load_explicit(&l->sleepers[1 - l->side][0].owner, memory_order_relaxed) == me;
}

uint32_t sleeper_take(struct link *l, uint32_t bell) {
  struct bertha_sleeper *s = l->sleepers[l->side];
  uint32_t me = (uint32_t)bertha.pid;
  for (int round = 0; round < 2; round++) {
    for (uint32_t i = 1; i < BERTHA_SLEEPERS; i++) {
      uint32_t owner = atomic_load_explicit(&s[i].owner, memory_order_relaxed);
      bool takeable = owner == 0 || (round == 1 && kill((pid_t)owner, 0) != 0 && errno == ESRCH);
      if (takeable && atomic_compare_exchange_strong(&s[i].owner, &owner, me)) {
        atomic_store(&s[i].armed, 0);
        atomic_store(&s[i].bell, bell);
        atomic_fetch_add(&l->named, 1);
        return i;
      }
    }
  }
  return 0;
}

void sleeper_arm(struct bertha_sleeper *s) {
  static _Atomic uint32_t sleeps;
  uint32_t number;
  do {
    number = atomic_fetch_add_explicit(&sleeps, 1, memory_order_relaxed) + 1;
  } while (number == 0);
  atomic_store(&s->armed, number);
}

void sleeper_give_back(struct link *l, uint32_t index) {
  struct bertha_sleeper *s = &l->sleepers[l->side][index];
  atomic_store(&s->armed, 0);
  atomic_store(&s->bell, 0);
  atomic_store(&s->owner, 0);
  uint32_t named = atomic_load(&l->named); /* a set that was given up in a child may have none to give back */
  while (index != 0 && named > 0 && !atomic_compare_exchange_weak(&l->named, &named, named - 1)) {
  }
}
