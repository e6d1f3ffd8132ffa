/* Postings as the kernels see them, and the search of one query. */

#ifndef RETRIEVERS_INVERTED_H
#define RETRIEVERS_INVERTED_H

#include "_heap.h"
#include "_kernels.h"

#include <stdint.h>

enum {
    RANGE = 65536,     /* rows of a range: what 16 bits can name */
    CHUNK = 1024,      /* contributions that are computed before they are scattered */
    PRUNE_TERMS = 256, /* no pruning for longer queries, */
    PRUNE_K = 256      /* nor for more hits: there it costs more than it saves */
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
    int64_t block, end;  /* blocks of the term that are yet to come */
    int64_t start, stop; /* postings in the current range */
    double bound;        /* no contribution in the current range is higher */
    float weight;
} Cursor;

typedef struct {
    float accumulator[RANGE]; /* zero between ranges, and so between searches, whatever they met */
    uint16_t candidates[RANGE];
    float chunk[CHUNK];
    float estimate_scores[PRUNE_K];
    int64_t estimate_rows[PRUNE_K];
    Cursor *by_bound[PRUNE_TERMS];
    double rest[PRUNE_TERMS + 1];
    Cursor *cursors;
    Cursor **active; /* cursors with a block in the current range, in ascending order of terms */
} Scratch;

typedef struct {
    int64_t base; /* the first row */
    int64_t limit; /* how many rows */
    int64_t total; /* how many postings */
    int64_t count; /* how many cursors are active */
} Range;

/* Search one query of `count` terms (slots ascending); `heap`, empty at first, ends best first. The scratch must be zero
 * at first, with room for `count` cursors. Returns 0, or -1 where a slot, block or range is out of bounds. */
int inverted_query(const Index *index, const int64_t *slots, const float *weights, int64_t count, Scratch *scratch,
                   Heap *heap);

#endif
