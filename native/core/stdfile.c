#include "stdfile.h"

#include <fcntl.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>

#include "unixpair.h"

/* Of FILE's flags; libio has these values since it exists, but no header for programs says so. */
enum { NO_READS = 4, NO_WRITES = 8 };

struct stdfile {
  int fd; /* -1: the descriptor is somebody else's again */
  FILE *file;
  struct stdfile *next;
};

static struct stdfile *all;
static _Atomic uint32_t lock;
static struct stdfile *ours[3];
static FILE *theirs[3];

static ssize_t file_read(void *p, char *buf, size_t n) {
  return read(((struct stdfile *)p)->fd, buf, n);
}

/* All of it, as stdio's own does; an error shows as a count that is too small. */
static ssize_t file_write(void *p, const char *buf, size_t n) {
  size_t done = 0;
  while (done < n) {
    ssize_t k = write(((struct stdfile *)p)->fd, buf + done, n - done);
    if (k < 0) {
      break;
    }
    done += (size_t)k;
  }
  return (ssize_t)done;
}

static int file_seek(void *p, off64_t *at, int whence) {
  off64_t now =
      lseek64(((struct stdfile *)p)->fd, *at, whence); /* a socket: ESPIPE; freopen makes it a file */
  *at = now;
  return now < 0 ? -1 : 0;
}

static FILE **variable(int fd) {
  return fd == 0 ? &stdin : fd == 1 ? &stdout : &stderr;
}

static void take_out(struct stdfile *s) {
  if (bertha_lock(&lock)) {
    for (struct stdfile **at = &all; *at != NULL; at = &(*at)->next) {
      if (*at == s) {
        *at = s->next;
        break;
      }
    }
    bertha_unlock(&lock);
  }
}

static int file_close(void *p) {
  struct stdfile *s = p;
  int fd = s->fd;
  take_out(s);
  for (int i = 0; i < 3; i++) {
    if (ours[i] == s) {
      ours[i] = NULL;
      *variable(i) = theirs[i];
    }
  }
  free(s);
  int before = cancellation_off(); /* or a stream would be left that is not ours any more */
  int result = fd >= 0 ? close(fd) : 0;
  cancellation_back(before);
  return result;
}

static struct stdfile *make(int fd, const char *mode) {
  struct stdfile *s = malloc(sizeof *s);
  if (s == NULL) {
    return NULL;
  }
  cookie_io_functions_t calls = {file_read, file_write, file_seek, file_close};
  s->fd = fd;
  s->file = fopencookie(s, mode, calls);
  if (s->file == NULL) {
    free(s);
    return NULL;
  }
  s->file->_fileno = fd; /* fileno() works */
  bertha_lock(&lock);
  s->next = all;
  all = s;
  bertha_unlock(&lock);
  return s;
}

FILE *stdfile_open(int fd, const char *mode) {
  struct stdfile *s = make(fd, mode);
  return s != NULL ? s->file : NULL;
}

static struct stdfile *find(const FILE *f) {
  if (LIKELY(all == NULL) || !bertha_lock(&lock)) {
    return NULL;
  }
  struct stdfile *s = all;
  while (s != NULL && s->file != f) {
    s = s->next;
  }
  bertha_unlock(&lock);
  return s;
}

bool stdfile_is(FILE *f) {
  return find(f) != NULL;
}

/* What the program has printed and not yet flushed goes where the descriptor leads now. */
static void move_output(FILE *from, FILE *to) {
  flockfile(from);
  size_t n = __fpending(from);
  if (n > 0) {
    fwrite(from->_IO_write_base, 1, n, to);
    __fpurge(from);
  }
  funlockfile(from);
}

static void replace(int fd) {
  FILE **at = variable(fd);
  if (ours[fd] != NULL || *at == NULL || fileno(*at) != fd) {
    return;
  }
  struct stdfile *s = make(fd, fd == 0 ? "r" : "w");
  if (s == NULL) {
    return;
  }
  if (fd == 2) {
    setvbuf(s->file, NULL, _IONBF, 0);
  } else if (fd == 1) {
    move_output(*at, s->file);
  }
  theirs[fd] = *at;
  ours[fd] = s;
  *at = s->file;
}

static void restore(int fd) {
  struct stdfile *s = ours[fd];
  FILE **at = variable(fd);
  if (s == NULL) {
    return;
  }
  ours[fd] = NULL;
  s->fd = -1;
  if (*at == s->file) {
    *at = theirs[fd];
  }
  if (fd == 1) {
    move_output(s->file, theirs[fd]);
  }
  fclose(s->file);
}

/* freopen(3)'s modes as open(2) has them. */
static int open_flags(const char *mode) {
  int flags = mode[0] == 'r'   ? O_RDONLY
              : mode[0] == 'w' ? O_WRONLY | O_CREAT | O_TRUNC
                               : O_WRONLY | O_CREAT | O_APPEND;
  for (const char *m = mode + 1; *m != '\0' && *m != ','; m++) {
    flags = *m == '+' ? (flags & ~O_ACCMODE) | O_RDWR : flags;
    flags |= *m == 'x' ? O_EXCL : *m == 'e' ? O_CLOEXEC : 0;
  }
  return flags;
}

bool stdfile_reopen(FILE **f, const char *path, const char *mode) {
  struct stdfile *s = find(*f);
  int fd = s != NULL ? s->fd : -1;
  for (int i = 0; s != NULL && i < 3; i++) {
    if (ours[i] == s) { /* the C library's own is still there, and is what the program goes on with */
      restore(i);
      *f = *variable(i);
      return false;
    }
  }
  if (s == NULL) {
    return false;
  }
  FILE *stream = *f;
  int flags = open_flags(mode);
  int file = -1;
  __fpurge(stream);
  if (strchr("rwa", mode[0]) == NULL || mode[0] == '\0') {
    errno = EINVAL;
  } else if (path == NULL) {
    errno = ENXIO; /* what opening a socket's entry in /proc says */
  } else {
    file = QUIET(open)(path, flags, 0666);
  }
  if (file < 0 || dup3(file, fd, flags & O_CLOEXEC) < 0) {
    int saved = errno;
    if (file >= 0) {
      close(file);
    }
    close(fd);
    s->fd = stream->_fileno = -1;
    errno = saved;
    *f = NULL;
    return true;
  }
  close(file);
  clearerr(stream);
  stream->_flags &= ~(NO_READS | NO_WRITES);
  stream->_flags |= (flags & O_ACCMODE) == O_RDONLY   ? NO_WRITES
                    : (flags & O_ACCMODE) == O_WRONLY ? NO_READS
                                                      : 0;
  return true;
}

void stdfile_follow(int fd) {
  if (LIKELY((unsigned)fd > 2)) {
    return;
  }
  int saved = errno;
  struct conn *c = conn_of(fd);
  uint32_t kind = c != NULL ? conn_kind(c) : BERTHA_CONN_FREE;
  if (kind == BERTHA_CONN_SOCKET || kind == BERTHA_CONN_CLAIMED || kind == BERTHA_CONN_MAYBE ||
      kind == BERTHA_CONN_SHM || (kind == BERTHA_CONN_UNIX && !unix_swapped(c))) {
    replace(fd);
  } else {
    restore(fd);
  }
  errno = saved;
}

/* exit() flushes the streams after the destructors have run, when our connections are gone.  A stream that
 * another thread has locked is left alone, as exit() does. */
void stdfile_flush(void) {
  if (!bertha_lock(&lock)) {
    return;
  }
  for (struct stdfile *s = all; s != NULL; s = s->next) {
    if (s->fd >= 0 && ftrylockfile(s->file) == 0) {
      if (__fpending(s->file) > 0) {
        fflush_unlocked(s->file);
      }
      funlockfile(s->file);
    }
  }
  bertha_unlock(&lock);
}

void stdfile_after_fork(void) {
  atomic_store(&lock, 0);
}
