/* Two ends of connections over one link, in one process and without an agent.
 *
 * The link is made as link.c would map it; the kernel's connections are real TCP ones on loopback. */
#ifndef BERTHA_TESTS_RIG_H
#define BERTHA_TESTS_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../core/agentc.h"
#include "../core/conn.h"
#include "../core/wait.h"

struct rig {
  struct bertha_link_header *header;
  size_t size;
  struct link link[2]; /* as the client and as the server see it */
};

struct pair {
  int fd[2];
  struct conn *conn[2];
};

/* Before the shim's own constructor: no agent, no log, no spinning. */
__attribute__((constructor(101))) static void rig_environment(void) {
  setenv("BERTHA_AGENT", "/nonexistent/agent.sock", 1);
  setenv("BERTHA_SPIN_US", "0", 1);
  unsetenv("BERTHA_CONNLOG");
  unsetenv("BERTHA_DISABLE");
}

static inline void rig_check(int good, const char *what) {
  if (!good) {
    perror(what);
    abort();
  }
}

/* How many there are below that number. */
static inline int rig_descriptors(int below) {
  int n = 0;
  for (int fd = 0; fd < below; fd++) {
    n += fcntl(fd, F_GETFD) >= 0;
  }
  return n;
}

/* Sealed memory that begins with this. */
static inline int rig_memory(const void *begin, size_t begin_size, uint64_t size, int seals) {
  int fd = memfd_create("rig", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  rig_check(fd >= 0 && ftruncate(fd, (off_t)size) == 0, "memfd");
  rig_check(pwrite(fd, begin, begin_size, 0) == (ssize_t)begin_size, "pwrite");
  rig_check(fcntl(fd, F_ADD_SEALS, seals) == 0, "seals");
  return fd;
}

/* A message with descriptors, which are closed here; it gets lost where the socket has no room for it. */
static inline void rig_post(int to, const void *message, size_t size, const int *fds, int count) {
  enum { MOST = 8 };
  union {
    struct cmsghdr align;
    char space[CMSG_SPACE(sizeof(int) * MOST)];
  } ancillary = {.space = {0}};
  struct iovec part = {(void *)(uintptr_t)message, size};
  struct msghdr msg = {.msg_iov = &part, .msg_iovlen = 1};
  rig_check(count <= MOST, "descriptors");
  if (count > 0) {
    msg.msg_control = ancillary.space;
    msg.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)count);
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)count);
    memcpy(CMSG_DATA(c), fds, sizeof(int) * (size_t)count);
  }
  ssize_t n = sendmsg(to, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
  (void)n;
  for (int i = 0; i < count; i++) {
    close(fds[i]);
  }
}

static inline void rig_header(struct bertha_link_header *h, uint32_t slots, uint32_t ring_max) {
  memset((void *)h, 0, sizeof *h);
  h->magic = BERTHA_MAGIC_LINK;
  h->version = BERTHA_LAYOUT_VERSION;
  h->listener = 7;
  h->index = 1;
  h->slot_count = slots;
  h->ring_max = ring_max;
  uint64_t at = sizeof *h;
  for (int side = 0; side < 2; side++) {
    h->dirty_offset[side] = at;
    at += (BERTHA_LINK_SLOTS / 64 * 8 + 63) / 64 * 64;
  }
  for (int side = 0; side < 2; side++) {
    h->sleeper_offset[side] = at;
    at += BERTHA_SLEEPERS * sizeof(struct bertha_sleeper);
  }
  h->slot_offset = at;
  at += slots * sizeof(struct bertha_slot);
  h->ring_offset = (at + 4095) / 4096 * 4096;
  h->total_size = h->ring_offset + (uint64_t)slots * 2 * ring_max;
}

/* On the heap, so that the address sanitizer knows its ends. */
static inline void rig_open(struct rig *r, uint32_t slots, uint32_t ring_max, uint32_t ring_size) {
  struct bertha_link_header h;
  rig_header(&h, slots, ring_max);
  memset(r, 0, sizeof *r);
  r->size = h.total_size;
  r->header = aligned_alloc(4096, r->size);
  rig_check(r->header != NULL, "aligned_alloc");
  memset((void *)r->header, 0, h.ring_offset);
  memcpy((void *)r->header, (void *)&h, sizeof h);
  for (int side = 0; side < 2; side++) {
    struct link *l = &r->link[side];
    l->header = r->header;
    l->base = (uint8_t *)r->header;
    l->size = r->size;
    l->listener = h.listener;
    l->index = h.index;
    l->slot_count = slots;
    l->ring_max = ring_max;
    l->ring_offset = h.ring_offset;
    l->side = (uint8_t)side;
    l->plan.implementation = BERTHA_IMPL_SHM;
    l->plan.spin_us = UINT32_MAX;
    l->plan.ring_size = ring_size;
    l->fd = -1;
    l->mailbox = -1;
    l->left = -1;
    l->owner_pid = bertha.pid;
    for (int s = 0; s < 2; s++) {
      l->dirty[s] = (_Atomic uint64_t *)(void *)(l->base + h.dirty_offset[s]);
      l->sleepers[s] = (struct bertha_sleeper *)(void *)(l->base + h.sleeper_offset[s]);
    }
    l->slots = (struct bertha_slot *)(void *)(l->base + h.slot_offset);
    l->free_slots = calloc(2 * BERTHA_LINK_SLOTS, sizeof *l->free_slots);
  }
}

static inline void rig_close(struct rig *r) {
  free(r->link[0].free_slots);
  free(r->link[1].free_slots);
  free((void *)r->header);
}

static inline void tcp_pair(int fd[2]) {
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof a;
  rig_check(bind(listener, (struct sockaddr *)&a, size) == 0 && listen(listener, 1) == 0, "listen");
  rig_check(getsockname(listener, (struct sockaddr *)&a, &size) == 0, "getsockname");
  fd[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  rig_check(connect(fd[0], (struct sockaddr *)&a, sizeof a) == 0, "connect");
  fd[1] = accept(listener, NULL, NULL);
  rig_check(fd[1] >= 0, "accept");
  close(listener);
}

/* As slot_prepare() does it. */
static inline void slot_reset(struct bertha_slot *s) {
  memset((void *)s, 0, sizeof *s);
  for (int side = 0; side < 2; side++) {
    atomic_store(&s->watch[side].kernel, 1);
    atomic_store(&s->dir[side].size, 65536);
    atomic_store(&s->dir[side].switch_at, UINT64_MAX);
    atomic_store(&s->dir[side].ring_end, UINT64_MAX);
  }
}

/* A connection on slot `index`: the client has claimed, the server has attached, nobody has looked since. */
static inline void pair_open(struct pair *p, struct rig *r, uint32_t index) {
  tcp_pair(p->fd);
  struct bertha_slot *s = &r->link[0].slots[index];
  slot_reset(s);
  for (int side = 0; side < 2; side++) {
    struct conn *c = conn_new(p->fd[side], BERTHA_CONN_CLAIMED);
    rig_check(c != NULL, "conn_new");
    c->side = (uint8_t)side;
    c->link = &r->link[side];
    c->slot = s;
    c->slot_index = index;
    conn_track(p->fd[side], c);
    p->conn[side] = c;
  }
  atomic_store(&s->state, BERTHA_SLOT_WORD(1, BERTHA_SLOT_ATTACHED));
}

/* Both ends have seen the tie. */
static inline void pair_tied(struct pair *p, struct rig *r, uint32_t index) {
  pair_open(p, r, index);
  for (int side = 0; side < 2; side++) {
    rig_check(conn_ripe(p->conn[side], p->fd[side]), "conn_ripe");
  }
}

static inline void pair_close(struct pair *p) {
  for (int side = 0; side < 2; side++) {
    if (p->conn[side] != NULL) {
      conn_forget(p->fd[side]);
      atomic_store(&p->conn[side]->info.refs, 0);
      conn_free(p->conn[side]);
    }
    close(p->fd[side]);
  }
}

static inline ssize_t put(struct pair *p, int side, const void *data, size_t n, int flags) {
  struct iovec iov = {(void *)(uintptr_t)data, n};
  return stream_send(p->conn[side], p->fd[side], &iov, 1, flags);
}

static inline ssize_t get(struct pair *p, int side, void *data, size_t n, int flags) {
  struct iovec iov = {data, n};
  return stream_recv(p->conn[side], p->fd[side], &iov, 1, flags);
}

/* Bytes in the kernel's queue, bell bytes included. */
static inline int kernel_queue(int fd) {
  char space[64];
  ssize_t n = recv(fd, space, sizeof space, MSG_PEEK | MSG_DONTWAIT);
  return n < 0 ? 0 : (int)n;
}

/* Loopback delivers at once, but on another processor maybe a moment later. */
static inline int kernel_queue_wait(int fd) {
  struct pollfd p = {.fd = fd, .events = POLLIN};
  poll(&p, 1, 2000);
  return kernel_queue(fd);
}

/* A small generator with a seed, so that a failure can be had again (xorshift64*). */
static inline uint64_t rig_random(uint64_t *state) {
  *state ^= *state >> 12;
  *state ^= *state << 25;
  *state ^= *state >> 27;
  return *state * 2685821657736338717u;
}

#endif
