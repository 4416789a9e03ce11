#include "abroad.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "conn.h"

struct home_table {
  int fd; /* hidden */
  struct bertha_table_header *header;
  size_t size;
  ino_t inode;
  struct home_table *next;
};
static struct home_table *homes; /* only grows, before main() */

struct bertha_table_header *abroad_table(int fd) {
  struct stat st;
  if (fstat(fd, &st) != 0) {
    return NULL;
  }
  for (struct home_table *t = homes; t != NULL; t = t->next) {
    if (t->inode == st.st_ino) {
      QUIET(close)(fd);
      return t->header;
    }
  }
  struct home_table *t = calloc(1, sizeof *t);
  void *p =
      t != NULL ? mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
  struct bertha_table_header *h = p;
  if (p == MAP_FAILED || (size_t)st.st_size < sizeof *h || h->magic != BERTHA_MAGIC_TABLE ||
      h->version != BERTHA_LAYOUT_VERSION || h->conn_size != BERTHA_RECORD || h->conn_offset % 8 != 0 ||
      h->conn_offset > (size_t)st.st_size ||
      (size_t)h->conn_count * BERTHA_RECORD > (size_t)st.st_size - h->conn_offset) {
    if (p != MAP_FAILED) {
      munmap(p, (size_t)st.st_size);
    }
    free(t);
    QUIET(close)(fd);
    return NULL;
  }
  madvise(p, (size_t)st.st_size, MADV_DONTDUMP);
  t->header = h;
  t->size = (size_t)st.st_size;
  t->inode = st.st_ino;
  t->fd = bertha_hide_fd(fd);
  t->next = homes;
  homes = t;
  return h;
}

struct conn *abroad_record(struct bertha_table_header *table, uint32_t index) {
  return index < table->conn_count
             ? (struct conn *)(void *)((uint8_t *)table + table->conn_offset + (size_t)index * BERTHA_RECORD)
             : NULL;
}

static const struct home_table *holder(const struct conn *home) {
  for (const struct home_table *t = homes; t != NULL; t = t->next) {
    if ((const uint8_t *)home > (const uint8_t *)t->header &&
        (const uint8_t *)home < (uint8_t *)t->header + t->size) {
      return t;
    }
  }
  return NULL;
}

int abroad_table_of(const struct conn *home, uint32_t *index) {
  const struct home_table *t = holder(home);
  if (t == NULL) {
    return -1;
  }
  *index =
      (uint32_t)(((const uint8_t *)home - (uint8_t *)t->header - t->header->conn_offset) / BERTHA_RECORD);
  return t->fd;
}

struct bertha_table_header *abroad_header_of(const struct conn *home) {
  const struct home_table *t = holder(home);
  return t != NULL ? t->header : NULL;
}

void abroad_fd_moved(int from, int to) {
  for (struct home_table *t = homes; t != NULL; t = t->next) {
    if (t->fd == from) {
      t->fd = to;
    }
  }
}

/* Both of the home's locks, so that neither direction moves there meanwhile.  False when this thread has them
 * already: a look within a try. */
bool abroad_begin(struct conn *c) {
  struct conn *h = c->home;
  if (!bertha_lock(&h->rx_lock)) {
    return false;
  }
  if (!bertha_lock(&h->tx_lock)) {
    bertha_unlock(&h->rx_lock);
    return false;
  }
  c->rx_phase = h->rx_phase;
  c->tx_phase = h->tx_phase;
  c->rx_head = h->rx_head;
  c->tx_tail = h->tx_tail;
  c->tx_base = h->tx_base;
  c->tx_size = h->tx_size;
  atomic_store(&c->krx, atomic_load(&h->krx));
  atomic_store(&c->ktx, atomic_load(&h->ktx));
  atomic_store(&c->kernel_sends, atomic_load(&h->kernel_sends));
  atomic_store(&c->bell_debt, atomic_load(&h->bell_debt));
  c->bells_seen = h->bells_seen;
  c->error = h->error;
  atomic_store(&c->flags, atomic_load(&h->flags));
  return true;
}

void abroad_end(struct conn *c) {
  struct conn *h = c->home;
  h->rx_phase = c->rx_phase;
  h->tx_phase = c->tx_phase;
  h->rx_head = c->rx_head;
  h->tx_tail = c->tx_tail;
  h->tx_base = c->tx_base;
  h->tx_size = c->tx_size;
  atomic_store(&h->krx, atomic_load(&c->krx));
  atomic_store(&h->bell_debt, atomic_load(&c->bell_debt));
  h->bells_seen = c->bells_seen;
  h->error = c->error;
  bertha_unlock(&h->tx_lock);
  bertha_unlock(&h->rx_lock);
}

void abroad_kernel_send(struct conn *home, int by, uint64_t sent) {
  if (LIKELY(home == NULL)) {
    return;
  }
  atomic_fetch_add(&home->ktx, sent);
  atomic_fetch_add(&home->kernel_sends, (uint32_t)by);
}

bool abroad_give_up(struct conn *c) {
  struct conn *h = c->home;
  if (h == NULL) {
    return true;
  }
  if (conn_kind(c) == BERTHA_CONN_SHM) {
    abroad_leave(c, abroad_enter(c));
  }
  atomic_fetch_add(&h->info.tx_bytes, atomic_load(&c->info.tx_bytes));
  atomic_fetch_add(&h->info.rx_bytes, atomic_load(&c->info.rx_bytes));
  uint64_t tx = atomic_load(&h->info.tx_bytes);
  uint64_t rx = atomic_load(&h->info.rx_bytes);
  if (atomic_fetch_sub(&h->info.refs, 1) != 1) {
    return false;
  }
  atomic_store(&c->info.tx_bytes, tx);
  atomic_store(&c->info.rx_bytes, rx);
  c->home = NULL;
  conn_free_in(abroad_header_of(h), h);
  return true;
}
