/* Datagrams in one direction: burst udp:ADDRESS:PORT --milliseconds M [--count N] [--size S]
 *
 * Sends N datagrams of S bytes as fast as it can, waits until the server (mode `sink`) says how many have come, and sends the
 * next N.  A burst that fits into a socket's buffer loses nothing on one host: it is a failure if it does.
 *
 * Prints one JSON object: requests (datagrams that have come), wall_ns, cpu_ns (this process).
 */
#include "common.h"

int main(int argc, char **argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: burst udp:ADDRESS:PORT --milliseconds M [--count N] [--size S]\n");
    return 2;
  }
  struct target t = parse_target(argv[1]);
  size_t count = number(argc, argv, "--count", "32");
  size_t size = number(argc, argv, "--size", "64");
  uint64_t duration = (uint64_t)number(argc, argv, "--milliseconds", "1000") * 1000000u;
  struct timeval patience = {5, 0};
  char *buf = calloc(1, size + 1);
  int fd = open_to(&t, 0);
  if (buf == NULL || size == 0 || count == 0 ||
      setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) != 0) {
    fail("burst");
  }
  size_t done = 0;
  uint64_t begin = now_ns(), begin_cpu = cpu_ns();
  while (now_ns() - begin < duration) {
    uint64_t come = 0;
    for (size_t i = 1; i <= count; i++) {
      buf[0] = i == count ? 'e' : 'x';
      if (send(fd, buf, size, 0) != (ssize_t)size) {
        fail("send");
      }
    }
    if (recv(fd, &come, sizeof come, 0) != sizeof come) {
      fail("recv");
    }
    if (come != count) {
      fprintf(stderr, "burst: %llu of %zu datagrams have come\n", (unsigned long long)come, count);
      return 1;
    }
    done += count;
  }
  printf("{\"requests\": %zu, \"wall_ns\": %llu, \"cpu_ns\": %llu}\n", done,
         (unsigned long long)(now_ns() - begin), (unsigned long long)(cpu_ns() - begin_cpu));
  close(fd);
  return 0;
}
