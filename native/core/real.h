/* The C library's own functions, behind our names.
 *
 * Resolved once, lazily: another library's constructor may call us before ours has run. */
#ifndef BERTHA_REAL_H
#define BERTHA_REAL_H

#include <dirent.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#include <wchar.h>

/* X(name, return type, parameter types) */
#define BERTHA_REAL_CALLS(X)                                                                                 \
  X(socket, int, (int, int, int))                                                                            \
  X(bind, int, (int, const struct sockaddr *, socklen_t))                                                    \
  X(listen, int, (int, int))                                                                                 \
  X(accept, int, (int, struct sockaddr *, socklen_t *))                                                      \
  X(accept4, int, (int, struct sockaddr *, socklen_t *, int))                                                \
  X(connect, int, (int, const struct sockaddr *, socklen_t))                                                 \
  X(getpeername, int, (int, struct sockaddr *, socklen_t *))                                                 \
  X(getsockname, int, (int, struct sockaddr *, socklen_t *))                                                 \
  X(setsockopt, int, (int, int, int, const void *, socklen_t))                                               \
  X(getsockopt, int, (int, int, int, void *, socklen_t *))                                                   \
  X(shutdown, int, (int, int))                                                                               \
  X(close, int, (int))                                                                                       \
  X(fcntl, int, (int, int, ...))                                                                             \
  X(fcntl64, int, (int, int, ...))                                                                           \
  X(ioctl, int, (int, unsigned long, ...))                                                                   \
  X(read, ssize_t, (int, void *, size_t))                                                                    \
  X(write, ssize_t, (int, const void *, size_t))                                                             \
  X(readv, ssize_t, (int, const struct iovec *, int))                                                        \
  X(writev, ssize_t, (int, const struct iovec *, int))                                                       \
  X(preadv2, ssize_t, (int, const struct iovec *, int, off_t, int))                                          \
  X(pwritev2, ssize_t, (int, const struct iovec *, int, off_t, int))                                         \
  X(preadv64v2, ssize_t, (int, const struct iovec *, int, off64_t, int))                                     \
  X(pwritev64v2, ssize_t, (int, const struct iovec *, int, off64_t, int))                                    \
  X(recv, ssize_t, (int, void *, size_t, int))                                                               \
  X(send, ssize_t, (int, const void *, size_t, int))                                                         \
  X(recvfrom, ssize_t, (int, void *, size_t, int, struct sockaddr *, socklen_t *))                           \
  X(sendto, ssize_t, (int, const void *, size_t, int, const struct sockaddr *, socklen_t))                   \
  X(recvmsg, ssize_t, (int, struct msghdr *, int))                                                           \
  X(sendmsg, ssize_t, (int, const struct msghdr *, int))                                                     \
  X(recvmmsg, int, (int, struct mmsghdr *, unsigned int, int, struct timespec *))                            \
  X(sendmmsg, int, (int, struct mmsghdr *, unsigned int, int))                                               \
  X(sendfile, ssize_t, (int, int, off_t *, size_t))                                                          \
  X(sendfile64, ssize_t, (int, int, off64_t *, size_t))                                                      \
  X(splice, ssize_t, (int, off64_t *, int, off64_t *, size_t, unsigned int))                                 \
  X(select, int, (int, fd_set *, fd_set *, fd_set *, struct timeval *))                                      \
  X(pselect, int, (int, fd_set *, fd_set *, fd_set *, const struct timespec *, const sigset_t *))            \
  X(poll, int, (struct pollfd *, nfds_t, int))                                                               \
  X(ppoll, int, (struct pollfd *, nfds_t, const struct timespec *, const sigset_t *))                        \
  X(epoll_create, int, (int))                                                                                \
  X(epoll_create1, int, (int))                                                                               \
  X(epoll_ctl, int, (int, int, int, struct epoll_event *))                                                   \
  X(epoll_wait, int, (int, struct epoll_event *, int, int))                                                  \
  X(epoll_pwait, int, (int, struct epoll_event *, int, int, const sigset_t *))                               \
  X(epoll_pwait2, int, (int, struct epoll_event *, int, const struct timespec *, const sigset_t *))          \
  X(dup, int, (int))                                                                                         \
  X(dup2, int, (int, int))                                                                                   \
  X(dup3, int, (int, int, int))                                                                              \
  X(close_range, int, (unsigned int, unsigned int, int))                                                     \
  X(closefrom, void, (int))                                                                                  \
  X(fork, pid_t, (void))                                                                                     \
  X(_exit, void, (int))                                                                                      \
  X(_Exit, void, (int))                                                                                      \
  X(execve, int, (const char *, char *const[], char *const[]))                                               \
  X(execvpe, int, (const char *, char *const[], char *const[]))                                              \
  X(fexecve, int, (int, char *const[], char *const[]))                                                       \
  X(execveat, int, (int, const char *, char *const[], char *const[], int))                                   \
  X(posix_spawn_file_actions_adddup2, int, (posix_spawn_file_actions_t *, int, int))                         \
  X(posix_spawn, int,                                                                                        \
    (pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *, char *const[],    \
     char *const[]))                                                                                         \
  X(posix_spawnp, int,                                                                                       \
    (pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *, char *const[],    \
     char *const[]))                                                                                         \
  X(open, int, (const char *, int, ...))                                                                     \
  X(open64, int, (const char *, int, ...))                                                                   \
  X(openat, int, (int, const char *, int, ...))                                                              \
  X(openat64, int, (int, const char *, int, ...))                                                            \
  X(__open_2, int, (const char *, int))                                                                      \
  X(__open64_2, int, (const char *, int))                                                                    \
  X(__openat_2, int, (int, const char *, int))                                                               \
  X(__openat64_2, int, (int, const char *, int))                                                             \
  X(creat, int, (const char *, mode_t))                                                                      \
  X(creat64, int, (const char *, mode_t))                                                                    \
  X(eventfd, int, (unsigned int, int))                                                                       \
  X(signalfd, int, (int, const sigset_t *, int))                                                             \
  X(timerfd_create, int, (clockid_t, int))                                                                   \
  X(memfd_create, int, (const char *, unsigned int))                                                         \
  X(inotify_init, int, (void))                                                                               \
  X(inotify_init1, int, (int))                                                                               \
  X(socketpair, int, (int, int, int, int *))                                                                 \
  X(pipe, int, (int *))                                                                                      \
  X(pipe2, int, (int *, int))                                                                                \
  X(fopen, FILE *, (const char *, const char *))                                                             \
  X(fopen64, FILE *, (const char *, const char *))                                                           \
  X(freopen, FILE *, (const char *, const char *, FILE *))                                                   \
  X(freopen64, FILE *, (const char *, const char *, FILE *))                                                 \
  X(fclose, int, (FILE *))                                                                                   \
  X(fdopen, FILE *, (int, const char *))                                                                     \
  X(vdprintf, int, (int, const char *, va_list))                                                             \
  X(__vdprintf_chk, int, (int, int, const char *, va_list))                                                  \
  X(fgetwc, wint_t, (FILE *))                                                                                \
  X(getwc, wint_t, (FILE *))                                                                                 \
  X(fgetwc_unlocked, wint_t, (FILE *))                                                                       \
  X(getwc_unlocked, wint_t, (FILE *))                                                                        \
  X(fputwc, wint_t, (wchar_t, FILE *))                                                                       \
  X(putwc, wint_t, (wchar_t, FILE *))                                                                        \
  X(fputwc_unlocked, wint_t, (wchar_t, FILE *))                                                              \
  X(putwc_unlocked, wint_t, (wchar_t, FILE *))                                                               \
  X(ungetwc, wint_t, (wint_t, FILE *))                                                                       \
  X(fgetws, wchar_t *, (wchar_t *, int, FILE *))                                                             \
  X(fgetws_unlocked, wchar_t *, (wchar_t *, int, FILE *))                                                    \
  X(__fgetws_chk, wchar_t *, (wchar_t *, size_t, int, FILE *))                                               \
  X(__fgetws_unlocked_chk, wchar_t *, (wchar_t *, size_t, int, FILE *))                                      \
  X(fputws, int, (const wchar_t *, FILE *))                                                                  \
  X(fputws_unlocked, int, (const wchar_t *, FILE *))                                                         \
  X(vfwprintf, int, (FILE *, const wchar_t *, va_list))                                                      \
  X(__vfwprintf_chk, int, (FILE *, int, const wchar_t *, va_list))                                           \
  X(fwide, int, (FILE *, int))                                                                               \
  X(system, int, (const char *))                                                                             \
  X(popen, FILE *, (const char *, const char *))                                                             \
  X(pclose, int, (FILE *))                                                                                   \
  X(perror, void, (const char *))                                                                            \
  X(prctl, int, (int, ...))                                                                                  \
  X(syscall, long, (long, ...))                                                                              \
  X(sigaction, int, (int, const struct sigaction *, struct sigaction *))                                     \
  X(signal, sighandler_t, (int, sighandler_t))                                                               \
  X(bsd_signal, sighandler_t, (int, sighandler_t))                                                           \
  X(ssignal, sighandler_t, (int, sighandler_t))                                                              \
  X(sysv_signal, sighandler_t, (int, sighandler_t))                                                          \
  X(__sysv_signal, sighandler_t, (int, sighandler_t))                                                        \
  X(sigset, sighandler_t, (int, sighandler_t))                                                               \
  X(siginterrupt, int, (int, int))                                                                           \
  X(sigignore, int, (int))                                                                                   \
  X(mlockall, int, (int))                                                                                    \
  X(getrlimit, int, (int, struct rlimit *))                                                                  \
  X(setrlimit, int, (int, const struct rlimit *))                                                            \
  X(prlimit, int, (pid_t, int, const struct rlimit *, struct rlimit *))

struct bertha_real {
#define X(name, ret, params) ret(*name) params;
  BERTHA_REAL_CALLS(X)
#undef X
  _Atomic int ready;
};
extern struct bertha_real bertha_real_table;

void bertha_real_init(void);

/* REAL(read)(fd, buf, n) */
#define REAL(name) (*bertha_real()->name)
static inline struct bertha_real *bertha_real(void) {
  if (__builtin_expect(!bertha_real_table.ready, 0)) {
    bertha_real_init();
  }
  return &bertha_real_table;
}

#endif
