/* fork, exit, signals. */
#include <signal.h>

#include "calls.h"

/* The fork handlers (core/process.c) do the work; only a failure is not told to them. */
BERTHA_EXPORT pid_t fork(void) {
  pid_t pid = REAL(fork)();
  if (pid < 0) {
    conn_fork_failed();
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
