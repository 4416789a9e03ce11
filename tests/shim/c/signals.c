/* PORT WAY: whether a signal interrupts a recv that waits, as each of the calls that install handlers has it.
 * The client answers every byte. */
#include "common.h"

#include <signal.h>
#include <stdbool.h>
#include <sys/time.h>

#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
sighandler_t bsd_signal(int number, sighandler_t handler);
sighandler_t ssignal(int number, sighandler_t handler);

static int fd;
static volatile int came;

static bool once; /* a handler is good for one signal */

static void handler(int number) {
  if (once) {
    sysv_signal(number, handler);
  }
  if (came++ == 5) {
    MUST(send(fd, "r", 1, 0) == 1); /* whoever was not interrupted gets something to read */
  }
}

static void without_restart(void) {
  struct sigaction plain = {.sa_handler = handler};
  MUST(sigaction(SIGALRM, &plain, NULL) == 0);
}

int main(int argc, char **argv) {
  MUST(argc == 3);
  char byte;
  const char *way = argv[2];
  int listening = listen_on(atoi(argv[1]));
  fd = accept(listening, NULL, NULL);
  MUST(fd >= 0 && write(fd, "*", 1) == 1 && read(fd, &byte, 1) == 1);
  bool interrupts = true;
  if (strcmp(way, "sigaction") == 0) {
    without_restart();
  } else if (strcmp(way, "siginterrupt") == 0) {
    MUST(signal(SIGALRM, handler) != SIG_ERR && siginterrupt(SIGALRM, 1) == 0);
  } else if (strcmp(way, "siginterrupt first") == 0) {
    MUST(siginterrupt(SIGALRM, 1) == 0 && signal(SIGALRM, handler) != SIG_ERR);
  } else if (strcmp(way, "sysv_signal") == 0) {
    once = true;
    MUST(sysv_signal(SIGALRM, handler) != SIG_ERR);
  } else if (strcmp(way, "sigset") == 0) {
    MUST(sigset(SIGALRM, handler) != SIG_ERR);
  } else {
    interrupts = false; /* each after one that is interrupted */
    without_restart();
    if (strcmp(way, "siginterrupt 0") == 0) {
      MUST(siginterrupt(SIGALRM, 0) == 0);
    } else {
      MUST((strcmp(way, "bsd_signal") == 0 ? bsd_signal
            : strcmp(way, "ssignal") == 0  ? ssignal
                                           : signal)(SIGALRM, handler) != SIG_ERR);
    }
  }
  struct itimerval often = {{0, 10000}, {0, 10000}}; /* one that comes too early is followed by another */
  MUST(setitimer(ITIMER_REAL, &often, NULL) == 0);
  ssize_t n = recv(fd, &byte, 1, 0);
  if (interrupts) {
    MUST(n == -1 && errno == EINTR && came >= 1);
  } else {
    MUST(n == 1 && came > 5);
  }
  MUST(setitimer(ITIMER_REAL, &(struct itimerval){{0, 0}, {0, 0}}, NULL) == 0);
  close(fd);
  return 0;
}
