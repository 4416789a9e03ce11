/* Takes part in one connection and then leaves it to a program without the shim, in the way its second argument says:
 * fork, vfork, spawn, self, rights.  It reads a first line; what comes after it is the other program's.
 *
 * rights: to a process that was executed without the shim before, over a unix socket. */
#include "common.h"
#include "rights.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/un.h>

/* The program without the shim: echoes what it reads, then says in a line how many bytes that were. */
static int echo(int fd) {
  char data[65536];
  long count = 0;
  close(open("there", O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
  for (ssize_t n; (n = read(fd, data, sizeof data)) != 0;) {
    MUST(n > 0);
    count += n;
    for (ssize_t at = 0, k; at < n; at += k) {
      k = write(fd, data + at, (size_t)(n - at));
      MUST(k > 0);
    }
  }
  int size =
      snprintf(data, sizeof data, "echoed %ld, preload %s\n", count, getenv("LD_PRELOAD") ? "yes" : "no");
  MUST(write(fd, data, (size_t)size) == size);
  return 0;
}

static void line(int fd) {
  char byte = 0;
  while (byte != '\n') {
    MUST(read(fd, &byte, 1) == 1);
  }
}

int main(int argc, char **argv) {
  if (argc == 2 && strcmp(argv[1], "echo") == 0) {
    return echo(0);
  }
  if (argc == 3 && strcmp(argv[1], "take") == 0) {
    return echo(take(atoi(argv[2])));
  }
  MUST(argc >= 4);
  int wait_bytes = atoi(argv[3]); /* that many shall lie unread when it leaves */
  char *echoing[] = {argv[0], "echo", NULL};
  char *env[] = {"HOME=/", NULL};
  pid_t child = -1;
  int pair[2] = {-1, -1};
  if (strcmp(argv[2], "rights") == 0) {
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    char number[16];
    snprintf(number, sizeof number, "%d", pair[1]);
    char *taking[] = {argv[0], "take", number, NULL};
    child = fork();
    if (child == 0) {
      close(pair[0]);
      execve(argv[0], taking, env);
      _exit(7);
    }
    close(pair[1]);
  }
  int listening = listen_on(atoi(argv[1]));
  int fd = accept4(listening, NULL, NULL, SOCK_CLOEXEC);
  MUST(fd >= 0 && write(fd, "*", 1) == 1);
  line(fd);
  close(listening);
  char look[1 << 16];
  for (int got = 0; got < wait_bytes;) {
    got = (int)recv(fd, look, sizeof look, MSG_PEEK);
    MUST(got > 0);
    usleep(1000);
  }
  if (strcmp(argv[2], "rights") == 0) {
    give(pair[0], fd);
  } else if (strcmp(argv[2], "spawn") == 0) {
    posix_spawn_file_actions_t actions;
    MUST(posix_spawn_file_actions_init(&actions) == 0);
    MUST(posix_spawn_file_actions_adddup2(&actions, fd, 0) == 0);
    MUST(posix_spawn(&child, argv[0], &actions, NULL, echoing, env) == 0);
  } else {
    child = strcmp(argv[2], "fork") == 0 ? fork() : strcmp(argv[2], "vfork") == 0 ? vfork() : 0;
    if (child == 0) {
      dup2(fd, 0);
      execve(argv[0], echoing, env);
      _exit(7);
    }
  }
  close(fd);
  int status;
  MUST(waitpid(child, &status, 0) == child);
  return WEXITSTATUS(status);
}
