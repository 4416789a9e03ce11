/* The rest of a process's life without us. */
#ifndef BERTHA_WITHOUT_H
#define BERTHA_WITHOUT_H

#include "shim.h"

/* From here on the C library's own calls are all there is: every connection goes back to the kernel's, or gets a relay,
 * and is logged with this reason; every epoll set is the kernel's.  Where the policy requires chunnels, connections that
 * are yet to come are ours all the same. */
void bertha_goes_without(uint32_t why);

#endif
