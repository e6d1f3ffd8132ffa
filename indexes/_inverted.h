/* Postings as the kernels see them, and the search of one query. */

#ifndef RETRIEVERS_INVERTED_H
#define RETRIEVERS_INVERTED_H

#include "_heap.h"
#include "_kernels.h"

#include <stdint.h>
#include <string.h>

enum {
    RANGE = 65536,       /* rows of a range: what 16 bits can name */
    CHUNK = 1024,        /* contributions that are computed before they are scattered */
    COARSE_TERMS = 256,  /* longer queries are not searched by whole numbers, */
    COARSE_K = 128,      /* nor those for more hits */
    KEPT = 8192          /* rows that a search by whole numbers holds for scoring */
};

enum { IMPACTS_16, IMPACTS_8, FREQUENCIES_8, FREQUENCIES_16, FREQUENCIES_32, KINDS };

typedef struct {
    int kind;
    int64_t n, term_count, block_count, posting_count;
    const uint16_t *ids;
    const void *payload;
    const int64_t *term_blocks, *block_start;
    const uint32_t *block_range;
    const void *block_max; /* impacts: the highest code of each block */
    const float *norms;    /* frequencies: of each row */
    const uint8_t *mask;   /* permitted rows, or NULL for all */
} Index;

typedef struct {
    int64_t block, end;   /* blocks of the term that are yet to come */
    int64_t start, stop;  /* postings in the current range */
    double bound;         /* the most that the term adds */
    int64_t number, slot; /* the place of the term in the query, and in the index */
    float weight;
} Cursor;

typedef struct Coarse Coarse; /* what _coarse.c keeps of an index */

typedef struct {
    float accumulator[RANGE]; /* zero between ranges, and so between searches, whatever they met */
    uint16_t candidates[RANGE];
    float chunk[CHUNK];
    uint16_t sums[RANGE + 64];
    uint16_t factors[COARSE_TERMS]; /* of each term of a query: by what its codes are multiplied */
    uint16_t best_sums[COARSE_K], kept_sums[KEPT];
    int64_t kept_rows[KEPT];
    int64_t best_count, kept_count;
    Cursor *by_bound[COARSE_TERMS];
    Cursor *cursors;
    Cursor **active; /* cursors with a block in the current range, in ascending order of terms */
    int64_t *slots;  /* of the query's terms, */
    float *weights;  /* and what they weigh */
} Scratch;

typedef struct {
    int64_t base; /* the first row */
    int64_t limit; /* how many rows */
    int64_t total; /* how many postings */
    int64_t count; /* how many cursors are active */
} Range;

/* What a code of IMPACTS_16 stands for. */
static inline float impact16(uint16_t code) {
    const uint32_t bits = ((uint32_t)code << 12) + (111u << 23);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline int permitted(const Index *index, int64_t row) {
    return index->mask == NULL || (index->mask[row >> 3] >> (row & 7) & 1);
}

/* What postings add to their rows, float32. */
void contribute(const Index *index, int64_t base, int64_t start, int64_t count, float weight, float *out);

/* Set the cursors to the first blocks of their terms. Returns -1 where a slot or block is out of bounds. */
int start_cursors(const Index *index, const int64_t *slots, const float *weights, int64_t count, Scratch *scratch);

/* Bring the cursors that have a block in the next range into `active`. Returns 1, 0 at the end, -1 for damage. */
int next_range(const Index *index, Scratch *scratch, int64_t count, Range *range);

/* What a search by whole numbers keeps of an index: nothing yet. NULL without memory. */
Coarse *coarse_new(const Index *index);
void coarse_free(Coarse *coarse);

/* Search one query whose cursors are set. Returns 1 with the best in the heap, in any order; 0, with the heap as it was,
 * where another way is cheaper; -1 where something is out of bounds. */
int coarse_query(const Index *index, Coarse *coarse, const int64_t *slots, const float *weights, int64_t count,
                 Scratch *scratch, Heap *heap);

/* Search one query of `count` terms (slots ascending); `heap`, empty at first, ends best first. The scratch must be zero
 * at first, with room for `count` cursors. `coarse` may be NULL. Returns 0, or -1 where a slot, block or range is out of
 * bounds. */
int inverted_query(const Index *index, Coarse *coarse, const int64_t *slots, const float *weights, int64_t count,
                   Scratch *scratch, Heap *heap);

#endif
