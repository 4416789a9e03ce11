/* What programs limit or demand of their memory concerns what they use, not what we have room for: a link is 2 GB of
 * addresses, of which an idle connection takes a page or two.
 *
 * RLIMIT_AS counts addresses: where ours would be more than a small part of it, there is no shared memory; where the program
 * sets it when ours are there, they are allowed for on top.  mlockall() makes memory of addresses: ours are left out of it. */
#include "room.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "links.h"
#include "shim.h"

enum { SMALL_PART = 16 };
#ifndef MCL_ONFAULT
#define MCL_ONFAULT 4
#endif
#ifndef MLOCK_ONFAULT
#define MLOCK_ONFAULT 1
#endif

bool room_allows(size_t size) {
  struct rlimit limit;
  return room_limit(NULL, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY ||
         size <= limit.rlim_cur / SMALL_PART;
}

/* ---- RLIMIT_AS ----------------------------------------------------------------------------------- */

/* What the program has set, and what the kernel was told instead.  A forked child has both, and our room. */
static struct {
  _Atomic uint32_t lock;
  bool is;
  struct rlimit programs;
  struct rlimit kernels;
} limited;

/* Addresses of all links, and of the largest that has connections, or may have. */
static void links_room(size_t *all, size_t *largest) {
  /* Of a copy that a raw clone() made the lock may be anybody's. */
  bool taken = bertha_in_forked_stranger() ? bertha_try_lock(&mapped.lock) : bertha_lock(&mapped.lock);
  *all = *largest = 0;
  for (const struct link *l = mapped.links; l != NULL; l = l->next) {
    size_t size = l->base != NULL ? l->size : 0;
    *all += size;
    *largest = size > *largest ? size : *largest;
  }
  for (const struct link *l = mapped.old_links; l != NULL; l = l->next) {
    *all += l->base != NULL ? l->size : 0;
  }
  if (taken) {
    bertha_unlock(&mapped.lock);
  }
}

static rlim_t our_room(void) {
  size_t all, largest;
  links_room(&all, &largest);
  all += bertha.fds != NULL ? sizeof(struct fd_entry) * BERTHA_FDS : 0;
  all += bertha.table_ready ? bertha.table->conn_offset + (size_t)BERTHA_RECORD * BERTHA_CONNS : 0;
  return (rlim_t)all;
}

bool room_stays(void) {
  size_t all, largest;
  links_room(&all, &largest);
  return room_allows(largest);
}

static rlim_t more(rlim_t limit, rlim_t by) {
  return limit > RLIM_INFINITY - by ? RLIM_INFINITY : limit + by;
}

static int set_limit(const struct rlimit *now, const struct rlimit *programs, const struct rlimit *kernels,
                     bool books) {
  rlim_t by = our_room();
  struct rlimit told = {more(now->rlim_cur, by), more(now->rlim_max, by)};
  /* Who may not raise the hard limit may keep it, whatever has been added to it since. */
  if (now->rlim_max <= programs->rlim_max && told.rlim_max > kernels->rlim_max) {
    told.rlim_max = kernels->rlim_max;
    told.rlim_cur =
        told.rlim_cur < told.rlim_max || now->rlim_cur > now->rlim_max ? told.rlim_cur : told.rlim_max;
  }
  int result = REAL(setrlimit)(RLIMIT_AS, &told);
  if (result == 0 && books) {
    limited.is = true;
    limited.programs = *now;
    limited.kernels = told;
  }
  return result;
}

int room_limit(const struct rlimit *now, struct rlimit *before) {
  struct rlimit kernels;
  bool books = !bertha_in_forked_stranger();        /* whose may be its parent's */
  bool taken = books && bertha_lock(&limited.lock); /* or a handler's, in between */
  int result = REAL(getrlimit)(RLIMIT_AS, &kernels);
  struct rlimit programs = kernels;
  if (result == 0 && books && limited.is && memcmp(&kernels, &limited.kernels, sizeof kernels) == 0) {
    programs = limited.programs;
  }
  if (result == 0 && now != NULL) {
    result = set_limit(now, &programs, &kernels, books);
  }
  if (taken) {
    bertha_unlock(&limited.lock);
  }
  if (result == 0 && before != NULL) {
    *before = programs;
  }
  return result;
}

/* The soft one alone: an exec that fails could not get the hard one back. */
static void soft(rlim_t from, rlim_t to) {
  struct rlimit kernels;
  int saved = errno;
  if (limited.is && REAL(getrlimit)(RLIMIT_AS, &kernels) == 0 && kernels.rlim_cur == from) {
    kernels.rlim_cur = to;
    REAL(setrlimit)(RLIMIT_AS, &kernels);
  }
  errno = saved;
}

void room_leave(void) {
  soft(limited.kernels.rlim_cur, limited.programs.rlim_cur);
}

void room_left(void) {
  soft(limited.programs.rlim_cur, limited.kernels.rlim_cur);
}

/* ---- mappings ------------------------------------------------------------------------------------ */

/* After mlockall(MCL_FUTURE) a mapping is filled as it is made; but not one that nobody may touch.  What is at `over` is
 * replaced in one step: another thread may be looking. */
void *room_map(void *over, size_t size, int fd) {
  int how = fd >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void *p = mmap(NULL, size, PROT_NONE, how, fd, 0);
  if (p == MAP_FAILED) {
    return NULL;
  }
  munlock(p, size);
  madvise(p, size, MADV_DONTDUMP);
  if (mprotect(p, size, PROT_READ | PROT_WRITE) != 0 ||
      (over != NULL && mremap(p, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, over) == MAP_FAILED)) {
    munmap(p, size);
    return NULL;
  }
  return over != NULL ? over : p;
}

static bool overlaps(uintptr_t from, uintptr_t to, const void *base, size_t size) {
  return base != NULL && from < (uintptr_t)base + size && (uintptr_t)base < to;
}

/* What is next to it may be one mapping with it for the kernel: any part of ours excepts all of it. */
static bool ours(uintptr_t from, uintptr_t to, const char *line) {
  bool is = strstr(line, "/memfd:bertha-") != NULL ||
            overlaps(from, to, bertha.fds, sizeof(struct fd_entry) * BERTHA_FDS);
  if (!is && bertha_lock(&mapped.lock)) {
    for (const struct link *l = mapped.old_links; l != NULL && !is; l = l->next) {
      is = overlaps(from, to, l->base, l->size);
    }
    bertha_unlock(&mapped.lock);
  }
  return is;
}

/* MCL_CURRENT, mapping by mapping. */
static int lock_present(unsigned flags) {
  FILE *maps = REAL(fopen)("/proc/self/maps", "re");
  char line[600];
  int error = 0;
  if (maps == NULL) {
    return ENOMEM;
  }
  while (error == 0 && fgets(line, sizeof line, maps) != NULL) {
    unsigned long from, to;
    char may[8];
    if (sscanf(line, "%lx-%lx %7s", &from, &to, may) != 3 || ours(from, to, line)) {
      continue;
    }
    long result = flags != 0 ? REAL(syscall)(SYS_mlock2, from, to - from, flags)
                             : REAL(syscall)(SYS_mlock, from, to - from);
    /* What cannot be filled (a guard page, a file that was cut off) is no error of mlockall(2). */
    if (result != 0 && (errno == EPERM || (errno == ENOMEM && may[0] == 'r'))) {
      error = errno;
    }
  }
  fclose(maps);
  return error;
}

int room_lock(int flags) {
  int error = flags & MCL_CURRENT ? lock_present(flags & MCL_ONFAULT ? MLOCK_ONFAULT : 0) : 0;
  if (error == 0 && (flags & MCL_FUTURE) != 0) {
    error = REAL(mlockall)(flags & ~MCL_CURRENT) == 0 ? 0 : errno;
  }
  return error;
}
