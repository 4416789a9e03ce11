/* One thread is blocked in recv on a connection while another closes the descriptor, or shuts it down.
 *
 * The server accepts, and after that a second connection gets the same number.  What Linux does with plain TCP: the
 * blocked thread is not woken by close, and never gets another one's data. */
#include "pair.h"

#include <pthread.h>

static int fd;
static char got[64];
static ssize_t result;
static volatile int tid;

static void *reader(void *unused) {
  tid = gettid();
  result = recv(fd, got, sizeof got, 0);
  return unused;
}

static void line(int to, const char *text) {
  MUST(send(to, text, strlen(text), 0) == (ssize_t)strlen(text));
}

int main(int argc, char **argv) {
  MUST(argc == 3);
  int listening = listen_on(atoi(argv[1]));
  pthread_t thread;
  char byte;
  fd = accept(listening, NULL, NULL);
  int first = fd;
  MUST(recv(first, &byte, 1, 0) == 1); /* the client is there, and on shared memory */
  line(first, "ready\n");
  MUST(pthread_create(&thread, NULL, reader, NULL) == 0);
  wait_until_asleep(&tid);
  if (strcmp(argv[2], "shutdown") == 0) {
    MUST(shutdown(first, SHUT_RDWR) == 0);
    MUST(pthread_join(thread, NULL) == 0 && result == 0);
    close(first);
    return 0;
  }
  MUST(close(first) == 0);
  int second = accept(listening, NULL, NULL);
  MUST(second == first); /* the same number, another connection */
  MUST(recv(second, &byte, 1, 0) == 1);
  line(second, "ready\n");
  char text[64] = "";
  MUST(recv(second, text, sizeof text, 0) > 0 && strcmp(text, "for the second") == 0);
  MUST(result <= 0 || memcmp(got, "for the first", (size_t)result) == 0);
  line(second, "done\n");
  MUST(recv(second, text, sizeof text, 0) == 0);
  close(second);
  return 0;
}
