/* What no inner product exceeds, by codes of eight bits: rows that cannot be among the best are passed over without
 * reading their numbers, which take four times the memory. retrievers/indexes/sieve.py makes the codes.
 *
 * A row is steps[row] times its codes, but for a vector of length errors[row] at most; a query is unit times its shorts,
 * but for one whose part is in margin. Products of codes and shorts are summed exactly. */

#ifndef RETRIEVERS_DENSE_SIEVE_H
#define RETRIEVERS_DENSE_SIEVE_H

#include "_kernels.h"

enum {
    SIEVED_ROWS = 64,   /* at a time, */
    SIEVED_QUERIES = 16 /* by so many queries */
};

typedef struct {
    const int8_t *codes;         /* [n, dimension] */
    const float *steps, *errors; /* [n] each */
    int64_t dimension, padded;   /* numbers of a row, and those with zeros after them */
    double longest;              /* no row is longer */
    int16_t *wide;               /* room for some rows */
} Sieve;

typedef struct {
    int16_t *shorts; /* [padded] */
    float unit, length, margin;
} Sieved;

static inline int64_t padded_for_sieve(int64_t dimension) {
    return (dimension + 31) / 32 * 32;
}

/* Bytes of room that a sieve wants. */
size_t sieve_room(int64_t dimension);

/* Makes a query, float32 [dimension], ready for a sieve. Its shorts have room already. */
void sieve_query(const Sieve *sieve, const float *query, Sieved *out);

/* Bounds, [queries, SIEVED_ROWS], of the inner products of up to SIEVED_QUERIES queries and SIEVED_ROWS rows: NaN or what is
 * no smaller. */
void sieve_bounds(const Sieve *sieve, const Sieved *const *queries, int64_t query_count, const int64_t *rows, int64_t row_count,
                  float *bounds);

#endif
