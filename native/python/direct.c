/* `bertha_socket._direct`: send and recv of a connection without chunnels, as one call from Python each.
 *
 * A method in Python around `socket.send` costs more than the ring that the bytes go through; these are bound to
 * the connection itself.  `send` and `recv` below are the C library's names: the preload library's functions where
 * it is loaded, whichever door brought it. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>

/* What is received at once: little on the stack as long as little comes (a bytes object for all that might come
 * would cost more than the message), else much. */
enum { LITTLE = 4096, MUCH = 65536 };

typedef struct {
  PyObject_HEAD int fd; /* the owner's; -1: closed */
  int busy;             /* the last message filled its room */
  PyObject *ended;      /* what EOFError is to say */
} Pipe;

static PyObject *pipe_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
  static char *names[] = {"fd", "ended", NULL};
  int fd;
  PyObject *ended;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "iU:Pipe", names, &fd, &ended)) {
    return NULL;
  }
  allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
  Pipe *pipe = (Pipe *)allocate(type, 0);
  if (pipe != NULL) {
    Py_INCREF(ended);
    pipe->fd = fd;
    pipe->busy = 0;
    pipe->ended = ended;
  }
  return (PyObject *)pipe;
}

static void pipe_dealloc(PyObject *self) {
  PyTypeObject *type = Py_TYPE(self);
  Py_XDECREF(((Pipe *)self)->ended);
  freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
  release(self);
  Py_DECREF(type);
}

/* After a failed call: 0, it is to be made again; -1, an exception is set. */
static int refused(int error) {
  if (error == EINTR) {
    return PyErr_CheckSignals();
  }
  errno = error;
  PyErr_SetFromErrno(PyExc_OSError);
  return -1;
}

static PyObject *pipe_send(PyObject *self, PyObject *item) {
  Py_buffer data;
  if (PyObject_GetBuffer(item, &data, PyBUF_SIMPLE) != 0) {
    return NULL;
  }
  const char *from = data.buf;
  Py_ssize_t left = data.len;
  while (left > 0) {
    int fd = ((Pipe *)self)->fd;
    PyThreadState *state = PyEval_SaveThread();
    ssize_t n = send(fd, from, (size_t)left, MSG_NOSIGNAL);
    int error = errno;
    PyEval_RestoreThread(state);
    if (n >= 0) {
      from += n;
      left -= n;
    } else if (refused(error) != 0) {
      PyBuffer_Release(&data);
      return NULL;
    }
  }
  PyBuffer_Release(&data);
  Py_INCREF(Py_None);
  return Py_None;
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Until there is something; 0: there is, -1: an exception is set. */
static int pipe_wait(const Pipe *self, double seconds) {
  double until = now() + seconds;
  for (;;) {
    double left = until - now();
    if (self->fd < 0) { /* poll would only wait */
      return refused(EBADF);
    }
    int milliseconds = left <= 0 ? 0 : left > 1e6 ? 1000000000 : (int)(left * 1000) + 1;
    struct pollfd one = {.fd = self->fd, .events = POLLIN};
    PyThreadState *state = PyEval_SaveThread();
    int n = poll(&one, 1, milliseconds);
    int error = errno;
    PyEval_RestoreThread(state);
    if (n > 0) {
      return 0;
    }
    if (n < 0 && refused(error) != 0) {
      return -1;
    }
    if (n == 0 && now() >= until) {
      errno = ETIMEDOUT;
      PyErr_SetFromErrno(PyExc_OSError);
      return -1;
    }
  }
}

static PyObject *pipe_take(Pipe *self) {
  char little[LITTLE];
  for (;;) {
    PyObject *much = self->busy ? PyBytes_FromStringAndSize(NULL, MUCH) : NULL;
    if (self->busy && much == NULL) {
      return NULL;
    }
    char *to = much != NULL ? PyBytes_AsString(much) : little;
    size_t room = much != NULL ? MUCH : LITTLE;
    int fd = self->fd;
    PyThreadState *state = PyEval_SaveThread();
    ssize_t n = recv(fd, to, room, 0);
    int error = errno;
    PyEval_RestoreThread(state);
    if (n > 0) {
      self->busy = n >= LITTLE;
      if (much == NULL) {
        return PyBytes_FromStringAndSize(little, n);
      }
      _PyBytes_Resize(&much, n);
      return much;
    }
    Py_XDECREF(much);
    if (n == 0) {
      PyErr_SetObject(PyExc_EOFError, self->ended);
      return NULL;
    }
    if (refused(error) != 0) {
      return NULL;
    }
  }
}

/* recv(timeout=None) */
static PyObject *pipe_recv(PyObject *self, PyObject *const *args, Py_ssize_t given, PyObject *names) {
  Py_ssize_t named = names != NULL ? PyTuple_Size(names) : 0;
  if (given + named > 0) {
    if (given + named > 1 ||
        (named == 1 && PyUnicode_CompareWithASCIIString(PyTuple_GetItem(names, 0), "timeout") != 0)) {
      PyErr_SetString(PyExc_TypeError, "recv() takes a timeout and nothing else");
      return NULL;
    }
    if (args[0] != Py_None) {
      double seconds = PyFloat_AsDouble(args[0]);
      if (seconds != seconds) {
        PyErr_SetString(PyExc_ValueError, "recv(): a timeout is a number");
        return NULL;
      }
      if ((seconds == -1.0 && PyErr_Occurred()) || pipe_wait((Pipe *)self, seconds) != 0) {
        return NULL;
      }
    }
  }
  return pipe_take((Pipe *)self);
}

static PyObject *pipe_close(PyObject *self, PyObject *unused) {
  (void)unused;
  ((Pipe *)self)->fd = -1;
  Py_INCREF(Py_None);
  return Py_None;
}

static PyMethodDef methods[] = {
    {"send", pipe_send, METH_O, "Sends all of it: bytes, or what else has them.  Raises OSError."},
    {"recv", (PyCFunction)(void (*)(void))pipe_recv, METH_FASTCALL | METH_KEYWORDS,
     "Bytes as they come.  Raises EOFError at the end, TimeoutError after `timeout` seconds, other "
     "OSErrors."},
    {"close", pipe_close, METH_NOARGS, "The descriptor is no longer ours: it is used no more."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "Pipe(fd, ended): a blocking stream socket that somebody else owns."},
    {Py_tp_new, (void *)pipe_new},
    {Py_tp_dealloc, (void *)pipe_dealloc},
    {Py_tp_methods, methods},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "bertha_socket._direct.Pipe",
    .basicsize = sizeof(Pipe),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = slots,
};

static int fill(PyObject *module) {
  PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
  if (type == NULL) {
    return -1;
  }
  int result = PyModule_AddType(module, (PyTypeObject *)type);
  Py_DECREF(type);
  return result;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, (void *)fill}, {0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "bertha_socket._direct",
    .m_doc = "Sending and receiving in one call.",
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__direct(void);

PyMODINIT_FUNC PyInit__direct(void) {
  return PyModuleDef_Init(&module);
}
