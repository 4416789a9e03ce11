/* A process that reads and writes a ring for a program that cannot (relay.c). */
#ifndef BERTHA_RELAY_H
#define BERTHA_RELAY_H

#include "shim.h"

struct relay {
  int end;  /* for the program: close-on-exec */
  int word; /* waits for relay_go() */
};

/* Starts one for the connection `fd`, with a reference of its own to it.  False: it could not be started. */
bool relay_begin(struct relay *r, struct conn *c, int fd);
bool relay_again(struct relay *r, const struct relay *first); /* its end once more */
void relay_go(struct relay *r); /* the program has its end: from here on it copies */
void relay_cancel(struct relay *r);

enum { RELAY_END = 4 }; /* in the relay: its own end of the stream to the program */

/* relayed.c.  Before a byte, or an end, is sent on a connection that has (or had) a relay: what its program has written.
 * False: that is lost, the relay was killed, and so the connection has been reset. */
bool relay_await(struct conn *c, int fd);
void relay_made(struct conn *c, int end);
/* The relay itself: it is about to take bytes (1), has passed them on (0), ends (-1). */
void relay_has(struct conn *c, int something);

/* Two ends of a stream, both close-on-exec; TCP where it can be had. */
bool relay_pair(int family, int pair[2]);

#endif
