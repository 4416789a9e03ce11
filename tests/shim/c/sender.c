/* Sends a file to each of a few clients: by sendfile before a first byte has come and after it, and by splice
 * from a pipe that is filled slowly.  PORT FILE CLIENTS */
#include "common.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/sendfile.h>
#include <sys/stat.h>

static void by_sendfile(int to, int file, off_t size) {
  off_t at = 0;
  posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED); /* from the disk, where there is one */
  while (at < size) {
    MUST(sendfile(to, file, &at, (size_t)(size - at)) > 0);
  }
}

struct filler {
  int file;
  int pipe;
};

static void *fill(void *of) {
  const struct filler *f = of;
  char data[3000];
  ssize_t n;
  off_t at = 0;
  while ((n = pread(f->file, data, sizeof data, at)) > 0) {
    MUST(write(f->pipe, data, (size_t)n) == n);
    at += n;
    usleep(100);
  }
  close(f->pipe);
  return NULL;
}

static void by_pipe(int to, int file) {
  int ends[2];
  pthread_t thread;
  MUST(pipe(ends) == 0);
  struct filler f = {file, ends[1]};
  MUST(pthread_create(&thread, NULL, fill, &f) == 0);
  ssize_t n;
  while ((n = splice(ends[0], NULL, to, NULL, 1 << 20, SPLICE_F_MOVE)) != 0) {
    MUST(n > 0);
  }
  MUST(pthread_join(thread, NULL) == 0);
  close(ends[0]);
}

int main(int argc, char **argv) {
  MUST(argc == 4);
  int file = open(argv[2], O_RDONLY);
  struct stat st;
  MUST(file >= 0 && fstat(file, &st) == 0);
  int listening = listen_on(atoi(argv[1]));
  for (int left = atoi(argv[3]); left > 0; left--) {
    int fd = accept(listening, NULL, NULL);
    char byte;
    by_sendfile(fd, file, st.st_size);
    MUST(recv(fd, &byte, 1, 0) == 1);
    by_sendfile(fd, file, st.st_size);
    by_pipe(fd, file);
    close(fd);
  }
  return 0;
}
