#include "real.h"

#include <dlfcn.h>
#include <stdatomic.h>
#include <stdlib.h>

struct bertha_real bertha_real_table;

/* A function that this C library does not have (epoll_pwait2 before 2.35, close_range before 2.34)
 * stays NULL: our wrapper of it is then never called, because no program could link to it either. */
/* Preloaded: whoever is behind us. Loaded late (door/got.c): among our own dependencies, or the C library itself. */
static void *behind_us(const char *name) {
  void *found = dlsym(RTLD_NEXT, name);
  if (found == NULL) {
    void *library = dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD);
    if (library != NULL) {
      found = dlsym(library, name);
      dlclose(library);
    }
  }
  return found;
}

void bertha_real_init(void) {
#define X(name, ret, params) bertha_real_table.name = (ret(*) params)behind_us(#name);
  BERTHA_REAL_CALLS(X)
#undef X
  atomic_store_explicit(&bertha_real_table.ready, 1, memory_order_release);
}
