/* Inner products in float64, each pair of a query and a row for itself alone, and the best rows by them.
 *
 * A product is summed in LANES running sums, which are then added by halves; where the dimensions do not fill the last
 * round of lanes, zeros do. _dense_numpy.py computes the same, bit for bit, and says what the arguments mean.
 *
 * A scan multiplies in float32 first, in which it is the memory that takes the time. In whatever order it is summed, such a
 * product is off by at most what rounding allows (Higham, "Accuracy and Stability of Numerical Algorithms", 2002, section
 * 3.1), and only rows that may still be among the best are multiplied again in float64. Where there are codes of the rows,
 * most rows are passed over by those (_dense_sieve.h). */

#include "_dense_sieve.h"
#include "_heap.h"
#include "_kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    LANES = 32,
    CHUNK = SIEVED_ROWS, /* rows that are scored before the best of them are taken */
    AHEAD = 3,           /* rows that are asked for while one is scored, */
    LINE = 64            /* cache line by cache line */
};

typedef struct {
    const float *values;   /* [n, dimension] */
    int64_t n, dimension;
} Stored;

typedef struct {
    const float *single; /* [dimension] */
    double *wide;        /* [dimension] */
    double slack;        /* by which a product in float32 may be off */
    Heap best;
    Sieved sieved;       /* where there are codes */
} Query;

/* Asks for rows that are scored soon, the first of them before row 0: those that lie apart are waited for otherwise. */
static inline void ask(const Stored *stored, const int64_t *rows, int64_t at, int64_t count) {
    const int64_t end = at + AHEAD < count ? at + AHEAD + 1 : count;
    for (int64_t next = at == 0 ? 0 : at + AHEAD; next < end; next++) {
        const char *row = (const char *)(stored->values + rows[next] * stored->dimension);
        for (int64_t byte = 0; byte < stored->dimension * 4; byte += LINE)
            PREFETCH(row + byte);
    }
}

/* The compiler keeps the running sums in registers, of whatever width there are. */
CLONES static void score_rows(const Stored *stored, const double *restrict query, const int64_t *restrict rows, int64_t count,
                              float *restrict scores) {
    const int64_t dimension = stored->dimension, whole = dimension - dimension % LANES;
    for (int64_t i = 0; i < count; i++) {
        ask(stored, rows, i, count);
        const float *row = stored->values + rows[i] * dimension;
        double sums[LANES] = {0};
        for (int64_t d = 0; d < whole; d += LANES)
            for (int lane = 0; lane < LANES; lane++)
                sums[lane] += (double)row[d + lane] * query[d + lane];
        for (int64_t d = whole; d < dimension; d++)
            sums[d - whole] += (double)row[d] * query[d];
        for (int width = LANES / 2; width > 0; width /= 2)
            for (int lane = 0; lane < width; lane++)
                sums[lane] += sums[lane + width];
        scores[i] = (float)sums[0];
    }
}

CLONES static void score_roughly(const Stored *stored, const float *restrict query, const int64_t *restrict rows, int64_t count,
                                 float *restrict scores) {
    const int64_t dimension = stored->dimension, whole = dimension - dimension % LANES;
    for (int64_t i = 0; i < count; i++) {
        ask(stored, rows, i, count);
        const float *row = stored->values + rows[i] * dimension;
        float sums[LANES] = {0};
        for (int64_t d = 0; d < whole; d += LANES)
            for (int lane = 0; lane < LANES; lane++)
                sums[lane] += row[d + lane] * query[d + lane];
        for (int width = LANES / 2; width > 0; width /= 2)
            for (int lane = 0; lane < width; lane++)
                sums[lane] += sums[lane + width];
        for (int64_t d = whole; d < dimension; d++)
            sums[0] += row[d] * query[d];
        scores[i] = sums[0];
    }
}

static int sound(const float *scores, int64_t count) {
    int all = 1;
    for (int64_t i = 0; i < count; i++)
        all &= fabsf(scores[i]) < INFINITY;
    return all;
}

/* Up to CHUNK rows. */
static int offer_rows(const Stored *stored, Query *query, const int64_t *rows, int64_t count) {
    float scores[CHUNK];
    score_rows(stored, query->wide, rows, count, scores);
    for (int64_t i = 0; i < count; i++)
        offer(&query->best, scores[i], rows[i]);
    return sound(scores, count) ? SOUND : NO_SCORE;
}

/* Up to CHUNK rows, without those that cannot be among the best. */
static int sift_rows(const Stored *stored, Query *query, const int64_t *rows, int64_t count) {
    if (query->best.size < query->best.k)
        return offer_rows(stored, query, rows, count);
    float scores[CHUNK];
    int64_t near[CHUNK], kept = 0;
    score_roughly(stored, query->single, rows, count, scores);
    for (int64_t i = 0; i < count; i++)
        if (!(scores[i] + query->slack < query->best.scores[0] && fabsf(scores[i]) < INFINITY)) /* what is no number stays, to be found */
            near[kept++] = rows[i];
    return offer_rows(stored, query, near, kept);
}

/* Whether a row may be among the best. What is no number may. */
CLONES static int any_open(const float *restrict bounds, float least) {
    int open = 0;
    for (int i = 0; i < SIEVED_ROWS; i++)
        open |= !(bounds[i] < least);
    return open;
}

/* Those of up to CHUNK rows that may be among the best, as their bounds tell, of a query that has k already. */
static int64_t open_rows(const Query *query, const int64_t *rows, int64_t count, const float *bounds, int64_t *near) {
    const double worst = query->best.scores[0], base = query->sieved.base;
    const float least = (float)(worst - base - 0x1p-20 * (fabs(worst) + fabs(base)));
    int64_t kept = 0;
    if (any_open(bounds, least))
        for (int64_t i = 0; i < count; i++)
            if (!(bounds[i] < least))
                near[kept++] = rows[i];
    return kept;
}

/* Rows that were proposed, in any order; -1 stands for none. The first of them are scored, the others sifted. */
static int best_of_rows(const Stored *stored, const Sieve *sieve, Query *query, const int64_t *proposed, int64_t count) {
    const Sieved *sieved = &query->sieved;
    int64_t rows[CHUNK], near[CHUNK];
    float bounds[SIEVED_ROWS];
    int outcome = SOUND;
    for (int64_t i = 0; i < count; i++)
        if (proposed[i] < -1 || proposed[i] >= stored->n)
            return NO_ROW;
    for (int64_t i = 0; i < count && outcome == SOUND;) {
        const int64_t wanted = query->best.k - query->best.size, most = wanted > 0 && wanted < CHUNK ? wanted : CHUNK;
        int64_t filled = 0;
        for (; i < count && filled < most; i++)
            if (proposed[i] >= 0)
                rows[filled++] = proposed[i];
        if (sieve == NULL || wanted > 0) {
            outcome = offer_rows(stored, query, rows, filled);
        } else {
            sieve_bounds(sieve, &sieved, 1, rows, filled, 0, bounds);
            filled = open_rows(query, rows, filled, bounds, near);
            outcome = offer_rows(stored, query, near, filled);
        }
    }
    return outcome;
}

/* Up to CHUNK rows by all queries; sieve may be NULL. */
static int sift_all(const Stored *stored, const Sieve *sieve, Query *queries, int64_t query_count, const int64_t *rows,
                    int64_t count) { /* in ascending order */
    const int together = rows[count - 1] - rows[0] == count - 1;
    float bounds[SIEVED_QUERIES * SIEVED_ROWS];
    const Sieved *sieved[SIEVED_QUERIES];
    int64_t near[CHUNK];
    int outcome = SOUND;
    if (sieve == NULL) {
        for (int64_t query = 0; query < query_count && outcome == SOUND; query++)
            outcome = sift_rows(stored, queries + query, rows, count);
        return outcome;
    }
    for (int64_t first = 0; first < query_count && outcome == SOUND; first += SIEVED_QUERIES) {
        const int64_t some = query_count - first < SIEVED_QUERIES ? query_count - first : SIEVED_QUERIES;
        for (int64_t query = 0; query < some; query++)
            sieved[query] = &queries[first + query].sieved;
        sieve_bounds(sieve, sieved, some, rows, count, together, bounds);
        for (int64_t query = 0; query < some && outcome == SOUND; query++) {
            Query *one = queries + first + query;
            if (one->best.size < one->best.k) {
                outcome = offer_rows(stored, one, rows, count);
            } else {
                const int64_t kept = open_rows(one, rows, count, bounds + query * SIEVED_ROWS, near);
                outcome = sift_rows(stored, one, near, kept);
            }
        }
    }
    return outcome;
}

/* All rows, or those in a bitmap. */
static int scan(const Stored *stored, const Sieve *sieve, Query *queries, int64_t count, const uint8_t *mask) {
    int64_t rows[CHUNK], filled = 0;
    int outcome = SOUND;
    for (int64_t row = 0; row < stored->n && outcome == SOUND;) {
        if (mask == NULL) {
            filled = stored->n - row < CHUNK ? stored->n - row : CHUNK;
            for (int64_t i = 0; i < filled; i++)
                rows[i] = row + i;
            row += filled;
        } else {
            for (; row < stored->n && filled < CHUNK; row++)
                if (mask[row >> 3] == 0)
                    row |= 7; /* none of these eight */
                else if (mask[row >> 3] >> (row & 7) & 1)
                    rows[filled++] = row;
        }
        if (filled > 0)
            outcome = sift_all(stored, sieve, queries, count, rows, filled);
        filled = 0;
    }
    return outcome;
}

static int take_stored(Stored *stored, const Py_buffer *values, long long dimension) {
    const int64_t numbers = item_count(values, 4);
    if (dimension < 1 || dimension > 1 << 24 || numbers < 0 || numbers % dimension != 0)
        return 0;
    *stored = (Stored){values->buf, numbers / dimension, dimension};
    return 1;
}

static void widen(const Stored *stored, const float *query, double *out) {
    for (int64_t d = 0; d < stored->dimension; d++)
        out[d] = query[d];
}

static double slack(const Stored *stored, const double *query, double longest) {
    double square = 0;
    for (int64_t d = 0; d < stored->dimension; d++)
        square += query[d] * query[d];
    return (double)(stored->dimension + 8) * 0x1p-24 * sqrt(square) * longest + (double)stored->dimension * 0x1p-126;
}

static PyObject *misfit(void) {
    PyErr_SetString(PyExc_ValueError, "the sizes of the buffers do not fit together, or a query is out of bounds");
    return NULL;
}

/* dense_scores(dimension, values, queries, numbers, rows, scores) -> SOUND, NO_ROW or NO_SCORE */
PyObject *dense_scores(PyObject *module, PyObject *arguments) {
    (void)module;
    enum { VALUES, QUERIES, NUMBERS, ROWS, SCORES, BUFFERS };
    Py_buffer b[BUFFERS];
    Stored stored;
    long long dimension;
    if (!PyArg_ParseTuple(arguments, "Ly*y*y*y*w*", &dimension, b + VALUES, b + QUERIES, b + NUMBERS, b + ROWS, b + SCORES))
        return NULL;
    const int64_t pairs = item_count(b + ROWS, 8), cells = item_count(b + QUERIES, 4);
    const int64_t *numbers = b[NUMBERS].buf, *rows = b[ROWS].buf;
    const float *queries = b[QUERIES].buf;
    float *scores = b[SCORES].buf;
    int failed = !take_stored(&stored, b + VALUES, dimension) || pairs < 0 || cells < 0 || cells % dimension != 0 ||
                 item_count(b + NUMBERS, 8) != pairs || item_count(b + SCORES, 4) != pairs;
    for (int64_t i = 0; i < pairs && !failed; i++)
        failed = numbers[i] < 0 || numbers[i] >= cells / dimension;
    if (failed)
        return answer(b, BUFFERS, misfit());
    double *query = malloc((size_t)stored.dimension * sizeof *query);
    if (query == NULL)
        return answer(b, BUFFERS, PyErr_NoMemory());
    int outcome = SOUND;
    Py_BEGIN_ALLOW_THREADS
    for (int64_t i = 0; i < pairs && outcome == SOUND; i++)
        if (rows[i] < 0 || rows[i] >= stored.n)
            outcome = NO_ROW;
    for (int64_t first = 0, end; first < pairs && outcome == SOUND; first = end) {
        for (end = first + 1; end < pairs && numbers[end] == numbers[first];)
            end++;
        widen(&stored, queries + numbers[first] * dimension, query);
        score_rows(&stored, query, rows + first, end - first, scores + first);
        if (!sound(scores + first, end - first))
            outcome = NO_SCORE;
    }
    Py_END_ALLOW_THREADS
    free(query);
    return answer(b, BUFFERS, PyLong_FromLong(outcome));
}

typedef struct { /* where the best rows of every query go: [queries, k] and, how many they are, [queries] */
    const float *queries;
    int64_t *rows, *counts;
    float *scores;
    int64_t count, k;
} Best;

static int take_best(Best *best, const Stored *stored, const Py_buffer *queries, const Py_buffer *out) {
    const int64_t count = item_count(out + 2, 8), cells = item_count(out, 8), k = count > 0 ? cells / count : 0;
    *best = (Best){queries->buf, out[0].buf, out[2].buf, out[1].buf, count, k};
    return count >= 0 && cells >= 0 && k * count == cells && (count == 0 || k > 0) && item_count(out + 1, 4) == cells &&
           item_count(queries, 4) == count * stored->dimension;
}

/* The queries, freed by free(), and the sieve's room; NULL where there is no memory for them. */
static Query *ready(const Best *best, const Stored *stored, Sieve *sieve) {
    const int64_t padded = sieve == NULL ? 0 : padded_for_sieve(stored->dimension);
    const size_t heads = ((size_t)best->count * sizeof(Query) / 64 + 1) * 64, one = (size_t)stored->dimension * sizeof(double);
    char *room = calloc(1, heads + (size_t)best->count * (one + (size_t)padded * 2) + (sieve == NULL ? 0 : sieve_room(stored->dimension)));
    Query *queries = (Query *)room;
    if (room == NULL)
        return NULL;
    if (sieve != NULL)
        sieve->wide = (int16_t *)(room + heads + (size_t)best->count * (one + (size_t)padded * 2));
    for (int64_t i = 0; i < best->count; i++) {
        double *wide = (double *)(room + heads) + i * stored->dimension;
        int16_t *shorts = (int16_t *)(room + heads + (size_t)best->count * one) + i * padded;
        const float *single = best->queries + i * stored->dimension;
        widen(stored, single, wide);
        queries[i] = (Query){single, wide, 0, {best->scores + i * best->k, best->rows + i * best->k, 0, best->k}, {shorts, 0, 0, 0, 0}};
        if (sieve != NULL)
            sieve_query(sieve, single, &queries[i].sieved);
    }
    return queries;
}

static void finish(const Best *best, Query *queries) {
    for (int64_t i = 0; i < best->count; i++) {
        best->counts[i] = queries[i].best.size;
        sort_best_first(&queries[i].best);
    }
}

/* Codes, bounds and spread, all of them or none; NULL for none. */
static int take_codes(Sieve **sieve, const Py_buffer *three, int64_t n, int64_t dimension) {
    if (three[0].obj == NULL && three[1].obj == NULL && three[2].obj == NULL)
        *sieve = NULL;
    else
        return three[0].obj != NULL && three[1].obj != NULL && three[2].obj != NULL &&
               take_sieve(*sieve, three, three + 1, three + 2, n, dimension);
    return 1;
}

/* dense_best(dimension, values, codes | None, bounds | None, spread | None, queries, rows, best_rows, best_scores, counts)
 * -> as above */
PyObject *dense_best(PyObject *module, PyObject *arguments) {
    (void)module;
    enum { VALUES, CODES, QUERIES = CODES + 3, ROWS, BEST, BUFFERS = BEST + 3 };
    Py_buffer b[BUFFERS];
    Stored stored;
    Best best;
    Sieve taken, *sieve = &taken;
    long long dimension;
    if (!PyArg_ParseTuple(arguments, "Ly*z*z*z*y*y*w*w*w*", &dimension, b + VALUES, b + CODES, b + CODES + 1, b + CODES + 2,
                          b + QUERIES, b + ROWS, b + BEST, b + BEST + 1, b + BEST + 2))
        return NULL;
    const int64_t cells = item_count(b + ROWS, 8);
    if (!take_stored(&stored, b + VALUES, dimension) || !take_best(&best, &stored, b + QUERIES, b + BEST) || cells < 0 ||
        (best.count > 0 ? cells % best.count : cells) != 0 || !take_codes(&sieve, b + CODES, stored.n, dimension))
        return answer(b, BUFFERS, misfit());
    const int64_t width = best.count > 0 ? cells / best.count : 0;
    Query *queries = ready(&best, &stored, sieve);
    if (queries == NULL)
        return answer(b, BUFFERS, PyErr_NoMemory());
    int outcome = SOUND;
    Py_BEGIN_ALLOW_THREADS
    for (int64_t i = 0; i < best.count && outcome == SOUND; i++)
        outcome = best_of_rows(&stored, sieve, queries + i, (const int64_t *)b[ROWS].buf + i * width, width);
    finish(&best, queries);
    Py_END_ALLOW_THREADS
    free(queries);
    return answer(b, BUFFERS, PyLong_FromLong(outcome));
}

/* dense_scan(dimension, values, longest, codes | None, bounds | None, spread | None, queries, mask | None, best_rows,
 * best_scores, counts) -> as above */
PyObject *dense_scan(PyObject *module, PyObject *arguments) {
    (void)module;
    enum { VALUES, CODES, QUERIES = CODES + 3, MASK, BEST, BUFFERS = BEST + 3 };
    Py_buffer b[BUFFERS];
    Stored stored;
    Best best;
    Sieve taken, *sieve = &taken;
    long long dimension;
    double longest;
    if (!PyArg_ParseTuple(arguments, "Ly*dz*z*z*y*z*w*w*w*", &dimension, b + VALUES, &longest, b + CODES, b + CODES + 1,
                          b + CODES + 2, b + QUERIES, b + MASK, b + BEST, b + BEST + 1, b + BEST + 2))
        return NULL;
    if (!take_stored(&stored, b + VALUES, dimension) || !take_best(&best, &stored, b + QUERIES, b + BEST) ||
        (b[MASK].buf != NULL && (int64_t)b[MASK].len != stored.n / 8 + (stored.n % 8 != 0)) ||
        !take_codes(&sieve, b + CODES, stored.n, dimension))
        return answer(b, BUFFERS, misfit());
    Query *queries = ready(&best, &stored, sieve);
    if (queries == NULL)
        return answer(b, BUFFERS, PyErr_NoMemory());
    int outcome;
    Py_BEGIN_ALLOW_THREADS
    for (int64_t i = 0; i < best.count; i++)
        queries[i].slack = slack(&stored, queries[i].wide, longest);
    outcome = scan(&stored, sieve, queries, best.count, b[MASK].buf);
    finish(&best, queries);
    Py_END_ALLOW_THREADS
    free(queries);
    return answer(b, BUFFERS, PyLong_FromLong(outcome));
}
