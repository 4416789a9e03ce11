/* `behind NAME`: what the C library, or the kernel, does with a connection behind the shim's back. */
#include <stdbool.h>
#include <aio.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include "named.h"
#include "pair.h"

static int listener, client, server;
static struct sockaddr_in at;

static ssize_t finish(struct aiocb *a) {
  const struct aiocb *const list[] = {a};
  struct timespec t = {5, 0};
  MUST(aio_suspend(list, 1, &t) == 0);
  MUST(aio_error(a) == 0);
  return aio_return(a);
}

static void aio(void) {
  char bytes[8] = "";
  struct aiocb in = {.aio_fildes = client, .aio_buf = bytes, .aio_nbytes = sizeof bytes};
  struct aiocb out = {.aio_fildes = server, .aio_buf = "wxyz", .aio_nbytes = 4};
  MUST(write(server, "abc", 3) == 3);
  MUST(aio_read(&in) == 0);
  printf("read %zd: %s\n", finish(&in), bytes);
  MUST(aio_write(&out) == 0 && finish(&out) == 4);
  MUST(write(server, "!", 1) == 1);
  MUST(recv(client, bytes, 5, MSG_WAITALL) == 5);
  printf("written: %.5s\n", bytes);
  MUST(aio_read(&in) == 0); /* before there is anything */
  MUST(write(server, "de", 2) == 2);
  printf("read %zd: %.2s\n", finish(&in), bytes);
}

static void list(void) {
  char bytes[8] = "";
  struct aiocb one = {.aio_fildes = server, .aio_buf = "ab", .aio_nbytes = 2, .aio_lio_opcode = LIO_WRITE};
  struct aiocb *all[] = {&one};
  MUST(write(server, "01", 2) == 2);
  MUST(lio_listio(LIO_WAIT, all, 1, NULL) == 0);
  MUST(recv(client, bytes, 4, MSG_WAITALL) == 4);
  printf("written: %s\n", bytes);
}

static void submit(void) {
  char bytes[8] = "";
  aio_context_t context = 0;
  struct iocb poll_it = {.aio_fildes = (unsigned)client, .aio_lio_opcode = IOCB_CMD_POLL, .aio_buf = POLLIN};
  struct iocb read_it = {.aio_fildes = (unsigned)client,
                         .aio_lio_opcode = IOCB_CMD_PREAD,
                         .aio_buf = (unsigned long)bytes,
                         .aio_nbytes = sizeof bytes};
  struct iocb *which[] = {&poll_it};
  struct io_event event;
  struct timespec t = {5, 0};
  MUST(syscall(SYS_io_setup, 8, &context) == 0);
  MUST(syscall(SYS_io_submit, context, 1L, which) == 1);
  MUST(write(server, "abc", 3) == 3);
  MUST(syscall(SYS_io_getevents, context, 1L, 1L, &event, &t) == 1);
  which[0] = &read_it;
  MUST(syscall(SYS_io_submit, context, 1L, which) == 1);
  MUST(syscall(SYS_io_getevents, context, 1L, 1L, &event, &t) == 1);
  printf("read %lld: %s\n", (long long)event.res, bytes);
}

/* A signal for what comes after the request for signals. */
static void signals(void) {
  sigset_t set;
  struct timespec t = {5, 0};
  char byte;
  sigemptyset(&set);
  sigaddset(&set, SIGIO);
  MUST(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
  for (int by_ioctl = 0; by_ioctl < 2; by_ioctl++) {
    int on = 1;
    MUST(fcntl(client, F_SETOWN, getpid()) == 0);
    MUST(by_ioctl ? ioctl(client, FIOASYNC, &on) == 0 : fcntl(client, F_SETFL, O_ASYNC) == 0);
    while (sigtimedwait(&set, NULL, &(struct timespec){0, 0}) > 0) {
    }
    MUST(write(server, "x", 1) == 1);
    printf("signal: %d\n", sigtimedwait(&set, NULL, &t) == SIGIO);
    MUST(read(client, &byte, 1) == 1);
    close(client);
    close(server);
    pair_of(listener, &at, &client, &server);
  }
}

/* When it came, which comes with the bytes.  The first ones may have no time: the kernel begins to keep it. */
static void times(void) {
  int on = 1;
  bool told = false;
  MUST(setsockopt(client, SOL_SOCKET, SO_TIMESTAMP, &on, sizeof on) == 0);
  for (int i = 0; i < 500 && !told; i++) {
    char bytes[8], space[256];
    struct iovec part = {bytes, sizeof bytes};
    struct msghdr m = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    MUST(write(server, "abcdef", 6) == 6);
    struct pollfd p = {.fd = client, .events = POLLIN};
    MUST(poll(&p, 1, 5000) == 1);
    MUST(recvmsg(client, &m, 0) == 6);
    const struct cmsghdr *h = CMSG_FIRSTHDR(&m);
    told = h != NULL && h->cmsg_level == SOL_SOCKET && h->cmsg_type == SO_TIMESTAMP;
    moment(2);
  }
  printf("time: %d\n", told);
}

static const struct named all[] = {
    {"aio", aio}, {"list", list}, {"submit", submit}, {"signals", signals}, {"times", times}};

int main(int count, char **words) {
  MUST(count == 2);
  listener = pair_listener(&at);
  pair_of(listener, &at, &client, &server);
  return run_named(all, sizeof all / sizeof *all, words[1]);
}
