/* A carrier that is killed is to reset its connection. */
#ifndef BERTHA_GUARD_H
#define BERTHA_GUARD_H

#include "shim.h"

void guard_set(struct conn *c, int tcp);        /* before a carrier gets it */
void guard_lift(const struct conn *c, int tcp); /* back to what the program has set */
/* From when it stands on, the program's own SO_LINGER is asked here: 0 or -errno, as setsockopt() and getsockopt(). */
bool guard_stands(const struct conn *c);
int guard_set_linger(struct conn *c, const void *value, socklen_t size);
int guard_get_linger(const struct conn *c, void *value, socklen_t *size);
void guard_last_close(const struct conn *c, int fd);

#endif
