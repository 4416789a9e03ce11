/* Address space of ours: large, and hardly any of it ever memory. */
#ifndef BERTHA_ROOM_H
#define BERTHA_ROOM_H

#include <stdbool.h>
#include <stddef.h>

bool room_allows(size_t size); /* it would be a small part of what RLIMIT_AS leaves the program */
/* Maps a file, or (-1) memory of our own, over what is at `over` (NULL: anywhere).  Never locked.  NULL: not to be had. */
void *room_map(void *over, size_t size, int fd);
int room_lock(int flags); /* mlockall(): 0, or errno */
struct rlimit;
/* RLIMIT_AS as the program has it: prlimit() on itself, 0 or -1 with errno. */
int room_limit(const struct rlimit *now, struct rlimit *before);
/* Around exec: the next image has none of our room. */
void room_leave(void);
void room_left(void);  /* not after all */
bool room_stays(void); /* it would have room for the links that we have */

#endif
