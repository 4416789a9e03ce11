/* Serves connections one after the other, line by line; at the line "ring" it sets up an io_uring. */
#include "common.h"

#include <linux/io_uring.h>
#include <sys/syscall.h>

int main(int argc, char **argv) {
  MUST(argc == 3);
  int listening = listen_on(atoi(argv[1]));
  for (int left = atoi(argv[2]); left > 0; left--) {
    int fd = accept(listening, NULL, NULL);
    char text[256];
    size_t have = 0;
    MUST(fd >= 0);
    ssize_t n;
    while ((n = read(fd, text + have, sizeof text - have)) > 0) {
      char *end;
      have += (size_t)n;
      while ((end = memchr(text, '\n', have)) != NULL) {
        size_t size = (size_t)(end + 1 - text);
        if (size == 5 && memcmp(text, "ring", 4) == 0) {
          struct io_uring_params params = {0};
          long ring = syscall(SYS_io_uring_setup, 4, &params);
          MUST(ring >= 0 || errno == EPERM || errno == ENOSYS); /* a system may forbid it */
        }
        MUST(write(fd, text, size) == (ssize_t)size);
        memmove(text, text + size, have - size);
        have -= size;
      }
    }
    MUST(n == 0);
    close(fd);
  }
  return 0;
}
