/* heap SIZE: what malloc() does with a block of SIZE bytes in a program that has freed none of its own. */
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
  size_t before = mallinfo2().hblks;
  void *volatile block = malloc(argc > 1 ? (size_t)atol(argv[1]) : 0);
  puts(block == NULL ? "none" : mallinfo2().hblks > before ? "mapped" : "heap");
  free(block);
  return 0;
}
