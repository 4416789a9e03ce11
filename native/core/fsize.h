/* RLIMIT_FSIZE: a program that would go beyond it is ended by SIGXFSZ (setrlimit(2)).  What the shim puts into files is not
 * the program's doing: too large must be an error for us, and nothing for the program. */
#ifndef BERTHA_FSIZE_H
#define BERTHA_FSIZE_H

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/resource.h>
#include <unistd.h>

#include "real.h"

static inline bool fsize_allows(size_t size) {
  struct rlimit limit;
  return getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY || limit.rlim_cur >= size;
}

/* ftruncate(), or EFBIG. */
static inline int fsize_make(int fd, size_t size) {
  if (!fsize_allows(size)) {
    errno = EFBIG;
    return -1;
  }
  return ftruncate(fd, (off_t)size);
}

/* write() to a file that others write to as well, so that nobody knows how much room there is. */
static inline ssize_t fsize_write(int fd, const void *data, size_t size) {
  if (fsize_allows(RLIM_INFINITY - 1)) {
    return QUIET(write)(fd, data, size);
  }
  sigset_t ours, before, pending;
  sigemptyset(&ours);
  sigaddset(&ours, SIGXFSZ);
  sigpending(&pending);
  pthread_sigmask(SIG_BLOCK, &ours, &before);
  ssize_t n = QUIET(write)(fd, data, size);
  int error = errno;
  if (n < 0 && error == EFBIG && !sigismember(&pending, SIGXFSZ)) {
    int cancel = cancellation_off();
    sigtimedwait(&ours, NULL, &(struct timespec){0, 0});
    cancellation_back(cancel);
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  errno = error;
  return n;
}

#endif
