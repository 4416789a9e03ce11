/* Between eset_wait.c and what it is made of: eset_look.c (what the rings have), eset_sleep.c (who sleeps, and its bell) and
 * eset_nest.c (sets within a set).  With the set's lock held. */
#ifndef BERTHA_ESET_WAIT_H
#define BERTHA_ESET_WAIT_H

#include "eset.h"

#define ENDS (CONN_FIN | CONN_RST)
#define POLL_BITS (EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI | EPOLLRDNORM | EPOLLWRNORM)

/* What the rings have, up to `max` events, which may be none.  `all`: not just of the warm links, while those have something. */
int eset_collect(struct eset *s, struct epoll_event *events, int max, bool all);
bool eset_peek(struct eset *s);
#define EPOLL_DATA (EPOLLIN | EPOLLRDNORM | EPOLLRDBAND | EPOLLPRI)
#define EPOLL_ROOM (EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND)
static inline bool edge_only(const struct reg *r) {
  return (r->events & (EPOLLET | EPOLLONESHOT)) == EPOLLET;
}
bool eset_news(struct reg *r, struct conn *c); /* whether there is something that an edge tells of */
bool eset_changed(const struct eset *s);
void eset_rotate(struct eset *s);
int64_t eset_spin_bound(struct eset *s);

struct nap { /* a thread's sleep in a set, and in those within it */
  struct eset *set;
  bool deep;
  bool kicked;
  unsigned count;
  struct {
    struct eset *set;
    uint32_t life;
    bool deep;
  } inner[INNER_MOST];
};
void eset_want_bell(struct eset *s);
void eset_set_armed(struct eset *s, uint32_t value);
void eset_woken(struct eset *s); /* one that slept is awake again */
void eset_no_more_asleep(void *nap);
int64_t eset_sleep_cap(struct eset *s);

/* eset_kin.c */
uint32_t kin_adoptions(void);
void kin_adopt(struct eset *s, uint32_t parent);
void kin_forget(struct eset *s);
void kin_look(struct eset *s); /* and everything is to be looked at */
bool kin_readable(struct eset *s);
void kin_kicked(struct eset *s, int fd); /* the kernel tells of it as writable */
int64_t kin_sleep_cap(const struct eset *s, int64_t cap);
int kin_sleep(const struct eset *s, struct epoll_event *events, int max, int64_t ns, const sigset_t *mask,
              void (*undo)(void *), void *arg);
static inline bool kin_news(const struct eset *s) {
  return s->kin_seen != kin_adoptions();
}
static inline void kin_enter(struct eset *s) {
  if (UNLIKELY(s->kin || kin_news(s))) {
    kin_look(s);
  }
}

/* eset_nest.c */
int nest_collect(struct eset *s, struct epoll_event *events,
                 int max);          /* with room for none: as nest_all_told() */
void nest_all_told(struct eset *s); /* what nest_judge() has told of is on its way to the program */
bool nest_has_rings(const struct eset *s);
bool nest_changed(struct eset *s);
int64_t nest_spin_bound(struct eset *s);
void nest_asleep(struct eset *s, struct nap *nap);
void nest_awake(struct nap *nap);
int64_t nest_sleep_cap(struct nap *nap, int64_t cap);
void nest_pass_on(struct eset *s);
uint32_t nest_judge(struct reg *r, uint32_t seen); /* the kernel says that an inner set has something */

#endif
