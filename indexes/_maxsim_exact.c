/* Late interaction in float64: the sum, over the tokens of a query, of the highest inner product, of one row at a time.
 *
 * Every inner product is summed over the dimensions in their order, and the sum over the tokens of a query in theirs, so
 * that a score depends on nothing but its query and its row; _maxsim_numpy.py computes the same, bit for bit. */

#include "_kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LANES = 32 }; /* tokens of a query that are taken beside one another */

typedef struct {
    const void *values; /* [tokens, dimension], float16 or int8 */
    const float *scales; /* [tokens], or NULL for float16 */
    const int64_t *starts, *sizes; /* [pairs], the tokens of a row */
    const float *queries; /* [query tokens, dimension] */
    const int64_t *first, *count; /* [pairs], the tokens of a query */
    float *scores; /* [pairs] */
    int64_t tokens, dimension, pairs, asked;
    double *lanes, *token; /* [dimension, LANES] and [dimension] */
} Pairs;

/* float16 and codes as float64. Returns whether there is no infinity and no NaN. */
CLONES static int widen(const Pairs *job, int64_t token, double *restrict out) {
    const int64_t from = token * job->dimension;
    if (job->scales != NULL) {
        const int8_t *codes = (const int8_t *)job->values + from;
        for (int64_t d = 0; d < job->dimension; d++)
            out[d] = codes[d];
        return 1;
    }
    int32_t unsound = 0;
    const int16_t *halves = (const int16_t *)job->values + from;
    for (int64_t d = 0; d < job->dimension; d++) {
        const uint32_t bits = (uint32_t)(int32_t)halves[d] << 13 & 0x8fffe000u;
        float wide;
        memcpy(&wide, &bits, sizeof wide);
        out[d] = (double)(wide * 0x1p112f);
        unsound |= (halves[d] & 0x7c00) == 0x7c00;
    }
    return !unsound;
}

/* The compiler keeps the sums in registers, of whatever width there are. */
CLONES static void multiply(int64_t dimension, const double *restrict lanes, const double *restrict token,
                            double *restrict products) {
    double sums[LANES] = {0};
    for (int64_t d = 0; d < dimension; d++) {
        const double value = token[d];
        for (int lane = 0; lane < LANES; lane++)
            sums[lane] += lanes[d * LANES + lane] * value;
    }
    memcpy(products, sums, sizeof sums);
}

/* Returns 0 where the row holds what no sound row does. */
static int score_pair(const Pairs *job, int64_t pair) {
    double sum = 0, products[LANES], best[LANES];
    for (int64_t done = 0; done < job->count[pair]; done += LANES) {
        const int64_t left = job->count[pair] - done, filled = left < LANES ? left : LANES;
        const float *query = job->queries + (job->first[pair] + done) * job->dimension;
        memset(job->lanes, 0, (size_t)(job->dimension * LANES) * sizeof *job->lanes);
        for (int64_t lane = 0; lane < filled; lane++) {
            best[lane] = -INFINITY;
            for (int64_t d = 0; d < job->dimension; d++)
                job->lanes[d * LANES + lane] = query[lane * job->dimension + d];
        }
        for (int64_t token = job->starts[pair]; token < job->starts[pair] + job->sizes[pair]; token++) {
            if (!widen(job, token, job->token))
                return 0;
            multiply(job->dimension, job->lanes, job->token, products);
            const double scale = job->scales == NULL ? 1 : job->scales[token];
            for (int64_t lane = 0; lane < filled; lane++) {
                const double product = products[lane] * scale;
                if (!(fabs(product) <= 1e37))
                    return 0;
                best[lane] = product > best[lane] ? product : best[lane];
            }
        }
        for (int64_t lane = 0; lane < filled; lane++)
            sum += best[lane];
    }
    job->scores[pair] = (float)sum;
    return 1;
}

static int inside(const int64_t *starts, const int64_t *sizes, int64_t n, int64_t all) {
    for (int64_t i = 0; i < n; i++)
        if (starts[i] < 0 || sizes[i] < 0 || starts[i] > all || sizes[i] > all - starts[i])
            return 0;
    return 1;
}

/* maxsim_exact(dimension, values, scales | None, starts, sizes, queries, first, count, scores) -> whether all are sound */
PyObject *maxsim_exact(PyObject *module, PyObject *arguments) {
    (void)module;
    enum { VALUES, SCALES, STARTS, SIZES, QUERIES, FIRST, COUNT, SCORES, BUFFERS };
    Py_buffer b[BUFFERS];
    long long dimension;
    if (!PyArg_ParseTuple(arguments, "Ly*z*y*y*y*y*y*w*", &dimension, b + VALUES, b + SCALES, b + STARTS, b + SIZES,
                          b + QUERIES, b + FIRST, b + COUNT, b + SCORES))
        return NULL;
    Pairs job = {b[VALUES].buf, b[SCALES].buf, b[STARTS].buf, b[SIZES].buf, b[QUERIES].buf, b[FIRST].buf, b[COUNT].buf,
                 b[SCORES].buf, 0, dimension, 0, 0, NULL, NULL};
    const int64_t numbers = item_count(b + VALUES, job.scales == NULL ? 2 : 1), cells = item_count(b + QUERIES, 4);
    int failed = dimension < 1 || dimension > 1 << 24 || numbers < 0 || cells < 0;
    if (!failed) {
        job.tokens = numbers / dimension;
        job.asked = cells / dimension;
        job.pairs = item_count(b + STARTS, 8);
        failed = numbers % dimension != 0 || cells % dimension != 0 || job.pairs < 0 ||
                 item_count(b + SIZES, 8) != job.pairs || item_count(b + FIRST, 8) != job.pairs ||
                 item_count(b + COUNT, 8) != job.pairs || item_count(b + SCORES, 4) != job.pairs ||
                 (job.scales != NULL && item_count(b + SCALES, 4) != job.tokens) ||
                 !inside(job.starts, job.sizes, job.pairs, job.tokens) ||
                 !inside(job.first, job.count, job.pairs, job.asked);
    }
    int out_of_memory = 0, sound = 1;
    if (failed)
        PyErr_SetString(PyExc_ValueError, "the sizes of the buffers do not fit together, or a token is out of bounds");
    else {
        job.lanes = malloc((size_t)(dimension * LANES) * sizeof *job.lanes);
        job.token = malloc((size_t)dimension * sizeof *job.token);
        out_of_memory = job.lanes == NULL || job.token == NULL;
        if (out_of_memory)
            PyErr_NoMemory();
        else {
            Py_BEGIN_ALLOW_THREADS
            for (int64_t pair = 0; pair < job.pairs; pair++)
                sound &= score_pair(&job, pair);
            Py_END_ALLOW_THREADS
        }
        free(job.lanes);
        free(job.token);
    }
    for (int i = 0; i < BUFFERS; i++)
        PyBuffer_Release(b + i);
    if (failed || out_of_memory)
        return NULL;
    return PyBool_FromLong(sound);
}
