/* What the kernels share: one C file an index kind, two for encoders (_linear.c, _vocabulary.c), and one module
 * (_kernels.c) that offers them to Python. */

#ifndef RETRIEVERS_KERNELS_H
#define RETRIEVERS_KERNELS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* CLONES compiles a function for several instruction sets and picks one when the module is loaded. It needs ifunc
 * (GNU libc on x86-64, gcc); elsewhere the baseline is compiled. Results are the same: no clone may fuse or reorder
 * floating-point operations (-ffp-contract=off, no -ffast-math). */
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__GLIBC__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define CLONES
#endif

/* SCALAR keeps a function out of the vectoriser. */
#if defined(__GNUC__) && !defined(__clang__)
#define SCALAR __attribute__((noinline, optimize("no-tree-vectorize")))
#else
#define SCALAR
#endif

/* PREFETCH asks for what is read soon; it may lie anywhere. */
#if defined(__GNUC__)
#define PREFETCH(at) __builtin_prefetch(at)
#else
#define PREFETCH(at) ((void)(at))
#endif

/* The number of items in a buffer, or -1 where it is misaligned or no whole number of them. */
static inline int64_t item_count(const Py_buffer *buffer, Py_ssize_t size) {
    return buffer->len % size == 0 && (uintptr_t)buffer->buf % (uintptr_t)size == 0 ? (int64_t)(buffer->len / size) : -1;
}

/* Releases the buffers of a call and gives its result back. */
static inline PyObject *answer(Py_buffer *buffers, int count, PyObject *result) {
    for (int i = 0; i < count; i++)
        PyBuffer_Release(buffers + i);
    return result;
}

/* What one thread has written before it stores is there for another that loads it. */
#if defined(__GNUC__)
#define STORE_RELEASE(at, value) __atomic_store_n(at, value, __ATOMIC_RELEASE)
#define LOAD_ACQUIRE(at) __atomic_load_n(at, __ATOMIC_ACQUIRE)
#else
#define STORE_RELEASE(at, value) (*(volatile uint8_t *)(at) = (value))
#define LOAD_ACQUIRE(at) (*(const volatile uint8_t *)(at))
#endif

/* Whether the processor multiplies bytes as _linear.c and _vocabulary.c do: AVX2. */
int has_bytes(void);

PyObject *bytes_level(PyObject *module, PyObject *arguments);
PyObject *dense_best(PyObject *module, PyObject *arguments);
PyObject *dense_offer(PyObject *module, PyObject *arguments);
PyObject *dense_scan(PyObject *module, PyObject *arguments);
PyObject *dense_scores(PyObject *module, PyObject *arguments);
PyObject *documents_find(PyObject *module, PyObject *arguments);
PyObject *documents_made(PyObject *module, PyObject *arguments);
PyObject *documents_read(PyObject *module, PyObject *arguments);
PyObject *gelu(PyObject *module, PyObject *arguments);
PyObject *graph_search(PyObject *module, PyObject *arguments);
PyObject *inverted_search(PyObject *module, PyObject *arguments);
PyObject *inverted_count(PyObject *module, PyObject *arguments);
PyObject *inverted_prepare(PyObject *module, PyObject *arguments);
PyObject *inverted_slices(PyObject *module, PyObject *arguments);
PyObject *inverted_within(PyObject *module, PyObject *arguments);
PyObject *linear_bytes(PyObject *module, PyObject *arguments);
PyObject *lists_search(PyObject *module, PyObject *arguments);
PyObject *maxsim_level(PyObject *module, PyObject *arguments);
PyObject *maxsim_scores(PyObject *module, PyObject *arguments);
PyObject *maxsim_exact(PyObject *module, PyObject *arguments);
PyObject *plaid_assign(PyObject *module, PyObject *arguments);
PyObject *plaid_decode(PyObject *module, PyObject *arguments);
PyObject *plaid_search(PyObject *module, PyObject *arguments);
PyObject *vocabulary_bound(PyObject *module, PyObject *arguments);

#endif
