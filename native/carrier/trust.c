/* Whom and what the carrier believes: the secrets that its agent gave it, and the plans that it has found good. */
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>

#include "session.h"

enum { KNOWN_MAX = 1024, DIGEST_SIZE = 32 };
#define BELIEVED_NS 30000000000ll

static struct secrets *all_secrets;

static struct known_plan { /* what the agent has said may run */
  uint64_t listener;
  uint8_t digest[DIGEST_SIZE];
  int64_t since;
} known[KNOWN_MAX];
static unsigned known_next;

static struct secrets *find_secrets(uint64_t listener) {
  for (struct secrets *k = all_secrets; k != NULL; k = k->next) {
    if (k->listener == listener) {
      return k;
    }
  }
  return NULL;
}

static void wipe(char *text) {
  if (text != NULL) {
    OPENSSL_cleanse(text, strlen(text));
    free(text);
  }
}

static void free_secrets(struct secrets *k) {
  if (k->replaced && k->users == 0) {
    wipe(k->key);
    free(k->certificate);
    free(k->ca);
    OPENSSL_cleanse(k, sizeof *k);
    free(k);
  }
}

/* Sessions that began with them keep them. */
static void replace_secrets(uint64_t listener) {
  for (struct secrets **at = &all_secrets; *at != NULL; at = &(*at)->next) {
    struct secrets *k = *at;
    if (k->listener == listener) {
      *at = k->next;
      k->replaced = true;
      free_secrets(k);
      return;
    }
  }
}

/* What a program names proves nothing: numbers of listeners stand where everybody reads them. */
static bool may_have(const struct secrets *k, uint64_t uid) {
  bool found = k->listener == 0 || uid == 0;
  for (unsigned i = 0; !found && i < k->uid_count; i++) {
    found = k->uids[i] == uid;
  }
  return found;
}

bool trust_serves(uint64_t listener, uint64_t uid, const char **why) {
  const struct secrets *k = find_secrets(listener);
  *why = "the listener is another user's, and its agent has not been shown the listening socket by this one";
  return k == NULL || may_have(k, uid);
}

struct secrets *trust_secrets(uint64_t listener, bool server, uint64_t uid) {
  struct secrets *k = find_secrets(listener);
  if (k != NULL && !may_have(k, uid)) {
    if (server) {
      return NULL;
    }
    k = NULL;
  }
  struct secrets *everybodys = k == NULL ? find_secrets(0) : NULL;
  if (server || everybodys == NULL) {
    k = k != NULL ? k : everybodys;
  } else if ((k = calloc(1, sizeof *k)) != NULL) { /* with its last user it is gone */
    k->has_cluster_key = everybodys->has_cluster_key;
    k->cluster_key_size = everybodys->cluster_key_size;
    memcpy(k->cluster_key, everybodys->cluster_key, sizeof k->cluster_key);
    k->replaced = true;
  }
  if (k != NULL) {
    k->users++;
  }
  return k;
}

void trust_give_back(struct secrets *k) {
  if (k != NULL) {
    k->users--;
    free_secrets(k);
  }
}

static void read_users(const struct pack_value *message, struct secrets *k) {
  struct pack_value uids, uid;
  if (!pack_get(message, "uids", &uids) || uids.kind != PACK_ARRAY) {
    return;
  }
  for (uint64_t i = 0; k->uid_count < SECRETS_USERS && pack_at(&uids, i, &uid); i++) {
    if (uid.kind == PACK_INT && uid.number <= UINT32_MAX) {
      k->uids[k->uid_count++] = (uint32_t)uid.number;
    }
  }
}

static char *text_of(const struct pack_value *map, const char *name) {
  struct pack_value value;
  return pack_get(map, name, &value) && value.kind == PACK_TEXT && value.size > 0
             ? strndup((const char *)value.data, value.size)
             : NULL;
}

void trust_learn(const struct pack_value *message) {
  struct pack_value listener, material, key;
  struct secrets *k = calloc(1, sizeof *k);
  if (k == NULL) {
    return;
  }
  bool own = false; /* perhaps none that can be used: not everybody's then */
  k->listener = pack_get(message, "listener", &listener) && listener.kind == PACK_INT ? listener.number : 0;
  read_users(message, k);
  if (pack_get(message, "material", &material) && material.kind == PACK_MAP) {
    own = true;
    k->certificate = text_of(&material, "certificate");
    k->key = text_of(&material, "key");
    k->ca = text_of(&material, "ca");
  }
  if (pack_get(message, "key", &key) && key.kind == PACK_BYTES && key.size <= sizeof k->cluster_key) {
    k->has_cluster_key = true;
    k->cluster_key_size = key.size;
    memcpy(k->cluster_key, key.data, key.size);
  }
  replace_secrets(k->listener);
  if (k->listener != 0 && !k->has_cluster_key && !own) {
    free(k); /* it has none of its own any more: everybody's are its, too */
    return;
  }
  k->next = all_secrets;
  all_secrets = k;
}

uint64_t trust_salt(void) {
  uint64_t salt = 0;
  (void)!RAND_bytes((uint8_t *)&salt, sizeof salt);
  return salt | 1;
}

static void digest_of(const uint8_t *plan, size_t plan_size, uint8_t digest[DIGEST_SIZE]) {
  unsigned size;
  if (EVP_Digest(plan, plan_size, digest, &size, EVP_sha256(), NULL) != 1) {
    memset(digest, 0, DIGEST_SIZE);
  }
}

static struct known_plan *find_known(uint64_t listener, const uint8_t digest[DIGEST_SIZE]) {
  for (unsigned i = 0; i < KNOWN_MAX; i++) {
    if (known[i].since != 0 && known[i].listener == listener &&
        memcmp(known[i].digest, digest, DIGEST_SIZE) == 0) {
      return &known[i];
    }
  }
  return NULL;
}

bool trust_knows(uint64_t listener, const uint8_t *plan, size_t size, bool agent) {
  uint8_t digest[DIGEST_SIZE];
  digest_of(plan, size, digest);
  const struct known_plan *k = find_known(listener, digest);
  return k != NULL && (!agent || carrier_now() - k->since < BELIEVED_NS);
}

void trust_remember(uint64_t listener, const uint8_t *plan, size_t size, bool good) {
  uint8_t digest[DIGEST_SIZE];
  digest_of(plan, size, digest);
  struct known_plan *k = find_known(listener, digest);
  if (!good) {
    if (k != NULL) {
      k->since = 0;
    }
    return;
  }
  if (k == NULL) {
    k = &known[known_next++ % KNOWN_MAX];
    k->listener = listener;
    memcpy(k->digest, digest, DIGEST_SIZE);
  }
  k->since = carrier_now();
}
