/* posix_spawn: the child is made within glibc, so what it will inherit has to be known before (core/parcel.h).
 *
 * A file action may pass on a descriptor that would otherwise be closed: the connections that were named in one are
 * marked, and go along with every spawn that has file actions. */
#include <spawn.h>

#include "../core/parcel.h"
#include "calls.h"

#define PATH_ROOM 4096

typedef int spawner(pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *,
                    char *const[], char *const[]);

static int spawn(spawner *real, pid_t *pid, const char *file, const char *path,
                 const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attributes,
                 char *const argv[], char *const env[]) {
  size_t n = 0;
  while (env != NULL && env[n] != NULL) {
    n++;
  }
  char *handed[n + 2];
  struct handover h;
  handover_begin(&h, path, true, actions != NULL && actions->__used > 0, env, handed);
  int error = real(pid, file, actions, attributes, argv, handed);
  if (error != 0) {
    handover_failed(&h);
  } else {
    handover_spawned(&h);
  }
  return error;
}

BERTHA_EXPORT int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
                              const posix_spawnattr_t *attributes, char *const argv[], char *const env[]) {
  if (LIKELY(!handover_due())) {
    return REAL(posix_spawn)(pid, path, actions, attributes, argv, env);
  }
  return spawn(REAL(posix_spawn), pid, path, path, actions, attributes, argv, env);
}

BERTHA_EXPORT int posix_spawnp(pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions,
                               const posix_spawnattr_t *attributes, char *const argv[], char *const env[]) {
  char path[PATH_ROOM];
  if (LIKELY(!handover_due()) || !target_find(file, path, sizeof path)) {
    return REAL(posix_spawnp)(pid, file, actions, attributes, argv, env);
  }
  return spawn(REAL(posix_spawnp), pid, file, path, actions, attributes, argv, env);
}

BERTHA_EXPORT int posix_spawn_file_actions_adddup2(posix_spawn_file_actions_t *actions, int from, int to) {
  struct conn *c = conn_of(from);
  if (c != NULL) {
    conn_set_flag(c, CONN_SPAWN);
  }
  return REAL(posix_spawn_file_actions_adddup2)(actions, from, to);
}
