/* What the connection log says of a carried UDP socket: the chunnels that were agreed on last, and what was dropped. */
#include <inttypes.h>
#include <stdio.h>

#include "datagrams.h"

#define STATUS_NS (SECOND_NS / 10)

void dgram_show(struct datagrams *d, const uint8_t *plan, size_t size, bool server) {
  if (d->shown != NULL && d->shown_size == size && memcmp(d->shown, plan, size) == 0) {
    return;
  }
  uint8_t *copy = malloc(size);
  if (copy != NULL) {
    memcpy(copy, plan, size);
    free(d->shown);
    d->shown = copy;
    d->shown_size = size;
    plan_text(plan, size, server, d->text, sizeof d->text);
    plan_left_out(plan, size, d->left_out, sizeof d->left_out);
    d->news = true;
  }
}

/* What the carrier beside shows, which is shown until another plan is. */
void dgram_text(struct datagrams *d, const char *text, size_t size, const char *detail, size_t detail_size) {
  if (size > 0 && size < sizeof d->text && (strlen(d->text) != size || memcmp(d->text, text, size) != 0)) {
    memcpy(d->text, text, size);
    d->text[size] = '\0';
    free(d->shown);
    d->shown = NULL;
    d->left_out[0] = '\0';
    d->news = true;
  }
  snprintf(d->beside_detail, sizeof d->beside_detail, "%.*s", (int)detail_size, detail);
}

void dgram_detail(struct datagrams *d, const char *why) {
  snprintf(d->detail, sizeof d->detail, "%s", why);
}

void dgram_stranger(struct datagrams *d, const struct place *who) {
  d->kept_out++;
  dgram_tell_soon(d);
  if (d->strangers == NULL && (d->strangers = calloc(STRANGERS_MAX, sizeof *d->strangers)) == NULL) {
    return;
  }
  for (unsigned i = d->stranger_count; i > 0; i--) {
    if (memcmp(d->strangers[i - 1], who->addr, sizeof who->addr) == 0) {
      return;
    }
  }
  if (d->stranger_count < STRANGERS_MAX) {
    memcpy(d->strangers[d->stranger_count++], who->addr, sizeof who->addr);
  }
}

static void words_of(const struct datagrams *d, char to[DETAIL_MAX]) {
  int n = 0;
  char unplanned[DETAIL_MAX] = "";
  if (d->server && d->passed && d->text[0] == '\0') {
    unplanned_why(d->listener, -1, unplanned, sizeof unplanned);
  }
  const char *parts[] = {d->detail, d->left_out, unplanned, d->beside_detail};
  for (unsigned i = 0; i < sizeof parts / sizeof *parts && n < DETAIL_MAX; i++) {
    if (parts[i][0] != '\0') {
      n += snprintf(to + n, (size_t)(DETAIL_MAX - n), "%s%s", n > 0 ? "; " : "", parts[i]);
    }
  }
  if (d->kept_out > 0 && n < DETAIL_MAX) {
    n += snprintf(to + n, (size_t)(DETAIL_MAX - n),
                  "%s%" PRIu64 " datagrams dropped that did not go by the chunnels (%u addresses)",
                  n > 0 ? "; " : "", d->kept_out, d->stranger_count);
  }
  if (d->lost > 0 && n < DETAIL_MAX) {
    snprintf(to + n, (size_t)(DETAIL_MAX - n), "%s%" PRIu64 " datagrams dropped for want of room",
             n > 0 ? "; " : "", d->lost);
  }
}

void dgram_tell(struct datagrams *d) {
  char words[DETAIL_MAX] = {0}; /* all of it goes into the program's memory */
  words_of(d, words);
  uint32_t state = d->text[0] != '\0' ? BERTHA_CARRIED_READY
                   : d->passed        ? BERTHA_CARRIED_PLAIN
                   : words[0] != '\0' ? BERTHA_CARRIED_REFUSED
                                      : BERTHA_CARRIED_PENDING;
  if (state == d->told_state && !d->news && strcmp(words, d->told) == 0) {
    return;
  }
  d->told_at = carrier_now();
  d->told_state = state;
  memcpy(d->told, words, sizeof words);
  if (d->status_index >= d->shim->status_count) {
    return;
  }
  struct bertha_carrier_status *to = &d->shim->statuses[d->status_index];
  if (__atomic_load_n(&to->life, __ATOMIC_ACQUIRE) != d->life) {
    return; /* another socket's by now */
  }
  if (d->news) {
    memcpy(to->chunnels, d->text, sizeof to->chunnels);
    d->news = false;
  }
  memcpy(to->detail, words, sizeof to->detail);
  __atomic_store_n(&to->state, state, __ATOMIC_RELEASE);
}

void dgram_tell_soon(struct datagrams *d) {
  int64_t now = carrier_now();
  if (now - d->told_at >= STATUS_NS) {
    dgram_tell(d);
  } else if (d->tell_timer.at == 0) {
    timer_set(&d->tell_timer, d->told_at + STATUS_NS);
  }
}
