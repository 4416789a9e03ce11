/* system and popen: glibc's make their child by names that cannot be replaced, and a connection that the shell
 * inherits would not be handed over.  Ours are used only while there is such a connection. */
#include <fcntl.h>
#include <paths.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "../core/parcel.h"
#include "calls.h"

static bool passes_on(void) {
  if (!handover_due() || bertha_in_forked_stranger()) {
    return false;
  }
  for (uint32_t fd = 0; fd < bertha.max_fd; fd++) {
    if (stream_of((int)fd) != NULL && !(REAL(fcntl)((int)fd, F_GETFD) & FD_CLOEXEC)) {
      return true;
    }
  }
  return false;
}

static int start_shell(pid_t *pid, const char *command, const posix_spawn_file_actions_t *actions,
                       const posix_spawnattr_t *attributes) {
  char *argv[] = {"sh", "-c", (char *)(uintptr_t)command, NULL};
  return posix_spawn(pid, _PATH_BSHELL, actions, attributes, argv, environ);
}

static pid_t wait_for(pid_t pid, int *status) {
  pid_t got;
  do {
    got = waitpid(pid, status, 0);
  } while (got < 0 && errno == EINTR);
  return got;
}

/* system(3): meanwhile SIGINT and SIGQUIT are ignored and SIGCHLD waits, for all threads that are in here. */
static struct {
  _Atomic uint32_t lock;
  unsigned inside;
  struct sigaction interrupt;
  struct sigaction quit;
} quiet;

static _Atomic uint32_t commands_lock; /* of popen()'s list */

/* What the parent's other threads were doing is not the child's. */
static void in_child(void) {
  atomic_store(&quiet.lock, 0);
  atomic_store(&commands_lock, 0);
  quiet.inside = 0;
}

static void know_forks(void) {
  static _Atomic int known;
  if (atomic_exchange(&known, 1) == 0) {
    pthread_atfork(NULL, NULL, in_child);
  }
}

static void begin_quiet(sigset_t *before, sigset_t *defaults) {
  struct sigaction ignore = {.sa_handler = SIG_IGN};
  sigset_t child;
  sigemptyset(&child);
  sigaddset(&child, SIGCHLD);
  bertha_lock(&quiet.lock);
  if (quiet.inside++ == 0) {
    REAL(sigaction)(SIGINT, &ignore, &quiet.interrupt);
    REAL(sigaction)(SIGQUIT, &ignore, &quiet.quit);
  }
  sigemptyset(defaults);
  if (quiet.interrupt.sa_handler != SIG_IGN) {
    sigaddset(defaults, SIGINT);
  }
  if (quiet.quit.sa_handler != SIG_IGN) {
    sigaddset(defaults, SIGQUIT);
  }
  bertha_unlock(&quiet.lock);
  sigprocmask(SIG_BLOCK, &child, before);
}

static void end_quiet(const sigset_t *before) {
  bertha_lock(&quiet.lock);
  if (--quiet.inside == 0) {
    REAL(sigaction)(SIGINT, &quiet.interrupt, NULL);
    REAL(sigaction)(SIGQUIT, &quiet.quit, NULL);
  }
  bertha_unlock(&quiet.lock);
  sigprocmask(SIG_SETMASK, before, NULL);
}

BERTHA_EXPORT int system(const char *command) {
  if (LIKELY(command == NULL || !passes_on())) {
    return REAL(system)(command);
  }
  sigset_t before, defaults;
  posix_spawnattr_t attributes;
  pid_t pid;
  int status = -1;
  know_forks();
  begin_quiet(&before, &defaults);
  if (posix_spawnattr_init(&attributes) == 0) {
    posix_spawnattr_setsigmask(&attributes, &before);
    posix_spawnattr_setsigdefault(&attributes, &defaults);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
    if (start_shell(&pid, command, NULL, &attributes) != 0) {
      status = 127 << 8; /* as if the shell had ended with _exit(127) */
    } else if (wait_for(pid, &status) != pid) {
      status = -1;
    }
    posix_spawnattr_destroy(&attributes);
  }
  end_quiet(&before);
  return status;
}

/* ---- popen --------------------------------------------------------------------------------------- */

struct command {
  FILE *file;
  pid_t pid;
  struct command *next;
};
static struct command *commands;

static int start_command(struct command *c, const char *text, int theirs, int standard) {
  posix_spawn_file_actions_t actions;
  int error = posix_spawn_file_actions_init(&actions);
  if (error != 0) {
    return error;
  }
  error = REAL(posix_spawn_file_actions_adddup2)(&actions, theirs, standard);
  bertha_lock(&commands_lock);
  for (struct command *other = commands; other != NULL && error == 0; other = other->next) {
    if (fileno(other->file) != standard) { /* popen(3) in POSIX: not inherited */
      error = posix_spawn_file_actions_addclose(&actions, fileno(other->file));
    }
  }
  bertha_unlock(&commands_lock);
  if (error == 0) {
    error = start_shell(&c->pid, text, &actions, NULL);
  }
  posix_spawn_file_actions_destroy(&actions);
  return error;
}

BERTHA_EXPORT FILE *popen(const char *text, const char *mode) {
  if (LIKELY(!passes_on()) || (mode[0] != 'r' && mode[0] != 'w')) {
    return REAL(popen)(text, mode);
  }
  know_forks();
  bool reads = mode[0] == 'r';
  int ends[2];
  struct command *c = malloc(sizeof *c);
  if (c == NULL || pipe2(ends, O_CLOEXEC) != 0) {
    free(c);
    return NULL;
  }
  int ours = ends[reads ? 0 : 1];
  int theirs = ends[reads ? 1 : 0];
  c->file = REAL(fdopen)(ours, reads ? "r" : "w");
  int error = c->file != NULL ? start_command(c, text, theirs, reads ? 1 : 0) : errno;
  REAL(close)(theirs);
  if (error != 0) {
    if (c->file != NULL) {
      fclose(c->file);
    } else {
      REAL(close)(ours);
    }
    free(c);
    errno = error;
    return NULL;
  }
  if (strchr(mode, 'e') == NULL) {
    REAL(fcntl)(ours, F_SETFD, 0);
  }
  FILE *file = c->file;
  bertha_lock(&commands_lock);
  c->next = commands;
  commands = c;
  bertha_unlock(&commands_lock);
  return file;
}

BERTHA_EXPORT int pclose(FILE *file) {
  struct command *c = NULL;
  bertha_lock(&commands_lock);
  for (struct command **at = &commands; *at != NULL; at = &(*at)->next) {
    if ((*at)->file == file) {
      c = *at;
      *at = c->next;
      break;
    }
  }
  bertha_unlock(&commands_lock);
  if (LIKELY(c == NULL)) {
    return REAL(pclose)(file);
  }
  int status;
  pid_t pid = c->pid;
  free(c);
  fclose(file);
  return wait_for(pid, &status) == pid ? status : -1;
}
