/* On which processors the carrier runs (decision 0023). */
#ifndef BERTHA_PLACE_H
#define BERTHA_PLACE_H

#include <stdint.h>

/* Once, before privileges are dropped. */
void place_init(void);
/* In each turn in which there was something to do; ns, as carrier_now(). */
void place_look(int64_t now);

#endif
