/* mlockall: the program's memory, and not the address space that we keep room in. */
#include <sys/mman.h>

#include "../core/room.h"
#include "calls.h"

BERTHA_EXPORT int mlockall(int flags) {
  bool known = (flags & ~7 /* MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT */) == 0 && (flags & 3) != 0;
  if (!bertha.enabled || !known || bertha_in_forked_stranger()) {
    return REAL(mlockall)(flags);
  }
  return (int)errno_result(-room_lock(flags));
}
