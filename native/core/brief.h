/* Which listeners' connections end after one exchange: for those the kernel's TCP is the quicker carrier. */
#ifndef BERTHA_BRIEF_H
#define BERTHA_BRIEF_H

#include "agentc.h"

bool brief_expected(uint64_t listener); /* the next connection of this process to it */
void brief_closed(const struct conn *c);
void brief_not(uint64_t listener);
/* This is the first connection of a process like many that have made one there and ended: the agent need not be asked. */
bool brief_process(const struct dir_hit *hit);

/* More than a request in two parts: found out while the connection is open, so that the next one is not plain too. */
enum { BRIEF_SENDS = 2 };
static inline void brief_sent(struct conn *c) {
  if (UNLIKELY(++c->sends == BRIEF_SENDS + 1 && c->chosen != 0)) {
    brief_not(c->chosen);
  }
}

#endif
