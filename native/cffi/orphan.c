#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "orphan.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "../carrier/carrier.h"

enum { LOOK_SECONDS = 1, STACK = 256 * 1024 };

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static double since(const struct orphan *o) {
  uint64_t word = __atomic_load_n((const uint64_t *)o->since, __ATOMIC_RELAXED);
  double seconds;
  memcpy(&seconds, &word, sizeof seconds);
  return seconds;
}

static void tell(const struct orphan *o) {
  uint32_t life = 0;
  off_t at = (off_t)o->at;
  if (pread(o->status, &life, sizeof life, at + (off_t)offsetof(struct bertha_carrier_status, life)) ==
          (ssize_t)sizeof life &&
      life == o->life &&
      pwrite(o->status, o->detail, sizeof o->detail,
             at + (off_t)offsetof(struct bertha_carrier_status, detail)) == (ssize_t)sizeof o->detail) {
    ssize_t n = pwrite(o->status, &o->state, sizeof o->state,
                       at + (off_t)offsetof(struct bertha_carrier_status, state));
    (void)n;
  }
}

static void *watch(void *arg) {
  const struct orphan *o = arg;
  struct pollfd p = {.fd = o->carrier, .events = POLLIN};
  while (o->carrier >= 0 && poll(&p, 1, -1) < 0 && errno == EINTR) {
  }
  for (;;) {
    double at = since(o);
    if (at != 0 && now() - at > o->patience) {
      break;
    }
    struct timespec moment = {LOOK_SECONDS, 0};
    nanosleep(&moment, NULL);
  }
  tell(o);
  struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
  connect(o->tcp, &nowhere, sizeof nowhere);
  kill(getpid(), SIGKILL);
  return NULL;
}

int orphan_watch(const struct orphan *o) {
  struct orphan *own = malloc(sizeof *own);
  if (own == NULL) {
    return ENOMEM;
  }
  *own = *o;
  pthread_attr_t attr;
  pthread_t thread;
  sigset_t all, before;
  sigfillset(&all);
  pthread_attr_init(&attr);
  pthread_attr_setstacksize(&attr, STACK);
  pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
  pthread_sigmask(SIG_BLOCK, &all, &before); /* signals are the chunnel's */
  int error = pthread_create(&thread, &attr, watch, own);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attr);
  if (error != 0) {
    free(own);
  }
  return error;
}
