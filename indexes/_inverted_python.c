/* The kernels over postings as Python calls them: buffers in, their sizes checked against each other, the lock released.
 * _inverted_numpy.py says what the arguments mean. */

#include "_within.h"

#include <stdlib.h>

enum {
    SPARES = 16, /* scratches, of less than a megabyte each */
    GUESSES = 8  /* of a place by a column's value, after which halves are taken */
};

static const Py_ssize_t payload_size[KINDS] = {2, 1, 1, 2, 4};

/* The number of items in a buffer, or -1 (and a ValueError) where it is misaligned or no whole number of them. */
static int64_t items(const Py_buffer *buffer, Py_ssize_t size, const char *name) {
    const int64_t found = item_count(buffer, size);
    if (found < 0)
        PyErr_Format(PyExc_ValueError, "%s: %zd bytes are no aligned array of items of %zd bytes", name, buffer->len, size);
    return found;
}

enum { IDS, PAYLOAD, TERM_BLOCKS, BLOCK_START, BLOCK_RANGE, TERMS, SCALES, BLOCK_MAX, NORMS, HELD };

/* Postings that are searched again and again, their buffers checked against each other and held. */
typedef struct {
    Index index; /* without a mask */
    const int64_t *terms;
    const float *scales; /* by which the weight of each term is multiplied, or NULL */
    Coarse *coarse;      /* or NULL: without it a search takes its slower way */
    Py_buffer buffers[HELD];
} Prepared;

static const char PREPARED[] = "retrievers.indexes.postings";

static void free_prepared(Prepared *prepared) {
    for (int i = 0; i < HELD; i++)
        PyBuffer_Release(prepared->buffers + i);
    coarse_free(prepared->coarse);
    free(prepared);
}

static void free_capsule(PyObject *capsule) { free_prepared(PyCapsule_GetPointer(capsule, PREPARED)); }

/* Everything that the sizes of the buffers must satisfy. Returns 0, or -1 with an exception set. */
static int set_index(Prepared *prepared) {
    static const char *const names[HELD] = {"ids", "payload", "term_blocks", "block_start", "block_range", "terms", "scales", "block_max", "norms"};
    Py_ssize_t sizes[HELD] = {2, 0, 8, 8, 4, 8, 4, 0, 4};
    int64_t lengths[HELD];
    Index *index = &prepared->index;
    const Py_buffer *b = prepared->buffers;
    if (index->kind < 0 || index->kind >= KINDS || index->n < 0 || index->n > (int64_t)RANGE * UINT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "kind or n is out of range");
        return -1;
    }
    sizes[PAYLOAD] = sizes[BLOCK_MAX] = payload_size[index->kind];
    for (int i = 0; i < HELD; i++)
        if ((lengths[i] = items(b + i, sizes[i], names[i])) < 0)
            return -1;
    index->term_count = lengths[TERM_BLOCKS] - 1;
    index->block_count = lengths[BLOCK_RANGE];
    index->posting_count = lengths[IDS];
    const int impacts = index->kind <= IMPACTS_8;
    if (index->term_count < 0 || lengths[BLOCK_START] != index->block_count + 1 || lengths[PAYLOAD] != index->posting_count ||
        lengths[TERMS] != index->term_count || (b[SCALES].buf != NULL && lengths[SCALES] != index->term_count) ||
        (impacts && lengths[BLOCK_MAX] != index->block_count) || (!impacts && lengths[NORMS] != index->n)) {
        PyErr_SetString(PyExc_ValueError, "the sizes of the buffers do not fit together");
        return -1;
    }
    index->ids = b[IDS].buf, index->payload = b[PAYLOAD].buf, index->term_blocks = b[TERM_BLOCKS].buf;
    index->block_start = b[BLOCK_START].buf, index->block_range = b[BLOCK_RANGE].buf, index->block_max = b[BLOCK_MAX].buf;
    index->norms = impacts ? NULL : b[NORMS].buf;
    prepared->terms = b[TERMS].buf, prepared->scales = b[SCALES].buf;
    return 0;
}

/* inverted_prepare(kind, n, ids, payload, term_blocks, block_start, block_range, terms, scales | None, block_max | None,
 *                  norms | None[, whether there is to be room for searches by whole numbers]) */
PyObject *inverted_prepare(PyObject *module, PyObject *arguments) {
    (void)module;
    Prepared *prepared = calloc(1, sizeof *prepared);
    if (prepared == NULL)
        return PyErr_NoMemory();
    Py_buffer *b = prepared->buffers;
    long long n;
    int coarse = 1;
    if (!PyArg_ParseTuple(arguments, "iLy*y*y*y*y*y*z*z*z*|p", &prepared->index.kind, &n, b + IDS, b + PAYLOAD,
                          b + TERM_BLOCKS, b + BLOCK_START, b + BLOCK_RANGE, b + TERMS, b + SCALES, b + BLOCK_MAX,
                          b + NORMS, &coarse)) {
        free(prepared); /* the buffers that were taken have been given back */
        return NULL;
    }
    prepared->index.n = n;
    PyObject *capsule = NULL;
    if (set_index(prepared) == 0) {
        prepared->coarse = coarse ? coarse_new(&prepared->index) : NULL;
        capsule = PyCapsule_New(prepared, PREPARED, free_capsule);
    }
    if (capsule == NULL)
        free_prepared(prepared);
    return capsule;
}

/* As many scratches as searched at once outlive the calls, since fresh memory costs as much as a short search. They change
 * hands only with Python's lock held. */
static Scratch *spares[SPARES];
static int spare_count = 0;

static const char OUT_OF_BOUNDS[] = "a block or range of the postings is out of bounds";

/* A scratch with room for so many cursors, or NULL without memory. */
static Scratch *take_scratch(int64_t count) {
    Scratch *scratch = spare_count > 0 ? spares[--spare_count] : calloc(1, sizeof *scratch);
    Cursor *cursors = malloc((size_t)(count + 1) * sizeof *cursors);
    Cursor **active = malloc((size_t)(count + 1) * sizeof *active);
    int64_t *slots = malloc((size_t)(count + 1) * sizeof *slots);
    float *weights = malloc((size_t)(count + 1) * sizeof *weights);
    if (scratch == NULL || cursors == NULL || active == NULL || slots == NULL || weights == NULL) {
        free(weights);
        free(slots);
        free(active);
        free(cursors);
        free(scratch);
        return NULL;
    }
    scratch->cursors = cursors, scratch->active = active, scratch->slots = slots, scratch->weights = weights;
    return scratch;
}

static void give_scratch(Scratch *scratch) {
    if (scratch == NULL)
        return;
    free(scratch->weights);
    free(scratch->slots);
    free(scratch->active);
    free(scratch->cursors);
    if (spare_count < SPARES)
        spares[spare_count++] = scratch;
    else
        free(scratch);
}

enum { MASK, COLUMNS, WEIGHTS, OFFSETS, ROWS, SCORES, COUNTS, ASKED };

/* What the sizes of the buffers of queries must satisfy; the longest query, or -1 with an exception set. */
static int64_t check_queries(const Index *index, int64_t k, const Py_buffer *b) {
    static const char *const names[ASKED] = {"mask", "columns", "weights", "offsets", "rows", "scores", "counts"};
    static const Py_ssize_t sizes[ASKED] = {1, 8, 4, 8, 8, 4, 8};
    int64_t lengths[ASKED], longest = 0;
    for (int i = 0; i < ASKED; i++)
        if ((lengths[i] = items(b + i, sizes[i], names[i])) < 0)
            return -1;
    const int64_t queries = lengths[OFFSETS] - 1;
    if (k < 1 || queries < 0 || (b[MASK].buf != NULL && lengths[MASK] != index->n / 8 + (index->n % 8 != 0)) ||
        lengths[WEIGHTS] != lengths[COLUMNS] || lengths[COUNTS] != queries || lengths[ROWS] != lengths[SCORES] ||
        (queries > 0 && lengths[ROWS] / queries < k)) {
        PyErr_SetString(PyExc_ValueError, "k is out of range, or the sizes of the buffers do not fit together");
        return -1;
    }
    const int64_t *offsets = b[OFFSETS].buf;
    for (int64_t i = 0; i < queries; i++) {
        if (offsets[i] < 0 || offsets[i + 1] < offsets[i] || offsets[i + 1] > lengths[COLUMNS]) {
            PyErr_SetString(PyExc_ValueError, "the offsets of the queries do not rise within their terms");
            return -1;
        }
        if (offsets[i + 1] - offsets[i] > longest)
            longest = offsets[i + 1] - offsets[i];
    }
    return longest;
}

/* The place of a column among the terms, which ascend, or -1. Columns are hashed or nearly all there: where one must be is
 * nearly known from its value. */
static int64_t place_of(const int64_t *terms, int64_t count, int64_t column) {
    int64_t low = 0, high = count - 1;
    for (int tries = 0; low <= high && terms[low] <= column && column <= terms[high]; tries++) {
        const double span = (double)terms[high] - (double)terms[low];
        const double share = span > 0.0 && tries < GUESSES ? ((double)column - (double)terms[low]) / span : 0.5;
        int64_t middle = low + (int64_t)(share * (double)(high - low));
        middle = middle < high ? middle : high;
        if (terms[middle] == column)
            return middle;
        if (terms[middle] < column)
            low = middle + 1;
        else
            high = middle - 1;
    }
    return -1;
}

/* Bring the terms of a query that the index holds, and whose weights are above 0, into the scratch. Returns how many they
 * are, or -1 where the columns do not ascend. */
static int64_t look_up(const Prepared *prepared, const int64_t *columns, const float *weights, int64_t count, Scratch *scratch) {
    int64_t found = 0;
    for (int64_t i = 0; i < count; i++) {
        if (i > 0 && columns[i] <= columns[i - 1])
            return -1;
        const int64_t place = weights[i] > 0.0f ? place_of(prepared->terms, prepared->index.term_count, columns[i]) : -1;
        if (place >= 0) {
            scratch->slots[found] = place;
            scratch->weights[found++] = prepared->scales == NULL ? weights[i] : weights[i] * prepared->scales[place];
        }
    }
    return found;
}

/* inverted_search(what inverted_prepare gave, k, mask | None, columns, weights, offsets, rows, scores, counts) -> whether the
 * columns of each query ascend */
PyObject *inverted_search(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer b[ASKED];
    PyObject *capsule;
    long long k;
    if (!PyArg_ParseTuple(arguments, "OLz*y*y*y*w*w*w*", &capsule, &k, b + MASK, b + COLUMNS, b + WEIGHTS, b + OFFSETS,
                          b + ROWS, b + SCORES, b + COUNTS))
        return NULL;
    Prepared *prepared = PyCapsule_GetPointer(capsule, PREPARED);
    const int64_t longest = prepared == NULL ? -1 : check_queries(&prepared->index, k, b);
    int status = -1;
    int64_t count = 0;
    if (longest >= 0) {
        Index index = prepared->index;
        index.mask = b[MASK].buf;
        Scratch *scratch = take_scratch(longest);
        if (scratch != NULL) {
            const int64_t *offsets = b[OFFSETS].buf, queries = (int64_t)(b[OFFSETS].len / 8) - 1;
            status = 0;
            Py_BEGIN_ALLOW_THREADS
            for (int64_t i = 0; i < queries && status == 0 && count >= 0; i++) {
                Heap heap = {(float *)b[SCORES].buf + i * k, (int64_t *)b[ROWS].buf + i * k, 0, k};
                count = look_up(prepared, (const int64_t *)b[COLUMNS].buf + offsets[i],
                                (const float *)b[WEIGHTS].buf + offsets[i], offsets[i + 1] - offsets[i], scratch);
                if (count >= 0)
                    status = inverted_query(&index, prepared->coarse, scratch->slots, scratch->weights, count, scratch, &heap);
                ((int64_t *)b[COUNTS].buf)[i] = heap.size;
            }
            Py_END_ALLOW_THREADS
            if (status != 0)
                PyErr_SetString(PyExc_ValueError, OUT_OF_BOUNDS);
        } else
            PyErr_NoMemory();
        give_scratch(scratch);
    }
    for (int i = 0; i < ASKED; i++)
        PyBuffer_Release(b + i);
    return status != 0 ? NULL : PyBool_FromLong(count >= 0);
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

/* How many postings a term has; nothing has checked all of these offsets. */
static uint64_t postings_of(const Index *index, int64_t slot) {
    const int64_t *start = index->block_start, *blocks = index->term_blocks;
    return (uint64_t)start[blocks[slot + 1]] - (uint64_t)start[blocks[slot]];
}

/* inverted_within(what inverted_prepare gave, k, mask | None, columns, weights, offsets, rows, scores, counts, least, give_up,
 *                 seconds, what inverted_slices gave): one query, whose columns ascend. */
PyObject *inverted_within(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer b[ASKED];
    long long k;
    double least, give_up, seconds;
    PyObject *capsule, *sliced;
    if (!PyArg_ParseTuple(arguments, "OLz*y*y*y*w*w*w*dddO", &capsule, &k, b + MASK, b + COLUMNS, b + WEIGHTS, b + OFFSETS,
                          b + ROWS, b + SCORES, b + COUNTS, &least, &give_up, &seconds, &sliced))
        return NULL;
    int status = -1;
    Looked looked = {0};
    Prepared *prepared = PyCapsule_GetPointer(capsule, PREPARED);
    Slices *slices = prepared == NULL ? NULL : PyCapsule_GetPointer(sliced, SLICES);
    const int64_t longest = slices == NULL ? -1 : check_queries(&prepared->index, k, b);
    uint64_t postings = 0;
    if (longest >= 0 && (b[OFFSETS].len != 16 || !slices_fit(slices, &prepared->index) || !(give_up >= 0.0 && give_up < 1.0)))
        PyErr_SetString(PyExc_ValueError, "one query is searched, with what was made for these sizes, giving up less than all");
    else if (longest >= 0) {
        Index index = prepared->index;
        index.mask = b[MASK].buf;
        Scratch *scratch = take_scratch(longest);
        const int64_t first = ((const int64_t *)b[OFFSETS].buf)[0];
        const int64_t count = scratch == NULL ? 0 : look_up(prepared, (const int64_t *)b[COLUMNS].buf + first, (const float *)b[WEIGHTS].buf + first, longest, scratch);
        Room *room = NULL;
        if (count < 0)
            PyErr_SetString(PyExc_ValueError, "the columns of the query do not ascend");
        else if (scratch == NULL || slices_room(&index, slices, scratch->slots, count) < 0 || (room = take_room(slices, count)) == NULL)
            PyErr_NoMemory();
        else {
            Heap heap = {b[SCORES].buf, b[ROWS].buf, 0, k};
            Py_BEGIN_ALLOW_THREADS
            status = within_query(&index, slices, scratch->slots, scratch->weights, count, (float)least, give_up, seconds, scratch, room, &heap, &looked);
            for (int64_t i = 0; i < count && status == 0; i++)
                postings += postings_of(&index, scratch->slots[i]);
            Py_END_ALLOW_THREADS
            ((int64_t *)b[COUNTS].buf)[0] = heap.size;
            if (status != 0)
                PyErr_SetString(PyExc_ValueError, OUT_OF_BOUNDS);
        }
        if (room != NULL)
            give_room(slices, room);
        give_scratch(scratch);
    }
    for (int i = 0; i < ASKED; i++)
        PyBuffer_Release(b + i);
    if (status != 0)
        return NULL;
    return Py_BuildValue("LLLLLLd", (long long)looked.slices, (long long)looked.slices_read, (long long)looked.documents,
                         (long long)looked.documents_read, (long long)postings, (long long)looked.postings_read,
                         (double)looked.ceiling);
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
