/* As whom the carrier runs. */
#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "session.h"

/* It needs nothing but the descriptors that it is given, has keys in its memory, and reads what strangers send: it is
 * nobody where it may choose, and nobody else's to look into.  Where it may not (a container), it goes on as it is. */
void carrier_drop_privileges(void) {
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  const struct passwd *nobody = geteuid() == 0 ? getpwnam("nobody") : NULL;
  if (nobody != NULL && nobody->pw_uid != 0 && setgroups(0, NULL) == 0 &&
      setresgid(nobody->pw_gid, nobody->pw_gid, nobody->pw_gid) == 0 &&
      setresuid(nobody->pw_uid, nobody->pw_uid, nobody->pw_uid) != 0) {
    fprintf(stderr, "bertha-carrier: goes on as root: cannot become nobody: %s\n", strerror(errno));
  }
#ifndef BERTHA_ASAN /* the leak sanitizer looks into it */
  prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
#endif
}
