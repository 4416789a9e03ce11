/* io_uring goes past the C library's calls: who sets one up uses TCP from then on.
 *
 * Existing connections go back to the kernel, with what lies unread in their rings if the other end answers; if it does
 * not, as far as that can be done from this end: what is sent from now on, and what the peer sends after it has been asked.
 *
 * libuv (node, uvloop) makes a ring for nothing but its epoll_ctl() calls, and one for files if asked to, and does
 * without where there is none: it is told that there is none (decision 0012).  So is everybody whose policy requires
 * chunnels. */
#include <dlfcn.h>
#include <link.h>
#include <string.h>
#include <sys/syscall.h>

#include "../core/local.h"
#include "calls.h"
#include "uring.h"

struct io_uring;
struct io_uring_params;

/* ---- libuv --------------------------------------------------------------------------------------- */

/* A name that libuv has in its text since it knows of io_uring (1.45), statically linked or not. */
static const char libuv_mark[] = "UV_USE_IO_URING";

enum {
  LIBUV_CTL = 256,  /* entries of the ring for epoll_ctl() */
  LIBUV_FILES = 64, /* ... and for files */
  SQPOLL = 1u << 1, /* <linux/io_uring.h>, which may be older than the kernel */
  NO_SQARRAY = 1u << 16,
};

struct search {
  uintptr_t address;
  bool found;
};

static int look_for_libuv(struct dl_phdr_info *o, size_t size, void *given) {
  (void)size;
  struct search *s = given;
  bool here = false;
  for (int i = 0; i < o->dlpi_phnum && !here; i++) {
    const ElfW(Phdr) *p = &o->dlpi_phdr[i];
    uintptr_t from = o->dlpi_addr + p->p_vaddr;
    here = p->p_type == PT_LOAD && s->address >= from && s->address < from + p->p_memsz;
  }
  for (int i = 0; here && i < o->dlpi_phnum && !s->found; i++) {
    const ElfW(Phdr) *p = &o->dlpi_phdr[i];
    if (p->p_type == PT_LOAD && (p->p_flags & (PF_R | PF_W)) == PF_R) {
      const void *at = (const void *)(o->dlpi_addr + p->p_vaddr); /* NOLINT: the loader's own numbers */
      s->found = memmem(at, p->p_filesz, libuv_mark, sizeof libuv_mark - 1) != NULL;
    }
  }
  return here;
}

/* Where chunnels are required nothing may pass us by (connect() and accept() among a ring's operations). */
bool uring_barred(void) {
  return bertha.must_serve || bertha.must_connect || bertha.must_serve_datagrams ||
         bertha.must_send_datagrams;
}

static uint32_t flags_of(const void *params) {
  uint32_t flags;
  memcpy(&flags, (const char *)params + 2 * sizeof flags,
         sizeof flags); /* behind sq_entries and cq_entries */
  return flags;
}

/* Whether this io_uring_setup() is one that libuv can do without, or one that may not be. */
bool bertha_uring_declined(const void *caller, unsigned entries, const void *params) {
  if (UNLIKELY(uring_barred())) {
    return true;
  }
  if (params == NULL) {
    return false;
  }
  uint32_t flags = flags_of(params) & ~(uint32_t)NO_SQARRAY;
  if (!(entries == LIBUV_CTL && flags == 0) && !(entries == LIBUV_FILES && flags == SQPOLL)) {
    return false;
  }
  struct search s = {.address = (uintptr_t)caller};
  dl_iterate_phdr(look_for_libuv, &s);
  return s.found;
}

/* ---- everybody else ------------------------------------------------------------------------------ */

#define PATIENCE_NS 1000000000 /* for all connections together: other ends that compute do not answer */

void bertha_uring_begins(void) {
  if (!bertha.enabled || bertha_in_forked_stranger() || atomic_exchange(&bertha.io_uring, true)) {
    return;
  }
  int saved = errno;
  int64_t until = bertha_now_ns() + PATIENCE_NS;
  local_leave();
  for (uint32_t fd = 0; fd < bertha.max_fd; fd++) {
    struct conn *c = conn_of((int)fd);
    if (c != NULL && conn_decide(c, (int)fd, BERTHA_WHY_IO_URING) == BERTHA_CONN_SHM &&
        (bertha_now_ns() > until || !conn_take_back(c, (int)fd, BERTHA_WHY_IO_URING))) {
      conn_leave_ring(c, BERTHA_WHY_IO_URING);
    }
  }
  errno = saved;
}

/* liburing's, if the program has it: it is not ours to link with. */
#define URING_CALL(name, params, arguments, begins)                                                          \
  BERTHA_EXPORT int name params;                                                                             \
  int name params {                                                                                          \
    int(*real) params = (int(*) params)dlsym(RTLD_NEXT, #name);                                              \
    if (real == NULL) {                                                                                      \
      return -ENOSYS;                                                                                        \
    }                                                                                                        \
    if (begins) {                                                                                            \
      if (uring_barred()) {                                                                                  \
        return -ENOSYS;                                                                                      \
      }                                                                                                      \
      bertha_uring_begins();                                                                                 \
    }                                                                                                        \
    return real arguments;                                                                                   \
  }

URING_CALL(io_uring_queue_init, (unsigned entries, struct io_uring *ring, unsigned flags),
           (entries, ring, flags), !uring_may_be_for_files(flags))
URING_CALL(io_uring_queue_init_params,
           (unsigned entries, struct io_uring *ring, struct io_uring_params *params), (entries, ring, params),
           !uring_may_be_for_files(flags_of(params)))
URING_CALL(io_uring_queue_init_mem,
           (unsigned entries, struct io_uring *ring, struct io_uring_params *params, void *memory,
            size_t size),
           (entries, ring, params, memory, size), !uring_may_be_for_files(flags_of(params)))
/* By themselves, without liburing's books. */
URING_CALL(io_uring_setup, (unsigned entries, struct io_uring_params *params), (entries, params), true)
URING_CALL(io_uring_enter, (unsigned fd, unsigned count, unsigned least, unsigned flags, void *mask),
           (fd, count, least, flags, mask), count > 0)
URING_CALL(io_uring_enter2,
           (unsigned fd, unsigned count, unsigned least, unsigned flags, void *argument, size_t size),
           (fd, count, least, flags, argument, size), count > 0)
