/* What malloc() does with a buffer for a large read.
 *
 * glibc maps a block of 128 KiB or more, until the program has freed a mapped one: then blocks up to that size come from the heap
 * (mallopt(3), M_MMAP_THRESHOLD).  Python's asyncio reads into a new block of 256 KiB each time and cuts it to what came
 * before it is freed: the block is by then a page, and the threshold never learns.  Each message then costs a mapping, a page
 * fault, a cut and an unmapping: 12 us beside the 8 of the interpreter, and the 0.5 of this library.  Whether it is so
 * is chance: one large block that any module has freed at start ends it.
 *
 * So one is freed here.  The threshold stays dynamic, and one that the user has set stays as it is.  Not when such a read is
 * seen: recv() may be called by a signal handler (signal-safety(7)), in the midst of malloc().  Decision 0028. */
#include <stdlib.h>

#include "shim.h"

/* asyncio's block (256 KiB, asyncio/selector_events.py), with the header of an object. */
enum { LARGE_READ = 260 * 1024 };

void heap_keeps_large_reads(void) {
  /* volatile: a compiler may leave out a pair that it sees through */
  void *volatile block = malloc(LARGE_READ);
  free(block);
}
