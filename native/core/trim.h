/* Memory of rings that was needed once: given back when a connection has been idle for a while, and at its end. */
#ifndef BERTHA_TRIM_H
#define BERTHA_TRIM_H

#include "shim.h"

enum { TRIM_WARM = 65536 }; /* bytes of a ring that are not worth a system call */

void trim_note(int fd); /* its ring has grown */
/* Before a sleep of `ns` (-1: until something happens): gives back what is due, and says how long to sleep. */
int64_t trim_before_sleep(int64_t ns);
/* A connection that no descriptor leads to any more is about to be freed: waits until no other thread looks at it. */
void trim_closing(void);
void trim_after_fork(void);
/* Neither side uses the slot, and none can before its caller lets it. */
void trim_slot(const struct link *l, uint32_t slot);

#endif
