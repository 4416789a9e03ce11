/* A descriptor from one process to another, over a unix socket. */
#ifndef BERTHA_TEST_RIGHTS_H
#define BERTHA_TEST_RIGHTS_H

#include "common.h"

static inline void give(int to, int fd) {
  char byte = 'x';
  struct iovec part = {&byte, 1};
  union {
    struct cmsghdr align;
    char space[CMSG_SPACE(sizeof(int))];
  } control = {.space = {0}};
  struct msghdr msg = {.msg_iov = &part,
                       .msg_iovlen = 1,
                       .msg_control = control.space,
                       .msg_controllen = sizeof control.space};
  struct cmsghdr *m = CMSG_FIRSTHDR(&msg);
  m->cmsg_level = SOL_SOCKET;
  m->cmsg_type = SCM_RIGHTS;
  m->cmsg_len = CMSG_LEN(sizeof fd);
  memcpy(CMSG_DATA(m), &fd, sizeof fd);
  MUST(sendmsg(to, &msg, 0) == 1);
}

/* -1: the other end is gone. */
static inline int take(int from) {
  char byte;
  int fd;
  struct iovec part = {&byte, 1};
  union {
    struct cmsghdr align;
    char space[CMSG_SPACE(sizeof(int))];
  } control;
  struct msghdr msg = {.msg_iov = &part,
                       .msg_iovlen = 1,
                       .msg_control = control.space,
                       .msg_controllen = sizeof control.space};
  if (recvmsg(from, &msg, 0) != 1) {
    return -1;
  }
  memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof fd);
  return fd;
}

#endif
