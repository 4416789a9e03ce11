/* Serves one connection by C's stdio, in the way its second argument says. */
#include "common.h"

static void lines(FILE *in, FILE *out) {
  char line[300];
  while (fgets(line, sizeof line, in) != NULL) {
    fprintf(out, "%zu %s", strlen(line), line);
    fflush(out);
  }
  MUST(feof(in) && !ferror(in));
}

static void two(int fd) {
  FILE *in = fdopen(fd, "r");
  FILE *out = fdopen(dup(fd), "w");
  MUST(in != NULL && out != NULL && fileno(in) == fd && fileno(out) != fd);
  lines(in, out);
  int second = fileno(out);
  MUST(fclose(out) == 0 && write(second, "x", 1) == -1 && errno == EBADF);
  MUST(fclose(in) == 0 && read(fd, &second, 1) == -1 && errno == EBADF);
}

static void both(int fd) {
  FILE *f = fdopen(fd, "r+");
  MUST(f != NULL && fseek(f, 1, SEEK_SET) == -1 && errno == ESPIPE);
  clearerr(f);
  setvbuf(f, NULL, _IONBF, 0);
  lines(f, f);
  MUST(fclose(f) == 0);
}

static void printed(int fd) {
  char byte;
  ssize_t n;
  while ((n = read(fd, &byte, 1)) == 1) {
    MUST(dprintf(fd, "<%c%s>", byte, "") == 3);
  }
  MUST(n == 0);
  close(fd);
}

static void wrong(int fd) {
  MUST(fdopen(fd, "q") == NULL && errno == EINVAL);
  MUST(fdopen(-1, "r") == NULL && errno == EBADF);
  FILE *in = fdopen(fd, "r");
  char text[8];
  errno = 0;
  MUST(fputc('x', in) == EOF && ferror(in)); /* not opened for writing */
  clearerr(in);
  while (fgets(text, sizeof text, in) != NULL) {
  }
  dprintf(fd, "ok");
  fclose(in);
}

/* Nobody flushes but exit(). */
static void unflushed(int fd) {
  FILE *out = fdopen(fd, "w");
  char byte;
  while (read(fd, &byte, 1) == 1) {
    fprintf(out, "late %c\n", byte);
  }
  exit(0);
}

/* A child that has the connection for its standard input, output and error, and prints. */
static void standard(int fd) {
  fflush(NULL);
  pid_t child = fork();
  if (child == 0) {
    MUST(dup2(fd, 0) == 0 && dup2(fd, 1) == 1 && dup2(fd, 2) == 2);
    close(fd);
    char line[300];
    printf("hello\n");
    while (fgets(line, sizeof line, stdin) != NULL) {
      printf("%zu %s", strlen(line), line);
    }
    fflush(stdout);
    errno = ENOENT;
    perror("said");
    exit(0);
  }
  close(fd);
  int status;
  MUST(waitpid(child, &status, 0) == child && status == 0);
}

/* Standard output is the connection for a while only. */
static void borrowed(int fd) {
  int before = dup(1);
  printf("to the connection, too\n"); /* still in the buffer */
  MUST(dup2(fd, 1) == 1);
  printf("to the connection\n");
  fflush(stdout);
  MUST(dup2(before, 1) == 1);
  printf("to the terminal\n");
  fflush(stdout);
  char byte;
  while (read(fd, &byte, 1) == 1) {
  }
  close(fd);
}

int main(int argc, char **argv) {
  MUST(argc == 3);
  static const struct {
    const char *name;
    void (*serve)(int);
  } ways[] = {{"two", two},          {"both", both},           {"printed", printed},
              {"wrong", wrong},      {"unflushed", unflushed}, {"standard", standard},
              {"borrowed", borrowed}};
  int listening = listen_on(atoi(argv[1]));
  int fd = accept(listening, NULL, NULL);
  MUST(fd >= 0 && write(fd, "*", 1) == 1);
  for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
    if (strcmp(argv[2], ways[i].name) == 0) {
      ways[i].serve(fd);
      return 0;
    }
  }
  return 2;
}
