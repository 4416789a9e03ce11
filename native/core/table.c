/* The table of connections, shared by a process and its forked children, and which descriptor of this
 * process is which of them. */
#include "shim.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

#include "agentc.h"
#include "conn.h"
#include "fsize.h"
#include "orphans.h"
#include "room.h"

_Static_assert(sizeof(struct conn) <= BERTHA_RECORD, "a connection's record has outgrown its stride");

uint8_t *bertha_records;
static _Atomic uint64_t *free_head; /* count of changes << 32 | index + 1 */

static size_t records_offset(void) {
  return 4096;
}

static _Atomic uint64_t *head_of(struct bertha_table_header *table) {
  return (_Atomic uint64_t *)(void *)((uint8_t *)table + 1024);
}

bool bertha_table_open(void) {
  if (LIKELY(bertha.table_ready)) {
    return true;
  }
  static _Atomic uint32_t once;
  if (!bertha_lock(&once)) {
    return false;
  }
  if (!bertha.table_ready) {
    size_t size = records_offset() + (size_t)BERTHA_RECORD * BERTHA_CONNS;
    bool room = room_allows(size);
    int fd = room ? REAL(memfd_create)("bertha-table", MFD_CLOEXEC | MFD_ALLOW_SEALING) : -1;
    void *p = MAP_FAILED;
    if (fd >= 0 && fsize_make(fd, size) == 0 &&
        REAL(fcntl)(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0) {
      p = room_map(NULL, size, fd);
      p = p != NULL ? p : MAP_FAILED;
    }
    if (p == MAP_FAILED && room) { /* no memfd to be had: works as well, only `bertha ps` cannot look */
      if (fd >= 0) {
        QUIET(close)(fd);
        fd = -1;
      }
      p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    }
    if (p != MAP_FAILED) {
      madvise(p, size, MADV_DONTDUMP);
      bertha.table = p;
      bertha.table->version = BERTHA_LAYOUT_VERSION;
      bertha.table->conn_count = BERTHA_CONNS;
      bertha.table->conn_size = BERTHA_RECORD;
      bertha.table->conn_offset = records_offset();
      bertha.table->magic = BERTHA_MAGIC_TABLE;
      free_head = head_of(bertha.table);
      bertha_records = (uint8_t *)p + records_offset();
      bertha.table_fd = fd >= 0 ? bertha_hide_fd(fd) : -1;
      bertha.table_ready = true;
    }
  }
  bertha_unlock(&once);
  return bertha.table_ready;
}

bool bertha_table_anew(void) {
  void *old = bertha.table_ready ? bertha.table : NULL;
  for (uint32_t fd = 0; fd < bertha.max_fd; fd++) {
    atomic_store(&bertha.fds[fd].conn, 0);
  }
  bertha.max_fd = 0;
  bertha.table_ready = false;
  bool good = bertha_table_open();
  if (old != NULL) {
    munmap(old, records_offset() + (size_t)BERTHA_RECORD * BERTHA_CONNS);
  }
  return good;
}

/* Before the table grows by so much, and at each try when it is full. */
enum { SWEEP_EVERY = 128 };

/* One whose last descriptor was closed by the exec of a process that has ended since (conn_leave). */
static struct conn *left_by_the_dead(void) {
  for (uint32_t i = 0; i < BERTHA_CONNS; i++) {
    struct conn *c = conn_by_index(i);
    uint32_t flags = conn_flags(c);
    if ((flags & CONN_LEFT) && atomic_load(&c->info.refs) == 0 &&
        kill((pid_t)atomic_load(&c->next_free), 0) != 0 && errno == ESRCH &&
        atomic_compare_exchange_strong(&c->flags, &flags, flags & ~(uint32_t)CONN_LEFT)) {
      return c;
    }
  }
  return NULL;
}

static struct conn *take_record(void) {
  uint64_t head = atomic_load(free_head);
  while ((uint32_t)head != 0) {
    struct conn *c = conn_by_index((uint32_t)head - 1);
    uint64_t next = ((head >> 32) + 1) << 32 | atomic_load_explicit(&c->next_free, memory_order_relaxed);
    if (atomic_compare_exchange_weak(free_head, &head, next)) {
      return c;
    }
  }
  if (atomic_load(&bertha.table->used) % SWEEP_EVERY == SWEEP_EVERY - 1 && orphans_sweep() > 0) {
    return take_record();
  }
  uint32_t fresh = atomic_fetch_add(&bertha.table->used, 1);
  if (fresh >= BERTHA_CONNS) {
    atomic_fetch_sub(&bertha.table->used, 1); /* SWEEP_EVERY divides their number: it is swept each time */
    return left_by_the_dead();
  }
  return conn_by_index(fresh);
}

/* NULL when the table is full: the socket then stays plain and unlogged. */
struct conn *conn_new(int fd, enum bertha_conn_kind kind) {
  if ((unsigned)fd >= BERTHA_FDS || !bertha.enabled || !bertha_table_open()) {
    return NULL;
  }
  struct conn *c = take_record();
  if (c == NULL) {
    return NULL;
  }
  uint32_t life = atomic_load(&c->life);
  memset(c, 0, sizeof *c);
  atomic_store(&c->life, life + 1);
  c->info.pid = (uint32_t)bertha.pid;
  atomic_store(&c->info.holder, c->info.pid);
  c->rcv_lowat = 1;
  atomic_store(&c->info.refs, 1);
  atomic_store_explicit(&c->info.kind, kind, memory_order_release);
  return c;
}

void conn_free(struct conn *c) {
  conn_free_in(bertha.table, c);
}

void conn_free_in(struct bertha_table_header *table, struct conn *c) {
  _Atomic uint64_t *list = head_of(table);
  uint32_t index = (uint32_t)(((uint8_t *)c - (uint8_t *)table - table->conn_offset) / BERTHA_RECORD);
  atomic_store_explicit(&c->info.kind, BERTHA_CONN_FREE, memory_order_release);
  uint64_t head = atomic_load(list);
  uint64_t next;
  do {
    atomic_store_explicit(&c->next_free, (uint32_t)head, memory_order_relaxed);
    next = ((head >> 32) + 1) << 32 | (index + 1);
  } while (!atomic_compare_exchange_weak(list, &head, next));
}

/* Threads open descriptors side by side: the highest of them counts, whoever writes last. */
void conn_reach(int fd) {
  uint32_t seen = atomic_load_explicit(&bertha.max_fd, memory_order_relaxed);
  while ((uint32_t)fd >= seen && !atomic_compare_exchange_weak(&bertha.max_fd, &seen, (uint32_t)fd + 1)) {
  }
}

void conn_track(int fd, struct conn *c) {
  conn_reach(fd);
  atomic_store_explicit(&bertha.fds[fd].set, 0, memory_order_relaxed);
  atomic_store_explicit(&bertha.fds[fd].conn, conn_index(c) + 1, memory_order_release);
}

void conn_forget(int fd) {
  const uint32_t i = atomic_load_explicit(&bertha.fds[fd].conn, memory_order_relaxed);
  atomic_store(&bertha.fds[fd].conn,
               0); /* before the word about it: orphans_mine() looks at them the other way round */
  if (i != 0) {
    orphans_not_mine(conn_by_index(i - 1));
  }
}

/* ---- changes of descriptors ---------------------------------------------------------------------------------------- */

/* Threads that are just closing or duplicating a descriptor, in the books and in the kernel; forks under way. */
static _Atomic uint32_t changing;
static _Atomic uint32_t forking;
static BERTHA_TLS uint32_t my_changes;
static BERTHA_TLS bool my_fork; /* by our fork(), which learns whether there is a child */
static _Atomic uint32_t still;  /* who has it: one thread at a time */
static BERTHA_TLS bool my_still;
/* On a busy machine a thread may be off its processor for long, or wait for the connection log's disk. */
#define FORK_PATIENCE_NS 3000000000
/* Who closes may linger, or wait for a lock that we hold. */
#define STILL_PATIENCE_NS 10000000

/* A change is a few system calls, as a rule. */
static void a_moment(int *turn) {
  enum { SPINS = 100 };
  struct timespec moment = {0, 20000};
  if ((*turn)++ < SPINS) {
    bertha_pause();
    return;
  }
  REAL(syscall)(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &moment, NULL);
}

/* close() is where a cancelled thread ends, and it must not end while it is counted as changing something.  Not there in a
 * program without threads, before glibc 2.34. */
#pragma weak pthread_setcancelstate
static BERTHA_TLS uint32_t cancel_holds;
static BERTHA_TLS int cancel_before;

void conn_cancel_hold(void) {
  if (cancel_holds++ == 0 && pthread_setcancelstate != NULL) {
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_before);
  }
}

void conn_cancel_release(void) {
  if (--cancel_holds == 0 && pthread_setcancelstate != NULL) {
    pthread_setcancelstate(cancel_before, NULL);
  }
}

void conn_books_begin(void) {
  int64_t until = 0;
  int turn = 0;
  conn_cancel_hold();
  /* Another change of this thread's: a fork waits for that anyway; or a handler of the fork that we are in. */
  bool within = my_changes++ > 0 || my_fork || my_still;
  for (;;) {
    atomic_fetch_add(&changing, 1);
    if (LIKELY(within || atomic_load(&forking) == 0)) {
      return;
    }
    until = until != 0 ? until : bertha_now_ns() + FORK_PATIENCE_NS;
    if (bertha_now_ns() > until) {
      return;
    }
    atomic_fetch_sub(&changing, 1);
    a_moment(&turn);
  }
}

void conn_books_end(void) {
  my_changes--;
  atomic_fetch_sub(&changing, 1);
  conn_cancel_release();
}

static void await_others(int64_t until) {
  int turn = 0;
  while (atomic_load(&changing) != my_changes && bertha_now_ns() < until) {
    a_moment(&turn);
  }
}

bool conn_still_begin(void) {
  int64_t until = bertha_now_ns() + STILL_PATIENCE_NS;
  int turn = 0;
  while (!bertha_try_lock(&still)) {
    if (my_still || bertha_now_ns() >= until) {
      return false;
    }
    a_moment(&turn);
  }
  my_still = true;
  atomic_fetch_add(&forking, 1);
  my_changes++; /* a fork waits until it is over */
  atomic_fetch_add(&changing, 1);
  await_others(until);
  return true;
}

void conn_still_end(bool begun) {
  if (begun) {
    my_changes--;
    atomic_fetch_sub(&changing, 1);
    atomic_fetch_sub(&forking, 1);
    my_still = false;
    bertha_unlock(&still);
  }
}

/* A child has every descriptor that the parent has.  Counted before the fork, so that the parent cannot
 * close its last one before the child has counted its own. */
static void all_refs(uint32_t by) {
  if (!bertha.table_ready) {
    return;
  }
  for (uint32_t fd = 0; fd < bertha.max_fd; fd++) {
    struct conn *c = conn_of((int)fd);
    if (c != NULL) {
      atomic_fetch_add(&c->info.refs, by);
    }
  }
}

/* The end of a unix socket that is yet to be fetched from the mailbox would come to one of the two processes only. */
static void decide_unix(void) {
  for (uint32_t fd = 0; bertha.table_ready && fd < bertha.max_fd; fd++) {
    struct conn *c = conn_of((int)fd);
    if (c != NULL && conn_kind(c) == BERTHA_CONN_CLAIMED &&
        c->link->plan.implementation == BERTHA_IMPL_UNIX) {
      conn_decide(c, (int)fd, BERTHA_WHY_INHERITED);
    }
  }
}

/* What is counted is what the child gets: no descriptor comes or goes meanwhile, but for what this very thread is in the
 * middle of, if the fork is a signal handler's.  Waited for with a bound: a close may linger. */
void conn_fork_prepare(void) {
  decide_unix();
  atomic_fetch_add(&forking, 1);
  await_others(bertha_now_ns() + FORK_PATIENCE_NS);
  all_refs(1);
}

void conn_fork_begin(void) {
  my_fork = true;
}

void conn_fork_end(bool failed) {
  if (my_fork) {
    my_fork = false;
    if (failed) {
      all_refs((uint32_t)-1);
    }
    atomic_fetch_sub(&forking, 1);
  }
}

void conn_fork_done(bool child) {
  if (child) {
    my_fork = false;
    atomic_store(&changing, my_changes); /* the other threads are not there to end theirs */
    atomic_store(&forking, my_still);
    if (!my_still) {
      atomic_store(&still, 0);
    }
  } else if (!my_fork) { /* else whether there is a child is known a moment later: conn_fork_end() */
    atomic_fetch_sub(&forking, 1);
  }
}
