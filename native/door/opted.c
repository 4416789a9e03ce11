/* Sockets that ask for it one by one (bertha_socket.socket), in a process whose other sockets stay the kernel's. */
#include "opted.h"

#include "../core/agentc.h"
#include "../core/carried.h"
#include "../core/conn.h"
#include "../core/dgram.h"
#include "../core/real.h"
#include "door.h"

#include <string.h>

static __thread __attribute__((tls_model("initial-exec"))) int opted;

static int door_connect(int fd, const struct sockaddr *address, socklen_t size) {
  return opted & DOOR_OPT ? connect(fd, address, size) : REAL(connect)(fd, address, size);
}

static int door_listen(int fd, int backlog) {
  return opted & DOOR_OPT ? listen(fd, backlog) : REAL(listen)(fd, backlog);
}

/* A UDP socket is opted in when it is made: what is sent by it, and where it is bound, may be asked of any thread. */
static int door_socket(int family, int type, int protocol) {
  int fd = socket(family, type, protocol);
  if (fd >= 0 && !(opted & DOOR_OPT)) {
    dgram_made(fd, false);
  }
  return fd;
}

/* Whose listen() began in the shim has opted in for the connections, whoever takes them. */
static bool takes_part(int fd) {
  const struct conn *c = conn_of(fd);
  return (opted & DOOR_OPT) || (c != NULL && conn_kind(c) == BERTHA_CONN_LISTENER);
}

static int door_accept(int fd, struct sockaddr *address, socklen_t *size) {
  return takes_part(fd) ? accept(fd, address, size) : REAL(accept)(fd, address, size);
}

static int door_accept4(int fd, struct sockaddr *address, socklen_t *size, int flags) {
  return takes_part(fd) ? accept4(fd, address, size, flags) : REAL(accept4)(fd, address, size, flags);
}

static const struct {
  const char *name;
  uintptr_t instead;
  bool python; /* only there: elsewhere it stays the C library's */
} guarded[] = {{"connect", (uintptr_t)&door_connect, true},
               {"listen", (uintptr_t)&door_listen, true},
               {"socket", (uintptr_t)&door_socket, false},
               {"accept", (uintptr_t)&door_accept, false},
               {"accept4", (uintptr_t)&door_accept4, false}};
enum { GUARDED = sizeof guarded / sizeof *guarded };

bool opted_guards(const char *call, bool python, uintptr_t *instead) {
  for (size_t i = 0; i < GUARDED; i++) {
    if (strcmp(call, guarded[i].name) == 0) {
      *instead = python || !guarded[i].python ? guarded[i].instead : 0;
      return true;
    }
  }
  return false;
}

bool opted_is_instead(uintptr_t target) {
  for (size_t i = 0; i < GUARDED; i++) {
    if (target == guarded[i].instead) {
      return true;
    }
  }
  return false;
}

DOOR_API void bertha_door_musts(const char *musts) {
  bertha_read_musts(musts);
}

DOOR_API int bertha_door_bring(const char *pairs, size_t size) {
  return agent_bring(pairs, size) ? 0 : -1;
}

DOOR_API int bertha_door_opt(int in) {
  int before = opted;
  opted = in;
  carried_own((in & DOOR_OWN) != 0);
  return before;
}

DOOR_API int bertha_door_name(int fd, const char *chunnels, const char *left_out) {
  struct conn *c = conn_of(fd);
  return c != NULL && carried_name(c, chunnels, left_out) ? 0 : -1;
}
