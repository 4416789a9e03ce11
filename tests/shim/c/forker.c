/* Line-echo servers that have several processes, in the way the second argument says; the third: connections. */
#include "common.h"

#include <poll.h>
#include <sys/epoll.h>

static int left;

static int answer(int fd) {
  char text[4096];
  ssize_t n = recv(fd, text, sizeof text, 0);
  MUST(n >= 0);
  for (ssize_t done = 0; done < n;) {
    ssize_t k = send(fd, text + done, (size_t)(n - done), 0);
    MUST(k > 0);
    done += k;
  }
  return n > 0;
}

/* The parent accepts, a child serves; the parent has closed its copy by then, or does so only afterwards. */
static void children(int listening, int late) {
  for (; left > 0; left--) {
    int fd = accept(listening, NULL, NULL);
    pid_t child = fork();
    if (child == 0) {
      close(listening);
      while (answer(fd)) {
      }
      exit(0);
    }
    int status;
    if (!late) {
      close(fd);
    }
    MUST(waitpid(child, &status, 0) == child && status == 0);
    if (late) {
      close(fd);
    }
  }
}

/* Parent and child answer by turns on one connection. */
static void turns(int listening) {
  int fd = accept(listening, NULL, NULL);
  int there[2], back[2];
  char token = 't';
  MUST(answer(fd)); /* from here on it is on shared memory */
  MUST(pipe(there) == 0 && pipe(back) == 0);
  pid_t child = fork();
  if (child == 0) {
    close(there[1]);
    while (read(there[0], &token, 1) == 1) {
      MUST(answer(fd) && write(back[1], &token, 1) == 1);
    }
    exit(0);
  }
  for (int i = 1; i < left; i++) {
    if (i % 2) {
      MUST(write(there[1], &token, 1) == 1 && read(back[0], &token, 1) == 1);
    } else {
      MUST(answer(fd));
    }
  }
  close(there[1]);
  int status;
  MUST(waitpid(child, &status, 0) == child && status == 0);
  MUST(!answer(fd));
  close(fd);
}

static void serve_set(int set, int listening) {
  while (left > 0) {
    struct epoll_event e;
    MUST(epoll_wait(set, &e, 1, 20000) == 1);
    if (e.data.fd == listening) {
      int fd = accept(listening, NULL, NULL);
      MUST(fd >= 0);
      struct epoll_event more = {.events = EPOLLIN, .data.fd = fd};
      MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &more) == 0);
    } else if (!answer(e.data.fd)) {
      close(e.data.fd);
      left--;
    }
  }
}

static int new_set(int listening) {
  int set = epoll_create1(0);
  struct epoll_event e = {.events = EPOLLIN, .data.fd = listening};
  MUST(set >= 0 && epoll_ctl(set, EPOLL_CTL_ADD, listening, &e) == 0);
  return set;
}

/* Becomes a daemon after its epoll set was made, and before it serves. */
static void become_daemon(int listening) {
  int set = new_set(listening);
  MUST(daemon(1, 1) == 0);
  serve_set(set, listening);
}

/* Goes on in a child, with a set that has a connection in use. */
static void second_life(int listening) {
  int set = new_set(listening);
  struct epoll_event e;
  int fd = accept(listening, NULL, NULL);
  MUST(answer(fd));
  struct epoll_event more = {.events = EPOLLIN, .data.fd = fd};
  MUST(epoll_ctl(set, EPOLL_CTL_ADD, fd, &more) == 0);
  MUST(epoll_wait(set, &e, 1, 20000) == 1 && e.data.fd == fd && answer(fd));
  pid_t child = fork();
  if (child != 0) {
    close(fd);
    close(set);
    int status;
    MUST(waitpid(child, &status, 0) == child && status == 0);
    return;
  }
  MUST(setsid() > 0);
  serve_set(set, listening);
}

/* Other programs are started meanwhile; they have nothing to do with the connection. */
static void helpers(int listening) {
  int fd = accept(listening, NULL, NULL);
  while (answer(fd)) {
    char text[64] = "";
    FILE *p = popen("echo from popen", "r");
    MUST(p != NULL && fgets(text, sizeof text, p) != NULL && strcmp(text, "from popen\n") == 0 &&
         pclose(p) == 0);
    MUST(system("exit 3") == 3 << 8);
  }
  close(fd);
}

/* The connection is the standard input and output of a shell. */
static void shell(int listening) {
  int fd = accept(listening, NULL, NULL);
  char byte;
  MUST(recv(fd, &byte, 1, MSG_PEEK) == 1);
  pid_t child = fork();
  if (child == 0) {
    MUST(dup2(fd, 0) == 0 && dup2(fd, 1) == 1);
    close(fd);
    char line[64] = "";
    FILE *p = popen("head -n 1", "r"); /* from the connection */
    MUST(p != NULL && fgets(line, sizeof line, p) != NULL && strcmp(line, "one\n") == 0);
    MUST(fgetc(p) == EOF && pclose(p) == 0);
    p = popen("cat", "w"); /* to the connection */
    MUST(p != NULL && fputs(line, p) >= 0 && pclose(p) == 0);
    exit(WEXITSTATUS(system("cat; exit 5")) == 5 ? 0 : 6);
  }
  close(fd);
  int status;
  MUST(waitpid(child, &status, 0) == child && status == 0);
}

int main(int argc, char **argv) {
  MUST(argc == 4);
  const char *way = argv[2];
  left = atoi(argv[3]);
  int listening = listen_on(atoi(argv[1]));
  if (strcmp(way, "children") == 0 || strcmp(way, "late") == 0) {
    children(listening, way[0] == 'l');
  } else if (strcmp(way, "turns") == 0) {
    turns(listening);
  } else if (strcmp(way, "daemon") == 0) {
    become_daemon(listening);
  } else if (strcmp(way, "second_life") == 0) {
    second_life(listening);
  } else if (strcmp(way, "helpers") == 0) {
    helpers(listening);
  } else if (strcmp(way, "shell") == 0) {
    shell(listening);
  } else {
    return 2;
  }
  return 0;
}
