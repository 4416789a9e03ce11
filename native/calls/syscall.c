/* syscall(2): who calls the kernel by number means the same as who calls by name.
 *
 * Numbers of calls that we take over go to our functions; all others to the C library's syscall(). */
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>

#include "calls.h"
#include "uring.h"

struct iocb;
void bertha_aio_submits(long count, struct iocb *const *list);
void bertha_seccomp_begins(unsigned long mode, const void *filter);
extern
    __attribute__((visibility("hidden"), tls_model("initial-exec"))) __thread uint32_t bertha_maybe_vforked;
int execveat(int dir, const char *path, char *const argv[], char *const env[], int flags);

#define FD(x) ((int)(x))
#define PTR(x) ((void *)(uintptr_t)(x))

/* 64-bit machines pass a position as one register, its upper half in the next one is not looked at. */
static long vectored(long number, const long *a) {
  switch (number) {
  case SYS_readv:
    return readv(FD(a[0]), PTR(a[1]), (int)a[2]);
  case SYS_writev:
    return writev(FD(a[0]), PTR(a[1]), (int)a[2]);
#ifdef SYS_preadv2
  case SYS_preadv2:
    return preadv2(FD(a[0]), PTR(a[1]), (int)a[2], (off_t)a[3], (int)a[5]);
  default:
    return pwritev2(FD(a[0]), PTR(a[1]), (int)a[2], (off_t)a[3], (int)a[5]);
#else
  default:
    errno = ENOSYS;
    return -1;
#endif
  }
}

static long message(long number, const long *a) {
  switch (number) {
  case SYS_sendto:
    return sendto(FD(a[0]), PTR(a[1]), (size_t)a[2], (int)a[3], PTR(a[4]), (socklen_t)a[5]);
  case SYS_recvfrom:
    return recvfrom(FD(a[0]), PTR(a[1]), (size_t)a[2], (int)a[3], PTR(a[4]), PTR(a[5]));
  case SYS_sendmsg:
    return sendmsg(FD(a[0]), PTR(a[1]), (int)a[2]);
  case SYS_recvmsg:
    return recvmsg(FD(a[0]), PTR(a[1]), (int)a[2]);
  case SYS_sendmmsg:
    return sendmmsg(FD(a[0]), PTR(a[1]), (unsigned)a[2], (int)a[3]);
  default:
    return recvmmsg(FD(a[0]), PTR(a[1]), (unsigned)a[2], (int)a[3], PTR(a[4]));
  }
}

static long socket_call(long number, const long *a) {
  switch (number) {
  case SYS_socket:
    return socket((int)a[0], (int)a[1], (int)a[2]);
  case SYS_bind:
    return bind(FD(a[0]), PTR(a[1]), (socklen_t)a[2]);
  case SYS_listen:
    return listen(FD(a[0]), (int)a[1]);
  case SYS_accept:
    return accept(FD(a[0]), PTR(a[1]), PTR(a[2]));
  case SYS_accept4:
    return accept4(FD(a[0]), PTR(a[1]), PTR(a[2]), (int)a[3]);
  case SYS_connect:
    return connect(FD(a[0]), PTR(a[1]), (socklen_t)a[2]);
  case SYS_shutdown:
    return shutdown(FD(a[0]), (int)a[1]);
  case SYS_getpeername:
    return getpeername(FD(a[0]), PTR(a[1]), PTR(a[2]));
  case SYS_getsockname:
    return getsockname(FD(a[0]), PTR(a[1]), PTR(a[2]));
  case SYS_setsockopt:
    return setsockopt(FD(a[0]), (int)a[1], (int)a[2], PTR(a[3]), (socklen_t)a[4]);
  default:
    return getsockopt(FD(a[0]), (int)a[1], (int)a[2], PTR(a[3]), PTR(a[4]));
  }
}

/* The kernel's signal set is 8 bytes and comes with its size; the C library reads no more of ours. */
static long wait_call(long number, const long *a) {
  switch (number) {
#ifdef SYS_poll
  case SYS_poll:
    return poll(PTR(a[0]), (nfds_t)a[1], (int)a[2]);
#endif
#ifdef SYS_select
  case SYS_select:
    return select((int)a[0], PTR(a[1]), PTR(a[2]), PTR(a[3]), PTR(a[4]));
#endif
#ifdef SYS_epoll_wait
  case SYS_epoll_wait:
    return epoll_wait(FD(a[0]), PTR(a[1]), (int)a[2], (int)a[3]);
#endif
  case SYS_ppoll:
    return ppoll(PTR(a[0]), (nfds_t)a[1], PTR(a[2]), PTR(a[3]));
  case SYS_pselect6: {
    const struct {
      const sigset_t *set;
      size_t size;
    } *mask = PTR(a[5]);
    return pselect((int)a[0], PTR(a[1]), PTR(a[2]), PTR(a[3]), PTR(a[4]), mask != NULL ? mask->set : NULL);
  }
  case SYS_epoll_ctl:
    return epoll_ctl(FD(a[0]), (int)a[1], FD(a[2]), PTR(a[3]));
#ifdef SYS_epoll_pwait2
  case SYS_epoll_pwait2:
    if (bertha_real()->epoll_pwait2 == NULL) {
      return REAL(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    }
    return epoll_pwait2(FD(a[0]), PTR(a[1]), (int)a[2], PTR(a[3]), PTR(a[4]));
#endif
  default:
    return epoll_pwait(FD(a[0]), PTR(a[1]), (int)a[2], (int)a[3], PTR(a[4]));
  }
}

static long descriptor_call(long number, const long *a) {
  switch (number) {
  case SYS_close:
    return close(FD(a[0]));
  case SYS_dup:
    return dup(FD(a[0]));
#ifdef SYS_dup2
  case SYS_dup2:
    return dup2(FD(a[0]), FD(a[1]));
#endif
  case SYS_dup3:
    return dup3(FD(a[0]), FD(a[1]), (int)a[2]);
  case SYS_fcntl:
    return fcntl(FD(a[0]), (int)a[1], PTR(a[2]));
  case SYS_ioctl:
    return ioctl(FD(a[0]), (unsigned long)a[1], PTR(a[2]));
  case SYS_sendfile:
    return sendfile(FD(a[0]), FD(a[1]), PTR(a[2]), (size_t)a[3]);
  default:
    return splice(FD(a[0]), PTR(a[1]), FD(a[2]), PTR(a[3]), (size_t)a[4], (unsigned)a[5]);
  }
}

static long process_call(long number, const long *a, const void *caller) {
  switch (number) {
  case SYS_exit_group:
    _exit((int)a[0]);
  case SYS_execve:
    return execve(PTR(a[0]), PTR(a[1]), PTR(a[2]));
#ifdef SYS_execveat
  case SYS_execveat:
    return execveat(FD(a[0]), PTR(a[1]), PTR(a[2]), PTR(a[3]), (int)a[4]);
#endif
#ifdef SYS_close_range
  case SYS_close_range:
    if (bertha_real()->close_range != NULL) {
      return close_range((unsigned)a[0], (unsigned)a[1], (int)a[2]);
    }
    break;
#endif
#ifdef SYS_vfork
  case SYS_vfork:
#endif
#ifdef SYS_fork
  case SYS_fork:
#endif
#ifdef SYS_clone3
  case SYS_clone3:
#endif
  case SYS_clone:
    bertha_maybe_vforked = 1; /* as calls/vfork.c does */
    break;
#ifdef SYS_io_submit
  case SYS_io_submit:
    bertha_aio_submits(a[1], PTR(a[2]));
    break;
#endif
  case SYS_seccomp:
    bertha_seccomp_begins((unsigned long)a[0], PTR(a[2]));
    break;
  case SYS_prctl:
    return prctl((int)a[0], a[1], a[2], a[3], a[4]);
#ifdef SYS_io_uring_setup
  case SYS_io_uring_setup:
    if (bertha_uring_declined(caller, (unsigned)a[0], PTR(a[1]))) {
      errno = ENOSYS;
      return -1;
    }
    bertha_uring_begins();
    break;
  case SYS_io_uring_enter:
    if (a[1] > 0 && uring_barred()) {
      errno = EPERM;
      return -1;
    }
    if (a[1] > 0) { /* not liburing, which looks at what it hands over */
      bertha_uring_begins();
    }
    break;
#endif
  default:
    break;
  }
  return REAL(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

BERTHA_EXPORT long syscall(long number, ...) {
  long a[6];
  va_list args;
  va_start(args, number);
  for (int i = 0; i < 6; i++) {
    a[i] = va_arg(args, long);
  }
  va_end(args);
  if (UNLIKELY(!bertha.enabled)) {
    return REAL(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
  }
  switch (number) {
  case SYS_read:
    return read(FD(a[0]), PTR(a[1]), (size_t)a[2]);
  case SYS_write:
    return write(FD(a[0]), PTR(a[1]), (size_t)a[2]);
  case SYS_readv:
  case SYS_writev:
#ifdef SYS_preadv2
  case SYS_preadv2:
  case SYS_pwritev2:
#endif
    return vectored(number, a);
  case SYS_sendto:
  case SYS_recvfrom:
  case SYS_sendmsg:
  case SYS_recvmsg:
  case SYS_sendmmsg:
  case SYS_recvmmsg:
    return message(number, a);
  case SYS_socket:
  case SYS_bind:
  case SYS_listen:
  case SYS_accept:
  case SYS_accept4:
  case SYS_connect:
  case SYS_shutdown:
  case SYS_getpeername:
  case SYS_getsockname:
  case SYS_setsockopt:
  case SYS_getsockopt:
    return socket_call(number, a);
#ifdef SYS_poll
  case SYS_poll:
#endif
#ifdef SYS_select
  case SYS_select:
#endif
#ifdef SYS_epoll_wait
  case SYS_epoll_wait:
#endif
#ifdef SYS_epoll_pwait2
  case SYS_epoll_pwait2:
#endif
  case SYS_ppoll:
  case SYS_pselect6:
  case SYS_epoll_ctl:
  case SYS_epoll_pwait:
    return wait_call(number, a);
#ifdef SYS_dup2
  case SYS_dup2:
#endif
  case SYS_close:
  case SYS_dup:
  case SYS_dup3:
  case SYS_fcntl:
  case SYS_ioctl:
  case SYS_sendfile:
  case SYS_splice:
    return descriptor_call(number, a);
  default:
    return process_call(number, a, __builtin_return_address(0));
  }
}
