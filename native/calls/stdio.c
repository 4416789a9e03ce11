/* Streams on a connection: fdopen, dprintf and their kin, which would otherwise go past us (core/stdfile.h). */
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../core/stdfile.h"
#include "calls.h"

static bool may_ring(int fd) {
  struct conn *c = conn_of(fd);
  return c != NULL && (stream_of(fd) != NULL || conn_kind(c) == BERTHA_CONN_SOCKET);
}

BERTHA_EXPORT FILE *fdopen(int fd, const char *mode) {
  if (LIKELY(!may_ring(fd)) || bertha_in_forked_stranger()) {
    return REAL(fdopen)(fd, mode);
  }
  if (mode[0] != 'r' && mode[0] != 'w' && mode[0] != 'a') {
    errno = EINVAL;
    return NULL;
  }
  int flags = REAL(fcntl)(fd, F_GETFL);
  if (flags < 0) {
    return NULL;
  }
  if (mode[0] == 'a' && !(flags & O_APPEND)) { /* fdopen(3): no effect on a socket, but F_GETFL shows it */
    REAL(fcntl)(fd, F_SETFL, flags | O_APPEND);
  }
  char plain[3] = {mode[0], '\0', '\0'};
  if (memchr(mode + 1, '+', strnlen(mode + 1, 4)) != NULL) {
    plain[1] = '+';
  }
  return stdfile_open(fd, plain);
}

static int print_all(int fd, char *text, int size) {
  for (int done = 0; done < size;) {
    ssize_t n = write(fd, text + done, (size_t)(size - done));
    if (n < 0) {
      size = -1;
      break;
    }
    done += (int)n;
  }
  int saved = errno;
  free(text);
  errno = saved;
  return size;
}

BERTHA_EXPORT int vdprintf(int fd, const char *format, va_list args) {
  char *text;
  if (LIKELY(!may_ring(fd))) {
    return REAL(vdprintf)(fd, format, args);
  }
  int size = vasprintf(&text, format, args);
  return size < 0 ? -1 : print_all(fd, text, size);
}

BERTHA_EXPORT int dprintf(int fd, const char *format, ...) {
  va_list args;
  va_start(args, format);
  int n = vdprintf(fd, format, args);
  va_end(args);
  return n;
}

/* The fortified forms. */
int __vasprintf_chk(char **text, int flag, const char *format, va_list args);
BERTHA_EXPORT int __vdprintf_chk(int fd, int flag, const char *format, va_list args);
BERTHA_EXPORT int __dprintf_chk(int fd, int flag, const char *format, ...);

int __vdprintf_chk(int fd, int flag, const char *format, va_list args) {
  char *text;
  if (LIKELY(!may_ring(fd))) {
    return REAL(__vdprintf_chk)(fd, flag, format, args);
  }
  int size = __vasprintf_chk(&text, flag, format, args);
  return size < 0 ? -1 : print_all(fd, text, size);
}

int __dprintf_chk(int fd, int flag, const char *format, ...) {
  va_list args;
  va_start(args, format);
  int n = __vdprintf_chk(fd, flag, format, args);
  va_end(args);
  return n;
}

/* glibc's makes a stream of its own on stderr's descriptor. */
BERTHA_EXPORT void perror(const char *message) {
  if (LIKELY(!may_ring(2))) {
    REAL(perror)(message);
    return;
  }
  int saved = errno;
  char space[256];
  bool named = message != NULL && *message != '\0';
  fprintf(stderr, "%s%s%s\n", named ? message : "", named ? ": " : "",
          strerror_r(saved, space, sizeof space));
  errno = saved;
}
