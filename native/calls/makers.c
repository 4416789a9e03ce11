/* Calls that make descriptors which are none of ours.
 *
 * A descriptor that was closed past us (by an instruction of the program's own, or by a call of glibc's that we do not
 * take over) stays in our books until its number comes back; here that is noticed.  It costs a load. */
#include <fcntl.h>
#include <stdarg.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

#include "calls.h"

#define MAKER(name, params, args)                                                                            \
  BERTHA_EXPORT int name params {                                                                            \
    return descriptor_fresh(REAL(name) args);                                                                \
  }
MAKER(creat, (const char *path, mode_t mode), (path, mode))
MAKER(creat64, (const char *path, mode_t mode), (path, mode))
MAKER(eventfd, (unsigned int value, int flags), (value, flags))
MAKER(signalfd, (int fd, const sigset_t *mask, int flags), (fd, mask, flags))
MAKER(timerfd_create, (clockid_t clock, int flags), (clock, flags))
MAKER(memfd_create, (const char *name, unsigned int flags), (name, flags))
MAKER(inotify_init, (void), ())
MAKER(inotify_init1, (int flags), (flags))

/* The fortified forms of open, which have no mode. */
BERTHA_EXPORT int __open_2(const char *path, int flags);
BERTHA_EXPORT int __open64_2(const char *path, int flags);
BERTHA_EXPORT int __openat_2(int dir, const char *path, int flags);
BERTHA_EXPORT int __openat64_2(int dir, const char *path, int flags);
MAKER(__open_2, (const char *path, int flags), (path, flags))
MAKER(__open64_2, (const char *path, int flags), (path, flags))
MAKER(__openat_2, (int dir, const char *path, int flags), (dir, path, flags))
MAKER(__openat64_2, (int dir, const char *path, int flags), (dir, path, flags))

/* With a mode only when the flags ask for one. */
#define OPEN(name, params, ...)                                                                              \
  BERTHA_EXPORT int name params {                                                                            \
    mode_t mode = 0;                                                                                         \
    if ((flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE) {                                             \
      va_list args;                                                                                          \
      va_start(args, flags);                                                                                 \
      mode = va_arg(args, mode_t);                                                                           \
      va_end(args);                                                                                          \
    }                                                                                                        \
    return descriptor_fresh(REAL(name)(__VA_ARGS__, mode));                                                  \
  }
OPEN(open, (const char *path, int flags, ...), path, flags)
OPEN(open64, (const char *path, int flags, ...), path, flags)
OPEN(openat, (int dir, const char *path, int flags, ...), dir, path, flags)
OPEN(openat64, (int dir, const char *path, int flags, ...), dir, path, flags)

static int fresh_pair(int result, const int ends[2]) {
  if (LIKELY(result == 0)) {
    descriptor_fresh(ends[0]);
    descriptor_fresh(ends[1]);
  }
  return result;
}

BERTHA_EXPORT int socketpair(int family, int type, int protocol, int ends[2]) {
  return fresh_pair(REAL(socketpair)(family, type, protocol, ends), ends);
}

BERTHA_EXPORT int pipe(int ends[2]) {
  return fresh_pair(REAL(pipe)(ends), ends);
}

BERTHA_EXPORT int pipe2(int ends[2], int flags) {
  return fresh_pair(REAL(pipe2)(ends, flags), ends);
}

BERTHA_EXPORT FILE *fopen(const char *path, const char *mode) {
  FILE *f = REAL(fopen)(path, mode);
  if (f != NULL) {
    descriptor_fresh(fileno_unlocked(f));
  }
  return f;
}

BERTHA_EXPORT FILE *fopen64(const char *path, const char *mode) {
  FILE *f = REAL(fopen64)(path, mode);
  if (f != NULL) {
    descriptor_fresh(fileno_unlocked(f));
  }
  return f;
}
