/* What a process has of a connection by `unix`, for unixpair.c, unixends.c and unixfirst.c. */
#ifndef BERTHA_UNIXENDS_H
#define BERTHA_UNIXENDS_H

#include "shim.h"

/* Descriptors are a process's own, the connection's record is its family's: so they are kept apart. */
struct ends {
  int unix_fd; /* before the exchange; a client has one that was made ahead from its claim on */
  int tcp_fd;  /* after it; before it, kept for it */
  _Atomic bool swapped;
  uint8_t requests; /* received without the exchange */
  bool deaf;        /* the other end of unix_fd is closed: there is nothing to wait for */
  bool expects;     /* an end by the mailbox */
  bool readable;    /* as unix_wait() has found it: to be received from without another wait */
  uint64_t number;  /* of an end that was made ahead (unixmail.h), else 0 */
};
extern struct ends *_Atomic unix_ends; /* by the connection's index; NULL: there was none yet */
struct ends *unix_ends_made(void);
void unix_shut_as_told(struct conn *c,
                       int fd); /* what the TCP socket was told before there was another one */

static inline struct ends *ends_of(const struct conn *c) {
  struct ends *all = atomic_load_explicit(&unix_ends, memory_order_acquire);
  if (UNLIKELY(all == NULL)) {
    all = unix_ends_made();
  }
  return all != NULL ? &all[conn_index(c)] : NULL;
}

#endif
