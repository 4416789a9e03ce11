/* A connection that came into this image by exec() or posix_spawn().
 *
 * The family of processes it came from may go on using it, and may get it back (a shell that lets a command read
 * a few lines), so there must be one truth of how far it has been read and written.  That stays where it was: in
 * the record of the family that made the connection, its `home`, whose table this image has mapped as well.  Our
 * own record is a copy, brought up to date before each try and written back after it, under the home's locks.
 * The home counts the whole of our family as one reference. */
#ifndef BERTHA_ABROAD_H
#define BERTHA_ABROAD_H

#include "shim.h"

bool abroad_begin(struct conn *c);
void abroad_end(struct conn *c);

/* Around every look and every try: false for all but a few connections. */
static inline bool abroad_enter(struct conn *c) {
  return UNLIKELY(c->home != NULL) && abroad_begin(c);
}
static inline void abroad_leave(struct conn *c, bool entered) {
  if (UNLIKELY(entered)) {
    abroad_end(c);
  }
}

/* Our family has closed its last descriptor of it: true when nobody else has one either. */
bool abroad_give_up(struct conn *c);
/* A kernel send begins (+1) or has ended (-1) with `sent` bytes.  Without a home nothing happens. */
void abroad_kernel_send(struct conn *home, int by, uint64_t sent);

/* homes: tables of other families, mapped here */
struct bertha_table_header *abroad_table(int fd); /* takes the descriptor over; NULL: not a table */
struct conn *abroad_record(struct bertha_table_header *table, uint32_t index);
int abroad_table_of(const struct conn *home, uint32_t *index); /* its descriptor, -1 */
struct bertha_table_header *abroad_header_of(const struct conn *home);
void abroad_fd_moved(int from, int to);

#endif
