/* An io_uring that works on files alone leaves the connections where they are (InnoDB's, PostgreSQL's).
 *
 * liburing hands entries to the kernel in a few calls of its own, and before each of them what is about to be handed over is
 * looked at: an operation of another kind, or on a descriptor that is ours, and the program is one that uses io_uring (uring.c),
 * before the kernel sees it; where the policy requires chunnels, it never does (EPERM).  So it is where entries may go by without these calls: a thread of the kernel takes them
 * (IORING_SETUP_SQPOLL), the program enters the kernel by itself, or its liburing is newer than those whose calls are known here. */
#include <dlfcn.h>
#include <linux/time_types.h>
#include <signal.h>
#include <string.h>

#include "calls.h"
#include "uring.h"

/* ---- liburing's books, as they have been since 2.0 ------------------------------------------------ */

struct io_uring {
  unsigned *khead, *ktail, *kring_mask, *kring_entries, *kflags, *kdropped, *array;
  const uint8_t *entries; /* struct io_uring_sqe */
  unsigned first, behind; /* filled, and not handed over yet */
};
struct io_uring_cqe;
struct io_uring_reg_wait;

enum { ENTRY = 64, MAJOR = 2, MINOR_KNOWN = 12 };

/* <linux/io_uring.h>, which may be older than the kernel. */
enum {
  FIXED_FILE = 1u << 0, /* of an entry: its descriptor is a number of another table */
  /* Of a ring: nothing here changes where entries lie, or who takes them. */
  SETUP_HARMLESS = 1u << 0 | 1u << 3 | 1u << 4 | 1u << 5 | 1u << 6 | 1u << 7 | 1u << 8 | 1u << 9 | 1u << 11 |
                   1u << 12 |
                   1u << 13, /* IOPOLL, CQSIZE, CLAMP, ATTACH_WQ, R_DISABLED, SUBMIT_ALL, COOP_TASKRUN,
                                           TASKRUN_FLAG, CQE32, SINGLE_ISSUER, DEFER_TASKRUN */
};

/* By operation: NOP, READV, WRITEV, FSYNC, READ_FIXED, WRITE_FIXED; SYNC_FILE_RANGE; TIMEOUT, TIMEOUT_REMOVE; ASYNC_CANCEL,
 * LINK_TIMEOUT; FALLOCATE; STATX, READ, WRITE, FADVISE, MADVISE; FTRUNCATE. */
static const uint64_t of_files = UINT64_C(0x3f) | UINT64_C(1) << 8 | UINT64_C(3) << 11 | UINT64_C(3) << 14 |
                                 UINT64_C(1) << 17 | UINT64_C(0x1f) << 21 | UINT64_C(1) << 55;

static bool is_of_files(const uint8_t *entry) {
  int32_t fd;
  memcpy(&fd, entry + 4, sizeof fd);
  return entry[0] < 64 && (of_files >> entry[0] & 1) && !(entry[1] & FIXED_FILE) && conn_of(fd) == NULL;
}

/* False: they may not go to the kernel. */
static bool look(const struct io_uring *ring) {
  if (!bertha.enabled || atomic_load_explicit(&bertha.io_uring, memory_order_relaxed)) {
    return true;
  }
  unsigned mask = *ring->kring_mask;
  for (unsigned i = ring->first; i != ring->behind; i++) {
    if (!is_of_files(ring->entries + (size_t)(i & mask) * ENTRY)) {
      if (uring_barred()) {
        return false;
      }
      bertha_uring_begins();
      break;
    }
  }
  return true;
}

bool uring_may_be_for_files(uint32_t flags) {
  if (flags & ~(uint32_t)SETUP_HARMLESS) {
    return false;
  }
  /* Both since 2.4, whose predecessors are known. */
  int (*major)(void) = (int (*)(void))dlsym(RTLD_NEXT, "io_uring_major_version");
  int (*minor)(void) = (int (*)(void))dlsym(RTLD_NEXT, "io_uring_minor_version");
  return major == NULL || minor == NULL || (major() == MAJOR && minor() <= MINOR_KNOWN);
}

/* ---- the calls that hand entries over -------------------------------------------------------------- */

#define HANDS_OVER(name, params, arguments)                                                                  \
  BERTHA_EXPORT int name params;                                                                             \
  int name params {                                                                                          \
    static int(*_Atomic real) params;                                                                        \
    if (UNLIKELY(real == NULL)) {                                                                            \
      real = (int(*) params)dlsym(RTLD_NEXT, #name);                                                         \
    }                                                                                                        \
    if (UNLIKELY(real == NULL)) {                                                                            \
      return -ENOSYS;                                                                                        \
    }                                                                                                        \
    return look(ring) ? real arguments : -EPERM;                                                             \
  }

HANDS_OVER(io_uring_submit, (struct io_uring * ring), (ring))
HANDS_OVER(io_uring_submit_and_wait, (struct io_uring * ring, unsigned count), (ring, count))
HANDS_OVER(io_uring_submit_and_get_events, (struct io_uring * ring), (ring))
HANDS_OVER(io_uring_submit_and_wait_reg,
           (struct io_uring * ring, struct io_uring_cqe **done, unsigned count, int index),
           (ring, done, count, index))

/* These come in pairs: with a hand-over always, and where there is something to hand over. */
#define WAITS(name)                                                                                          \
  HANDS_OVER(name,                                                                                           \
             (struct io_uring * ring, struct io_uring_cqe * *done, unsigned count,                           \
              struct __kernel_timespec *t, sigset_t *mask),                                                  \
             (ring, done, count, t, mask))
#define WAITS_FOR_LEAST(name)                                                                                \
  HANDS_OVER(name,                                                                                           \
             (struct io_uring * ring, struct io_uring_cqe * *done, unsigned count,                           \
              struct __kernel_timespec *t, unsigned least, sigset_t *mask),                                  \
             (ring, done, count, t, least, mask))
WAITS(io_uring_submit_and_wait_timeout)
WAITS(io_uring_wait_cqes)
WAITS_FOR_LEAST(io_uring_submit_and_wait_min_timeout)
WAITS_FOR_LEAST(io_uring_wait_cqes_min_timeout)
HANDS_OVER(io_uring_wait_cqe_timeout,
           (struct io_uring * ring, struct io_uring_cqe **done, struct __kernel_timespec *t), (ring, done, t))
