/* Reasons in words. */
#ifndef BERTHA_REASON_H
#define BERTHA_REASON_H

#include <stdint.h>

/* The sentence for a number of enum bertha_reason; never NULL, any number is allowed. */
const char *bertha_reason_text(uint32_t reason);

#endif
