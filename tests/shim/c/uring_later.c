/* Takes part in one connection and then sets up an io_uring, by which it echoes what comes from there on, of which some lies
 * unread already. */
#include "common.h"

#include <linux/io_uring.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>

struct ring {
  int fd;
  struct io_uring_params p;
  uint8_t *sq;
  uint8_t *cq;
  struct io_uring_sqe *sqes;
};

static unsigned *at(uint8_t *base, unsigned offset) {
  return (unsigned *)(void *)(base + offset);
}

static void set_up(struct ring *r) {
  memset(r, 0, sizeof *r);
  r->fd = (int)syscall(SYS_io_uring_setup, 1, &r->p);
  if (r->fd < 0) {
    printf("no io_uring here\n");
    exit(0);
  }
  size_t sq = r->p.sq_off.array + r->p.sq_entries * sizeof(unsigned);
  size_t cq = r->p.cq_off.cqes + r->p.cq_entries * sizeof(struct io_uring_cqe);
  size_t sqes = r->p.sq_entries * sizeof(struct io_uring_sqe);
  r->sq = mmap(NULL, sq, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, IORING_OFF_SQ_RING);
  r->cq = mmap(NULL, cq, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, IORING_OFF_CQ_RING);
  r->sqes = mmap(NULL, sqes, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, IORING_OFF_SQES);
  MUST(r->sq != MAP_FAILED && r->cq != MAP_FAILED && r->sqes != MAP_FAILED);
}

static int by_ring(struct ring *r, int op, int fd, void *data, unsigned size) {
  unsigned tail = *at(r->sq, r->p.sq_off.tail);
  r->sqes[0] = (struct io_uring_sqe){.opcode = (uint8_t)op, .fd = fd, .addr = (uintptr_t)data, .len = size};
  at(r->sq, r->p.sq_off.array)[tail & *at(r->sq, r->p.sq_off.ring_mask)] = 0;
  __atomic_store_n(at(r->sq, r->p.sq_off.tail), tail + 1, __ATOMIC_RELEASE);
  MUST(syscall(SYS_io_uring_enter, r->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) == 1);
  unsigned head = *at(r->cq, r->p.cq_off.head);
  MUST(__atomic_load_n(at(r->cq, r->p.cq_off.tail), __ATOMIC_ACQUIRE) != head);
  struct io_uring_cqe *cqes = (struct io_uring_cqe *)(void *)(r->cq + r->p.cq_off.cqes);
  int result = cqes[head & *at(r->cq, r->p.cq_off.ring_mask)].res;
  __atomic_store_n(at(r->cq, r->p.cq_off.head), head + 1, __ATOMIC_RELEASE);
  return result;
}

int main(int argc, char **argv) {
  static char data[1 << 16];
  struct ring ring;
  MUST(argc == 2);
  int listening = listen_on(atoi(argv[1]));
  int fd = accept(listening, NULL, NULL);
  MUST(fd >= 0 && write(fd, "*", 1) == 1);
  do {
    MUST(read(fd, data, 1) == 1);
  } while (data[0] != '\n');
  for (ssize_t got = 0; got < 20000; usleep(1000)) {
    got = recv(fd, data, sizeof data, MSG_PEEK);
    MUST(got > 0);
  }
  set_up(&ring);
  int n;
  while ((n = by_ring(&ring, IORING_OP_RECV, fd, data, sizeof data)) > 0) {
    for (int sent = 0, k; sent < n; sent += k) {
      k = by_ring(&ring, IORING_OP_SEND, fd, data + sent, (unsigned)(n - sent));
      MUST(k > 0);
    }
  }
  MUST(n == 0);
  close(fd);
  return 0;
}
