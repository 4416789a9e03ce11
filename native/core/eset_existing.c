/* Epoll descriptors from before we were there: the late door finds a running program, perhaps with an event loop. */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "eset_members.h"

static bool is_epoll(int fd) {
  char path[64];
  char what[64];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(path, what, sizeof what - 1);
  what[n > 0 ? n : 0] = '\0';
  return strcmp(what, "anon_inode:[eventpoll]") == 0;
}

/* Its members, a line each (proc(5)); one that is a set itself is watched. */
static void note_watched(int epfd) {
  char path[64];
  char line[256];
  snprintf(path, sizeof path, "/proc/self/fdinfo/%d", epfd);
  FILE *f = REAL(fopen)(path, "re");
  while (f != NULL && fgets(line, sizeof line, f) != NULL) {
    int member;
    if (sscanf(line, "tfd: %d", &member) == 1) {
      eset_polled(member);
    }
  }
  if (f != NULL) {
    fclose(f);
  }
}

void eset_find_existing(void) {
  for (int round = 0; round < 2; round++) { /* all are marked before any is found to be watched */
    DIR *d = opendir("/proc/self/fd");
    for (struct dirent *e = d != NULL ? readdir(d) : NULL; e != NULL; e = readdir(d)) {
      int fd = atoi(e->d_name);
      if (e->d_name[0] == '.' || !is_epoll(fd)) {
        continue;
      }
      if (round > 0) {
        note_watched(fd);
      } else if (eset_entry(fd) == 0) {
        eset_created(fd);
      }
    }
    if (d != NULL) {
      closedir(d);
    }
  }
}
