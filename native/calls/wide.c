/* Wide characters on the streams of core/stdfile.h.
 *
 * glibc's fopencookie() makes streams of bytes only, and its wide calls crash on them.  On our streams these calls
 * convert from and to bytes themselves; on any other they are glibc's. */
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>

#include "../core/stdfile.h"
#include "calls.h"

static wint_t get(FILE *f) {
  mbstate_t state = {0};
  for (;;) {
    int byte = fgetc(f);
    wchar_t wide;
    if (byte == EOF) {
      return WEOF;
    }
    char one = (char)byte;
    size_t n = mbrtowc(&wide, &one, 1, &state);
    if (n == (size_t)-1) {
      f->_flags |= 0x20; /* _IO_ERR_SEEN: ferror() */
      return WEOF;
    }
    if (n != (size_t)-2) {
      return (wint_t)wide;
    }
  }
}

static wint_t put(wchar_t wide, FILE *f) {
  char bytes[MB_LEN_MAX];
  mbstate_t state = {0};
  size_t n = wcrtomb(bytes, wide, &state);
  return n != (size_t)-1 && fwrite(bytes, 1, n, f) == n ? (wint_t)wide : WEOF;
}

static wchar_t *get_line(wchar_t *text, int size, FILE *f) {
  int n = 0;
  while (n < size - 1) {
    wint_t wide = get(f);
    if (wide == WEOF) {
      break;
    }
    text[n++] = (wchar_t)wide;
    if (wide == L'\n') {
      break;
    }
  }
  if (n == 0 && size > 1) {
    return NULL;
  }
  text[n] = L'\0';
  return text;
}

static int put_text(const wchar_t *text, FILE *f) {
  while (*text != L'\0') {
    if (put(*text++, f) == WEOF) {
      return -1;
    }
  }
  return 1;
}

static int print(FILE *f, const wchar_t *format, va_list args) {
  wchar_t *text = NULL;
  size_t size = 256;
  for (;;) {
    wchar_t *more = realloc(text, size * sizeof *text);
    if (more == NULL) {
      free(text);
      return -1;
    }
    text = more;
    va_list again;
    va_copy(again, args);
    int n = vswprintf(text, size, format, again);
    va_end(again);
    if (n >= 0) {
      n = put_text(text, f) < 0 ? -1 : n;
      free(text);
      return n;
    }
    if (size > (1u << 24)) { /* not for want of room */
      free(text);
      return -1;
    }
    size *= 4;
  }
}

#define INPUT(name)                                                                                          \
  BERTHA_EXPORT wint_t name(FILE *f) {                                                                       \
    return UNLIKELY(stdfile_is(f)) ? get(f) : REAL(name)(f);                                                 \
  }
#define OUTPUT(name)                                                                                         \
  BERTHA_EXPORT wint_t name(wchar_t wide, FILE *f) {                                                         \
    return UNLIKELY(stdfile_is(f)) ? put(wide, f) : REAL(name)(wide, f);                                     \
  }
#undef getwc
#undef putwc
INPUT(fgetwc)
INPUT(getwc)
INPUT(fgetwc_unlocked)
INPUT(getwc_unlocked)
OUTPUT(fputwc)
OUTPUT(putwc)
OUTPUT(fputwc_unlocked)
OUTPUT(putwc_unlocked)

BERTHA_EXPORT wint_t getwchar(void) {
  return fgetwc(stdin);
}

BERTHA_EXPORT wint_t getwchar_unlocked(void) {
  return fgetwc_unlocked(stdin);
}

BERTHA_EXPORT wint_t putwchar(wchar_t wide) {
  return fputwc(wide, stdout);
}

BERTHA_EXPORT wint_t putwchar_unlocked(wchar_t wide) {
  return fputwc_unlocked(wide, stdout);
}

/* More than one byte may go back: glibc's stream of bytes makes room for them. */
BERTHA_EXPORT wint_t ungetwc(wint_t wide, FILE *f) {
  if (LIKELY(!stdfile_is(f)) || wide == WEOF) {
    return REAL(ungetwc)(wide, f);
  }
  char bytes[MB_LEN_MAX];
  mbstate_t state = {0};
  size_t n = wcrtomb(bytes, (wchar_t)wide, &state);
  while (n != (size_t)-1 && n > 0) {
    if (ungetc((unsigned char)bytes[--n], f) == EOF) {
      return WEOF;
    }
  }
  return n == 0 ? wide : WEOF;
}

BERTHA_EXPORT wchar_t *fgetws(wchar_t *text, int size, FILE *f) {
  return UNLIKELY(stdfile_is(f)) ? get_line(text, size, f) : REAL(fgetws)(text, size, f);
}

BERTHA_EXPORT wchar_t *fgetws_unlocked(wchar_t *text, int size, FILE *f) {
  return UNLIKELY(stdfile_is(f)) ? get_line(text, size, f) : REAL(fgetws_unlocked)(text, size, f);
}

BERTHA_EXPORT int fputws(const wchar_t *text, FILE *f) {
  return UNLIKELY(stdfile_is(f)) ? put_text(text, f) : REAL(fputws)(text, f);
}

BERTHA_EXPORT int fputws_unlocked(const wchar_t *text, FILE *f) {
  return UNLIKELY(stdfile_is(f)) ? put_text(text, f) : REAL(fputws_unlocked)(text, f);
}

BERTHA_EXPORT int vfwprintf(FILE *f, const wchar_t *format, va_list args) {
  return UNLIKELY(stdfile_is(f)) ? print(f, format, args) : REAL(vfwprintf)(f, format, args);
}

BERTHA_EXPORT int vwprintf(const wchar_t *format, va_list args) {
  return vfwprintf(stdout, format, args);
}

#define VARIADIC(call)                                                                                       \
  va_list args;                                                                                              \
  va_start(args, format);                                                                                    \
  int n = call;                                                                                              \
  va_end(args);                                                                                              \
  return n

BERTHA_EXPORT int fwprintf(FILE *f, const wchar_t *format, ...) {
  VARIADIC(vfwprintf(f, format, args));
}

BERTHA_EXPORT int wprintf(const wchar_t *format, ...) {
  VARIADIC(vfwprintf(stdout, format, args));
}

/* A stream of ours stays one of bytes. */
BERTHA_EXPORT int fwide(FILE *f, int mode) {
  return UNLIKELY(stdfile_is(f)) ? -1 : REAL(fwide)(f, mode);
}

/* The fortified forms. */
__attribute__((noreturn)) void __chk_fail(void);
BERTHA_EXPORT wchar_t *__fgetws_chk(wchar_t *text, size_t room, int size, FILE *f);
BERTHA_EXPORT wchar_t *__fgetws_unlocked_chk(wchar_t *text, size_t room, int size, FILE *f);
BERTHA_EXPORT int __vfwprintf_chk(FILE *f, int flag, const wchar_t *format, va_list args);
BERTHA_EXPORT int __vwprintf_chk(int flag, const wchar_t *format, va_list args);
BERTHA_EXPORT int __fwprintf_chk(FILE *f, int flag, const wchar_t *format, ...);
BERTHA_EXPORT int __wprintf_chk(int flag, const wchar_t *format, ...);

wchar_t *__fgetws_chk(wchar_t *text, size_t room, int size, FILE *f) {
  if (LIKELY(!stdfile_is(f))) {
    return REAL(__fgetws_chk)(text, room, size, f);
  }
  if (size > 0 && (size_t)size > room) {
    __chk_fail();
  }
  return get_line(text, size, f);
}

wchar_t *__fgetws_unlocked_chk(wchar_t *text, size_t room, int size, FILE *f) {
  return UNLIKELY(stdfile_is(f)) ? __fgetws_chk(text, room, size, f)
                                 : REAL(__fgetws_unlocked_chk)(text, room, size, f);
}

int __vfwprintf_chk(FILE *f, int flag, const wchar_t *format, va_list args) {
  return UNLIKELY(stdfile_is(f)) ? print(f, format, args) : REAL(__vfwprintf_chk)(f, flag, format, args);
}

int __vwprintf_chk(int flag, const wchar_t *format, va_list args) {
  return __vfwprintf_chk(stdout, flag, format, args);
}

int __fwprintf_chk(FILE *f, int flag, const wchar_t *format, ...) {
  VARIADIC(__vfwprintf_chk(f, flag, format, args));
}

int __wprintf_chk(int flag, const wchar_t *format, ...) {
  VARIADIC(__vfwprintf_chk(stdout, flag, format, args));
}
