/* Streams on a connection: fdopen, dprintf and their kin, which would otherwise go past us (core/stdfile.h). */
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../core/stdfile.h"
#include "calls.h"

/* Also one that is plain: glibc's own stream would close it past us, and its bytes would not be counted. */
BERTHA_EXPORT FILE *fdopen(int fd, const char *mode) {
  if (LIKELY(conn_of(fd) == NULL) || bertha_in_forked_stranger()) {
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

/* glibc's own stream on a descriptor that came to be a connection only afterwards, by dup2: glibc closes it itself. */
static bool closes_ours(FILE *f, int *fd) {
  int saved = errno;
  *fd = fileno_unlocked(f); /* a stream without one sets errno */
  errno = saved;
  return UNLIKELY(tracked(*fd)) && !bertha_is_hidden(*fd) && !bertha_in_forked_stranger();
}

BERTHA_EXPORT int fclose(FILE *f) {
  int fd;
  if (LIKELY(!closes_ours(f, &fd)) || stdfile_is(f)) {
    return REAL(fclose)(f);
  }
  fflush(f); /* which may block */
  conn_books_begin();
  struct conn *last = descriptor_forget(fd);
  int result = REAL(fclose)(f);
  int saved = errno;
  conn_books_end();
  if (last != NULL) {
    conn_after_close(last);
  }
  errno = saved;
  return result;
}

/* glibc's puts the new file in the descriptor's place itself: here it finds a file there that is nobody's. */
static FILE *reopen(FILE *(*real)(const char *, const char *, FILE *), const char *path, const char *mode,
                    FILE *f) {
  int fd;
  if (LIKELY(!closes_ours(f, &fd)) && !stdfile_is(f)) {
    return real(path, mode, f);
  }
  fflush(f);
  if (stdfile_reopen(&f, path, mode)) {
    return f;
  }
  int saved = errno;
  int nothing = path != NULL ? open("/dev/null", O_RDWR | O_CLOEXEC) : -1;
  if (nothing < 0 || dup2(nothing, fd) < 0) {
    close(fd); /* without a path the new file is the old one, and a socket cannot be opened that way */
  }
  if (nothing >= 0) {
    close(nothing);
  }
  errno = saved;
  return real(path, mode, f);
}

BERTHA_EXPORT FILE *freopen(const char *path, const char *mode, FILE *f) {
  return reopen(REAL(freopen), path, mode, f);
}

BERTHA_EXPORT FILE *freopen64(const char *path, const char *mode, FILE *f) {
  return reopen(REAL(freopen64), path, mode, f);
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
  if (LIKELY(conn_of(fd) == NULL)) {
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
  if (LIKELY(conn_of(fd) == NULL)) {
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
  if (LIKELY(conn_of(2) == NULL)) {
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
