/* io_uring goes past the C library's calls: who sets one up uses TCP from then on.
 *
 * Existing connections go back to the kernel as far as that can be done from this end at once: what is sent from
 * now on, and what the peer sends after it has been asked. */
#include <dlfcn.h>
#include <sys/syscall.h>

#include "calls.h"

struct io_uring;
struct io_uring_params;

void bertha_uring_begins(void);

void bertha_uring_begins(void) {
  if (!bertha.enabled || bertha_in_forked_stranger() || atomic_exchange(&bertha.io_uring, true)) {
    return;
  }
  int saved = errno;
  for (uint32_t fd = 0; fd < bertha.max_fd; fd++) {
    struct conn *c = conn_of((int)fd);
    if (c != NULL && conn_decide(c, (int)fd, BERTHA_WHY_IO_URING) == BERTHA_CONN_SHM) {
      conn_leave_ring(c, BERTHA_WHY_IO_URING);
    }
  }
  errno = saved;
}

/* liburing's, if the program has it: it is not ours to link with. */
#define URING_CALL(name, params, arguments)                                                                  \
  BERTHA_EXPORT int name params;                                                                             \
  int name params {                                                                                          \
    int(*real) params = (int(*) params)dlsym(RTLD_NEXT, #name);                                              \
    if (real == NULL) {                                                                                      \
      return -ENOSYS;                                                                                        \
    }                                                                                                        \
    bertha_uring_begins();                                                                                   \
    return real arguments;                                                                                   \
  }

URING_CALL(io_uring_queue_init, (unsigned entries, struct io_uring *ring, unsigned flags),
           (entries, ring, flags))
URING_CALL(io_uring_queue_init_params,
           (unsigned entries, struct io_uring *ring, struct io_uring_params *params), (entries, ring, params))
URING_CALL(io_uring_queue_init_mem,
           (unsigned entries, struct io_uring *ring, struct io_uring_params *params, void *memory,
            size_t size),
           (entries, ring, params, memory, size))
URING_CALL(io_uring_setup, (unsigned entries, struct io_uring_params *params), (entries, params))
