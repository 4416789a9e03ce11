/* WAY COUNT: so many connections, one after another, whose client is a process of one thread that is asleep in recv() when a
 * signal comes.  The handler sends, shuts down, or forks a child that sends; or the client does so itself after EINTR.
 *
 * early: before the server has accepted.  late: after it has read the first byte.  rounds: no signal, two requests each. */
#include "common.h"

#include <netinet/in.h>
#include <signal.h>
#include <sys/time.h>

static const char *way;
static int early, connection, interrupted;

static void say(const char *text) {
  MUST(send(connection, text, strlen(text), 0) == (ssize_t)strlen(text));
}

static void hear(const char *text) {
  char got[8] = "";
  size_t have = 0;
  while (have < strlen(text)) {
    ssize_t n = recv(connection, got + have, strlen(text) - have, 0);
    MUST(n > 0);
    have += (size_t)n;
  }
  MUST(strcmp(got, text) == 0);
}

static void on_alarm(int number) {
  (void)number;
  interrupted = 1;
  if (strcmp(way, "send") == 0) {
    say("b");
  } else if (strcmp(way, "shutdown") == 0) {
    MUST(shutdown(connection, SHUT_WR) == 0);
  } else if (strcmp(way, "fork") == 0) {
    pid_t child = fork();
    if (child == 0) {
      say("b");
      _exit(0);
    }
    int status;
    MUST(waitpid(child, &status, 0) == child && status == 0);
  }
}

static void client(const struct sockaddr_in *at, int count) {
  int after = strcmp(way, "afterwards") == 0;
  struct sigaction action = {.sa_handler = on_alarm, .sa_flags = after ? 0 : SA_RESTART};
  MUST(sigaction(SIGALRM, &action, NULL) == 0);
  for (int i = 0; i < count; i++) {
    char byte = 0;
    connection = socket(AF_INET, SOCK_STREAM, 0);
    MUST(connect(connection, (const struct sockaddr *)at, sizeof *at) == 0);
    say("a");
    if (strcmp(way, "rounds") != 0) {
      struct itimerval soon = {.it_value.tv_usec = 20000};
      interrupted = 0;
      MUST(setitimer(ITIMER_REAL, &soon, NULL) == 0);
    }
    if (after) {
      MUST(recv(connection, &byte, 1, 0) == -1 && errno == EINTR);
      say("b");
    }
    hear("12");
    if (strcmp(way, "shutdown") != 0) {
      say("c");
      hear("3");
    }
    MUST(recv(connection, &byte, 1, 0) == 0);
    MUST(interrupted || strcmp(way, "rounds") == 0);
    close(connection);
  }
  exit(0);
}

static void pause_ms(int ms) {
  struct timeval t = {.tv_usec = ms * 1000};
  select(0, NULL, NULL, NULL, &t);
}

int main(int argc, char **argv) {
  MUST(argc == 4);
  way = argv[1];
  early = strcmp(argv[2], "early") == 0;
  int count = atoi(argv[3]);
  struct sockaddr_in at;
  socklen_t size = sizeof at;
  int listening = listen_on(0);
  MUST(getsockname(listening, (struct sockaddr *)&at, &size) == 0);
  pid_t child = fork();
  if (child == 0) {
    close(listening);
    client(&at, count);
  }
  int rounds = strcmp(way, "rounds") == 0;
  for (int i = 0; i < count; i++) {
    if (early && !rounds) {
      pause_ms(60);
    }
    connection = accept(listening, NULL, NULL);
    MUST(connection >= 0);
    hear("a");
    if (!early && !rounds) {
      pause_ms(60);
    }
    if (strcmp(way, "shutdown") == 0) {
      char byte;
      MUST(recv(connection, &byte, 1, 0) == 0);
      say("12");
    } else {
      if (!rounds) {
        hear("b");
      }
      say("12");
      hear("c");
      say("3");
    }
    close(connection);
  }
  int status;
  MUST(waitpid(child, &status, 0) == child && status == 0);
  return 0;
}
