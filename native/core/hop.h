/* The ring between a program and a carrier.
 *
 * A link as between two programs, but made by the program itself, which is its client's side, and shown to the carrier
 * (carrier/carrier.h).  One serves all the connections that a process has with a carrier.  Beneath a connection is the
 * socketpair: it carries bells, the end of the stream, and what has to leave the ring; both directions are on the ring
 * from their first byte.
 *
 * The native carrier is one thread: it has one entry among the sleepers, and one bell, for all of a link.  One in Python
 * has processes of its own for some connections: so each slot has an entry and a bell (`apart`), and the link has as many
 * slots as there are entries. */
#ifndef BERTHA_HOP_H
#define BERTHA_HOP_H

#include "shim.h"

/* In the program.  `spin_us`: the most that its threads spin for the connections in it; UINT32_MAX: no policy says. */
struct link *hop_make(bool apart, uint32_t spin_us, uint32_t *index); /* NULL: no memory, no descriptor */
/* `apart`: the slot's bell, which later connections in that slot have, too; -1: no descriptor. */
int hop_bell(struct link *l, uint32_t slot);
void hop_prepare(struct link *l, uint32_t slot);
void hop_tie(struct conn *c, struct link *l, uint32_t slot); /* with both of the connection's locks */
/* Before an exec: back to the socketpair, at an exact byte, which the next image finds in the descriptor. */
void hop_leave(struct conn *c, int fd);

/* In the carrier, which has one thread.  Whatever the program writes into the link, nothing outside of its slots is
 * touched, and nobody waits for it. */
bool hop_init(void);
struct link *hop_adopt(int fd, uint32_t index, bool apart); /* takes the descriptor over; NULL: not one */
struct conn *hop_open(struct link *l, uint32_t slot, int fd);
void hop_close(struct conn *c, int fd, bool in_order);           /* before the descriptor's own close */
ssize_t hop_recv(struct conn *c, int fd, void *to, size_t room); /* as recv(2), without waiting */
ssize_t hop_send(struct conn *c, int fd, const void *from, size_t size);
/* What is sent goes by the socketpair by now: it has to be watched for room.  Not before, because each bell that the
 * program takes off it is some, and would wake the carrier. */
bool hop_left(const struct conn *c);
/* Either has done something that the program may wait for: data, or room where it had none. */
bool hop_due(const struct conn *c);
/* Then: wakes whoever waits for it in the program.  Once for a batch. */
void hop_ring(struct conn *c, int fd);
void hop_end(struct conn *c, int fd);                    /* as shutdown(fd, SHUT_WR) */
void hop_event(struct conn *c, int fd, uint32_t events); /* what epoll says of the descriptor */
/* NULL: this link has none.  The program has had the turn: the ring is now where it says (core/borrow.h). */
struct bertha_loan *hop_loan(const struct conn *c);
_Atomic uint32_t *hop_turn(const struct conn *c); /* enum bertha_turn */
uint32_t hop_wanted(const struct conn *c);        /* enum bertha_loan_wanted */
void hop_resume(struct conn *c);
bool hop_both_ways(const struct conn *c); /* both directions are on the ring, and are to stay there */
/* Calls `changed` for each slot in which the program has done something since.  True: there was one. */
bool hop_collect(struct link *l, void (*changed)(void *who, uint32_t slot), void *who);
void hop_asked(struct conn *c, int fd); /* the program wants its ring back */
void hop_arm(struct link *l);           /* before the last look before a sleep */
void hop_awake(struct link *l);

/* A carrier in Python, which has an entry among the sleepers for each connection. */
/* Rings if that is due, and tells which of `want` (POLLIN, POLLOUT) hold; where none does, the bell tells when to look. */
#define HOP_LEFT 0x10000 /* also told: hop_left() */
int hop_wait(struct conn *c, int fd, int want);
/* A connection goes from one process to a forked child: packed before the fork, and unpacked in the child, which shares
 * no books with its parent from then on. */
size_t hop_packed_size(void);
void hop_pack(struct conn *c, int fd, void *to);
bool hop_alone(void);
struct conn *hop_unpack(const void *from, int fd);
/* Which of its connections a slot has now. */
uint32_t hop_use(const struct link *l, uint32_t slot);
/* That one's process has died. */
void hop_abandon(struct link *l, uint32_t slot, uint32_t use);

#endif
