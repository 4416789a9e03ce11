/* What stands for the calls with which a connection begins, where the origins do not cover the caller. */
#ifndef BERTHA_DOOR_OPTED_H
#define BERTHA_DOOR_OPTED_H

#include <stdbool.h>
#include <stdint.h>

/* False: the call is none of those.  `*instead`: where an entry of a caller (Python's own: `python`) is to lead; 0: it stays
 * the C library's. */
bool opted_guards(const char *call, bool python, uintptr_t *instead);
bool opted_is_instead(uintptr_t target);

#endif
