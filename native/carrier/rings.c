/* The rings by which programs reach us (core/hop.h), and the socketpair where there is none. */
#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../core/agentc.h"
#include "../core/hop.h"
#include "session.h"

enum { QUIET_SLEEPS = 64, DUE_MAX = 16, SPIN_US = 200 };

/* One link.  Those in use are looked at in each turn, and disarmed while we are awake; one that has been quiet for long
 * stays armed, and whoever rings at one of its connections makes it hot again. */
struct rings {
  struct link *link;
  int bell; /* edge-triggered and never read */
  struct rings *next_hot;
  bool hot;
  int64_t spin_ns;
  unsigned quiet; /* sleeps since it last had something */
  struct session *sessions[BERTHA_LINK_SLOTS];
};
static struct rings *hot;

/* Connections whose program may be asleep while there is something for it: rung for together. */
static struct session *due;
static unsigned due_count;

static void is_due(struct session *s) {
  if (!s->due) {
    s->due = true;
    s->next_due = due;
    due = s;
    if (++due_count >= DUE_MAX) {
      rings_ring();
    }
  }
}

void rings_ring(void) {
  due_count = 0;
  while (due != NULL) {
    struct session *s = due;
    due = s->next_due;
    s->due = false;
    hop_ring(s->ring, s->program);
  }
}

bool rings_init(void) {
  return hop_init();
}

static void heat(struct rings *r) {
  r->quiet = 0;
  if (!r->hot) {
    r->hot = true;
    r->next_hot = hot;
    hot = r;
  }
}

void rings_rung(struct rings *r) {
  heat(r);
}

bool rings_add(struct shim *shim, uint32_t number, uint32_t index, int fd, int bell, uint32_t spin_us) {
  struct rings *r = number == shim->ring_count && number < BERTHA_CARRIER_LINKS ? calloc(1, sizeof *r) : NULL;
  if (r == NULL) {
    close(fd);
    close(bell);
    return false;
  }
  r->bell = bell;
  r->spin_ns = spin_us < SPIN_US ? (int64_t)spin_us * 1000 : SPIN_US * 1000;
  r->link = hop_adopt(fd, index, false);
  if (r->link == NULL || !carrier_watch_bell(bell, r)) {
    if (r->link != NULL) {
      link_drop(r->link);
    }
    close(bell);
    free(r);
    return false;
  }
  shim->rings[shim->ring_count++] = r;
  return true;
}

void rings_drop(struct shim *shim) {
  for (unsigned i = 0; i < shim->ring_count; i++) {
    struct rings *r = shim->rings[i];
    for (struct rings **at = &hot; *at != NULL; at = &(*at)->next_hot) {
      if (*at == r) {
        *at = r->next_hot;
        break;
      }
    }
    carrier_unwatch(r->bell);
    close(r->bell);
    link_drop(r->link);
    free(r);
  }
  shim->ring_count = 0;
}

bool rings_open(struct session *s, struct shim *shim, uint32_t number, uint32_t slot) {
  struct rings *r = number < shim->ring_count ? shim->rings[number] : NULL;
  if (r == NULL || slot >= r->link->slot_count || r->sessions[slot] != NULL) {
    return false;
  }
  s->ring = hop_open(r->link, slot, s->program);
  if (s->ring != NULL) {
    s->rings = r;
    s->slot = slot;
    r->sessions[slot] = s;
    heat(r);
  }
  return s->ring != NULL;
}

void rings_close(struct session *s) {
  if (s->ring != NULL) {
    if (s->due) {
      rings_ring();
    }
    hop_close(s->ring, s->program, s->program_shut);
    s->rings->sessions[s->slot] = NULL;
    s->ring = NULL;
  }
}

void rings_event(struct session *s, uint32_t events) {
  if (s->ring != NULL) {
    hop_event(s->ring, s->program, events);
    hop_asked(s->ring, s->program);
    s->program_in = s->program_out = true;
    heat(s->rings);
  }
}

static void changed(void *who, uint32_t slot) {
  const struct rings *r = who;
  struct session *s = slot < BERTHA_LINK_SLOTS ? r->sessions[slot] : NULL;
  if (s != NULL && (!s->lent || lend_back(s))) {
    hop_asked(s->ring, s->program);
    s->program_in = s->program_out = true;
    carrier_queue(s);
  }
}

void rings_collect(void) {
  for (struct rings *r = hot; r != NULL; r = r->next_hot) {
    if (hop_collect(r->link, changed, r)) {
      r->quiet = 0;
    }
  }
}

int64_t rings_spin_bound(void) {
  int64_t bound = 0;
  for (struct rings *r = hot; r != NULL; r = r->next_hot) {
    bound = r->spin_ns > bound ? r->spin_ns : bound;
  }
  return bound;
}

bool rings_may_sleep(void) {
  for (struct rings *r = hot; r != NULL; r = r->next_hot) {
    hop_arm(r->link);
  }
  atomic_thread_fence(memory_order_seq_cst);
  bool any = false;
  for (struct rings **at = &hot; *at != NULL;) {
    struct rings *r = *at;
    if (hop_collect(r->link, changed, r)) {
      r->quiet = 0;
      any = true;
    } else if (++r->quiet > QUIET_SLEEPS) { /* armed, and looked at since */
      *at = r->next_hot;
      r->hot = false;
      continue;
    }
    at = &r->next_hot;
  }
  if (any) {
    rings_awake();
  }
  return !any;
}

void rings_awake(void) {
  for (struct rings *r = hot; r != NULL; r = r->next_hot) {
    hop_awake(r->link);
  }
}

ssize_t program_recv(struct session *s, void *to, size_t room) {
  if (s->ring == NULL) {
    return recv(s->program, to, room, MSG_DONTWAIT);
  }
  ssize_t n = hop_recv(s->ring, s->program, to, room);
  if (hop_due(s->ring)) { /* it waits for room */
    is_due(s);
  }
  return n;
}

ssize_t program_send(struct session *s, const void *from, size_t size) {
  if (s->ring == NULL) {
    return send(s->program, from, size, MSG_DONTWAIT | MSG_NOSIGNAL);
  }
  ssize_t n = hop_send(s->ring, s->program, from, size);
  if (n < 0 && errno == EAGAIN && hop_left(s->ring)) {
    carrier_watch_room(s);
    errno = EAGAIN;
  }
  if (hop_due(s->ring)) {
    is_due(s);
  }
  return n;
}

void program_end(struct session *s) {
  session_ended(s);
  if (s->ring != NULL) {
    hop_end(s->ring, s->program);
  } else {
    shutdown(s->program, SHUT_WR);
  }
}
