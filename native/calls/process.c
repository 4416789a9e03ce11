/* fork, exit, signals. */
#include <signal.h>

#include "calls.h"

#pragma GCC diagnostic ignored                                                                               \
    "-Wdeprecated-declarations" /* siginterrupt, sigset and sigignore, to take them over */

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

/* The older calls, which glibc answers by a sigaction of its own: with restarting or without, as each has it. */
static void note(int number) {
  struct sigaction now;
  int saved = errno;
  if (REAL(sigaction)(number, NULL, &now) == 0) {
    wait_note_signal(number, &now);
  }
  errno = saved;
}

#define HANDLER_CALL(name)                                                                                   \
  BERTHA_EXPORT sighandler_t name(int number, sighandler_t handler);                                         \
  sighandler_t name(int number, sighandler_t handler) {                                                      \
    sighandler_t before = REAL(name)(number, handler);                                                       \
    note(number);                                                                                            \
    return before;                                                                                           \
  }
HANDLER_CALL(signal)
HANDLER_CALL(bsd_signal)
HANDLER_CALL(ssignal)
HANDLER_CALL(sysv_signal)
HANDLER_CALL(__sysv_signal)
HANDLER_CALL(sigset)

BERTHA_EXPORT int siginterrupt(int number, int interrupts) {
  int result = REAL(siginterrupt)(number, interrupts);
  note(number);
  return result;
}

BERTHA_EXPORT int sigignore(int number) {
  int result = REAL(sigignore)(number);
  note(number);
  return result;
}
