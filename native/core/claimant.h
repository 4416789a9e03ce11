/* Whether a claim by another user's link is about a connection of that user's. */
#ifndef BERTHA_CLAIMANT_H
#define BERTHA_CLAIMANT_H

#include <stdbool.h>
#include <sys/socket.h>

#include "protocol.h"

/* `fd` is the server's end, from `local` to `peer`. */
bool claimant_owns(const struct bertha_claimant *claimant, int fd, const struct sockaddr *local,
                   const struct sockaddr *peer);

#endif
