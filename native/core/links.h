/* Between link.c, listener.c and retire.c: the listeners and links of this process. */
#ifndef BERTHA_LINKS_H
#define BERTHA_LINKS_H

#include "shim.h"

struct mapped {
  _Atomic uint32_t
      lock; /* of all the lists; conn_books_begin() comes before it, so that no child has half a list */
  struct listener *listeners;
  struct link *links;
  struct listener *old_listeners; /* retired */
  struct link *old_links;
};
extern struct mapped mapped;

/* listener.c */
struct listener *listener_add(uint64_t id, uint64_t generation, int claims_fd, bool serves);

/* link.c */
/* Sealed against shrinking, or we would take a SIGBUS at the other side's pleasure.  0: it is not. */
size_t sealed_size(int fd, size_t least);
void *map_over(int fd, size_t size, void *over); /* what is mapped at `over` goes; NULL: anywhere */
/* With the lock held.  Client and server in one process: closing any descriptor of the memfd has dropped our lock on it
 * (fcntl(2)). */
void link_hold_again(uint64_t listener, uint32_t index);

/* retire.c */
/* Gives back what no connection of this family uses and none will: links of clients that are gone or have given theirs
 * up, links to listeners that have left the directory (`idle_too`: to any), closed listeners.  How many links. */
unsigned links_retire(bool idle_too);
void listener_unpin(struct listener *l);
/* A retired one, still mapped, to be mapped over; NULL: none.  A listener's, with the lock held. */
struct link *old_link(size_t size);
struct listener *old_listener(size_t size);

#endif
