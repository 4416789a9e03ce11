/* C's streams (FILE) on connections.
 *
 * glibc's stdio reads and writes by aliases of its own, which cannot be replaced: on a connection that is or
 * may come to shared memory they would go past the ring.  A FILE that calls our read and write instead is
 * put in their place: by fdopen(), and for stdin, stdout and stderr when such a connection comes to be
 * descriptor 0, 1 or 2 (a server that was started by another one, or dup2). */
#ifndef BERTHA_STDFILE_H
#define BERTHA_STDFILE_H

#include "shim.h"

/* As fdopen(); the mode has been checked by the caller.  NULL and errno. */
FILE *stdfile_open(int fd, const char *mode);
/* What stands behind this descriptor has changed: stdin, stdout, stderr follow. */
void stdfile_follow(int fd);
bool stdfile_is(FILE *f); /* is this stream one of ours? */
/* freopen() of a stream of ours, which glibc's would crash on.  True: done, the result (NULL: an errno) is in `*f`. */
bool stdfile_reopen(FILE **f, const char *path, const char *mode);
/* At the end of the process, while the connections are still there. */
void stdfile_flush(void);
void stdfile_after_fork(void);

#endif
