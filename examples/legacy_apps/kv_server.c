/* A key-value server: a thread for each connection, blocking sockets, stdio on top of them.
 *
 *   cc -O2 -pthread -o kv_server kv_server.c
 *   ./kv_server ADDRESS PORT
 *
 * Lines in, lines out:  SET key value -> OK    GET key -> VALUE value | NONE    DEL key -> OK | NONE
 *                       COUNT -> COUNT n       QUIT -> BYE, and the end
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BUCKETS = 4096 };

struct item {
  struct item *next;
  char *key, *value;
};

static struct item *table[BUCKETS];
static size_t count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct item **place(const char *key) {
  uint32_t h = 5381;
  for (const char *p = key; *p != '\0'; p++) {
    h = h * 33 + (unsigned char)*p;
  }
  struct item **at = &table[h % BUCKETS];
  while (*at != NULL && strcmp((*at)->key, key) != 0) {
    at = &(*at)->next;
  }
  return at;
}

static void set(const char *key, const char *value) {
  struct item **at = place(key);
  if (*at == NULL) {
    *at = calloc(1, sizeof **at);
    (*at)->key = strdup(key);
    count++;
  }
  free((*at)->value);
  (*at)->value = strdup(value);
}

static int del(const char *key) {
  struct item **at = place(key), *old = *at;
  if (old == NULL) {
    return 0;
  }
  *at = old->next;
  free(old->key);
  free(old->value);
  free(old);
  count--;
  return 1;
}

/* One command; 0 when it was the last. */
static int answer(char *line, FILE *out) {
  char *rest = line, *word = strsep(&rest, " ");
  if (strcmp(word, "QUIT") == 0) {
    fputs("BYE\n", out);
    return 0;
  }
  pthread_mutex_lock(&lock);
  char *key = rest == NULL ? NULL : strsep(&rest, " ");
  if (strcmp(word, "COUNT") == 0) {
    fprintf(out, "COUNT %zu\n", count);
  } else if (key != NULL && rest != NULL && strcmp(word, "SET") == 0) {
    set(key, rest);
    fputs("OK\n", out);
  } else if (key != NULL && strcmp(word, "GET") == 0) {
    struct item *found = *place(key);
    if (found == NULL) {
      fputs("NONE\n", out);
    } else {
      fprintf(out, "VALUE %s\n", found->value);
    }
  } else if (key != NULL && strcmp(word, "DEL") == 0) {
    fputs(del(key) ? "OK\n" : "NONE\n", out);
  } else {
    fputs("ERROR\n", out);
  }
  pthread_mutex_unlock(&lock);
  return 1;
}

static void *serve(void *argument) {
  int fd = (int)(intptr_t)argument, second = dup(fd);
  FILE *in = fdopen(fd, "r"), *out = second < 0 ? NULL : fdopen(second, "w");
  char *line = NULL;
  size_t size = 0;
  ssize_t length;
  while (in != NULL && out != NULL && (length = getline(&line, &size, in)) > 0) {
    line[strcspn(line, "\r\n")] = '\0';
    if (!answer(line, out) || fflush(out) != 0) {
      break;
    }
  }
  free(line);
  if (out != NULL) {
    fclose(out);
  }
  if (in != NULL) {
    fclose(in);
  }
  return NULL;
}

int main(int argc, char **argv) {
  if (argc != 3) {
    fprintf(stderr, "usage: kv_server ADDRESS PORT\n");
    return 2;
  }
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[2]))};
  if (inet_pton(AF_INET, argv[1], &at.sin_addr) != 1) {
    fprintf(stderr, "kv_server: %s is not an IPv4 address\n", argv[1]);
    return 2;
  }
  signal(SIGPIPE, SIG_IGN);
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
  if (listener < 0 || bind(listener, (struct sockaddr *)&at, sizeof at) != 0 || listen(listener, 512) != 0) {
    perror("kv_server");
    return 1;
  }
  puts("ready");
  fflush(stdout);
  for (;;) {
    int fd = accept(listener, NULL, NULL);
    if (fd < 0) {
      continue;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    pthread_t thread;
    if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)fd) != 0) {
      close(fd);
    } else {
      pthread_detach(thread);
    }
  }
}
