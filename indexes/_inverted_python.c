/* The kernels over postings as Python calls them: buffers in, their sizes checked against each other, the lock released.
 * _inverted_numpy.py says what the arguments mean. */

#include "_within.h"

#include <stdlib.h>

enum { SPARES = 16 }; /* scratches, of less than a megabyte each */

static const Py_ssize_t payload_size[KINDS] = {2, 1, 1, 2, 4};

/* The number of items in a buffer, or -1 (and a ValueError) where it is misaligned or no whole number of them. */
static int64_t items(const Py_buffer *buffer, Py_ssize_t size, const char *name) {
    const int64_t found = item_count(buffer, size);
    if (found < 0)
        PyErr_Format(PyExc_ValueError, "%s: %zd bytes are no aligned array of items of %zd bytes", name, buffer->len, size);
    return found;
}

enum {
    IDS, PAYLOAD, TERM_BLOCKS, BLOCK_START, BLOCK_RANGE, BLOCK_MAX, NORMS, MASK, SLOTS, WEIGHTS, OFFSETS, ROWS, SCORES,
    COUNTS, BUFFERS
};

/* Everything that the sizes of the buffers must satisfy; the longest query, or -1 with an exception set. */
static int64_t check_search(Index *index, int64_t k, const Py_buffer *buffers) {
    static const char *const names[BUFFERS] = {"ids", "payload", "term_blocks", "block_start", "block_range",
                                               "block_max", "norms", "mask", "slots", "weights", "offsets", "rows",
                                               "scores", "counts"};
    Py_ssize_t sizes[BUFFERS] = {2, 0, 8, 8, 4, 0, 4, 1, 8, 4, 8, 8, 4, 8};
    int64_t lengths[BUFFERS], longest = 0;
    if (index->kind < 0 || index->kind >= KINDS || index->n < 0 || index->n > (int64_t)RANGE * UINT32_MAX || k < 1) {
        PyErr_SetString(PyExc_ValueError, "kind, n or k is out of range");
        return -1;
    }
    sizes[PAYLOAD] = sizes[BLOCK_MAX] = payload_size[index->kind];
    for (int i = 0; i < BUFFERS; i++)
        if ((lengths[i] = items(buffers + i, sizes[i], names[i])) < 0)
            return -1;
    index->term_count = lengths[TERM_BLOCKS] - 1;
    index->block_count = lengths[BLOCK_RANGE];
    index->posting_count = lengths[IDS];
    const int64_t queries = lengths[OFFSETS] - 1;
    const int impacts = index->kind <= IMPACTS_8;
    if (index->term_count < 0 || lengths[BLOCK_START] != index->block_count + 1 ||
        lengths[PAYLOAD] != index->posting_count || (impacts && lengths[BLOCK_MAX] != index->block_count) ||
        (!impacts && lengths[NORMS] != index->n) ||
        (buffers[MASK].buf != NULL && lengths[MASK] != index->n / 8 + (index->n % 8 != 0)) || queries < 0 ||
        lengths[WEIGHTS] != lengths[SLOTS] || lengths[COUNTS] != queries || lengths[ROWS] != lengths[SCORES] ||
        (queries > 0 && lengths[ROWS] / queries < k)) {
        PyErr_SetString(PyExc_ValueError, "the sizes of the buffers do not fit together");
        return -1;
    }
    const int64_t *offsets = buffers[OFFSETS].buf;
    for (int64_t i = 0; i < queries; i++) {
        if (offsets[i] < 0 || offsets[i + 1] < offsets[i] || offsets[i + 1] > lengths[SLOTS]) {
            PyErr_SetString(PyExc_ValueError, "the offsets of the queries do not rise within their terms");
            return -1;
        }
        if (offsets[i + 1] - offsets[i] > longest)
            longest = offsets[i + 1] - offsets[i];
    }
    return longest;
}

static const char COARSE[] = "retrievers.indexes.coarse";

static void free_capsule(PyObject *capsule) { coarse_free(PyCapsule_GetPointer(capsule, COARSE)); }

/* inverted_prepare(n, ids, term_blocks, block_start): room for what searches by whole numbers keep of these postings, or None
 * where there is no memory for it. */
PyObject *inverted_prepare(PyObject *module, PyObject *arguments) {
    (void)module;
    enum { THE_IDS, TERMS, STARTS, ALL };
    Py_buffer b[ALL];
    long long n;
    if (!PyArg_ParseTuple(arguments, "Ly*y*y*", &n, b, b + 1, b + 2))
        return NULL;
    Index index = {0};
    index.n = n;
    index.posting_count = items(b + THE_IDS, 2, "ids");
    index.term_count = items(b + TERMS, 8, "term_blocks") - 1;
    index.block_count = items(b + STARTS, 8, "block_start") - 1;
    index.term_blocks = b[TERMS].buf, index.block_start = b[STARTS].buf;
    PyObject *capsule = NULL;
    if (n < 0 || n > (int64_t)RANGE * UINT32_MAX || index.posting_count < 0 || index.term_count < 0 || index.block_count < 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "the sizes of the buffers do not fit together");
    } else {
        Coarse *coarse = coarse_new(&index);
        if (coarse == NULL) { /* without the room a search takes its slower way */
            Py_INCREF(Py_None);
            capsule = Py_None;
        } else if ((capsule = PyCapsule_New(coarse, COARSE, free_capsule)) == NULL)
            coarse_free(coarse);
    }
    for (int i = 0; i < ALL; i++)
        PyBuffer_Release(b + i);
    return capsule;
}

/* As many scratches as searched at once outlive the calls, since fresh memory costs as much as a short search. They change
 * hands only with Python's lock held. */
static Scratch *spares[SPARES];
static int spare_count = 0;

static const char OUT_OF_BOUNDS[] = "a slot, block or range of the postings is out of bounds";

/* A scratch with room for so many cursors, or NULL without memory. */
static Scratch *take_scratch(int64_t count) {
    Scratch *scratch = spare_count > 0 ? spares[--spare_count] : calloc(1, sizeof *scratch);
    Cursor *cursors = malloc((size_t)(count + 1) * sizeof *cursors);
    Cursor **active = malloc((size_t)(count + 1) * sizeof *active);
    if (scratch == NULL || cursors == NULL || active == NULL) {
        free(active);
        free(cursors);
        free(scratch);
        return NULL;
    }
    scratch->cursors = cursors, scratch->active = active;
    return scratch;
}

static void give_scratch(Scratch *scratch) {
    if (scratch == NULL)
        return;
    free(scratch->active);
    free(scratch->cursors);
    if (spare_count < SPARES)
        spares[spare_count++] = scratch;
    else
        free(scratch);
}

static void set_buffers(Index *index, const Py_buffer *b) {
    index->ids = b[IDS].buf, index->payload = b[PAYLOAD].buf, index->term_blocks = b[TERM_BLOCKS].buf;
    index->block_start = b[BLOCK_START].buf, index->block_range = b[BLOCK_RANGE].buf, index->block_max = b[BLOCK_MAX].buf;
    index->norms = index->kind > IMPACTS_8 ? b[NORMS].buf : NULL, index->mask = b[MASK].buf;
}

/* inverted_search(kind, n, k, ids, payload, term_blocks, block_start, block_range, block_max | None, norms | None,
 *                 mask | None, slots, weights, offsets, rows, scores, counts[, what inverted_prepare gave | None]) */
PyObject *inverted_search(PyObject *module, PyObject *arguments) {
    (void)module;
    Index index;
    Py_buffer b[BUFFERS];
    long long n, k;
    PyObject *prepared = Py_None;
    if (!PyArg_ParseTuple(arguments, "iLLy*y*y*y*y*z*z*z*y*y*y*w*w*w*|O", &index.kind, &n, &k, b + IDS, b + PAYLOAD,
                          b + TERM_BLOCKS, b + BLOCK_START, b + BLOCK_RANGE, b + BLOCK_MAX, b + NORMS, b + MASK,
                          b + SLOTS, b + WEIGHTS, b + OFFSETS, b + ROWS, b + SCORES, b + COUNTS, &prepared))
        return NULL;
    index.n = n;
    int status = -1;
    int64_t longest = check_search(&index, k, b);
    Coarse *coarse = NULL;
    if (longest >= 0 && prepared != Py_None) {
        coarse = PyCapsule_GetPointer(prepared, COARSE);
        if (coarse == NULL || !coarse_fits(coarse, &index)) {
            longest = -1;
            if (coarse != NULL)
                PyErr_SetString(PyExc_ValueError, "what was prepared does not fit the sizes of the buffers");
        }
    }
    if (longest >= 0) {
        set_buffers(&index, b);
        Scratch *scratch = take_scratch(longest);
        if (scratch != NULL) {
            const int64_t *offsets = b[OFFSETS].buf, queries = (int64_t)(b[OFFSETS].len / 8) - 1;
            status = 0;
            Py_BEGIN_ALLOW_THREADS
            for (int64_t i = 0; i < queries && status == 0; i++) {
                Heap heap = {(float *)b[SCORES].buf + i * k, (int64_t *)b[ROWS].buf + i * k, 0, k};
                status = inverted_query(&index, coarse, (const int64_t *)b[SLOTS].buf + offsets[i],
                                      (const float *)b[WEIGHTS].buf + offsets[i], offsets[i + 1] - offsets[i], scratch,
                                      &heap);
                ((int64_t *)b[COUNTS].buf)[i] = heap.size;
            }
            Py_END_ALLOW_THREADS
            if (status != 0)
                PyErr_SetString(PyExc_ValueError, OUT_OF_BOUNDS);
        } else
            PyErr_NoMemory();
        give_scratch(scratch);
    }
    for (int i = 0; i < BUFFERS; i++)
        PyBuffer_Release(b + i);
    if (status != 0)
        return NULL;
    Py_RETURN_NONE;
}

static const char SLICES[] = "retrievers.indexes.slices";

static void free_slices(PyObject *capsule) { slices_free(PyCapsule_GetPointer(capsule, SLICES)); }

/* inverted_slices(n, terms, postings): room for what searches by slices keep of so many terms. */
PyObject *inverted_slices(PyObject *module, PyObject *arguments) {
    (void)module;
    long long n, terms, postings;
    if (!PyArg_ParseTuple(arguments, "LLL", &n, &terms, &postings))
        return NULL;
    if (n < 0 || n > (int64_t)RANGE * UINT32_MAX || terms < 0 || terms > INT64_MAX / 64) {
        PyErr_SetString(PyExc_ValueError, "n or the number of terms is out of range");
        return NULL;
    }
    Slices *slices = slices_new(n, terms, postings);
    if (slices == NULL)
        return PyErr_NoMemory();
    PyObject *capsule = PyCapsule_New(slices, SLICES, free_slices);
    if (capsule == NULL)
        slices_free(slices);
    return capsule;
}

/* inverted_within(kind, n, k, ids, payload, term_blocks, block_start, block_range, block_max | None, norms | None,
 *                 mask | None, slots, weights, offsets, rows, scores, counts, least, give_up, seconds,
 *                 what inverted_slices gave): one query. */
PyObject *inverted_within(PyObject *module, PyObject *arguments) {
    (void)module;
    Index index;
    Py_buffer b[BUFFERS];
    long long n, k;
    double least, give_up, seconds;
    PyObject *prepared;
    if (!PyArg_ParseTuple(arguments, "iLLy*y*y*y*y*z*z*z*y*y*y*w*w*w*dddO", &index.kind, &n, &k, b + IDS, b + PAYLOAD,
                          b + TERM_BLOCKS, b + BLOCK_START, b + BLOCK_RANGE, b + BLOCK_MAX, b + NORMS, b + MASK,
                          b + SLOTS, b + WEIGHTS, b + OFFSETS, b + ROWS, b + SCORES, b + COUNTS, &least, &give_up, &seconds,
                          &prepared))
        return NULL;
    index.n = n;
    int status = -1;
    Looked looked = {0};
    Slices *slices = PyCapsule_GetPointer(prepared, SLICES);
    const int64_t count = slices == NULL ? -1 : check_search(&index, k, b);
    if (count >= 0 && (b[OFFSETS].len != 16 || !slices_fit(slices, &index) || !(give_up >= 0.0 && give_up < 1.0)))
        PyErr_SetString(PyExc_ValueError, "one query is searched, with what was made for these sizes, giving up less than all");
    else if (count >= 0) {
        set_buffers(&index, b);
        const int64_t *slots = (const int64_t *)b[SLOTS].buf + ((const int64_t *)b[OFFSETS].buf)[0];
        const float *weights = (const float *)b[WEIGHTS].buf + ((const int64_t *)b[OFFSETS].buf)[0];
        Scratch *scratch = take_scratch(count);
        Room *room = scratch == NULL || slices_room(&index, slices, slots, count) < 0 ? NULL : take_room(slices, count);
        if (room == NULL)
            PyErr_NoMemory();
        else {
            Heap heap = {b[SCORES].buf, b[ROWS].buf, 0, k};
            Py_BEGIN_ALLOW_THREADS
            status = within_query(&index, slices, slots, weights, count, (float)least, give_up, seconds, scratch, room, &heap, &looked);
            Py_END_ALLOW_THREADS
            ((int64_t *)b[COUNTS].buf)[0] = heap.size;
            if (status != 0)
                PyErr_SetString(PyExc_ValueError, OUT_OF_BOUNDS);
        }
        if (room != NULL)
            give_room(slices, room);
        give_scratch(scratch);
    }
    for (int i = 0; i < BUFFERS; i++)
        PyBuffer_Release(b + i);
    if (status != 0)
        return NULL;
    return Py_BuildValue("LLLLLd", (long long)looked.slices, (long long)looked.slices_read, (long long)looked.documents,
                         (long long)looked.documents_read, (long long)looked.postings_read, (double)looked.ceiling);
}

/* inverted_count(n, ids, block_start, block_range, mask, counts) */
PyObject *inverted_count(PyObject *module, PyObject *arguments) {
    (void)module;
    enum { THE_IDS, STARTS, RANGES, ROW_MASK, OUT, ALL };
    Py_buffer b[ALL];
    long long n;
    if (!PyArg_ParseTuple(arguments, "Ly*y*y*y*w*", &n, b, b + 1, b + 2, b + 3, b + 4))
        return NULL;
    const int64_t postings = items(b + THE_IDS, 2, "ids"), starts = items(b + STARTS, 8, "block_start");
    const int64_t blocks = items(b + RANGES, 4, "block_range"), out = items(b + OUT, 8, "counts");
    int failed = postings < 0 || starts < 0 || blocks < 0 || out < 0;
    if (!failed && (n < 0 || starts != blocks + 1 || out != blocks || (int64_t)b[ROW_MASK].len != n / 8 + (n % 8 != 0))) {
        PyErr_SetString(PyExc_ValueError, "the sizes of the buffers do not fit together");
        failed = 1;
    }
    if (!failed) {
        const uint16_t *ids = b[THE_IDS].buf;
        const int64_t *start = b[STARTS].buf;
        const uint32_t *range = b[RANGES].buf;
        const uint8_t *mask = b[ROW_MASK].buf;
        int64_t *counts = b[OUT].buf;
        Py_BEGIN_ALLOW_THREADS
        for (int64_t block = 0; block < blocks && !failed; block++) {
            const int64_t base = (int64_t)range[block] * RANGE;
            int64_t count = 0;
            failed = start[block] < 0 || start[block + 1] < start[block] || start[block + 1] > postings;
            for (int64_t at = start[block]; at < start[block + 1] && !failed; at++) {
                const int64_t row = base + ids[at];
                if (row < n)
                    count += mask[row >> 3] >> (row & 7) & 1;
            }
            counts[block] = count;
        }
        Py_END_ALLOW_THREADS
        if (failed)
            PyErr_SetString(PyExc_ValueError, "a block of the postings is out of bounds");
    }
    for (int i = 0; i < ALL; i++)
        PyBuffer_Release(b + i);
    if (failed)
        return NULL;
    Py_RETURN_NONE;
}
