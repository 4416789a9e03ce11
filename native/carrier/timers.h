/* What is due at a certain moment: a heap, for there may be thousands. */
#ifndef BERTHA_TIMERS_H
#define BERTHA_TIMERS_H

#include <stdbool.h>
#include <stdint.h>

struct timer {
  int64_t at;     /* ns, as carrier_now(); 0: never */
  unsigned place; /* in the heap, from 1; 0: in none */
  void (*due)(void *who);
  void *who;
};

/* `at` 0: never.  False: no memory, and it is not set. */
bool timer_set(struct timer *t, int64_t at);
/* Milliseconds until the first, rounded up; -1: there is none. */
int timers_wait(int64_t now);
/* Calls those that are due, once each. */
void timers_run(int64_t now);

#endif
