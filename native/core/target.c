/* Will our library be in the program that is about to be executed?
 *
 * Not when the new environment does not name it, when the program is static or of another kind of machine, or when
 * it changes its user or has capabilities of its own.  Safe in a vfork child: no allocation, no lock. */
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "parcel.h"

enum { HEAD = 4096, SCRIPTS = 4, PROGRAM_HEADERS = 128 };

static const char *value_of(char *const env[], const char *name) {
  size_t size = strlen(name);
  for (; env != NULL && *env != NULL; env++) {
    if (strncmp(*env, name, size) == 0 && (*env)[size] == '=') {
      return *env + size + 1;
    }
  }
  return NULL;
}

static bool names_us(char *const env[]) {
  Dl_info us;
  const char *preload = value_of(env, "LD_PRELOAD");
  const char *disable = value_of(env, "BERTHA_DISABLE");
  if (preload == NULL || (disable != NULL && *disable != '\0' && strcmp(disable, "0") != 0)) {
    return false;
  }
  return dladdr(&bertha, &us) != 0 && us.dli_fname != NULL && strstr(preload, us.dli_fname) != NULL;
}

static enum target elf(int fd, const uint8_t *head, size_t size) {
  ElfW(Ehdr) e;
  if (size < sizeof e) {
    return TARGET_FAILS;
  }
  memcpy(&e, head, sizeof e);
#if defined(__x86_64__)
  const unsigned machine = EM_X86_64;
#elif defined(__aarch64__)
  const unsigned machine = EM_AARCH64;
#else
  const unsigned machine = e.e_machine;
#endif
  if (e.e_ident[EI_CLASS] != (sizeof(void *) == 8 ? ELFCLASS64 : ELFCLASS32) || e.e_machine != machine) {
    return TARGET_BARE;
  }
  for (unsigned i = 0; i < e.e_phnum && i < PROGRAM_HEADERS; i++) {
    ElfW(Phdr) p;
    if (pread(fd, &p, sizeof p, (off_t)(e.e_phoff + i * e.e_phentsize)) != sizeof p) {
      return TARGET_FAILS;
    }
    if (p.p_type == PT_INTERP) {
      return TARGET_SHIMMED;
    }
  }
  return TARGET_BARE;
}

enum target target_of(const char *path, char *const env[]) {
  char script[256];
  int saved = errno;
  enum target result = names_us(env) ? TARGET_SHIMMED : TARGET_BARE;
  for (int depth = 0; depth < SCRIPTS; depth++) {
    struct stat st;
    uint8_t head[HEAD];
    if (stat(path, &st) != 0 || !S_ISREG(st.st_mode) || faccessat(AT_FDCWD, path, X_OK, AT_EACCESS) != 0) {
      result = TARGET_FAILS;
      break;
    }
    if (((st.st_mode & S_ISUID) && st.st_uid != geteuid()) ||
        ((st.st_mode & S_ISGID) && st.st_gid != getegid())) {
      result = TARGET_BARE; /* ld.so(8): secure-execution mode */
      break;
    }
    if (UNLIKELY(getuid() != 0) && getxattr(path, "security.capability", NULL, 0) > 0) {
      result = TARGET_BARE; /* the same, for who is not root (capabilities(7)) */
      break;
    }
    int fd = QUIET(open)(path, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0) {
      break; /* may be executed, not read: taken for an ordinary one */
    }
    ssize_t n = pread(fd, head, sizeof head - 1, 0);
    bool is_elf = n >= SELFMAG && memcmp(head, ELFMAG, SELFMAG) == 0;
    enum target here = is_elf ? elf(fd, head, (size_t)n) : TARGET_SHIMMED;
    QUIET(close)(fd);
    if (n < 3 || head[0] != '#' || head[1] != '!') {
      result = here == TARGET_SHIMMED ? result : here; /* no magic number: execvp() gives it to the shell */
      break;
    }
    head[n] = '\0';
    const char *from = (const char *)head + 2;
    from += strspn(from, " \t");
    size_t size = strcspn(from, " \t\r\n");
    if (size == 0 || size >= sizeof script) {
      result = TARGET_FAILS;
      break;
    }
    memcpy(script, from, size);
    script[size] = '\0';
    path = script;
  }
  errno = saved;
  return result;
}

bool target_find(const char *file, char *path, size_t size) {
  if (strchr(file, '/') != NULL) {
    return strlen(file) < size && strcpy(path, file) != NULL;
  }
  const char *at = getenv("PATH");
  at = at != NULL ? at : "/bin:/usr/bin"; /* execvp(3) */
  int saved = errno;
  for (;;) {
    size_t n = strcspn(at, ":");
    struct stat st;
    if (n + strlen(file) + 2 <= size) {
      memcpy(path, at, n);
      path[n] = '/';
      strcpy(n > 0 ? path + n + 1 : path, file);
      if (stat(path, &st) == 0 && S_ISREG(st.st_mode) && faccessat(AT_FDCWD, path, X_OK, AT_EACCESS) == 0) {
        errno = saved;
        return true;
      }
    }
    if (at[n] == '\0') {
      errno = saved;
      return false;
    }
    at += n + 1;
  }
}
