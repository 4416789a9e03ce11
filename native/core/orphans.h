/* Records of the table that nobody is left to close: their process was killed. */
#ifndef BERTHA_ORPHANS_H
#define BERTHA_ORPHANS_H

#include "shim.h"

void orphans_mine(struct conn *c, int fd); /* this process uses it */
void orphans_not_mine(struct conn *c);     /* this process is giving up a reference */
void orphans_leaving(bool begins);         /* around an exec: before it gives up anything; it has failed */
unsigned orphans_sweep(void);              /* how many records are free again */
bool orphans_gone(uint32_t pid);           /* that process of the family; false: not known */
void orphans_after_fork(void);             /* in the child, which knows its own number */

#endif
