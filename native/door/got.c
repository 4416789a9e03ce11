/* The late door: the shim was loaded into a running program, so the loader has bound every call already.
 *
 * Each loaded object keeps the addresses of the functions that it calls in tables (JUMP_SLOT and GLOB_DAT
 * relocations) and of those that it points to in its data (R_*_64).  An entry that leads to the C library, by
 * the name of one of our calls, is made to lead to ours; one that leads elsewhere belongs to somebody else and
 * stays.  dlopen is redirected as well, to do the same to what comes later.  Tables that the loader made
 * read-only (RELRO) are made writable for the moment of writing. */
#include "door.h"

#include "../core/eset.h"
#include "opted.h"

#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <link.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__x86_64__)
enum { SLOT = R_X86_64_JUMP_SLOT, GLOBAL = R_X86_64_GLOB_DAT, WORD = R_X86_64_64 };
#elif defined(__aarch64__)
enum { SLOT = R_AARCH64_JUMP_SLOT, GLOBAL = R_AARCH64_GLOB_DAT, WORD = R_AARCH64_ABS64 };
#else
#error "door: this processor's relocations are not known yet"
#endif

struct range {
  uintptr_t from, to;
};

struct call {
  const char *name;
  uintptr_t ours;
  uintptr_t original; /* the C library's; 0: it has none, or somebody else came first */
};

struct entry {
  char *object;
  const char *call;
  unsigned entries;
};

enum { CALLS = 256, LIBRARY = 8, OBJECTS = 4096 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct call calls[CALLS];
static unsigned calls_n;
static struct range library[LIBRARY]; /* the C library's objects */
static unsigned library_n;
static uintptr_t self_base;
static struct entry *ledger;
static size_t ledger_n, ledger_room;
static unsigned origins_done;
static bool late;
static uintptr_t seen[OBJECTS]; /* bases of the objects that are done */
static unsigned seen_n;
static unsigned long long seen_subs;

static void *(*real_dlopen)(const char *, int);
static void *door_dlopen(const char *path, int mode);

/* ---- what is loaded ------------------------------------------------------------------------------ */

static const char *base_name(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash != NULL ? slash + 1 : path;
}

static bool begins(const char *text, const char *with) {
  return strncmp(text, with, strlen(with)) == 0;
}

static bool is_c_library(const char *path) {
  static const char *const names[] = {"libc.so.", "libc-2.",  "libpthread", "libdl.so.",
                                      "libdl-2.", "ld-linux", "ld-2."};
  const char *name = base_name(path);
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    if (begins(name, names[i])) {
      return true;
    }
  }
  return false;
}

static struct range extent(const struct dl_phdr_info *o) {
  struct range r = {UINTPTR_MAX, 0};
  for (int i = 0; i < o->dlpi_phnum; i++) {
    const ElfW(Phdr) *p = &o->dlpi_phdr[i];
    if (p->p_type == PT_LOAD) {
      uintptr_t from = o->dlpi_addr + p->p_vaddr, to = from + p->p_memsz;
      r.from = from < r.from ? from : r.from;
      r.to = to > r.to ? to : r.to;
    }
  }
  return r;
}

static bool within(uintptr_t address, struct range r) {
  return address >= r.from && address < r.to;
}

static bool in_c_library(uintptr_t address) {
  for (unsigned i = 0; i < library_n; i++) {
    if (within(address, library[i])) {
      return true;
    }
  }
  return false;
}

static int note_library(struct dl_phdr_info *o, size_t size, void *unused) {
  (void)size;
  (void)unused;
  struct range r = extent(o);
  if (within((uintptr_t)&note_library, r)) {
    self_base = o->dlpi_addr;
  }
  if (o->dlpi_name != NULL && is_c_library(o->dlpi_name) && library_n < LIBRARY) {
    library[library_n++] = r;
  }
  return 0;
}

/* ---- our own calls ------------------------------------------------------------------------------- */

struct dynamic {
  const ElfW(Sym) * symbols;
  const char *strings;
  const ElfW(Rela) * plt, *rela;
  size_t plt_n, rela_n;
  const uint32_t *gnu_hash;
};

static struct dynamic dynamic_of(uintptr_t base, const ElfW(Dyn) * d) {
  struct dynamic found = {0};
  bool plt_is_rela = true;
  for (; d->d_tag != DT_NULL; d++) {
    /* glibc has added the base already, but not to what is read-only. */
    uintptr_t at = d->d_un.d_ptr < base ? d->d_un.d_ptr + base : d->d_un.d_ptr;
    switch (d->d_tag) {
    case DT_SYMTAB:
      found.symbols = (const void *)at;
      break;
    case DT_STRTAB:
      found.strings = (const void *)at;
      break;
    case DT_JMPREL:
      found.plt = (const void *)at;
      break;
    case DT_PLTRELSZ:
      found.plt_n = d->d_un.d_val / sizeof(ElfW(Rela));
      break;
    case DT_PLTREL:
      plt_is_rela = d->d_un.d_val == DT_RELA;
      break;
    case DT_RELA:
      found.rela = (const void *)at;
      break;
    case DT_RELASZ:
      found.rela_n = d->d_un.d_val / sizeof(ElfW(Rela));
      break;
    case DT_GNU_HASH:
      found.gnu_hash = (const void *)at;
      break;
    default:
      break;
    }
  }
  if (!plt_is_rela || found.plt == NULL) {
    found.plt_n = 0;
  }
  if (found.rela == NULL) {
    found.rela_n = 0;
  }
  return found;
}

static void add_call(const char *name, uintptr_t ours) {
  uintptr_t original = (uintptr_t)dlsym(RTLD_DEFAULT, name);
  if (calls_n < CALLS) {
    calls[calls_n++] = (struct call){name, ours, in_c_library(original) ? original : 0};
  }
}

/* Our exported functions are the calls: read from our own table of symbols, so that no list can differ. */
static void find_calls(void) {
  Dl_info unused;
  struct link_map *map = NULL;
  if (dladdr1((void *)&find_calls, &unused, (void **)&map, RTLD_DL_LINKMAP) == 0 || map == NULL) {
    return;
  }
  struct dynamic d = dynamic_of(map->l_addr, map->l_ld);
  if (d.gnu_hash == NULL || d.symbols == NULL || d.strings == NULL) {
    return;
  }
  uint32_t buckets_n = d.gnu_hash[0], first = d.gnu_hash[1], bloom_n = d.gnu_hash[2];
  const uint32_t *buckets = d.gnu_hash + 4 + (size_t)bloom_n * (sizeof(ElfW(Addr)) / sizeof(uint32_t));
  const uint32_t *chain = buckets + buckets_n;
  for (uint32_t b = 0; b < buckets_n; b++) {
    for (uint32_t i = buckets[b]; i >= first; i++) {
      const char *name = d.strings + d.symbols[i].st_name;
      if (!begins(name, "bertha_") && !begins(name, "io_uring_")) {
        add_call(name, map->l_addr + d.symbols[i].st_value);
      }
      if (chain[i - first] & 1) {
        break;
      }
    }
  }
  real_dlopen = (void *(*)(const char *, int))dlsym(RTLD_DEFAULT, "dlopen");
  add_call("dlopen", (uintptr_t)&door_dlopen);
}

static void begin(void) {
  static bool done;
  if (!done) {
    done = true;
    dl_iterate_phdr(note_library, NULL);
    find_calls();
  }
}

/* ---- rewriting ----------------------------------------------------------------------------------- */

static void note(const char *object, const char *call) {
  for (size_t i = ledger_n; i > 0 && strcmp(ledger[i - 1].object, object) == 0; i--) {
    if (ledger[i - 1].call == call) {
      ledger[i - 1].entries++;
      return;
    }
  }
  if (ledger_n == ledger_room) {
    size_t room = ledger_room == 0 ? 512 : 2 * ledger_room;
    struct entry *more = realloc(ledger, room * sizeof *more);
    if (more == NULL) {
      return;
    }
    ledger = more;
    ledger_room = room;
  }
  char *copy = strdup(object);
  if (copy != NULL) {
    ledger[ledger_n++] = (struct entry){copy, call, 1};
  }
}

struct object {
  const char *name;
  struct range all, relro;
  bool writable; /* RELRO, at this moment */
  unsigned origins;
  bool python;
  int rewritten;
  int error;
};

static bool make_writable(struct object *o) {
  if (!o->writable) {
    if (mprotect((void *)o->relro.from, o->relro.to - o->relro.from, PROT_READ | PROT_WRITE) != 0) {
      o->error = errno;
      return false;
    }
    o->writable = true;
  }
  return true;
}

/* Where this object's entry for the call is to lead, or 0 if it stays as it is. */
static uintptr_t target_of(const struct object *o, const struct call *call) {
  if ((o->origins & (o->python ? DOOR_SOCKET : DOOR_LIBRARIES)) != 0) {
    return call->ours;
  }
  uintptr_t instead;
  return opted_guards(call->name, o->python, &instead) ? instead : call->ours;
}

static const struct call *call_by_name(const char *name) {
  for (unsigned i = 0; i < calls_n; i++) {
    if (calls[i].name[0] == name[0] && strcmp(calls[i].name, name) == 0) {
      return &calls[i];
    }
  }
  return NULL;
}

static void rewrite(struct object *o, uintptr_t base, const struct dynamic *d, const ElfW(Rela) * r) {
  uint32_t type = (uint32_t)ELF64_R_TYPE(r->r_info), index = (uint32_t)ELF64_R_SYM(r->r_info);
  if (index == 0 || (type != SLOT && type != GLOBAL && type != WORD) || (type == WORD && r->r_addend != 0)) {
    return;
  }
  const ElfW(Sym) *symbol = &d->symbols[index];
  _Atomic uintptr_t *slot = (_Atomic uintptr_t *)(base + r->r_offset);
  if (!within((uintptr_t)slot, o->all)) {
    return;
  }
  uintptr_t now = atomic_load_explicit(slot, memory_order_relaxed);
  /* Bound to the C library; or not bound yet, still leading to this object's own stub. */
  bool unbound = type == SLOT && symbol->st_shndx == SHN_UNDEF && within(now, o->all);
  if (!unbound && !opted_is_instead(now) && !in_c_library(now)) {
    return;
  }
  const struct call *call = call_by_name(d->strings + symbol->st_name);
  uintptr_t target = call != NULL && call->original != 0 ? target_of(o, call) : 0;
  if (target == 0 || target == now) {
    return;
  }
  if (within((uintptr_t)slot, o->relro) && !make_writable(o)) {
    return;
  }
  atomic_store_explicit(slot, target, memory_order_release);
  o->rewritten++;
  note(o->name, call->name);
}

static bool in_writable_segment(const struct dl_phdr_info *info, uintptr_t address) {
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const ElfW(Phdr) *p = &info->dlpi_phdr[i];
    uintptr_t from = info->dlpi_addr + p->p_vaddr;
    if (p->p_type == PT_LOAD && (p->p_flags & PF_W) && address >= from && address < from + p->p_memsz) {
      return true;
    }
  }
  return false;
}

static void rewrite_all(struct object *o, const struct dl_phdr_info *info, const struct dynamic *d,
                        const ElfW(Rela) * list, size_t n) {
  for (size_t i = 0; i < n; i++) {
    if (in_writable_segment(info, info->dlpi_addr + list[i].r_offset)) {
      rewrite(o, info->dlpi_addr, d, &list[i]);
    }
  }
}

static bool is_python(const char *name) {
  const char *file = base_name(name);
  return *name == '\0' || begins(file, "libpython") || begins(file, "_socket.") ||
         begins(file, "_asyncio.") || begins(file, "_ssl.");
}

static bool was_seen(uintptr_t base) {
  for (unsigned i = 0; i < seen_n; i++) {
    if (seen[i] == base) {
      return true;
    }
  }
  return false;
}

struct work {
  unsigned origins;
  int rewritten, error;
};

static int visit(struct dl_phdr_info *info, size_t size, void *given) {
  struct work *work = given;
  if (size >= offsetof(struct dl_phdr_info, dlpi_subs) + sizeof info->dlpi_subs &&
      info->dlpi_subs != seen_subs) {
    seen_subs = info->dlpi_subs; /* something went: another may be in its place */
    seen_n = 0;
  }
  const char *name = info->dlpi_name != NULL ? info->dlpi_name : "";
  if (is_c_library(name) || info->dlpi_addr == self_base || was_seen(info->dlpi_addr)) {
    return 0;
  }
  if (seen_n < OBJECTS) {
    seen[seen_n++] = info->dlpi_addr;
  }
  struct object o = {
      .name = *name != '\0' ? name : "(program)", .all = extent(info), .origins = work->origins};
  o.python = is_python(name);
  const ElfW(Dyn) *table = NULL;
  uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const ElfW(Phdr) *p = &info->dlpi_phdr[i];
    if (p->p_type == PT_DYNAMIC) {
      table = (const void *)(info->dlpi_addr + p->p_vaddr);
    } else if (p->p_type == PT_GNU_RELRO) {
      /* As the loader protects it: whole pages only, the last, partial one stays writable. */
      o.relro.from = (info->dlpi_addr + p->p_vaddr) & ~(page - 1);
      o.relro.to = (info->dlpi_addr + p->p_vaddr + p->p_memsz) & ~(page - 1);
    }
  }
  if (table == NULL) {
    return 0;
  }
  struct dynamic d = dynamic_of(info->dlpi_addr, table);
  if (d.symbols != NULL && d.strings != NULL) {
    rewrite_all(&o, info, &d, d.plt, d.plt_n);
    rewrite_all(&o, info, &d, d.rela, d.rela_n);
  }
  if (o.writable && mprotect((void *)o.relro.from, o.relro.to - o.relro.from, PROT_READ) != 0) {
    o.error = errno;
  }
  work->rewritten += o.rewritten;
  work->error = o.error != 0 ? o.error : work->error;
  return 0;
}

static int redirect(unsigned origins) {
  struct work work = {.origins = origins};
  dl_iterate_phdr(visit, &work);
  return work.error != 0 && work.rewritten == 0 ? -work.error : work.rewritten;
}

/* ---- what comes later ---------------------------------------------------------------------------- */

/* dlopen looks a bare name up in the caller's RUNPATH too, and takes us for the caller: that part is done here. */
static void *open_as(const void *caller, const char *path, int mode) {
  Dl_info unused;
  struct link_map *map = NULL;
  if (path == NULL || strchr(path, '/') != NULL ||
      dladdr1(caller, &unused, (void **)&map, RTLD_DL_LINKMAP) == 0 || map == NULL ||
      map->l_name[0] == '\0') {
    return real_dlopen(path, mode);
  }
  bool has_path = false;
  for (const ElfW(Dyn) *d = map->l_ld; d->d_tag != DT_NULL; d++) {
    has_path |= d->d_tag == DT_RUNPATH || d->d_tag == DT_RPATH;
  }
  void *found = has_path ? real_dlopen(path, mode | RTLD_NOLOAD) : NULL;
  void *self = has_path && found == NULL ? real_dlopen(map->l_name, RTLD_LAZY | RTLD_NOLOAD) : NULL;
  Dl_serinfo count;
  if (self != NULL && dlinfo(self, RTLD_DI_SERINFOSIZE, &count) == 0) {
    Dl_serinfo *list = malloc(count.dls_size);
    if (list != NULL) {
      list->dls_size = count.dls_size;
      list->dls_cnt = count.dls_cnt;
      if (dlinfo(self, RTLD_DI_SERINFO, list) == 0) {
        for (unsigned i = 0; i < list->dls_cnt && found == NULL; i++) {
          char whole[4096];
          int n = snprintf(whole, sizeof whole, "%s/%s", list->dls_serpath[i].dls_name, path);
          if (n > 0 && n < (int)sizeof whole && access(whole, R_OK) == 0) {
            found = real_dlopen(whole, mode);
          }
        }
      }
      free(list);
    }
  }
  if (self != NULL) {
    dlclose(self);
  }
  return found != NULL ? found : real_dlopen(path, mode);
}

static void *door_dlopen(const char *path, int mode) {
  void *handle = open_as(__builtin_return_address(0), path, mode);
  if (handle != NULL && (mode & RTLD_NOLOAD) == 0) {
    int saved = errno;
    pthread_mutex_lock(&lock);
    redirect(origins_done);
    pthread_mutex_unlock(&lock);
    errno = saved;
  }
  return handle;
}

/* ---- for bertha_socket.monkey -------------------------------------------------------------------- */

static void before_fork(void) {
  pthread_mutex_lock(&lock);
}

static void after_fork(void) {
  pthread_mutex_unlock(&lock);
}

DOOR_API int bertha_door_state(void) {
  Dl_info whose;
  void *first = dlsym(RTLD_DEFAULT, "connect");
  Dl_info mine;
  if (first != NULL && dladdr(first, &whose) != 0 && dladdr((void *)&bertha_door_state, &mine) != 0 &&
      whose.dli_fbase == mine.dli_fbase) {
    return DOOR_PRELOADED;
  }
  return late ? DOOR_LATE : DOOR_CLOSED;
}

DOOR_API int bertha_door_redirect(unsigned origins) {
  if (bertha_door_state() == DOOR_PRELOADED) {
    return 0;
  }
  pthread_mutex_lock(&lock);
  begin();
  int result = -ENOTSUP;
  if (self_base != 0 && library_n > 0 && calls_n > 0) {
    if (!late) {
      pthread_atfork(before_fork, after_fork, after_fork);
    }
    if ((origins & ~origins_done) != 0) {
      seen_n = 0;
    }
    origins_done |= origins;
    if (!late) {
      eset_find_existing();
    }
    late = true;
    result = redirect(origins_done);
  }
  pthread_mutex_unlock(&lock);
  return result;
}

DOOR_API size_t bertha_door_ledger(char *to, size_t size) {
  size_t n = 0;
  pthread_mutex_lock(&lock);
  for (size_t i = 0; i < ledger_n; i++) {
    const struct entry *e = &ledger[i];
    int written = snprintf(n < size ? to + n : NULL, n < size ? size - n : 0, "%s\t%s\t%u\n", e->object,
                           e->call, e->entries);
    n += written > 0 ? (size_t)written : 0;
  }
  pthread_mutex_unlock(&lock);
  return n;
}

DOOR_API void *bertha_door_original(const char *name) {
  pthread_mutex_lock(&lock);
  begin();
  const struct call *call = call_by_name(name);
  pthread_mutex_unlock(&lock);
  return call != NULL ? (void *)call->original : NULL;
}
