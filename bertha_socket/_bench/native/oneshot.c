/* A process for each request, as shell scripts and CGI have it: oneshot TARGET --milliseconds M [--size N]
 *
 * For M milliseconds it executes itself, again and again, as a client that connects, sends N bytes, waits for as
 * many and ends.  Prints one JSON object: requests, wall_ns, cpu_ns (with that of all the clients).
 */
#include "common.h"

#include <spawn.h>
#include <sys/wait.h>

extern char **environ;

static int once(const struct target *t, size_t size) {
  char *buf = calloc(1, size + 1);
  int fd = open_to(t, 0);
  if (buf == NULL) {
    fail("calloc");
  }
  send_all(fd, buf, size);
  return recv_all(fd, buf, size) ? 0 : 1;
}

static uint64_t used_ns(int who) {
  struct rusage use;
  getrusage(who, &use);
  return (uint64_t)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) * 1000000000u +
         (uint64_t)(use.ru_utime.tv_usec + use.ru_stime.tv_usec) * 1000u;
}

int main(int argc, char **argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: oneshot TARGET --milliseconds M [--size N]\n");
    return 2;
  }
  uint64_t duration = (uint64_t)number(argc, argv, "--milliseconds", "0") * 1000000u;
  if (duration == 0) {
    struct target t = parse_target(argv[1]);
    return once(&t, number(argc, argv, "--size", "64"));
  }
  char *size = (char *)option(argc, argv, "--size", "64");
  char *arguments[] = {argv[0], argv[1], "--size", size, NULL};
  size_t done = 0;
  uint64_t begin = now_ns(), begin_cpu = used_ns(RUSAGE_SELF);
  while (now_ns() - begin < duration) {
    pid_t child;
    int status;
    errno = posix_spawn(&child, "/proc/self/exe", NULL, NULL, arguments, environ);
    if (errno != 0) {
      fail("posix_spawn");
    }
    if (waitpid(child, &status, 0) != child || status != 0) {
      fprintf(stderr, "oneshot: a client failed (status %d)\n", status);
      return 1;
    }
    done++;
  }
  printf("{\"requests\": %zu, \"wall_ns\": %llu, \"cpu_ns\": %llu}\n", done,
         (unsigned long long)(now_ns() - begin),
         (unsigned long long)(used_ns(RUSAGE_SELF) - begin_cpu + used_ns(RUSAGE_CHILDREN)));
  return 0;
}
