/* deny CALL ERRNO LEAST CMD...: becomes CMD, for which CALL (memfd_create, ftruncate, mmap) fails with ERRNO, the number,
 * where its second argument is LEAST bytes or more (0: always).  What a full memory, a low limit or a container's filter do
 * to a program, without taking anything from others. */
#include "common.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#define FIELD(name) ((uint32_t)offsetof(struct seccomp_data, name))
/* Both processors that we know of have the low half first. */
#define LOW FIELD(args[1])
#define HIGH (FIELD(args[1]) + 4)

static uint32_t number_of(const char *call) {
  if (strcmp(call, "memfd_create") == 0) {
    return SYS_memfd_create;
  }
  if (strcmp(call, "ftruncate") == 0) {
    return SYS_ftruncate;
  }
  MUST(strcmp(call, "mmap") == 0);
  return SYS_mmap;
}

int main(int argc, char **argv) {
  MUST(argc > 4);
  uint64_t least = strtoull(argv[3], NULL, 10);
  uint32_t low = (uint32_t)least, high = (uint32_t)(least >> 32);
  struct sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, FIELD(nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number_of(argv[1]), 0, 6),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, HIGH),
      BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, high, 3, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, high, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, LOW),
      BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, low, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (uint32_t)atoi(argv[2])),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  /* An address has a second argument, too: memfd_create's flags are no size. */
  if (least == 0) {
    code[3] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JA, 3, 0, 0);
  }
  struct sock_fprog program = {.len = sizeof code / sizeof code[0], .filter = code};
  MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
  execvp(argv[4], argv + 4);
  MUST(!"execvp");
  return 1;
}
