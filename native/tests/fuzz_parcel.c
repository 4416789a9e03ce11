/* What the image before an exec has left (parcel.h) is anything: counts, indices of records, links and tables that are
 * none.  The new image takes up what makes sense and nothing else; nothing is read or written elsewhere.
 *
 * Descriptors in it are some of our own, or none: a parcel comes from this process's former image, which had them. */
#include "../core/link.c" /* links that were taken up and are not wanted again */

#include "../core/inherit.c"

#include "rig.h"

enum { SLOTS = 2, RING = 4096, MOST = 8 };

static int make_link_file(bool sound) {
  struct bertha_link_header h;
  rig_header(&h, SLOTS, RING);
  int fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  rig_check(fd >= 0 && ftruncate(fd, (off_t)h.total_size) == 0, "memfd");
  h.magic ^= !sound;
  rig_check(pwrite(fd, (void *)&h, sizeof h, 0) == sizeof h, "pwrite");
  rig_check(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) == 0, "seal");
  return fd;
}

/* All that the last run has taken up. */
static void drop_links(void) {
  for (struct link *l = mapped.links; l != NULL; l = mapped.links) {
    link_drop(l);
  }
}

static int a_descriptor(uint8_t kind) {
  switch (kind % 4) {
  case 0:
    return dup(bertha.table_fd);
  case 1:
    return make_link_file(kind & 4);
  case 2:
    return -1 - kind;
  default:
    return open("/dev/null", O_RDONLY | O_CLOEXEC);
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static struct parcel_header head;
  const uint8_t *end = data + (size < 300 ? size : 300);
  if (size < 12) {
    return 0;
  }
  rig_check(bertha_table_open() && bertha.table_fd >= 0, "a table");
  int fd[2];
  tcp_pair(fd);
  struct linger none = {1, 0}; /* no TIME_WAIT: ports would run out */
  setsockopt(fd[0], SOL_SOCKET, SO_LINGER, &none, sizeof none);
  struct conn *sender = conn_new(fd[1], BERTHA_CONN_PLAIN); /* what the former image had */
  rig_check(sender != NULL, "conn_new");
  atomic_store(&sender->info.refs, 1000); /* ends taken from it are not ours to count here */
  sender->slot_index = data[0] % (SLOTS + 1);
  sender->side = data[1];
  sender->tx_limit = (uint32_t)data[2] << (data[3] % 32);
  sender->rx_head = data[2];
  memset((void *)&head, 0, sizeof head);
  head.magic = PARCEL_MAGIC ^ (data[4] == 255);
  head.record = sizeof(struct conn);
  head.token = 77;
  strncpy(head.version, BERTHA_VERSION, sizeof head.version - 1);
  uint32_t tables = 1 + data[5] % 3, links = data[6] % 3, conns = 1 + data[7] % MOST;
  head.table_count = data[8] == 255 ? UINT32_MAX : tables;
  head.link_count = data[8] == 254 ? PARCEL_LINKS + 1 : links;
  head.conn_count = data[8] == 253 ? UINT32_MAX : data[8] == 252 ? conns + 1 : conns;
  data += 9;
  for (uint32_t i = 0; i < tables; i++) {
    head.tables[i] = i == 0 ? dup(bertha.table_fd) : a_descriptor(data < end ? *data++ : 0);
  }
  for (uint32_t i = 0; i < links; i++) {
    uint8_t how = data < end ? *data++ : 1;
    head.links[i] = (struct parcel_link){.fd = i == 0 ? make_link_file(how != 0) : a_descriptor(how),
                                         .index = how & 64 ? 1 : how,
                                         .listener = how & 128 ? 9 : 7,
                                         .plan = {BERTHA_IMPL_SHM, 0, (uint32_t)how << 12, 0},
                                         .side = how};
  }
  struct parcel_conn entries[MOST];
  memset(entries, 0, sizeof entries);
  for (uint32_t i = 0; i < conns; i++) {
    uint8_t how = data < end ? *data++ : 0, what = data < end ? *data++ : 0;
    entries[i] = (struct parcel_conn){.cookie = how & 1 ? bertha_cookie(fd[1]) : how,
                                      .index = conn_index(sender),
                                      .home_index = conn_index(sender),
                                      .taken = how >> 1 & 1,
                                      .link = what % 4,
                                      .kind = how & 4 ? BERTHA_CONN_SHM : what >> 4};
    if (how & 8) {
      entries[i].home_index = BERTHA_CONNS + what - 4u;
    }
    if (how & 16) {
      entries[i].index = (uint32_t)what * 0x01010101u | BERTHA_CONNS;
    }
    if (how & 32) {
      entries[i].home_table = what;
    }
    if (how & 64) {
      entries[i].link = (uint32_t)what << (how >> 5);
    }
  }
  int parcel = memfd_create("fuzz-parcel", 0);
  rig_check(parcel >= 0 && pwrite(parcel, &head, sizeof head, 0) == sizeof head &&
                pwrite(parcel, entries, conns * sizeof entries[0], sizeof head) ==
                    (ssize_t)(conns * sizeof entries[0]),
            "the parcel");
  char text[64];
  snprintf(text, sizeof text, "%d:%d", parcel, data < end && *data == 255 ? 78 : 77);
  setenv(PARCEL_VARIABLE, text, 1);
  inherit_connections();
  struct conn *c = conn_of(fd[1]);
  if (c != NULL) {
    uint8_t space[64];
    struct iovec part = {space, sizeof space};
    stream_recv(c, fd[1], &part, 1, MSG_DONTWAIT);
    stream_send(c, fd[1], &part, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    struct pollfd at = {.fd = fd[1], .events = POLLIN | POLLOUT | POLLRDHUP};
    wait_fds(&at, 1, 0, NULL);
    conn_forget(fd[1]);
    atomic_store(&c->info.refs, 0);
    conn_free(c);
  }
  drop_links();
  close(parcel); /* taken up, it is closed already: then this fails */
  for (uint32_t i = 0; i < tables; i++) {
    close(head.tables[i]);
  }
  for (uint32_t i = 0; i < links; i++) {
    close(head.links[i].fd);
  }
  atomic_store(&sender->info.refs, 0);
  conn_free(sender);
  close(fd[0]);
  close(fd[1]);
  return 0;
}
