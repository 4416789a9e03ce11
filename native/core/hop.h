/* The ring between a program and the native carrier.
 *
 * A link as between two programs, but made by the program itself, which is its client's side, and shown to the carrier
 * (carrier/carrier.h).  One serves all the connections that a process has with a carrier.  Beneath a connection is the
 * socketpair: it carries bells, the end of the stream, and what has to leave the ring; both directions are on the ring
 * from their first byte. */
#ifndef BERTHA_HOP_H
#define BERTHA_HOP_H

#include "shim.h"

/* In the program. */
struct link *hop_make(uint32_t *index); /* NULL: no memory, no descriptor */
void hop_prepare(struct link *l, uint32_t slot);
void hop_tie(struct conn *c, struct link *l, uint32_t slot); /* with both of the connection's locks */
/* Before an exec: back to the socketpair, at an exact byte, which the next image finds in the descriptor. */
void hop_leave(struct conn *c, int fd);

/* In the carrier, which has one thread.  Whatever the program writes into the link, nothing outside of its slots is
 * touched, and nobody waits for it. */
bool hop_init(void);
struct link *hop_adopt(int fd, uint32_t index); /* takes the descriptor over; NULL: not one */
struct conn *hop_open(struct link *l, uint32_t slot, int fd);
void hop_close(struct conn *c, int fd, bool in_order);           /* before the descriptor's own close */
ssize_t hop_recv(struct conn *c, int fd, void *to, size_t room); /* as recv(2), without waiting */
ssize_t hop_send(struct conn *c, int fd, const void *from, size_t size);
/* After either has moved something: wakes whoever waits for it in the program.  Once for a batch. */
void hop_ring(struct conn *c, int fd);
void hop_end(struct conn *c, int fd);                    /* as shutdown(fd, SHUT_WR) */
void hop_event(struct conn *c, int fd, uint32_t events); /* what epoll says of the descriptor */
/* Calls `changed` for each slot in which the program has done something since.  True: there was one. */
bool hop_collect(struct link *l, void (*changed)(void *who, uint32_t slot), void *who);
void hop_asked(struct conn *c, int fd); /* the program wants its ring back */
void hop_arm(struct link *l);           /* before the last look before a sleep */
void hop_awake(struct link *l);

#endif
