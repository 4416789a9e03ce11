/* Reading the agent's directory: a file of its, mapped here, so that the question "does anybody there know
 * us?" costs a hash look-up and no system call. */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "agentc.h"

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

enum { RETRY_NS = 1000000000 };

static struct {
  _Atomic uint32_t lock;
  struct bertha_dir_header *_Atomic map;
  ino_t inode;
  _Atomic int64_t not_before;
} directory;

static struct bertha_dir_entry *entries(struct bertha_dir_header *map) {
  return (struct bertha_dir_entry *)(void *)(map + 1);
}

/* The file belongs to the agent's user: ourselves or root.  Anybody else's is not looked at. */
static struct bertha_dir_header *open_map(void) {
  char path[sizeof bertha.agent_path + 8];
  snprintf(path, sizeof path, "%s.dir", bertha.agent_path);
  int fd = QUIET(open)(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0);
  if (fd < 0) {
    return NULL;
  }
  struct stat st;
  size_t size = sizeof(struct bertha_dir_header) + BERTHA_DIR_ENTRIES * sizeof(struct bertha_dir_entry);
  struct bertha_dir_header *map = MAP_FAILED;
  if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && (st.st_uid == geteuid() || st.st_uid == 0) &&
      st.st_size >= (off_t)size) {
    struct bertha_dir_header *old = atomic_load(&directory.map);
    if (old != NULL && st.st_ino == directory.inode) {
      QUIET(close)(fd);
      return old;
    }
    map = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
  }
  QUIET(close)(fd);
  if (map == MAP_FAILED) {
    return NULL;
  }
  if (map->magic != BERTHA_MAGIC_DIR || map->version != BERTHA_LAYOUT_VERSION ||
      map->entry_count != BERTHA_DIR_ENTRIES) {
    munmap(map, size);
    return NULL;
  }
  directory.inode = st.st_ino; /* an older map stays: another thread may be reading it */
  return map;
}

static struct bertha_dir_header *current(void) {
  struct bertha_dir_header *map = atomic_load_explicit(&directory.map, memory_order_acquire);
  if (LIKELY(map != NULL && atomic_load_explicit(&map->generation, memory_order_acquire) != 0)) {
    return map;
  }
  int64_t now = bertha_now_ns();
  if (now < atomic_load_explicit(&directory.not_before, memory_order_relaxed) ||
      !bertha_lock(&directory.lock)) {
    return NULL;
  }
  int saved = errno;
  struct bertha_dir_header *fresh = open_map();
  if (fresh != NULL && atomic_load(&fresh->generation) == 0) {
    atomic_store(&directory.map, fresh);
    fresh = NULL;
  }
  if (fresh != NULL) {
    atomic_store_explicit(&directory.map, fresh, memory_order_release);
  } else {
    atomic_store(&directory.not_before, now + RETRY_NS);
  }
  bertha_unlock(&directory.lock);
  errno = saved;
  return fresh;
}

void directory_after_fork(void) {
  atomic_store(&directory.lock, 0);
}

uint64_t directory_generation(void) {
  struct bertha_dir_header *map = current();
  return map != NULL ? atomic_load_explicit(&map->generation, memory_order_acquire) : 0;
}

uint32_t directory_news(void) {
  struct bertha_dir_header *map = current();
  return map != NULL ? atomic_load_explicit(&map->news, memory_order_acquire) : 0;
}

uint64_t bertha_netns(int any_socket) {
  uint64_t cookie = 0;
  socklen_t size = sizeof cookie;
  if (REAL(getsockopt)(any_socket, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &size) != 0) {
    return 0;
  }
  return cookie;
}

/* A consistent copy of an entry, by its sequence number; false when the agent is at it just now. */
static bool read_entry(struct bertha_dir_entry *e, struct bertha_dir_entry *copy) {
  for (int tries = 0; tries < 64; tries++) {
    uint32_t seq = atomic_load_explicit(&e->seq, memory_order_acquire);
    if ((seq & 1) == 0) {
      memcpy((void *)copy, (const void *)e, sizeof *copy);
      atomic_thread_fence(memory_order_acquire);
      if (atomic_load_explicit(&e->seq, memory_order_relaxed) == seq) {
        return true;
      }
    }
    bertha_pause();
  }
  return false;
}

static int look(const uint8_t addr[16], uint16_t port, uint16_t datagrams, struct dir_hit *hits, int max) {
  struct bertha_dir_header *map = current();
  if (map == NULL) {
    return 0;
  }
  struct bertha_dir_entry *table = entries(map);
  uint32_t mask = BERTHA_DIR_ENTRIES - 1;
  uint32_t at = bertha_dir_hash(addr, port) & mask;
  int found = 0;
  for (uint32_t probe = 0; probe < BERTHA_DIR_ENTRIES && found < max; probe++, at = (at + 1) & mask) {
    struct bertha_dir_entry e;
    if (table[at].port == 0) {
      break;
    }
    if (read_entry(&table[at], &e) && e.port == port && e.listener != 0 &&
        (e.flags & BERTHA_DIR_DATAGRAMS) == datagrams && memcmp(e.addr, addr, 16) == 0) {
      hits[found++] = (struct dir_hit){
          .listener = e.listener,
          .netns = e.netns,
          .uid = e.uid,
          .flags = e.flags,
          .brief = atomic_load_explicit(&table[at].brief, memory_order_relaxed),
      };
    }
  }
  return found;
}

int directory_find(const uint8_t addr[16], uint16_t port, struct dir_hit *hits, int max) {
  return look(addr, port, 0, hits, max);
}

int directory_find_datagrams(const uint8_t addr[16], uint16_t port, struct dir_hit *hits, int max) {
  return look(addr, port, BERTHA_DIR_DATAGRAMS, hits, max);
}

bool directory_datagrams(const uint8_t addr[16], uint16_t port) {
  struct dir_hit hits[BERTHA_RESOLVE_MAX];
  int n = directory_find_datagrams(addr, port, hits, BERTHA_RESOLVE_MAX);
  for (int i = 0; i < n; i++) {
    if (hits[i].flags & BERTHA_DIR_DAG) {
      return true;
    }
  }
  return false;
}
