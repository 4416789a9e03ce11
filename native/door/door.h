/* The late door: redirecting the calls of what is already loaded (bertha_socket.monkey calls these). */
#ifndef BERTHA_DOOR_H
#define BERTHA_DOOR_H

#include <stddef.h>

#define DOOR_API __attribute__((visibility("default")))

/* Whose connections begin in the shim.  Bytes, descriptors and waiting are redirected in every object in any
 * case: a call that went past us would read past a ring. */
enum {
  DOOR_SOCKET = 1,    /* Python's own: its program, libpython and _socket */
  DOOR_LIBRARIES = 2, /* every other object's */
};

enum { DOOR_CLOSED = 0, DOOR_PRELOADED = 1, DOOR_LATE = 2 };

/* How the calls of this process reach the shim now. */
int bertha_door_state(void);
/* Redirects; returns how many entries were rewritten, or -errno.  Again: only what has come since, and origins that are
 * new. */
int bertha_door_redirect(unsigned origins);
/* The ledger as lines "object\tcall\tentries\n"; returns the size it has (without the final 0), written or not. */
size_t bertha_door_ledger(char *to, size_t size);
/* What the policy requires of this process, in the form of BERTHA_MUST: without an agent that is refused, not plain. */
void bertha_door_musts(const char *musts);
/* Chunnels that the program has registered itself, as BERTHA_OP_BRING has them (core/protocol.h): told to the agent now,
 * if one is known, and to those that come.  Returns 0, or -1 when they are too many. */
int bertha_door_bring(const char *pairs, size_t size);
/* In this thread, from now on: Python's connect and listen, and UDP sockets that it makes, begin in the shim (DOOR_OPT),
 * or only where the origins say so (0); with DOOR_OWN they get no chunnels there, because the caller runs his own.
 * Returns what was before. */
enum { DOOR_OPT = 1, DOOR_OWN = 2 };
int bertha_door_opt(int in);
/* For the log: the chunnels that the caller runs on this connection, a JSON array of {type, implementation, where}, and in one
 * line what was left out, and why (empty: nothing).  Returns 0, or -1 when the connection is not one that the shim knows. */
int bertha_door_name(int fd, const char *chunnels, const char *left_out);
/* The C library's own function behind a redirected name, or NULL. */
void *bertha_door_original(const char *name);

#endif
