/* What no inner product exceeds, by codes of eight bits: rows that cannot be among the best are passed over without
 * reading their numbers, which take four times the memory. retrievers/indexes/sieve.py makes the codes.
 *
 * A row is the centre and, times the scale of each dimension, steps[row] times its codes, but for a vector of length
 * errors[row] at most. A query times the scales is unit times its shorts, but for a vector whose part is in rounding. Products
 * of codes and shorts are summed exactly. */

#ifndef RETRIEVERS_DENSE_SIEVE_H
#define RETRIEVERS_DENSE_SIEVE_H

#include "_kernels.h"

enum {
    SIEVED_ROWS = 64,   /* at a time, */
    SIEVED_QUERIES = 16 /* by so many queries */
};

enum { /* what searches over dense vectors come to */
    SOUND = 0,
    NO_ROW = 1,  /* a row that there is not */
    NO_SCORE = 2 /* a score that float32 does not hold */
};

typedef struct {
    const int8_t *codes;          /* [n, dimension] */
    const float *steps, *errors;  /* [n] each */
    const float *centre, *scales; /* [dimension] each */
    int64_t dimension, padded;    /* numbers of a row, and those with zeros after them */
    int16_t *wide;                /* room for some rows */
} Sieve;

typedef struct {
    int16_t *shorts; /* [padded] */
    float unit, length, rounding;
    double base; /* the inner product with the centre */
} Sieved;

static inline int64_t padded_for_sieve(int64_t dimension) {
    return (dimension + 31) / 32 * 32;
}

/* Bytes of room that a sieve wants. */
size_t sieve_room(int64_t dimension);

/* Whether codes, bounds (steps and errors) and spread (centre and scales) fit together; then they are taken. */
int take_sieve(Sieve *sieve, const Py_buffer *codes, const Py_buffer *bounds, const Py_buffer *spread, int64_t n,
               int64_t dimension);

/* Makes a query, float32 [dimension], ready for a sieve. Its shorts have room already. */
void sieve_query(const Sieve *sieve, const float *query, Sieved *out);

/* The sum of products of codes and shorts. */
static inline int32_t sieve_product(const int8_t *restrict codes, const int16_t *restrict shorts, int64_t dimension) {
    int32_t sum = 0;
    for (int64_t d = 0; d < dimension; d++)
        sum += (int32_t)codes[d] * shorts[d];
    return sum;
}

/* Inner products of a query and some rows, less its base, as far as codes tell them; rows may lie anywhere. */
void sieve_scores(const Sieve *sieve, const Sieved *query, const int32_t *rows, int64_t count, float *scores);

/* Bounds, [queries, SIEVED_ROWS], of the inner products of up to SIEVED_QUERIES queries and SIEVED_ROWS rows, less the base of
 * the query: NaN or what is no smaller. Rows lie together where each is the one after that before. */
void sieve_bounds(const Sieve *sieve, const Sieved *const *queries, int64_t query_count, const int64_t *rows, int64_t row_count,
                  int together, float *bounds);

#endif
