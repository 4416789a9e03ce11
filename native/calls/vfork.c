/* vfork and clone: the child may share our memory, and must then leave our books alone.
 *
 * To know that, bertha_in_forked_stranger() would have to ask the kernel for the process id at every call.
 * Instead these two mark the thread and jump (not call: vfork returns twice from one frame) to the C
 * library's function; only a marked thread asks.  What glibc's own posix_spawn, system and popen do in their
 * child does not come by us. */
#include "calls.h"

#include <dlfcn.h>

__attribute__((visibility("hidden"))) void *bertha_real_vfork;
__attribute__((visibility("hidden"))) void *bertha_real_clone;

__attribute__((constructor(101))) static void find(void) {
  bertha_real_vfork = dlsym(RTLD_NEXT, "vfork");
  bertha_real_clone = dlsym(RTLD_NEXT, "clone");
}

#if defined(__x86_64__)
#define MARK_AND_JUMP(name)                                                                                  \
  __asm__(".pushsection .text\n"                                                                             \
          ".globl " #name "\n.type " #name ", @function\n" #name ":\n"                                       \
          "  endbr64\n"                                                                                      \
          "  movq bertha_maybe_vforked@gottpoff(%rip), %rax\n"                                               \
          "  movl $1, %fs:(%rax)\n"                                                                          \
          "  jmp *bertha_real_" #name "(%rip)\n"                                                             \
          ".size " #name ", .-" #name "\n.popsection\n")
#elif defined(__aarch64__)
#define MARK_AND_JUMP(name)                                                                                  \
  __asm__(".pushsection .text\n"                                                                             \
          ".globl " #name "\n.type " #name ", %function\n" #name ":\n"                                       \
          "  hint #34\n"                                                                                     \
          "  adrp x16, :gottprel:bertha_maybe_vforked\n"                                                     \
          "  ldr x16, [x16, :gottprel_lo12:bertha_maybe_vforked]\n"                                          \
          "  mrs x17, tpidr_el0\n"                                                                           \
          "  add x16, x16, x17\n"                                                                            \
          "  mov w17, #1\n"                                                                                  \
          "  str w17, [x16]\n"                                                                               \
          "  adrp x16, bertha_real_" #name "\n"                                                              \
          "  ldr x16, [x16, :lo12:bertha_real_" #name "]\n"                                                  \
          "  br x16\n"                                                                                       \
          ".size " #name ", .-" #name "\n.popsection\n")
#else
#error "vfork: this processor's way to mark the thread and jump is not written yet"
#endif

MARK_AND_JUMP(vfork);
MARK_AND_JUMP(clone);
