/* A socket that is used again: connect() to AF_UNSPEC dissolves its connection (connect(2)). */
#include "abroad.h"
#include "conn.h"
#include "connlog.h"
#include "eset.h"

static uint32_t own_descriptors(const struct conn *c) {
  uint32_t n = 0;
  for (uint32_t fd = 0; fd < bertha.max_fd; fd++) {
    n += conn_of((int)fd) == c;
  }
  return n;
}

void conn_dissolved(struct conn *c, int fd) {
  uint32_t kind = conn_kind(c);
  uint32_t own = own_descriptors(c);
  if (kind == BERTHA_CONN_FREE || kind == BERTHA_CONN_SOCKET || kind == BERTHA_CONN_LISTENER ||
      kind == BERTHA_CONN_UNIX || (conn_flags(c) & CONN_CARRIED) || c->home != NULL ||
      atomic_load(&c->info.refs) != own) {
    return; /* other processes have it, too: theirs are the books */
  }
  struct conn *fresh = conn_new(fd, BERTHA_CONN_SOCKET);
  if (fresh == NULL) {
    return;
  }
  conn_set_flag(fresh,
                conn_flags(c) & (CONN_NONBLOCK | CONN_NODELAY_SET | CONN_NODELAY_KNOWN | CONN_LINGER_0));
  fresh->rcv_timeout_ns = c->rcv_timeout_ns;
  fresh->snd_timeout_ns = c->snd_timeout_ns;
  fresh->rcv_lowat = c->rcv_lowat;
  atomic_store(&fresh->info.refs, own);
  if (kind == BERTHA_CONN_SHM) { /* the kernel has reset the connection */
    atomic_store_explicit(&conn_tx(c)->closed, 2, memory_order_release);
  }
  connlog_write(c, fd);
  conn_books_begin();
  for (uint32_t i = 0; i < bertha.max_fd; i++) {
    if (conn_of((int)i) == c) {
      eset_forget((int)i);
      conn_track((int)i, fresh);
    }
  }
  conn_books_end();
  atomic_store(&c->info.refs, 0);
  conn_after_close(c);
}
