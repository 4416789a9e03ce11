/* fork, exit, signals. */
#include <signal.h>

#include "calls.h"

/* The fork handlers (core/process.c) do the work; only a failure is not told to them, and until it is known nothing may
 * change in the books. */
BERTHA_EXPORT pid_t fork(void) {
  bool ours = bertha.enabled && !bertha_in_forked_stranger();
  if (ours) {
    conn_fork_begin();
  }
  pid_t pid = REAL(fork)();
  if (ours && pid != 0) {
    int saved = errno;
    conn_fork_end(pid < 0);
    errno = saved;
  }
  return pid;
}

BERTHA_EXPORT void _exit(int status) {
  connlog_close_all();
  REAL(_exit)(status);
  __builtin_unreachable();
}

BERTHA_EXPORT void _Exit(int status) {
  connlog_close_all();
  REAL(_Exit)(status);
  __builtin_unreachable();
}

BERTHA_EXPORT int sigaction(int number, const struct sigaction *action, struct sigaction *old) {
  int result = REAL(sigaction)(number, action, old);
  if (result == 0 && action != NULL) {
    wait_note_signal(number, action);
  }
  return result;
}
