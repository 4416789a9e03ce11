/* A connection that is encrypted goes on in the program, and comes back (carrier/lend.c). */
#ifndef BERTHA_ENCRYPT_H
#define BERTHA_ENCRYPT_H

#include "../core/layout.h"
#include "chunnel.h"

/* What it takes to go on from here, with nothing under way in either direction; false: it cannot (the handshake is not over,
 * an end has been said, or something was sent besides data).  From then on the chunnel does its records itself. */
bool encrypt_lend(struct chunnel *c, struct bertha_records *to);
/* Where the program has got to.  `notified`: it has seen the other end's close_notify. */
bool encrypt_back(struct chunnel *c, const struct bertha_records *from, bool notified);

#endif
