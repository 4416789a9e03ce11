/* Accepts one connection and executes a program with it as standard input and output, in the way its second
 * argument says: fork, vfork, spawn, self; at and moved: by a path from another directory.  With REUSED, another socket stands at
 * its old number by then; with TWICE, the standard output is a duplicate's copy. */
#include "common.h"

#include <fcntl.h>
#include <spawn.h>

extern char **environ;

/* The directory of a program in /bin, from where it is "./NAME". */
#define BIN "/bin"

static int twice(int fd) {
  return getenv("TWICE") != NULL ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : fd;
}

static pid_t by_spawn(int fd, char **argv, int moved) {
  pid_t child;
  int out = twice(fd);
  posix_spawn_file_actions_t actions;
  MUST(posix_spawn_file_actions_init(&actions) == 0);
  MUST(posix_spawn_file_actions_adddup2(&actions, fd, 0) == 0);
  MUST(posix_spawn_file_actions_adddup2(&actions, out, 1) == 0);
  if (moved) {
    char path[64] = "./";
    MUST(posix_spawn_file_actions_addchdir_np(&actions, BIN) == 0);
    MUST(posix_spawn(&child, strncat(path, argv[0], 32), &actions, NULL, argv, environ) == 0);
  } else {
    MUST(posix_spawnp(&child, argv[0], &actions, NULL, argv, environ) == 0);
  }
  posix_spawn_file_actions_destroy(&actions);
  if (out != fd) {
    close(out);
  }
  return child;
}

static void become_at(int fd, char **argv) {
  int bin = open(BIN, O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (bin >= 0 && dup2(fd, 0) == 0 && dup2(fd, 1) == 1) {
    execveat(bin, argv[0], argv, environ, 0);
  }
  _exit(7);
}

static void become(int fd, int other, char **argv) {
  if (dup2(fd, 0) != 0 || dup2(twice(fd), 1) != 1 || (getenv("REUSED") != NULL && dup2(other, fd) != fd)) {
    _exit(8);
  }
  execvp("/nonexistent/program", argv); /* changes nothing */
  execvp(argv[0], argv);
  _exit(7);
}

int main(int argc, char **argv) {
  MUST(argc >= 4);
  int listening = listen_on(atoi(argv[1]));
  int fd = accept4(listening, NULL, NULL, SOCK_CLOEXEC); /* only its copies at 0 and 1 shall survive */
  MUST(fd >= 0 && write(fd, "*", 1) == 1);
  char byte;
  const char *bare = getenv("BARE");
  if (bare != NULL) {
    unsetenv("LD_PRELOAD");
  }
  if (bare != NULL ? strcmp(bare, "tied") == 0
                   : getenv("AT_ONCE") == NULL) { /* who has sent has made its claim */
    MUST(recv(fd, &byte, 1, MSG_PEEK) == 1);
  }
  pid_t child = -1;
  if (strcmp(argv[2], "fork") == 0) {
    child = fork();
    if (child == 0) {
      become(fd, listening, argv + 3);
    }
  } else if (strcmp(argv[2], "vfork") == 0) {
    child = vfork();
    if (child == 0) {
      become(fd, listening, argv + 3);
    }
  } else if (strcmp(argv[2], "spawn") == 0) {
    child = by_spawn(fd, argv + 3, 0);
  } else if (strcmp(argv[2], "moved") == 0) {
    child = by_spawn(fd, argv + 3, 1);
  } else if (strcmp(argv[2], "at") == 0) {
    child = fork();
    if (child == 0) {
      become_at(fd, argv + 3);
    }
  } else {
    become(fd, listening, argv + 3);
  }
  close(fd);
  int status;
  MUST(waitpid(child, &status, 0) == child);
  return WEXITSTATUS(status);
}
