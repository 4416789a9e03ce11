/* getrlimit, setrlimit and prlimit: RLIMIT_AS as the program has it, beside the address space that we keep room in. */
#include <sys/resource.h>
#include <unistd.h>

#include "../core/room.h"
#include "calls.h"

/* The sanitizers' runtimes call these before they can serve our code. */
#if !defined BERTHA_ASAN && !defined BERTHA_TSAN

static bool ours(int resource) {
  return UNLIKELY(resource == RLIMIT_AS) && bertha.enabled;
}

/* The header says that these are never null; the kernel says EFAULT. */
static __attribute__((noinline)) int get(int resource, struct rlimit *limit) {
  return ours(resource) && limit != NULL ? room_limit(NULL, limit) : REAL(getrlimit)(resource, limit);
}

static __attribute__((noinline)) int set(int resource, const struct rlimit *limit) {
  return ours(resource) && limit != NULL ? room_limit(limit, NULL) : REAL(setrlimit)(resource, limit);
}

BERTHA_EXPORT int getrlimit(__rlimit_resource_t resource, struct rlimit *limit) {
  return get((int)resource, limit);
}

BERTHA_EXPORT int setrlimit(__rlimit_resource_t resource, const struct rlimit *limit) {
  return set((int)resource, limit);
}

BERTHA_EXPORT int prlimit(pid_t pid, enum __rlimit_resource resource, const struct rlimit *now,
                          struct rlimit *before) {
  bool itself = pid == 0 || pid == getpid();
  return ours((int)resource) && itself ? room_limit(now, before)
                                       : REAL(prlimit)(pid, (int)resource, now, before);
}

/* The same structures where `long` has 64 bits. */
_Static_assert(sizeof(struct rlimit) == sizeof(struct rlimit64), "rlim_t has 64 bits");

BERTHA_EXPORT int getrlimit64(__rlimit_resource_t resource, struct rlimit64 *limit) {
  return getrlimit(resource, (struct rlimit *)limit);
}

BERTHA_EXPORT int setrlimit64(__rlimit_resource_t resource, const struct rlimit64 *limit) {
  return setrlimit(resource, (const struct rlimit *)limit);
}

BERTHA_EXPORT int prlimit64(pid_t pid, enum __rlimit_resource resource, const struct rlimit64 *now,
                            struct rlimit64 *before) {
  return prlimit(pid, resource, (const struct rlimit *)now, (struct rlimit *)before);
}

#endif
