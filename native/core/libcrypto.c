#include "libcrypto.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>

static struct libcrypto loaded;
static bool all; /* it has all of it */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void load(void) {
  int saved = errno;
  /* By its name with the version: another one that the program has keeps its own symbols, by their versions. */
  void *library = dlopen("libcrypto.so.3", RTLD_NOW | RTLD_LOCAL);
  all = library != NULL;
#define X(name, ret, params)                                                                                 \
  loaded.name = all ? (ret(*) params)dlsym(library, #name) : NULL;                                           \
  all = all && loaded.name != NULL;
  LIBCRYPTO_CALLS(X)
#undef X
  if (all) {
    loaded.OPENSSL_init_crypto(0, NULL); /* its end at exit() is arranged for now, so comes after ours */
    loaded.library = loaded.OSSL_LIB_CTX_new();
    all = loaded.library != NULL;
  }
  errno = saved;
}

const struct libcrypto *libcrypto(void) {
  pthread_once(&once, load);
  return all ? &loaded : NULL;
}
