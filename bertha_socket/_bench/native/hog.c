/* Keeps a processor busy: hog --seconds S
 *
 * Says "ready", then computes until SIGTERM, or for S seconds at most.
 */
#include "common.h"

int main(int argc, char **argv) {
  uint64_t end = now_ns() + (uint64_t)number(argc, argv, "--seconds", "60") * 1000000000u;
  volatile uint64_t sum = 0;
  printf("ready\n");
  fflush(stdout);
  while (now_ns() < end) {
    for (int i = 0; i < 100000; i++) {
      sum += (uint64_t)i;
    }
  }
  return 0;
}
