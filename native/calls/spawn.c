/* posix_spawn: the child is made within glibc, so what it will inherit has to be known before (core/parcel.h).
 *
 * A file action may pass on a descriptor that would otherwise be closed: the connections that were named in one are
 * marked, and go along with every spawn that has file actions.  Where a relay's end is to take a connection's place, the
 * actions are changed; their form is glibc's own and is found out by looking at some. */
#include <fcntl.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>

#include "../core/parcel.h"
#include "calls.h"

#define PATH_ROOM 4096

typedef int spawner(pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *,
                    char *const[], char *const[]);

/* Of one file action: how long it is, and where a dup2's two numbers are; the first int says which kind it is. */
struct form {
  size_t size;
  size_t numbers;
};

static uint8_t *action(const posix_spawn_file_actions_t *actions, const struct form *f, int i) {
  return (uint8_t *)actions->__actions + (size_t)i * f->size;
}

static bool numbers_at(const uint8_t *at, int from, int to) {
  int found[2];
  memcpy(found, at, sizeof found);
  return found[0] == from && found[1] == to;
}

static bool find_form(struct form *f) {
  enum { LONGEST = 64 };
  posix_spawn_file_actions_t two;
  *f = (struct form){0};
  if (posix_spawn_file_actions_init(&two) != 0) {
    return false;
  }
  bool made = REAL(posix_spawn_file_actions_adddup2)(&two, 610, 620) == 0 &&
              REAL(posix_spawn_file_actions_adddup2)(&two, 630, 640) == 0 && two.__used == 2;
  const uint8_t *first = (const uint8_t *)two.__actions;
  for (size_t at = sizeof(int); made && f->numbers == 0 && at < LONGEST; at += sizeof(int)) {
    f->numbers = numbers_at(first + at, 610, 620) ? at : 0;
  }
  for (size_t size = 4; made && f->numbers > 0 && f->size == 0 && size <= LONGEST; size += sizeof(int)) {
    f->size = numbers_at(first + size + f->numbers, 630, 640) ? size : 0;
  }
  bool same_kind = f->size > 0 && memcmp(first, first + f->size, sizeof(int)) == 0;
  posix_spawn_file_actions_destroy(&two);
  return same_kind;
}

/* The program's actions, with the relays' ends in the place of the connections. */
static bool with_relays(posix_spawn_file_actions_t *to, const posix_spawn_file_actions_t *from,
                        const struct handover *h, const struct form *f) {
  posix_spawn_file_actions_t ours;
  int count = from != NULL ? from->__used : 0;
  if (posix_spawn_file_actions_init(&ours) != 0) {
    return false;
  }
  for (unsigned i = 0; i < h->relay_count; i++) {
    bool closed = REAL(fcntl)(h->relays[i].fd, F_GETFD) & FD_CLOEXEC;
    /* one that stays open is replaced before all else; of one that does not, only the copies */
    REAL(posix_spawn_file_actions_adddup2)
    (&ours, h->relays[i].relay.end, closed ? h->relays[i].relay.end : h->relays[i].fd);
  }
  int own = ours.__used;
  uint8_t *all = malloc((size_t)(own + count) * f->size);
  if (own == 0 || all == NULL) {
    free(all);
    posix_spawn_file_actions_destroy(&ours);
    return false;
  }
  int used = 0;
  for (unsigned i = 0; i < h->relay_count && (int)i < own; i++) {
    if (!(REAL(fcntl)(h->relays[i].fd, F_GETFD) & FD_CLOEXEC)) {
      memcpy(all + (size_t)used++ * f->size, action(&ours, f, (int)i), f->size);
    }
  }
  for (int k = 0; k < count; k++, used++) {
    uint8_t *copy = all + (size_t)used * f->size;
    memcpy(copy, action(from, f, k), f->size);
    for (unsigned i = 0; i < h->relay_count; i++) {
      int source;
      memcpy(&source, copy + f->numbers, sizeof source);
      if (memcmp(copy, ours.__actions, sizeof(int)) == 0 && source == h->relays[i].fd &&
          (REAL(fcntl)(source, F_GETFD) & FD_CLOEXEC)) {
        memcpy(copy + f->numbers, &h->relays[i].relay.end, sizeof source);
      }
    }
  }
  posix_spawn_file_actions_destroy(&ours);
  if (from != NULL) {
    *to = *from;
  } else {
    posix_spawn_file_actions_init(to);
  }
  to->__actions = (void *)all;
  to->__used = to->__allocated = used;
  return true;
}

/* Which descriptors the actions copy. */
static void copied(int *list, int room, const posix_spawn_file_actions_t *actions, const struct form *f) {
  int n = 0;
  for (int k = 0; actions != NULL && k < actions->__used && n < room - 1; k++) {
    int fd;
    memcpy(&fd, action(actions, f, k) + f->numbers,
           sizeof fd); /* of other kinds: harmless if it is a number at all */
    list[n++] = fd >= 0 ? fd : 0;
  }
  list[n] = -1;
}

static bool kind_in(const posix_spawn_file_actions_t *some, const struct form *f, const void *kind) {
  for (int i = 0; i < some->__used; i++) {
    if (memcmp(action(some, f, i), kind, sizeof(int)) == 0) {
      return true;
    }
  }
  return false;
}

/* Whether the child may look for a relative path from elsewhere: there is an action that neither opens nor closes. */
static bool moves(const posix_spawn_file_actions_t *actions, const struct form *f) {
  posix_spawn_file_actions_t stay;
  if (posix_spawn_file_actions_init(&stay) != 0) {
    return true;
  }
  bool elsewhere = REAL(posix_spawn_file_actions_adddup2)(&stay, 0, 1) != 0 ||
                   posix_spawn_file_actions_addclose(&stay, 0) != 0 ||
                   posix_spawn_file_actions_addopen(&stay, 0, "/", O_RDONLY, 0) != 0;
  for (int k = 0; !elsewhere && k < actions->__used; k++) {
    elsewhere = !kind_in(&stay, f, action(actions, f, k));
  }
  posix_spawn_file_actions_destroy(&stay);
  return elsewhere;
}

static int spawn(spawner *real, pid_t *pid, const char *file, const char *path,
                 const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attributes,
                 char *const argv[], char *const env[]) {
  enum { COPIED = 256 };
  size_t n = 0;
  while (env != NULL && env[n] != NULL) {
    n++;
  }
  char *handed[n + 2];
  int list[COPIED];
  struct handover h;
  struct form form;
  posix_spawn_file_actions_t changed;
  bool known = find_form(&form) && (actions == NULL || actions->__used < COPIED);
  if (known) {
    copied(list, COPIED, actions, &form);
  }
  h.copied = known ? list : NULL;
  if (path[0] != '/' && actions != NULL && actions->__used > 0 && (!known || moves(actions, &form))) {
    path = NULL;
  }
  handover_begin(&h, path, true, actions != NULL && actions->__used > 0, env, handed);
  bool relays = h.relay_count > 0 && with_relays(&changed, actions, &h, &form);
  int error = real(pid, file, relays ? &changed : actions, attributes, argv, handed);
  if (relays) {
    free(changed.__actions);
  }
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
