/* For a process of an author's chunnels whose carrier has ended: nobody else sees any more that it blocks. */
#ifndef BERTHA_ORPHAN_H
#define BERTHA_ORPHAN_H

#include <stddef.h>
#include <stdint.h>

struct orphan {
  int carrier; /* a pidfd; -1: it has ended already */
  int tcp;     /* is reset before the process is killed, so that nobody takes its end for the stream's */
  const void *since;    /* a double in memory: since when it is at work (CLOCK_MONOTONIC, seconds), or 0 */
  double patience;      /* seconds at one piece */
  int status;           /* the shim's array of statuses (native/carrier/carrier.h) */
  int64_t at;           /* this connection's in there */
  uint32_t life, state; /* it is only written while it has that life; what it is told */
  char detail[396];
};

/* Starts a thread that lives as long as the process.  A thread of C's: what blocks may hold the interpreter's lock.
 * 0, or an errno. */
int orphan_watch(const struct orphan *o);

#endif
