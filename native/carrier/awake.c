/* Looks, before it sleeps, for as long as that pays.
 *
 * A message between two programs makes four stations wake each other instead of two, and where processors are idle the
 * wake-ups, not the cipher, are what it costs.  The bound is that of a whole round trip with all of them asleep: what is
 * shorter than that ends before the first answer and is never found to pay.
 *
 * Between two looks it yields: a station that waits for this processor is, as a rule, the one that is to do something next. */
#include "session.h"

#include <sched.h>
#include <sys/epoll.h>

#include "../core/waiter.h"

#define TAKEN_NS INT64_C(1000000) /* longer than a station's turn, and about a time slice of Linux' */
#define KEEP_NS INT64_C(10000000)
#define KEEP_MOST_NS INT64_C(100000000)

enum { LOOKS_PER_POLL = 8 };

static struct spinner spinner;

/* While somebody else wants the processor for long, nothing is yielded: he would keep it for the rest of his time slice. */
static struct { int64_t until, for_ns; } kept;

static void keep(int64_t now) {
  bool again = kept.for_ns > 0 && now - kept.until < 4 * kept.for_ns;
  kept.for_ns = !again ? KEEP_NS : 2 * kept.for_ns < KEEP_MOST_NS ? 2 * kept.for_ns : KEEP_MOST_NS;
  kept.until = now + kept.for_ns;
}

int awake_look(int poller, struct epoll_event *events, int most, bool (*something)(void)) {
  int64_t bound = rings_spin_bound();
  int64_t begin = bound > 0 ? carrier_now() : 0;
  int64_t budget = bound > 0 ? spin_budget(&spinner, begin, bound) : 0;
  bool yields = begin >= kept.until;
  int n = 0;
  bool found = false;
  int64_t now = begin;
  while (n == 0 && !found && now - begin < budget) {
    n = epoll_wait(poller, events, most, 0);
    found = n == 0 && something();
    if (n == 0 && !found && yields) {
      sched_yield();
      found = something();
    }
    for (int i = 0; i < LOOKS_PER_POLL && n == 0 && !found && !yields; i++) {
      bertha_pause();
      found = something();
    }
    int64_t last = now;
    now = carrier_now();
    if (now - last > (yields ? TAKEN_NS : SPIN_GAP_NS)) {
      spin_lost_processor(&spinner);
      if (yields) {
        keep(now);
      }
      break;
    }
  }
  if (budget > 0) {
    spin_learn(&spinner, n != 0 || found ? now - begin : 2 * bound, bound);
  }
  return n;
}
