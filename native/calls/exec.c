/* exec and its many forms: the connections that the next image inherits are handed over to it (core/parcel.h).
 *
 * glibc's forms call each other by names that cannot be replaced, so each of them is here. */
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include "../core/parcel.h"
#include "../core/local.h"
#include "../core/room.h"
#include "calls.h"

#define PATH_ROOM 4096

static size_t length(char *const list[]) {
  size_t n = 0;
  while (list != NULL && list[n] != NULL) {
    n++;
  }
  return n;
}

/* `h` NULL: there was nothing to hand over. */
static int failed(struct handover *h, int result) {
  int saved = errno;
  if (h != NULL) {
    handover_failed(h);
  }
  room_left();
  errno = saved;
  return result;
}

/* What is called has the limits that the next image is to have: nothing of ours comes in between. */
#define LEAVING(call) (room_leave(), call)

BERTHA_EXPORT int execve(const char *path, char *const argv[], char *const env[]) {
  local_leave();
  if (LIKELY(!handover_due())) {
    return failed(NULL, LEAVING(REAL(execve)(path, argv, env)));
  }
  char *handed[length(env) + 2];
  struct handover h;
  handover_begin(&h, path, false, false, env, handed);
  return failed(&h, LEAVING(REAL(execve)(path, argv, handed)));
}

BERTHA_EXPORT int execv(const char *path, char *const argv[]) {
  return execve(path, argv, environ);
}

BERTHA_EXPORT int execvpe(const char *file, char *const argv[], char *const env[]) {
  char path[PATH_ROOM];
  local_leave();
  if (LIKELY(!handover_due()) || !target_find(file, path, sizeof path)) {
    return failed(NULL, LEAVING(REAL(execvpe)(file, argv, env)));
  }
  char *handed[length(env) + 2];
  struct handover h;
  handover_begin(&h, path, false, false, env, handed);
  return failed(&h, LEAVING(REAL(execvpe)(file, argv, handed)));
}

BERTHA_EXPORT int execvp(const char *file, char *const argv[]) {
  return execvpe(file, argv, environ);
}

enum { DESCRIPTOR_ROOM = 32 };

static char *descriptor_path(char path[DESCRIPTOR_ROOM], int fd) { /* its end; snprintf may take locks */
  strcpy(path, "/proc/self/fd/");
  char *end = path + strlen(path);
  for (int place = 1000000; place > 0; place /= 10) {
    if (fd / place > 0 || place == 1) {
      *end++ = (char)('0' + fd / place % 10);
    }
  }
  *end = '\0';
  return end;
}

BERTHA_EXPORT int fexecve(int fd, char *const argv[], char *const env[]) {
  local_leave();
  if (LIKELY(!handover_due())) {
    return failed(NULL, LEAVING(REAL(fexecve)(fd, argv, env)));
  }
  char *handed[length(env) + 2];
  char path[DESCRIPTOR_ROOM];
  descriptor_path(path, fd);
  struct handover h;
  handover_begin(&h, path, false, false, env, handed);
  return failed(&h, LEAVING(REAL(fexecve)(fd, argv, handed)));
}

BERTHA_EXPORT int execveat(int dir, const char *path, char *const argv[], char *const env[], int flags);
int execveat(int dir, const char *path, char *const argv[], char *const env[], int flags) {
  if ((path[0] == '/' || dir == AT_FDCWD) && flags == 0) {
    return execve(path, argv, env);
  }
  if (path[0] == '\0' && (flags & AT_EMPTY_PATH)) {
    return fexecve(dir, argv, env);
  }
  local_leave();
  char where[DESCRIPTOR_ROOM + PATH_ROOM];
  if (LIKELY(!handover_due()) || strlen(path) >= PATH_ROOM) {
    return failed(NULL, LEAVING(REAL(execveat)(dir, path, argv, env, flags)));
  }
  char *end = where;
  if (path[0] != '/' && dir != AT_FDCWD) {
    end = descriptor_path(where, dir);
    *end++ = '/';
  }
  strcpy(end, path);
  char *handed[length(env) + 2];
  struct handover h;
  handover_begin(&h, where, false, false, env, handed);
  return failed(&h, LEAVING(REAL(execveat)(dir, path, argv, handed, flags)));
}

/* The arguments up to a null pointer, as an array; `env`: behind it. */
#define GATHER(first, argv, env)                                                                             \
  va_list args;                                                                                              \
  size_t count = 1;                                                                                          \
  va_start(args, first);                                                                                     \
  while (va_arg(args, char *) != NULL) {                                                                     \
    count++;                                                                                                 \
  }                                                                                                          \
  va_end(args);                                                                                              \
  char *argv[count + 1];                                                                                     \
  argv[0] = (char *)(uintptr_t)first;                                                                        \
  va_start(args, first);                                                                                     \
  for (size_t i = 1; i <= count; i++) {                                                                      \
    argv[i] = va_arg(args, char *);                                                                          \
  }                                                                                                          \
  env;                                                                                                       \
  va_end(args)

BERTHA_EXPORT int execl(const char *path, const char *first, ...) {
  GATHER(first, argv, );
  return execve(path, argv, environ);
}

BERTHA_EXPORT int execlp(const char *file, const char *first, ...) {
  GATHER(first, argv, );
  return execvpe(file, argv, environ);
}

BERTHA_EXPORT int execle(const char *path, const char *first, ...) {
  GATHER(first, argv, char *const *env = va_arg(args, char *const *));
  return execve(path, argv, env);
}
