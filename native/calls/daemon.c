/* daemon, login_tty and forkpty: glibc's fork, duplicate and close by names that cannot be replaced, so that a
 * connection on descriptor 0, 1 or 2 would be gone without our knowing, and the child's copies never counted.  These are
 * the same, by calls of ours. */
#include <fcntl.h>
#include <paths.h>
#include <pty.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <termios.h>
#include <utmp.h>

#include "calls.h"

static void onto_standard(int fd) {
  for (int to = 0; to <= 2; to++) {
    while (dup2(fd, to) < 0 && errno == EBUSY) { /* another thread is just opening that number (dup2(2)) */
    }
  }
  if (fd > 2) {
    close(fd);
  }
}

BERTHA_EXPORT int daemon(int nochdir, int noclose) {
  switch (fork()) {
  case -1:
    return -1;
  case 0:
    break;
  default:
    _exit(0);
  }
  if (setsid() < 0) {
    return -1;
  }
  if (!nochdir && chdir("/") != 0) {
    errno = 0; /* daemon(3) goes on where it is */
  }
  if (noclose) {
    return 0;
  }
  int fd = open(_PATH_DEVNULL, O_RDWR);
  struct stat st;
  if (fd < 0) {
    return -1;
  }
  if (fstat(fd, &st) != 0 || !S_ISCHR(st.st_mode) || st.st_rdev != makedev(1, 3)) {
    close(fd);
    errno = ENODEV;
    return -1;
  }
  onto_standard(fd);
  return 0;
}

BERTHA_EXPORT int login_tty(int fd) {
  setsid();
  if (REAL(ioctl)(fd, TIOCSCTTY, NULL) < 0) {
    return -1;
  }
  onto_standard(fd);
  return 0;
}

/* openpty(3) is in a library of its own before glibc 2.34. */
static int open_pair(int *theirs, char *name, const struct termios *attributes, const struct winsize *size) {
  char path[64];
  int ours = posix_openpt(O_RDWR | O_NOCTTY);
  if (ours < 0) {
    return -1;
  }
  descriptor_fresh(ours);
  *theirs = -1;
  if (grantpt(ours) == 0 && unlockpt(ours) == 0 && ptsname_r(ours, path, sizeof path) == 0) {
    *theirs = open(path, O_RDWR | O_NOCTTY);
  }
  if (*theirs < 0) {
    int saved = errno;
    close(ours);
    errno = saved;
    return -1;
  }
  if (attributes != NULL) {
    tcsetattr(*theirs, TCSAFLUSH, attributes);
  }
  if (size != NULL) {
    REAL(ioctl)(*theirs, TIOCSWINSZ, size);
  }
  if (name != NULL) { /* as long as it has to be, the caller says (openpty(3)) */
    for (size_t i = 0; (name[i] = path[i]) != '\0'; i++) {
    }
  }
  return ours;
}

BERTHA_EXPORT int forkpty(int *terminal, char *name, const struct termios *attributes,
                          const struct winsize *size) {
  int theirs;
  int ours = open_pair(&theirs, name, attributes, size);
  if (ours < 0) {
    return -1;
  }
  pid_t pid = fork();
  if (pid == 0) {
    close(ours);
    if (login_tty(theirs) != 0) {
      _exit(1);
    }
    return 0;
  }
  close(theirs);
  if (pid < 0) {
    close(ours);
    return -1;
  }
  *terminal = ours;
  return pid;
}
