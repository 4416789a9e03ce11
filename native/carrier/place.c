/* A carrier that has to wait for its processor while another one is idle goes there.
 *
 * Who is woken by a sender runs where the sender does: so Linux has it for a wake-up that says the sender is about to sleep
 * (WF_SYNC), and where the processors that share a cache are half busy it looks no further.  A program, its carrier and,
 * over veth, the other end's carrier then share one processor beside an idle one, and a tick's balancing does not part them
 * for longer than a few wake-ups.  So a carrier that waits long leaves that processor out of those it may run on, for a
 * while, and for longer each time that it has to again.  What it may run on is read anew each time: taskset(1) and cpusets
 * are obeyed, and where one processor is allowed nothing is done. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "place.h"

#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MS INT64_C(1000000)
enum {
  LOOK_MS = 20,       /* on average: two carriers that look in step would go together */
  PART = 5,           /* of the time: as much has to be waited, and run */
  IDLE_PART = 4,      /* of the time that another processor was idle */
  PATIENCE = 2,       /* looks that find it waiting, before others are looked at */
  PATIENCE_MOVED = 6, /* who has moved before lets another one go first */
  WINDOW_MS = 50,     /* the kernel tells of idleness in ticks of 10 ms */
  HOLD_MS = 500,
  HOLD_MOST_MS = 10000,
  PROCESSORS = 256,
};

static struct place {
  int own, all; /* /proc/self/schedstat and /proc/stat; -1: not to be had */
  int64_t next, since;
  uint64_t ran, waited; /* ns, at `since` */
  unsigned starved;     /* looks in a row */
  uint64_t idle[PROCESSORS];
  int64_t idle_at;
  bool moved;
  int64_t active; /* ns in which there was something to do, about: what follows is by this clock */
  int64_t until, hold;
  cpu_set_t allowed, ours;
} place = {.own = -1, .all = -1};

void place_init(void) {
  place.own = open("/proc/self/schedstat", O_RDONLY | O_CLOEXEC);
  place.all = open("/proc/stat", O_RDONLY | O_CLOEXEC);
  srandom((unsigned)getpid());
}

/* True: it had to wait for much of the time since the last look. */
static bool starves(struct place *p, int64_t now, uint64_t ran, uint64_t waited) {
  uint64_t part = now > p->since ? (uint64_t)(now - p->since) / PART : UINT64_MAX;
  bool yes = waited - p->waited > part && ran - p->ran > part;
  p->since = now;
  p->ran = ran;
  p->waited = waited;
  return yes;
}

static int ticks_per_second(void) {
  static int ticks;
  if (ticks == 0) {
    long n = sysconf(_SC_CLK_TCK);
    ticks = n > 0 ? (int)n : 100;
  }
  return ticks;
}

/* The one of the `allowed` that was idle most since the last time, and for long enough; -1: none. */
static int idlest(const struct place *p, const uint64_t idle[PROCESSORS], int64_t now, int here) {
  int found = -1;
  int64_t most = (now - p->idle_at) / IDLE_PART;
  for (int i = 0; i < PROCESSORS; i++) {
    int64_t ns = (int64_t)(idle[i] - p->idle[i]) * (INT64_C(1000000000) / ticks_per_second());
    if (i != here && CPU_ISSET(i, &p->allowed) && ns > most) {
      most = ns;
      found = i;
    }
  }
  return found;
}

/* Ticks for which each processor was idle since the start. */
static bool read_idle(int fd, uint64_t idle[PROCESSORS]) {
  static char text[32 * 1024]; /* the processors come first */
  ssize_t n = pread(fd, text, sizeof text - 1, 0);
  if (n <= 0) {
    return false;
  }
  text[n] = '\0';
  memset(idle, 0, PROCESSORS * sizeof *idle);
  for (const char *line = text; line != NULL; line = strchr(line, '\n')) {
    line += *line == '\n';
    unsigned cpu;
    uint64_t ticks;
    if (sscanf(line, "cpu%u %*u %*u %*u %" SCNu64, &cpu, &ticks) == 2 && cpu < PROCESSORS) {
      idle[cpu] = ticks;
    } else if (strncmp(line, "cpu", 3) != 0) {
      break;
    }
  }
  return true;
}

static bool read_own(int fd, uint64_t *ran, uint64_t *waited) {
  char text[100];
  ssize_t n = pread(fd, text, sizeof text - 1, 0);
  if (n <= 0) {
    return false;
  }
  text[n] = '\0';
  return sscanf(text, "%" SCNu64 " %" SCNu64, ran, waited) == 2;
}

/* Whatever somebody else has set since is what holds. */
static bool read_allowed(struct place *p) {
  cpu_set_t now;
  if (sched_getaffinity(0, sizeof now, &now) != 0) {
    return false;
  }
  if (!p->moved || !CPU_EQUAL(&now, &p->ours)) {
    p->allowed = now;
    p->moved = false;
  }
  return true;
}

static void back(struct place *p) {
  if (read_allowed(p) && p->moved) {
    (void)sched_setaffinity(0, sizeof p->allowed, &p->allowed);
    p->moved = false;
  }
}

/* To `there` at once, and from then on to anywhere but `here`. */
static void go(struct place *p, int here, int there) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(there, &one);
  p->ours = p->allowed;
  CPU_CLR(here, &p->ours);
  if (sched_setaffinity(0, sizeof one, &one) != 0) {
    return;
  }
  if (sched_setaffinity(0, sizeof p->ours, &p->ours) != 0) {
    p->ours = one;
  }
  bool again = p->hold > 0 && p->active - p->until < p->hold;
  p->hold = again ? p->hold * 2 : HOLD_MS * MS;
  p->hold = p->hold < HOLD_MOST_MS * MS ? p->hold : HOLD_MOST_MS * MS;
  p->until = p->active + p->hold;
  p->moved = true;
}

void place_look(int64_t now) {
  struct place *p = &place;
  uint64_t ran, waited, idle[PROCESSORS];
  if (now < p->next || p->own < 0 || p->all < 0) {
    return;
  }
  p->next = now + LOOK_MS * MS / 2 + random() % (LOOK_MS * MS);
  p->active += now - p->since < 2 * LOOK_MS * MS ? now - p->since : 2 * LOOK_MS * MS;
  if (p->moved && p->active >= p->until) {
    back(p);
  }
  if (!read_own(p->own, &ran, &waited) || !starves(p, now, ran, waited)) {
    p->starved = 0;
    return;
  }
  unsigned patience = p->moved ? PATIENCE_MOVED : PATIENCE;
  p->starved++;
  if (p->starved < patience || (p->starved > patience && now - p->idle_at < WINDOW_MS * MS) ||
      !read_idle(p->all, idle)) {
    return;
  }
  int here = sched_getcpu();
  int there = p->starved > patience && here >= 0 && read_allowed(p) ? idlest(p, idle, now, here) : -1;
  if (there >= 0) {
    go(p, here, there);
    p->starved = 0;
  } else {
    memcpy(p->idle, idle, sizeof idle);
    p->idle_at = now;
  }
}
