/* The connection log: one JSON object a line when a connection closes (BERTHA_CONNLOG). */
#ifndef BERTHA_CONNLOG_H
#define BERTHA_CONNLOG_H

#include "shim.h"

uint64_t connlog_about(void);
uint64_t connlog_clock(void); /* CLOCK_REALTIME, ns; 0 when nobody will want it */
/* While the descriptor is still open: a plain connection's addresses are asked of the kernel only now. */
/* One whose process was killed, by its record alone. */
void connlog_killed(struct conn *c, int pid);
void connlog_write(struct conn *c, int fd);
void connlog_addresses(struct conn *c,
                       int fd); /* asks the kernel now: the descriptor is about to be exchanged */
void connlog_refused(struct conn *c, int fd, const char *detail); /* a connect() that may not be */
void connlog_put(const char *line, size_t size); /* into the file; without a line: what was kept back */
void connlog_close_all(void);                    /* at the end of the process */

#endif
