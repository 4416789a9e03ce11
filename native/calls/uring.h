/* Who sets up an io_uring (uring.c), and what for (uring_files.c). */
#ifndef BERTHA_URING_H
#define BERTHA_URING_H

#include <stdbool.h>
#include <stdint.h>

/* From here on the kernel has all connections of this process. */
void bertha_uring_begins(void);
bool bertha_uring_declined(const void *caller, unsigned entries, const void *params);
bool uring_barred(void); /* the policy requires chunnels */
/* Of a ring that liburing makes: what it is for is seen when it is used. */
bool uring_may_be_for_files(uint32_t flags);

#endif
