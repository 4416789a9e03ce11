/* A connection that is made for one request costs its set-up.  Shared memory comes on top of the kernel's handshake, which is
 * always made: some eight calls at both ends together, to prove which connection it is and that its other end lives, which
 * a single exchange does not win back (0.63 to 0.9 of TCP's rate was measured).  So a client process counts: after RUN
 * connections in a row to one listener that were over after one small exchange, within WITHIN, the next ones stay plain and say
 * why, until one of them turns out to be longer.  Only where nobody chose: a policy that prefers or requires an implementation
 * gets it.
 *
 * A process that lives for one exchange (a shell script's, PHP's) cannot count.  The agent does, by what the processes were
 * called by (agent/brief.py), and says so in its directory for a second at a time; then even the agent is spared, whose two
 * answers and the memory take three times as long as all the rest of such a process. */
#include "brief.h"

#include <fcntl.h>

#include "conn.h"

enum { PLACES = 64, RUN = 256, SMALL = 32768 };
#define WITHIN_NS 10000000000

/* Threads may miscount now and then: it is a guess about the future, and both outcomes are right. */
static struct {
  _Atomic uint64_t listener;
  _Atomic uint32_t run;
  _Atomic int64_t began;
} places[PLACES];

static unsigned place_of(uint64_t listener) {
  return (unsigned)((listener * 0x9e3779b97f4a7c15u) >> 58);
}

bool brief_expected(uint64_t listener) {
  unsigned i = place_of(listener);
  return atomic_load_explicit(&places[i].listener, memory_order_relaxed) == listener &&
         atomic_load_explicit(&places[i].run, memory_order_relaxed) >= RUN;
}

void brief_not(uint64_t listener) {
  unsigned i = place_of(listener);
  if (atomic_load_explicit(&places[i].listener, memory_order_relaxed) == listener) {
    atomic_store_explicit(&places[i].run, 0, memory_order_relaxed);
  }
}

void brief_closed(const struct conn *c) {
  uint64_t bytes = atomic_load_explicit(&c->info.tx_bytes, memory_order_relaxed) +
                   atomic_load_explicit(&c->info.rx_bytes, memory_order_relaxed);
  if (c->sends > BRIEF_SENDS || bytes > SMALL) {
    brief_not(c->chosen);
    return;
  }
  unsigned i = place_of(c->chosen);
  uint32_t run = atomic_load_explicit(&places[i].run, memory_order_relaxed);
  if (atomic_load_explicit(&places[i].listener, memory_order_relaxed) != c->chosen) {
    atomic_store_explicit(&places[i].listener, c->chosen, memory_order_relaxed);
    run = 0;
  }
  if (run >= RUN) {
    return;
  }
  if (run == 0) {
    atomic_store_explicit(&places[i].began, bertha_now_ns(), memory_order_relaxed);
  } else if (run == RUN - 1 &&
             bertha_now_ns() - atomic_load_explicit(&places[i].began, memory_order_relaxed) > WITHIN_NS) {
    atomic_store_explicit(&places[i].run, 0,
                          memory_order_relaxed); /* at that rate the set-up is nothing to anybody */
    return;
  }
  atomic_store_explicit(&places[i].run, run + 1, memory_order_relaxed);
}

bool brief_process(const struct dir_hit *hit) {
  static _Atomic int last; /* who was the last to ask: one that makes a second connection may make many */
  if (atomic_exchange(&last, bertha.pid) == bertha.pid || agent_is_met() || bertha.policy[0] != '\0' ||
      bertha.must_connect) {
    return false;
  }
  char args[BERTHA_BRIEF_BYTES];
  int fd = QUIET(open)("/proc/self/cmdline", O_RDONLY | O_CLOEXEC, 0);
  ssize_t n = fd >= 0 ? QUIET(read)(fd, args, sizeof args) : -1;
  if (fd >= 0) {
    QUIET(close)(fd);
  }
  return n > 0 &&
         bertha_brief_holds(hit->brief, bertha_brief_kind(geteuid(), args, (size_t)n), bertha_now_ns());
}
