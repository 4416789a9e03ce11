/* The mailbox of a link whose plan is `unix`: ends of socketpairs on their way from the listener's processes to the client.
 *
 * An end is posted for one claim, or ahead of any: then it has a number, and client and server agree by the slot that it
 * is theirs, with no descriptor to be passed while a request waits. */
#ifndef BERTHA_UNIXMAIL_H
#define BERTHA_UNIXMAIL_H

#include "shim.h"

/* Server: posts `fd` for this claim.  0, or errno. */
int mail_post(struct link *l, uint32_t slot, uint32_t use, int fd);
/* Client: the end that came for this slot's present claim; -1: not there (yet).  Hidden, the caller's from now on. */
int mail_take(struct link *l, uint32_t slot);
/* Client, from its claim on: a letter that comes for it is not lost for want of a descriptor.  With `room` one is kept for it;
 * false: there is none. */
bool mail_expect(struct link *l, uint32_t slot, bool room);
void mail_expect_no_more(struct link *l, uint32_t slot);
bool mail_waits(const struct link *l); /* something lies in the mailbox for which there was no descriptor */

/* Client: an end made ahead, hidden, the caller's from now on; -1: none. */
int spare_fetch(struct link *l, uint64_t *number);
/* Server: the end that belongs to it; -1: it is not this process's. */
int spare_find(struct link *l, uint64_t number);
/* Server: a claim came without one: so many more are kept ready. */
void spare_missed(struct link *l);
void spares_fill(struct link *l); /* server: not while a request waits, for it takes a while */

void mail_forget(
    struct link *l); /* closes all that nobody has taken: in a forked child, or when the link goes */
void mail_fd_moved(struct link *l, int from, int to);

#endif
