/* POSIX's aio and the kernel's: other threads, or the kernel, use the descriptor behind our back.
 *
 * The connection goes back to the kernel first.  What is in its ring and the other end does not take back in time
 * (takeback.c), an aio_read() gets at once: as if the bytes had come sooner than the call returns. */
#include <aio.h>
#include <dlfcn.h>
#include <linux/aio_abi.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

#include "calls.h"

#pragma weak pthread_create
#pragma weak pthread_detach

void bertha_aio_submits(long count, struct iocb *const *list);

/* Bytes out follow what the ring holds, in order, whatever the other end does. */
static void writes(int fd) {
  struct conn *c = stream_of(fd);
  if (UNLIKELY(c != NULL)) {
    conn_ripe(c, fd);
    if (conn_kind(c) == BERTHA_CONN_UNIX) {
      unix_settle(c, fd);
    } else {
      conn_stay_in_kernel(c, fd, BERTHA_WHY_KERNEL_ASKED);
    }
  } else {
    local_sends(fd);
  }
}

static void reads(int fd) {
  struct conn *c = stream_of(fd);
  if (UNLIKELY(c != NULL) && conn_decide(c, fd, BERTHA_WHY_KERNEL_ASKED) == BERTHA_CONN_SHM &&
      c->rx_phase != PHASE_AFTER) {
    conn_take_back(c, fd, BERTHA_WHY_KERNEL_ASKED);
  }
  writes(fd);
}

/* Behind us, or (where we were loaded late) in whichever library has it: librt until glibc 2.34. */
static void *next(const char *name, void *_Atomic *known) {
  static const char *const libraries[] = {"libc.so.6", "librt.so.1", "libaio.so.1"};
  void *f = atomic_load_explicit(known, memory_order_acquire);
  if (f == NULL) {
    f = dlsym(RTLD_NEXT, name);
    for (int i = 0; f == NULL && i < 3; i++) {
      void *library = dlopen(libraries[i], RTLD_LAZY | RTLD_NOLOAD);
      if (library != NULL) {
        f = dlsym(library, name);
        dlclose(library);
      }
    }
    atomic_store(known, f);
  }
  if (f == NULL) {
    errno = ENOSYS;
  }
  return f;
}

#ifdef __GLIBC__
static void *tell(void *p) {
  struct sigevent e = *(struct sigevent *)p;
  free(p);
  e.sigev_notify_function(e.sigev_value);
  return NULL;
}

static void notify(const struct sigevent *e) {
  if (e->sigev_notify == SIGEV_SIGNAL) {
    siginfo_t info;
    memset(&info, 0, sizeof info);
    info.si_signo = e->sigev_signo;
    info.si_code = SI_ASYNCIO;
    info.si_pid = bertha.pid;
    info.si_uid = getuid();
    info.si_value = e->sigev_value;
    REAL(syscall)(SYS_rt_sigqueueinfo, bertha.pid, e->sigev_signo, &info);
  } else if (e->sigev_notify == SIGEV_THREAD && pthread_create != NULL) {
    pthread_t thread;
    struct sigevent *copy = malloc(sizeof *copy);
    if (copy != NULL) {
      *copy = *e;
      if (pthread_create(&thread, e->sigev_notify_attributes, tell, copy) != 0) {
        free(copy);
      }
    }
  }
}

/* True: the read is over. */
static bool read_from_ring(struct aiocb *a) {
  struct conn *c = stream_of(a->aio_fildes);
  if (LIKELY(c == NULL) || conn_kind(c) != BERTHA_CONN_SHM || c->rx_phase == PHASE_AFTER ||
      a->aio_nbytes == 0) {
    return false;
  }
  struct iovec part = {(void *)(uintptr_t)a->aio_buf, a->aio_nbytes};
  ssize_t n = stream_recv(c, a->aio_fildes, &part, 1, MSG_DONTWAIT);
  if (n == -EAGAIN) {
    return false;
  }
  a->__error_code = n < 0 ? (int)-n : 0;
  a->__return_value = n < 0 ? -1 : n;
  notify(&a->aio_sigevent);
  return true;
}
#else
static bool read_from_ring(struct aiocb *a) {
  (void)a;
  return false;
}
#endif

static int read_one(struct aiocb *a, const char *name, void *_Atomic *known) {
  if (a != NULL && stream_of(a->aio_fildes) != NULL) {
    reads(a->aio_fildes);
    if (read_from_ring(a)) {
      return 0;
    }
  }
  int (*real)(struct aiocb *) = (int (*)(struct aiocb *))next(name, known);
  return real != NULL ? real(a) : -1;
}

static int write_one(struct aiocb *a, const char *name, void *_Atomic *known) {
  if (a != NULL) {
    writes(a->aio_fildes);
  }
  int (*real)(struct aiocb *) = (int (*)(struct aiocb *))next(name, known);
  return real != NULL ? real(a) : -1;
}

static int list_of(int mode, struct aiocb *const list[], int count, struct sigevent *event, const char *name,
                   void *_Atomic *known) {
  for (int i = 0; list != NULL && i < count; i++) {
    if (list[i] != NULL && list[i]->aio_lio_opcode == LIO_READ) {
      reads(list[i]->aio_fildes);
    } else if (list[i] != NULL && list[i]->aio_lio_opcode == LIO_WRITE) {
      writes(list[i]->aio_fildes);
    }
  }
  typedef int call(int, struct aiocb *const[], int, struct sigevent *);
  call *real = (call *)next(name, known);
  return real != NULL ? real(mode, list, count, event) : -1;
}

BERTHA_EXPORT int aio_read(struct aiocb *a) {
  static void *_Atomic real;
  return read_one(a, "aio_read", &real);
}

BERTHA_EXPORT int aio_write(struct aiocb *a) {
  static void *_Atomic real;
  return write_one(a, "aio_write", &real);
}

BERTHA_EXPORT int lio_listio(int mode, struct aiocb *const list[], int count, struct sigevent *event) {
  static void *_Atomic real;
  return list_of(mode, list, count, event, "lio_listio", &real);
}

/* The same structure on all 64-bit machines. */
_Static_assert(sizeof(struct aiocb) == sizeof(struct aiocb64), "aiocb64 is another structure here");

BERTHA_EXPORT int aio_read64(struct aiocb64 *a) {
  static void *_Atomic real;
  return read_one((struct aiocb *)(void *)a, "aio_read64", &real);
}

BERTHA_EXPORT int aio_write64(struct aiocb64 *a) {
  static void *_Atomic real;
  return write_one((struct aiocb *)(void *)a, "aio_write64", &real);
}

BERTHA_EXPORT int lio_listio64(int mode, struct aiocb64 *const list[], int count, struct sigevent *event) {
  static void *_Atomic real;
  return list_of(mode, (struct aiocb *const *)(const void *)list, count, event, "lio_listio64", &real);
}

/* ---- the kernel's, by syscall() or by libaio ------------------------------------------------------ */

void bertha_aio_submits(long count, struct iocb *const *list) {
  for (long i = 0; list != NULL && i < count; i++) {
    const struct iocb *b = list[i];
    if (b == NULL) {
      continue;
    }
    if (b->aio_lio_opcode == IOCB_CMD_PWRITE || b->aio_lio_opcode == IOCB_CMD_PWRITEV) {
      writes((int)b->aio_fildes);
    } else {
      reads((int)b->aio_fildes);
    }
  }
}

BERTHA_EXPORT int io_submit(aio_context_t context, long count, struct iocb **list);
int io_submit(aio_context_t context, long count, struct iocb **list) {
  static void *_Atomic known;
  typedef int call(aio_context_t, long, struct iocb **);
  bertha_aio_submits(count, list);
  call *real = (call *)next("io_submit", &known);
  return real != NULL ? real(context, count, list) : -ENOSYS;
}
