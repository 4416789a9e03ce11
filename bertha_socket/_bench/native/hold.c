/* Many idle connections: hold TARGET --count N [--touch BYTES] [--chunk BYTES]
 *
 * Opens N connections to a server in mode `hold`; on each, sends --touch bytes and reads them back, --chunk
 * at a time.  Then says "holding" and does nothing at all until its standard input ends.
 */
#include "common.h"

int main(int argc, char **argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: hold TARGET [--count N] [--touch BYTES] [--chunk BYTES]\n");
    return 2;
  }
  struct target t = parse_target(argv[1]);
  size_t count = number(argc, argv, "--count", "1000");
  size_t touch = number(argc, argv, "--touch", "64");
  size_t chunk = number(argc, argv, "--chunk", "64");
  char *buf = calloc(1, chunk + 1);
  int *fds = calloc(count, sizeof *fds);
  if (buf == NULL || fds == NULL) {
    fail("calloc");
  }
  for (size_t i = 0; i < count; i++) {
    fds[i] = open_to(&t, 0);
    for (size_t done = 0; done < touch;) {
      size_t now = touch - done < chunk ? touch - done : chunk;
      send_all(fds[i], buf, now);
      if (!recv_all(fds[i], buf, now)) {
        fprintf(stderr, "recv: the peer closed instead of answering\n");
        return 1;
      }
      done += now;
    }
  }
  printf("holding\n");
  fflush(stdout);
  while (read(STDIN_FILENO, buf, 1) > 0) {
  }
  for (size_t i = 0; i < count; i++) {
    close(fds[i]);
  }
  return 0;
}
