/* Waiting: look at the rings, spin while that pays, then sleep in the kernel with a bell within reach. */
#ifndef BERTHA_WAIT_H
#define BERTHA_WAIT_H

#include "shim.h"

/* Until one of POLLIN, POLLOUT may hold for the connection.  `deadline` in bertha_now_ns() terms, -1: none.
 * 0, -EAGAIN at the deadline, -EINTR. */
int wait_conn(struct conn *c, int fd, short want, int64_t deadline);
/* A client that has claimed, sent its first request through the kernel and now waits for the answer: spins a while for
 * the server to come to the ring with it.  Returns with the kernel's bell on again. */
void wait_claimed(struct conn *c);
/* The same without the bell: true when the server has switched. */
bool wait_switch(struct conn *c);
/* ppoll() of two descriptors, interrupted and restarted as recv() is: a count, -EAGAIN at the deadline, -EINTR. */
int wait_two(struct pollfd fds[2], int64_t deadline, void (*undo)(void *), void *arg); /* undo: quiet.h */
/* poll() over any descriptors; -errno instead of errno. */
int wait_fds(struct pollfd *fds, nfds_t count, int64_t timeout_ns, const sigset_t *mask);
bool wait_is_interrupted(void); /* by EINTR: a handler may be one after which recv() is not restarted */
void wait_after_fork(void);
void wait_fd_moved(int from, int to);
void wait_note_signal(int number, const struct sigaction *action);

/* A program's time in nanoseconds; -1: none given, -EINVAL: not a time.  What is too long to count is cut: it will do. */
static inline int64_t time_ns(const struct timespec *t) {
  if (t == NULL) {
    return -1;
  }
  if (t->tv_sec < 0 || t->tv_nsec < 0 || t->tv_nsec >= 1000000000) {
    return -EINVAL;
  }
  int64_t seconds = t->tv_sec < INT32_MAX ? t->tv_sec : INT32_MAX; /* 68 years */
  return seconds * 1000000000 + t->tv_nsec;
}

/* How long to look before sleeping. */
struct spinner {
  int32_t score;
  uint32_t idle;   /* long waits since the last short one */
  uint32_t moment; /* of the last trials of one that has stopped */
  uint32_t trials;
};
#define SPIN_GAP_NS 100000 /* between two looks at the clock: somebody else had the processor */
int64_t spin_budget(struct spinner *s, int64_t now, int64_t bound_ns);
void spin_lost_processor(struct spinner *s);
void spin_note_wake(int64_t ns); /* what it has taken this thread to wake another end */
void spin_learn(struct spinner *s, int64_t waited_ns, int64_t bound_ns);
void spin_once_linked(void); /* there is somebody to wait for */
int64_t link_spin_bound(const struct link *l);
/* Publishes which processor this side runs on; true when the other side last ran on the same one. */
bool same_processor(struct link *l);

/* An entry among a link's sleepers for this side; 0: none left. */
uint32_t sleeper_take(struct link *l, uint32_t bell);
void sleeper_arm(struct bertha_sleeper *s);
void sleeper_give_back(struct link *l, uint32_t index);

#endif
