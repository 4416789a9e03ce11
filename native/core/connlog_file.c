/* The connection log's file.  It is opened for each line, so that it costs no descriptor; a process that has none left
 * keeps some lines until it has one again. */
#include "connlog.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>

#include "fsize.h"

enum { KEPT_MAX = 32 * 1024 };

static char kept[KEPT_MAX];
static size_t kept_size;
static int kept_by;      /* process: a forked child must not write its parent's lines again */
static atomic_flag busy; /* not waited for: its holder may be what a signal's handler interrupted */

static void write_all(int log, const char *from, size_t size) {
  if (fsize_write(log, from, size) < 0 && bertha_log_level > 0) {
    bertha_debug("connection log %s: %s", bertha.connlog, strerror(errno));
  }
}

void connlog_put(const char *line, size_t size) {
  bool ours = !atomic_flag_test_and_set_explicit(&busy, memory_order_acquire);
  if (ours && kept_by != bertha.pid) {
    kept_size = 0;
    kept_by = bertha.pid;
  }
  if (size == 0 && (!ours || kept_size == 0)) {
    if (ours) {
      atomic_flag_clear_explicit(&busy, memory_order_release);
    }
    return;
  }
  int log = QUIET(open)(bertha.connlog, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY, 0666);
  if (log >= 0) {
    if (ours && kept_size > 0) {
      write_all(log, kept, kept_size);
      kept_size = 0;
    }
    if (size > 0) {
      write_all(log, line, size);
    }
    QUIET(close)(log);
  } else if (ours && (errno == EMFILE || errno == ENFILE) && kept_size + size <= sizeof kept) {
    memcpy(kept + kept_size, line, size);
    kept_size += size;
  }
  if (ours) {
    atomic_flag_clear_explicit(&busy, memory_order_release);
  }
}
