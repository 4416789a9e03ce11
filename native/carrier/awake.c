/* Looks, before it sleeps, for as long as that pays.
 *
 * A message between two programs makes four stations wake each other instead of two, and where processors are idle the
 * wake-ups, not the cipher, are what it costs.  The bound is that of a whole round trip with all of them asleep: what is
 * shorter than that ends before the first answer and is never found to pay. */
#include "session.h"

#include <sys/epoll.h>

#include "../core/waiter.h"

enum { LOOKS_PER_POLL = 8, FEW = 4, CROWD_MAX = 64, CROWD = 16 };

static struct spinner spinner;

/* Who spoke last.  Many connections keep each other's programs and carriers awake as it is, and want the processors. */
static const struct session *spoke[FEW];
static unsigned oldest;
static unsigned crowd;

void awake_ran(const struct session *s) {
  for (int i = 0; i < FEW; i++) {
    if (spoke[i] == s) {
      crowd -= crowd > 0;
      return;
    }
  }
  spoke[oldest++ % FEW] = s;
  crowd += crowd < CROWD_MAX;
}

int awake_look(int poller, struct epoll_event *events, int most, bool (*something)(void)) {
  int64_t bound = crowd < CROWD ? rings_spin_bound() : 0;
  int64_t begin = bound > 0 ? carrier_now() : 0;
  int64_t budget = bound > 0 ? spin_budget(&spinner, begin, bound) : 0;
  int n = 0;
  bool found = false;
  int64_t now = begin;
  while (n == 0 && !found && now - begin < budget) {
    n = epoll_wait(poller, events, most, 0);
    for (int i = 0; i < LOOKS_PER_POLL && n == 0 && !found; i++) {
      bertha_pause();
      found = something();
    }
    int64_t last = now;
    now = carrier_now();
    if (now - last > SPIN_GAP_NS) {
      spin_lost_processor(&spinner);
      break;
    }
  }
  if (budget > 0) {
    spin_learn(&spinner, n != 0 || found ? now - begin : 2 * bound, bound);
  }
  return n;
}
