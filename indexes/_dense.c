/* The best rows of every query out of a block of scores: what follows a product of matrices. _dense_numpy.py says what
 * the arguments mean. */

#include "_heap.h"
#include "_kernels.h"

#include <math.h>
#include <stdlib.h>

enum { LANES = 64 }; /* queries that are looked at together */

typedef struct {
    const float *scores;
    const int64_t *rows;
    const uint8_t *mask; /* permitted rows, or NULL for all */
    float *best_scores;
    int64_t *best_rows, *counts;
    int64_t row_count, queries, k;
} Block;

static void offer_one(const Block *block, float *low, int64_t at, int64_t query) {
    const float score = block->scores[at * block->queries + query];
    const int64_t row = block->rows[at];
    if (!(score > low[query]) || (block->mask != NULL && !(block->mask[row >> 3] >> (row & 7) & 1)))
        return;
    Heap heap = {block->best_scores + query * block->k, block->best_rows + query * block->k, block->counts[query], block->k};
    offer(&heap, score, row);
    block->counts[query] = heap.size;
    low[query] = heap.size == heap.k ? heap.scores[0] : -INFINITY;
}

/* Few scores pass once the best k are known of the first rows, so nearly all of the time goes into the comparison of 64. */
CLONES static void offer_block(const Block *block, float *restrict low) {
    for (int64_t at = 0; at < block->row_count; at++) {
        const float *restrict scores = block->scores + at * block->queries;
        int64_t query = 0;
        for (; query + LANES <= block->queries; query += LANES) {
            int any = 0;
            for (int i = 0; i < LANES; i++)
                any |= scores[query + i] > low[query + i];
            for (int i = 0; any && i < LANES; i++)
                offer_one(block, low, at, query + i);
        }
        for (; query < block->queries; query++)
            offer_one(block, low, at, query);
    }
}

/* dense_offer(n, scores, rows, mask | None, best_scores, best_rows, counts) */
PyObject *dense_offer(PyObject *module, PyObject *arguments) {
    (void)module;
    enum { SCORES, ROWS, MASK, BEST_SCORES, BEST_ROWS, COUNTS, BUFFERS };
    Py_buffer b[BUFFERS];
    long long n;
    if (!PyArg_ParseTuple(arguments, "Ly*y*z*w*w*w*", &n, b + SCORES, b + ROWS, b + MASK, b + BEST_SCORES, b + BEST_ROWS,
                          b + COUNTS))
        return NULL;
    Block block = {b[SCORES].buf, b[ROWS].buf, b[MASK].buf, b[BEST_SCORES].buf, b[BEST_ROWS].buf, b[COUNTS].buf, 0, 0, 0};
    block.row_count = item_count(b + ROWS, 8);
    block.queries = item_count(b + COUNTS, 8);
    const int64_t cells = item_count(b + BEST_ROWS, 8);
    block.k = block.queries > 0 ? cells / block.queries : 0;
    int failed = n < 0 || block.row_count < 0 || block.queries < 0 || cells < 0 || block.k * block.queries != cells ||
                 item_count(b + BEST_SCORES, 4) != cells || (block.queries > 0 && block.k < 1) ||
                 item_count(b + SCORES, 4) != block.row_count * block.queries ||
                 (block.mask != NULL && (int64_t)b[MASK].len != n / 8 + (n % 8 != 0));
    for (int64_t at = 0; at < block.row_count && !failed; at++)
        failed = block.rows[at] < 0 || block.rows[at] >= n;
    for (int64_t query = 0; query < block.queries && !failed; query++)
        failed = block.counts[query] < 0 || block.counts[query] > block.k;
    float *low = NULL;
    if (failed)
        PyErr_SetString(PyExc_ValueError, "the sizes of the buffers do not fit together, or a row is out of bounds");
    else if ((low = malloc((size_t)(block.queries + 1) * sizeof *low)) == NULL)
        PyErr_NoMemory();
    else {
        Py_BEGIN_ALLOW_THREADS
        for (int64_t query = 0; query < block.queries; query++)
            low[query] = block.counts[query] == block.k ? block.best_scores[query * block.k] : -INFINITY;
        offer_block(&block, low);
        Py_END_ALLOW_THREADS
    }
    const int done = low != NULL;
    free(low);
    for (int i = 0; i < BUFFERS; i++)
        PyBuffer_Release(b + i);
    if (!done)
        return NULL;
    Py_RETURN_NONE;
}
