/* The program does itself what its carrier does for an encrypted connection: seals, sends, receives, opens (struct bertha_loan).
 *
 * Only for a connection that one epoll set of one process looks at, and as long as nothing is asked of it but to send and to
 * receive: anything else gives the turn back to the carrier first, and then finds what it has always found.  The ring stays
 * where it is, and what goes through it: only who fills and empties its other end is another one. */
#ifndef BERTHA_BORROW_H
#define BERTHA_BORROW_H

#include "shim.h"

struct eset;

/* With the set's lock held: the carrier may have offered the connection, which is a member. */
void borrow_look(struct eset *s, int fd, struct conn *c);
bool borrow_offered(struct conn *c, int fd); /* the same, whatever set has it; true: it is borrowed now */
/* There is something in the ring for the network.  False: the carrier is to be told, as always. */
bool borrow_out(struct conn *c);
/* Receives what there is.  True: something has come into the ring, or the connection is the carrier's again.  `ended`: the
 * kernel has said that more than data is there. */
bool borrow_in(struct conn *c, bool ended);
void borrow_end(struct conn *c);                        /* the carrier is to have it; nothing if it has */
void borrow_keep(struct conn *c, const struct eset *s); /* the same, but if that set has it */
/* All of this process's, or of that set: before a fork, at exit, when a set is put into another one. */
void borrow_end_all(const struct eset *s);
void borrow_after_fork(void);
bool borrow_unread(const struct conn *c); /* there was more than the ring had room for */

static inline bool conn_borrows(const struct conn *c) {
  return conn_flags(c) & CONN_BORROWS;
}

#endif
