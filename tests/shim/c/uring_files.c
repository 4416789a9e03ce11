/* A program that works on files by liburing while it has a connection, to a child that gives back what it reads.
 * `uring_files SCENE PATH`: what the ring is used for besides, in the middle of it. */
#include <liburing.h>
#include <poll.h>
#include <stdbool.h>

#include "named.h"
#include "pair.h"

static struct io_uring ring;
static int client, file;
static struct sockaddr_in at;

static struct io_uring_sqe *next(void) {
  struct io_uring_sqe *entry = io_uring_get_sqe(&ring);
  MUST(entry != NULL);
  return entry;
}

static int done(void) {
  struct io_uring_cqe *cqe;
  MUST(io_uring_wait_cqe(&ring, &cqe) == 0);
  int result = cqe->res;
  io_uring_cqe_seen(&ring, cqe);
  return result;
}

static int one(void) {
  MUST(io_uring_submit(&ring) == 1);
  return done();
}

static void echo(int fd) {
  char bytes[256];
  ssize_t n;
  while ((n = read(fd, bytes, sizeof bytes)) > 0) {
    MUST(write(fd, bytes, (size_t)n) == n);
  }
  MUST(n == 0 && close(fd) == 0);
}

static void hear(const char *text) {
  char heard[64];
  size_t size = strlen(text);
  MUST(recv(client, heard, size, MSG_WAITALL) == (ssize_t)size && memcmp(heard, text, size) == 0);
}

static void ask(const char *text) {
  MUST(write(client, text, strlen(text)) == (ssize_t)strlen(text));
}

/* What comes back is written to the file and read again, by each way of handing entries over. */
static void work(int rounds) {
  for (int i = 0; i < rounds; i++) {
    char said[64], heard[64];
    struct iovec part = {heard, sizeof heard};
    off_t at = (off_t)i * 64;
    memset(said, 'a' + i % 26, sizeof said);
    MUST(write(client, said, sizeof said) == sizeof said);
    MUST(recv(client, heard, sizeof heard, MSG_WAITALL) == sizeof heard);
    io_uring_prep_writev(next(), file, &part, 1, (unsigned long long)at);
    if (i % 3 == 0) {
      MUST(io_uring_submit_and_wait(&ring, 1) == 1);
    } else if (i % 3 == 1) {
      struct io_uring_cqe *cqe;
      struct __kernel_timespec t = {.tv_sec = 5};
      MUST(io_uring_submit_and_wait_timeout(&ring, &cqe, 1, &t, NULL) >= 0);
    } else {
      MUST(io_uring_submit(&ring) == 1);
    }
    MUST(done() == sizeof heard);
    memset(heard, 0, sizeof heard);
    io_uring_prep_read(next(), file, heard, sizeof heard, (unsigned long long)at);
    io_uring_prep_nop(next());
    MUST(io_uring_submit(&ring) == 2);
    MUST(done() + done() == sizeof heard && memcmp(said, heard, sizeof said) == 0);
  }
}

static void files(void) {
}

static void receives(void) {
  char bytes[8] = "";
  ask("ring");
  io_uring_prep_recv(next(), client, bytes, sizeof bytes, 0);
  MUST(one() == 4 && memcmp(bytes, "ring", 4) == 0);
}

static void reads_what_lies_there(void) {
  char bytes[8] = "";
  ask("string");
  hear("st");
  moment(50);
  io_uring_prep_read(next(), client, bytes, sizeof bytes, 0);
  MUST(one() == 4 && memcmp(bytes, "ring", 4) == 0);
}

static void sends(void) {
  io_uring_prep_send(next(), client, "ring", 4, 0);
  MUST(one() == 4);
  hear("ring");
}

static void polls(void) {
  io_uring_prep_poll_add(next(), client, POLLIN);
  MUST(io_uring_submit(&ring) == 1);
  ask("x");
  MUST(done() & POLLIN);
  hear("x");
}

static void by_number(void) { /* of the ring's own table */
  char bytes[8] = "";
  struct io_uring_sqe *entry = next();
  MUST(io_uring_register_files(&ring, &client, 1) == 0);
  ask("ring");
  io_uring_prep_read(entry, 0, bytes, sizeof bytes, 0);
  entry->flags |= IOSQE_FIXED_FILE;
  MUST(one() == 4 && memcmp(bytes, "ring", 4) == 0);
  MUST(io_uring_unregister_files(&ring) == 0);
}

static void enters(void) { /* past liburing's calls */
  char bytes[8] = "";
  ask("ring");
  io_uring_prep_recv(next(), client, bytes, sizeof bytes, 0);
  ring.sq.sqe_head = ring.sq.sqe_tail;
  __atomic_store_n(ring.sq.ktail, ring.sq.sqe_tail, __ATOMIC_RELEASE);
  MUST(io_uring_enter((unsigned)ring.ring_fd, 1, 1, IORING_ENTER_GETEVENTS, NULL) == 1);
  MUST(done() == 4 && memcmp(bytes, "ring", 4) == 0);
}

static void accepts(void) {
  int listening = pair_listener(&at), mine = socket(AF_INET, SOCK_STREAM, 0);
  char bytes[8] = "";
  io_uring_prep_accept(next(), listening, NULL, NULL, 0);
  MUST(io_uring_submit(&ring) == 1);
  MUST(connect(mine, (struct sockaddr *)&at, sizeof at) == 0);
  int theirs = done();
  MUST(theirs >= 0 && write(mine, "ring", 4) == 4);
  MUST(recv(theirs, bytes, 4, MSG_WAITALL) == 4 && write(theirs, "back", 4) == 4);
  MUST(recv(mine, bytes, 4, MSG_WAITALL) == 4 && memcmp(bytes, "back", 4) == 0);
}

static const struct named scenes[] = {
    {"files", files},     {"receives", receives}, {"reads what lies there", reads_what_lies_there},
    {"sends", sends},     {"polls", polls},       {"by number", by_number},
    {"accepts", accepts}, {"enters", enters}};

int main(int count, char **words) {
  MUST(count == 3);
  int begun = io_uring_queue_init(16, &ring, 0);
  if (begun == -EPERM || begun == -ENOSYS) {
    puts("no io_uring here");
    return 0;
  }
  MUST(begun == 0);
  file = open(words[2], O_RDWR | O_CREAT, 0600);
  MUST(file >= 0);
  int listening = pair_listener(&at);
  pid_t child = fork();
  if (child == 0) {
    echo(accept(listening, NULL, NULL));
    _exit(0);
  }
  close(listening);
  client = socket(AF_INET, SOCK_STREAM, 0);
  MUST(connect(client, (struct sockaddr *)&at, sizeof at) == 0);
  work(20);
  MUST(run_named(scenes, sizeof scenes / sizeof *scenes, words[1]) == 0);
  work(20);
  int status;
  MUST(close(client) == 0 && waitpid(child, &status, 0) == child && status == 0);
  puts("ok");
  return 0;
}
