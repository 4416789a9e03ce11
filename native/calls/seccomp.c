/* A seccomp filter knows the calls that the program makes, and ends it at those that only we make: who installs one goes
 * on without us.  libseccomp comes by syscall(2). */
#include <stdarg.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "../core/without.h"
#include "calls.h"

void bertha_seccomp_begins(unsigned long mode, const void *filter);

/* <linux/seccomp.h>; by prctl() the numbers are one more. */
enum { SET_STRICT = 0, SET_FILTER = 1 };

void bertha_seccomp_begins(unsigned long mode, const void *filter) {
  if (mode == SET_STRICT ||
      (mode == SET_FILTER && filter != NULL)) { /* without one: asks what the kernel can do */
    bertha_goes_without(BERTHA_WHY_SECCOMP);
  }
}

BERTHA_EXPORT int prctl(int option, ...) {
  unsigned long a[4];
  va_list args;
  va_start(args, option);
  for (int i = 0; i < 4; i++) {
    a[i] = va_arg(args, unsigned long);
  }
  va_end(args);
  if (UNLIKELY(option == PR_SET_SECCOMP) && a[0] > 0) {
    bertha_seccomp_begins(a[0] - 1, (const void *)a[1]); /* NOLINT: as prctl(2) has it */
  }
  return REAL(prctl)(option, a[0], a[1], a[2], a[3]);
}
