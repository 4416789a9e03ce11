/* OpenSSL's libcrypto, loaded when it is first used: the preload library needs nothing but the C library at load time. */
#ifndef BERTHA_LIBCRYPTO_H
#define BERTHA_LIBCRYPTO_H

#include <stdbool.h>
#include <stddef.h>

typedef struct evp_cipher_st EVP_CIPHER;
typedef struct evp_cipher_ctx_st EVP_CIPHER_CTX;
typedef struct ossl_lib_ctx_st OSSL_LIB_CTX;
typedef struct ossl_param_st OSSL_PARAM;
typedef struct engine_st ENGINE;

#define LIBCRYPTO_CALLS(X)                                                                                   \
  X(OPENSSL_init_crypto, int, (unsigned long long options, const void *settings))                            \
  X(OSSL_LIB_CTX_new, OSSL_LIB_CTX *, (void))                                                                \
  X(EVP_CIPHER_fetch, EVP_CIPHER *, (OSSL_LIB_CTX * library, const char *name, const char *properties))      \
  X(EVP_CIPHER_CTX_new, EVP_CIPHER_CTX *, (void))                                                            \
  X(EVP_CIPHER_CTX_free, void, (EVP_CIPHER_CTX * context))                                                   \
  X(EVP_CIPHER_CTX_ctrl, int, (EVP_CIPHER_CTX * context, int command, int number, void *pointer))            \
  X(EVP_CipherInit_ex, int,                                                                                  \
    (EVP_CIPHER_CTX * context, const EVP_CIPHER *cipher, ENGINE *engine, const unsigned char *key,           \
     const unsigned char *iv, int encrypt))                                                                  \
  X(EVP_CipherUpdate, int,                                                                                   \
    (EVP_CIPHER_CTX * context, unsigned char *to, int *size, const unsigned char *from, int from_size))      \
  X(EVP_CipherFinal_ex, int, (EVP_CIPHER_CTX * context, unsigned char *to, int *size))                       \
  X(EVP_Q_mac, unsigned char *,                                                                              \
    (OSSL_LIB_CTX * library, const char *name, const char *properties, const char *algorithm,                \
     const OSSL_PARAM *parameters, const void *key, size_t key_size, const unsigned char *data,              \
     size_t data_size, unsigned char *to, size_t room, size_t *size))

struct libcrypto {
#define X(name, ret, params) ret(*name) params;
  LIBCRYPTO_CALLS(X)
#undef X
  OSSL_LIB_CTX
  *library; /* our own: a program's configuration of its providers is not for us, nor ours for it */
};

/* NULL: there is none, or one before 3.0 (which has no EVP_CIPHER_fetch); it is looked for once.  Loads a library: not from
 * within a signal handler. */
const struct libcrypto *libcrypto(void);

#endif
