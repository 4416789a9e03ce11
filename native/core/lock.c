/* A small lock that two processes of one family can share.
 *
 * Held for a copy of bytes at most, never across a call that blocks.  The word is the holder's thread
 * id: a signal handler that comes upon its own thread's lock is told so instead of hanging, and a holder
 * that was killed is found out. */
#include "shim.h"

#include <sys/syscall.h>

enum { SPINS = 200, CHECK_AFTER = 2000 };

bool bertha_lock(_Atomic uint32_t *lock) {
  uint32_t me = bertha_tid();
  uint32_t seen = 0;
  if (LIKELY(atomic_compare_exchange_strong_explicit(lock, &seen, me, memory_order_acquire,
                                                     memory_order_relaxed))) {
    return true;
  }
  for (unsigned round = 1;; round++) {
    if (seen == me) {
      return false;
    }
    for (int i = 0; i < SPINS; i++) {
      bertha_pause();
      seen = atomic_load_explicit(lock, memory_order_relaxed);
      if (seen == 0) {
        break;
      }
    }
    if (seen != 0) {
      struct timespec wait = {0, 20000}; /* the holder was put off its processor: give it time */
      REAL(syscall)(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &wait, NULL);
      seen = atomic_load_explicit(lock, memory_order_relaxed);
      if (seen != 0 && round % CHECK_AFTER == 0 && kill((pid_t)seen, 0) != 0 && errno == ESRCH) {
        if (atomic_compare_exchange_strong(lock, &seen, me)) {
          return true; /* its holder is dead; positions are published last, so nothing is half done */
        }
      }
    }
    uint32_t none = 0;
    if (seen == 0 && atomic_compare_exchange_strong_explicit(lock, &none, me, memory_order_acquire,
                                                             memory_order_relaxed)) {
      return true;
    }
    seen = none != 0 ? none : seen;
  }
}

bool bertha_try_lock(_Atomic uint32_t *lock) {
  uint32_t seen = 0;
  return atomic_compare_exchange_strong_explicit(lock, &seen, bertha_tid(), memory_order_acquire,
                                                 memory_order_relaxed);
}

void bertha_unlock(_Atomic uint32_t *lock) {
  atomic_store_explicit(lock, 0, memory_order_release);
}
