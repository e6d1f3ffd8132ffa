/* Bounds of inner products by codes of eight bits. */

#include "_dense_sieve.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { PARTS = 8, TILE = 4, LINE = 64, ROWS_AHEAD = 8, SCORED_AHEAD = 6, BYTES_AHEAD = 4096 };

static const double ROUNDED = 0x1.8p52; /* added to a small number, it leaves no place for a fraction */

size_t sieve_room(int64_t dimension) {
    return (size_t)(TILE * padded_for_sieve(dimension)) * sizeof(int16_t);
}

int take_sieve(Sieve *sieve, const Py_buffer *codes, const Py_buffer *bounds, const Py_buffer *spread, int64_t n,
               int64_t dimension) {
    const float *of_rows = bounds->buf, *of_dimensions = spread->buf;
    if (dimension < 1 || (int64_t)codes->len != n * dimension || item_count(bounds, 4) != 2 * n ||
        item_count(spread, 4) != 2 * dimension)
        return 0;
    *sieve = (Sieve){codes->buf, of_rows,   of_rows + n,                 of_dimensions, of_dimensions + dimension,
                     dimension,  padded_for_sieve(dimension), NULL};
    return 1;
}

/* Sums are taken in several parts, so that the compiler can take them side by side. */
CLONES void sieve_query(const Sieve *sieve, const float *restrict query, Sieved *out) {
    const int64_t dimension = sieve->dimension;
    const float *restrict scales = sieve->scales, *restrict centre = sieve->centre;
    const double root = sqrt((double)dimension), longest = 128 * root; /* of all codes */
    double squares[PARTS] = {0}, bases[PARTS] = {0}, rests[PARTS] = {0}, largest[PARTS] = {0};
    for (int64_t first = 0; first < dimension; first += PARTS)
        for (int64_t i = 0; i < (dimension - first < PARTS ? dimension - first : PARTS); i++) {
            const double number = (double)query[first + i] * scales[first + i];
            squares[i] += number * number;
            bases[i] += (double)query[first + i] * centre[first + i];
            largest[i] = fabs(number) > largest[i] ? fabs(number) : largest[i];
        }
    double square = 0, base = 0, rest = 0, most = 0;
    for (int i = 0; i < PARTS; i++)
        square += squares[i], base += bases[i], most = largest[i] > most ? largest[i] : most;
    /* No sum of products leaves 32 bits: it is bounded by the lengths of codes and of shorts, which are root times the largest
     * and root / 2 at most, by rounding. */
    const double limit = (0x7fffffff / longest - root / 2 - 1) / root;
    const float unit = (float)(most / (limit < 32767 ? limit : 32767) * (1 + 0x1p-20));
    const double divisor = unit >= FLT_MIN ? unit : INFINITY;
    int16_t *restrict shorts = out->shorts;
    memset(shorts, 0, (size_t)sieve->padded * sizeof *shorts);
    for (int64_t first = 0; first < dimension; first += PARTS)
        for (int64_t i = 0; i < (dimension - first < PARTS ? dimension - first : PARTS); i++) {
            const double number = (double)query[first + i] * scales[first + i];
            const double whole = (number / divisor + ROUNDED) - ROUNDED; /* to the nearest whole number, of two the even one */
            const double left = number - (double)unit * whole;
            shorts[first + i] = (int16_t)(whole == whole ? whole : 0); /* scales that are no numbers are a damaged file's */
            rests[i] += left * left;
        }
    for (int i = 0; i < PARTS; i++)
        rest += rests[i];
    const double length = sqrt(square);
    out->unit = unit;
    out->length = (float)(length * (1 + 0x1p-20));
    out->rounding = (float)(longest * (sqrt(rest) * (1 + 0x1p-20) + 0x1p-20 * length)); /* by what float32 rounds below, too */
    out->base = base;
}

/* Asks for a row. It may lie anywhere. */
static inline void ask(const int8_t *codes, int64_t ahead, int64_t dimension) {
    for (int64_t byte = 0; byte < dimension; byte += LINE)
        PREFETCH((const char *)((uintptr_t)codes + (uintptr_t)(ahead + byte)));
}

/* The codes of a row, after asking for what is read soon. Rows that lie together the processor reads ahead by itself, but not
 * far enough. */
static inline const int8_t *codes_of(const Sieve *sieve, const int64_t *rows, int64_t at, int64_t count, int together) {
    const int64_t dimension = sieve->dimension;
    if (together)
        ask(sieve->codes + rows[0] * dimension + at * dimension, BYTES_AHEAD, dimension);
    else
        ask(sieve->codes + rows[at + ROWS_AHEAD < count ? at + ROWS_AHEAD : count - 1] * dimension, 0, dimension);
    return sieve->codes + (together ? rows[0] + at : rows[at]) * dimension;
}

CLONES void sieve_scores(const Sieve *sieve, const Sieved *query, const int32_t *restrict rows, int64_t count,
                         float *restrict scores) {
    const int64_t dimension = sieve->dimension;
    for (int64_t i = 0; i < count && i < SCORED_AHEAD; i++)
        ask(sieve->codes + rows[i] * dimension, 0, dimension);
    for (int64_t i = 0; i < count; i++) {
        if (i + SCORED_AHEAD < count) {
            ask(sieve->codes + rows[i + SCORED_AHEAD] * dimension, 0, dimension);
            PREFETCH(sieve->steps + rows[i + SCORED_AHEAD]);
        }
        const int32_t sum = sieve_product(sieve->codes + rows[i] * dimension, query->shorts, dimension);
        scores[i] = (float)sum * (sieve->steps[rows[i]] * query->unit);
    }
}

CLONES static void multiply_by_one(const Sieve *sieve, const int16_t *restrict query, const int64_t *restrict rows,
                                   int64_t count, int together, int32_t *restrict sums) {
    const int64_t dimension = sieve->dimension;
    if (together)
        for (int64_t i = 0; i < count; i++)
            sums[i] = sieve_product(codes_of(sieve, rows, i, count, 1), query, dimension);
    else
        for (int64_t i = 0; i < count; i++)
            sums[i] = sieve_product(codes_of(sieve, rows, i, count, 0), query, dimension);
}

/* Rows are widened once for all queries, and some of them multiplied by a query at a time. */
CLONES static void multiply(const Sieve *sieve, const Sieved *const *queries, int64_t query_count, const int64_t *rows,
                            int64_t count, int together, int32_t *restrict sums) {
    const int64_t dimension = sieve->dimension, padded = sieve->padded;
    for (int64_t i = 0; i < count; i += TILE) {
        const int64_t some = count - i < TILE ? count - i : TILE;
        for (int64_t row = 0; row < some; row++) {
            const int8_t *restrict codes = codes_of(sieve, rows, i + row, count, together);
            int16_t *restrict wide = sieve->wide + row * padded;
            for (int64_t d = 0; d < dimension; d++)
                wide[d] = codes[d];
        }
        for (int64_t query = 0; query < query_count; query++) {
            const int16_t *restrict shorts = queries[query]->shorts, *first = sieve->wide, *second = first + padded;
            const int16_t *third = second + padded, *fourth = third + padded;
            int32_t a = 0, b = 0, c = 0, e = 0;
            for (int64_t d = 0; d < padded; d++) {
                a += (int32_t)first[d] * shorts[d];
                b += (int32_t)second[d] * shorts[d];
                c += (int32_t)third[d] * shorts[d];
                e += (int32_t)fourth[d] * shorts[d];
            }
            int32_t *out = sums + query * SIEVED_ROWS + i;
            out[0] = a, out[1] = b, out[2] = c, out[3] = e;
        }
    }
}

CLONES static void bound(const Sieved *query, const float *restrict steps, const float *restrict errors,
                         const int32_t *restrict sums, float *restrict bounds) {
    const float unit = query->unit, length = query->length, rounding = query->rounding;
    for (int i = 0; i < SIEVED_ROWS; i++)
        bounds[i] = steps[i] * ((float)sums[i] * unit + rounding) + (errors[i] * length + 0x1p-80f);
}

void sieve_bounds(const Sieve *sieve, const Sieved *const *queries, int64_t query_count, const int64_t *rows, int64_t row_count,
                  int together, float *bounds) {
    int32_t sums[SIEVED_QUERIES * SIEVED_ROWS];
    float some_steps[SIEVED_ROWS] = {0}, some_errors[SIEVED_ROWS] = {0};
    const float *steps = some_steps, *errors = some_errors;
    memset(sums, 0, (size_t)query_count * SIEVED_ROWS * sizeof *sums);
    if (together && row_count == SIEVED_ROWS)
        steps = sieve->steps + rows[0], errors = sieve->errors + rows[0];
    else
        for (int64_t i = 0; i < row_count; i++)
            some_steps[i] = sieve->steps[rows[i]], some_errors[i] = sieve->errors[rows[i]];
    for (int64_t i = 0; i < row_count && i < ROWS_AHEAD && !together; i++)
        ask(sieve->codes + rows[i] * sieve->dimension, 0, sieve->dimension);
    if (query_count == 1)
        multiply_by_one(sieve, queries[0]->shorts, rows, row_count, together, sums);
    else
        multiply(sieve, queries, query_count, rows, row_count, together, sums);
    for (int64_t query = 0; query < query_count; query++)
        bound(queries[query], steps, errors, sums + query * SIEVED_ROWS, bounds + query * SIEVED_ROWS);
}
