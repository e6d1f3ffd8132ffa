/* Inverted lists of rows around centroids, scanned by codes of eight bits. */

#include "_dense_sieve.h"
#include "_heap.h"
#include "_kernels.h"

#include <stdlib.h>
#include <string.h>

enum { CHUNK = 64 };

typedef struct {
    Sieve sieve, centroids; /* the codes of rows lie list by list */
    const int32_t *rows;    /* [n], list by list */
    const int64_t *starts;  /* [count + 1]: where each list begins, and the last one ends */
    int64_t n, count;
} Lists;

/* The best lists, in any order. */
static void choose(const Lists *lists, const Sieved *query, Heap *best) {
    int32_t numbers[CHUNK];
    float scores[CHUNK];
    best->size = 0;
    for (int64_t first = 0; first < lists->count; first += CHUNK) {
        const int64_t some = lists->count - first < CHUNK ? lists->count - first : CHUNK;
        for (int64_t i = 0; i < some; i++)
            numbers[i] = (int32_t)(first + i);
        sieve_scores(&lists->centroids, query, numbers, some, scores);
        for (int64_t i = 0; i < some; i++)
            offer(best, scores[i], first + i);
    }
}

/* The rows of a list that are in the bitmap mask (NULL for all). */
static int scan_list(const Lists *lists, const Sieved *query, int64_t list, const uint8_t *mask, Heap *best) {
    const int64_t start = lists->starts[list], end = lists->starts[list + 1];
    int32_t places[CHUNK];
    float scores[CHUNK];
    if (start < 0 || end < start || end > lists->n)
        return NO_ROW;
    for (int64_t at = start; at < end;) {
        int64_t count = 0;
        for (; at < end && count < CHUNK; at++) {
            const int32_t row = lists->rows[at];
            if (row < 0 || row >= lists->n)
                return NO_ROW;
            places[count] = (int32_t)at;
            count += mask == NULL || (mask[row >> 3] >> (row & 7) & 1);
        }
        sieve_scores(&lists->sieve, query, places, count, scores);
        for (int64_t i = 0; i < count; i++)
            if (best->size < best->k || scores[i] >= best->scores[0])
                offer(best, scores[i], lists->rows[places[i]]);
    }
    return SOUND;
}

static int search(const Lists *lists, const Sieved *query, const Sieved *of_centroids, const uint8_t *mask, Heap *chosen,
                  Heap *best) {
    choose(lists, of_centroids, chosen);
    best->size = 0;
    for (int64_t i = 0; i < chosen->size; i++)
        if (scan_list(lists, query, chosen->rows[i], mask, best) != SOUND)
            return NO_ROW;
    sort_best_first(best);
    for (int64_t i = best->size; i < best->k; i++)
        best->rows[i] = -1;
    return SOUND;
}

/* lists_search(dimension, codes, bounds, spread, codes, bounds and spread of centroids, rows, starts, queries, mask | None,
 * probes, found) -> SOUND or NO_ROW */
PyObject *lists_search(PyObject *module, PyObject *arguments) {
    (void)module;
    enum { CODES, BOUNDS, SPREAD, OF_CODES, OF_BOUNDS, OF_SPREAD, ROWS, STARTS, QUERIES, MASK, FOUND, BUFFERS };
    Py_buffer b[BUFFERS];
    long long dimension, probes;
    if (!PyArg_ParseTuple(arguments, "Ly*y*y*y*y*y*y*y*y*z*Lw*", &dimension, b + CODES, b + BOUNDS, b + SPREAD, b + OF_CODES,
                          b + OF_BOUNDS, b + OF_SPREAD, b + ROWS, b + STARTS, b + QUERIES, b + MASK, &probes, b + FOUND))
        return NULL;
    Lists lists;
    const int64_t cells = item_count(b + QUERIES, 4), queries = dimension > 0 && cells >= 0 ? cells / dimension : 0;
    const int64_t places = item_count(b + FOUND, 8), each = queries > 0 ? places / queries : 0;
    lists.n = item_count(b + ROWS, 4), lists.count = item_count(b + STARTS, 8) - 1;
    lists.rows = b[ROWS].buf, lists.starts = b[STARTS].buf;
    if (dimension < 1 || dimension > 1 << 24 || lists.n < 0 || lists.n > INT32_MAX || lists.count < 1 || lists.count > INT32_MAX ||
        cells != queries * dimension || places != each * queries || (queries > 0 && each < 1) || probes < 1 ||
        (b[MASK].obj != NULL && (int64_t)b[MASK].len != lists.n / 8 + (lists.n % 8 != 0)) ||
        !take_sieve(&lists.sieve, b + CODES, b + BOUNDS, b + SPREAD, lists.n, dimension) ||
        !take_sieve(&lists.centroids, b + OF_CODES, b + OF_BOUNDS, b + OF_SPREAD, lists.count, dimension)) {
        PyErr_SetString(PyExc_ValueError, "the sizes of the buffers do not fit together, or a number is out of bounds");
        return answer(b, BUFFERS, NULL);
    }
    const int64_t chosen = probes < lists.count ? probes : lists.count, padded = lists.sieve.padded;
    int64_t *numbers = malloc((size_t)chosen * sizeof *numbers);
    float *scores = malloc((size_t)(chosen + each) * sizeof *scores);
    int16_t *shorts = malloc((size_t)padded * 2 * sizeof *shorts);
    const int ready = numbers != NULL && scores != NULL && shorts != NULL;
    int outcome = SOUND;
    Py_BEGIN_ALLOW_THREADS
    for (int64_t i = 0; i < queries && ready && outcome == SOUND; i++) {
        const float *query = (const float *)b[QUERIES].buf + i * dimension;
        Heap nearest = {scores, numbers, 0, chosen};
        Heap best = {scores + chosen, (int64_t *)b[FOUND].buf + i * each, 0, each};
        Sieved sieved = {shorts, 0, 0, 0, 0}, of_centroids = {shorts + padded, 0, 0, 0, 0};
        sieve_query(&lists.sieve, query, &sieved);
        sieve_query(&lists.centroids, query, &of_centroids);
        outcome = search(&lists, &sieved, &of_centroids, b[MASK].buf, &nearest, &best);
    }
    Py_END_ALLOW_THREADS
    free(numbers), free(scores), free(shorts);
    return answer(b, BUFFERS, ready ? PyLong_FromLong(outcome) : PyErr_NoMemory());
}
