/* A UDP socket that the program has used before it comes to a carrier: its other descriptors, and the epoll sets that it
 * is in.  Plain UDP sockets are in none of our books, so the kernel's are asked: /proc/self/fd and fdinfo (proc(5)). */
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "dgram.h"

static bool same_socket(int a, int b) {
  struct stat x, y;
  return fstat(a, &x) == 0 && fstat(b, &y) == 0 && x.st_ino == y.st_ino && x.st_dev == y.st_dev;
}

static bool is_epoll(int fd) {
  char path[40], target[40];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(path, target, sizeof target - 1);
  target[n > 0 ? n : 0] = '\0';
  return strcmp(target, "anon_inode:[eventpoll]") == 0;
}

/* The whole text of a file in /proc; NULL: it cannot be had. */
static char *text_of(int fd) {
  char path[40];
  snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
  int file = QUIET(open)(path, O_RDONLY | O_CLOEXEC, 0);
  size_t size = 0, room = 1 << 16;
  char *text = file >= 0 ? malloc(room) : NULL;
  for (ssize_t n; text != NULL && (n = QUIET(read)(file, text + size, room - size - 1)) > 0;) {
    size += (size_t)n;
    if (room - size < 4096) {
      char *more = realloc(text, room *= 2);
      if (more == NULL) {
        break;
      }
      text = more;
    }
  }
  if (text != NULL) {
    text[size] = '\0';
  }
  if (file >= 0) {
    QUIET(close)(file);
  }
  return text;
}

static void add(struct dgram_late *late, int epfd, int fd, struct epoll_event event) {
  struct dgram_member *more = realloc(late->members, (late->count + 1) * sizeof *more);
  if (more == NULL) {
    return;
  }
  late->members = more;
  if (REAL(epoll_ctl)(epfd, EPOLL_CTL_DEL, fd, &event) == 0) {
    late->members[late->count++] = (struct dgram_member){epfd, fd, event};
  }
}

static void leave_set(struct dgram_late *late, const struct conn *c, int epfd) {
  char *text = text_of(epfd);
  for (char *line = text; line != NULL && (line = strstr(line, "tfd:")) != NULL; line += 4) {
    int fd;
    unsigned events;
    unsigned long long data;
    if (sscanf(line, "tfd: %d events: %x data: %llx", &fd, &events, &data) == 3 && conn_of(fd) == c) {
      add(late, epfd, fd, (struct epoll_event){.events = events, .data.u64 = data});
    }
  }
  free(text);
}

static void each_descriptor(struct dgram_late *late, struct conn *c, int fd, bool sets) {
  DIR *all = opendir("/proc/self/fd");
  for (struct dirent *e; all != NULL && (e = readdir(all)) != NULL;) {
    int other = atoi(e->d_name);
    if (e->d_name[0] == '.' || other == fd || other == dirfd(all)) {
      continue;
    }
    if (sets && is_epoll(other)) {
      leave_set(late, c, other);
    } else if (!sets && (unsigned)other < BERTHA_FDS && conn_of(other) == NULL && !bertha_is_hidden(other) &&
               same_socket(fd, other)) {
      atomic_fetch_add(&c->info.refs, 1);
      conn_track(other, c);
    }
  }
  if (all != NULL) {
    closedir(all);
  }
}

void dgram_late_begin(struct dgram_late *late, struct conn *c, int fd) {
  *late = (struct dgram_late){0};
  each_descriptor(late, c, fd, false);
  each_descriptor(late, c, fd, true);
}

void dgram_late_end(struct dgram_late *late) {
  for (size_t i = 0; i < late->count; i++) {
    struct dgram_member *m = &late->members[i];
    REAL(epoll_ctl)(m->epfd, EPOLL_CTL_ADD, m->fd, &m->event);
  }
  free(late->members);
}
