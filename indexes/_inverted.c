/* Search over postings, range by range of 65,536 rows, term at a time within a range.
 *
 * The score of a row is the float32 sum of its contributions in ascending order of terms, from 0. This is what short
 * queries, very long ones and those for many hits go through, and what the quicker way of _coarse.c has to equal, as
 * _inverted_numpy.py does, to the last bit.
 *
 * Nothing in the buffers is trusted: ids are 16 bits and so inside the accumulator, blocks are checked when they are
 * entered, norms are read at min(id, last row).
 */

#include "_inverted.h"

#include <string.h>

#if defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
#endif

#if defined(__GNUC__)
#define LOWEST_BIT(bits) __builtin_ctzll(bits)
#else
static int LOWEST_BIT(uint64_t bits) {
    int at = 0;
    for (; !(bits & 1); bits >>= 1)
        at++;
    return at;
}
#endif

enum {
    LANES = 64,         /* rows that a scan looks at together */
    SWEEP = 4096,       /* below so many postings, visiting them again is cheaper than scanning the range */
    COARSE_FROM = 4096  /* below so many postings of a query, whole numbers do not pay */
};

/* ---- contributions ---- */

/* Hardware gathers are slower than scalar loads on many processors, so this loop is kept from being vectorised. */
SCALAR static void gather(const float *restrict norms, const uint16_t *restrict ids, int64_t count, int32_t last,
                          float *restrict out) {
    for (int64_t i = 0; i < count; i++)
        out[i] = norms[(int32_t)ids[i] < last ? (int32_t)ids[i] : last];
}

#define SATURATE(type)                                                            \
    do {                                                                          \
        const type *restrict counts = (const type *)index->payload + start;       \
        for (int64_t i = 0; i < count; i++) {                                     \
            const float frequency = (float)counts[i];                             \
            out[i] = weight * (frequency / (frequency + out[i]));                 \
        }                                                                         \
    } while (0)

CLONES void contribute(const Index *index, int64_t base, int64_t start, int64_t count, float weight,
                       float *restrict out) {
    const uint16_t *restrict ids = index->ids + start;
    if (index->norms != NULL)
        gather(index->norms + base, ids, count, index->n - base < RANGE ? (int32_t)(index->n - base) - 1 : RANGE - 1, out);
    switch (index->kind) {
    case IMPACTS_16: {
        const uint16_t *restrict codes = (const uint16_t *)index->payload + start;
        for (int64_t i = 0; i < count; i++)
            out[i] = weight * impact16(codes[i]);
        break;
    }
    case IMPACTS_8: {
        const uint8_t *restrict codes = (const uint8_t *)index->payload + start;
        for (int64_t i = 0; i < count; i++)
            out[i] = weight * (float)codes[i];
        break;
    }
    case FREQUENCIES_8:
        SATURATE(uint8_t);
        break;
    case FREQUENCIES_16:
        SATURATE(uint16_t);
        break;
    default:
        SATURATE(uint32_t);
    }
}

static void accumulate(const Index *index, const Range *range, const Cursor *cursor, Scratch *scratch) {
    float *restrict accumulator = scratch->accumulator;
    for (int64_t at = cursor->start; at < cursor->stop; at += CHUNK) {
        const int64_t count = cursor->stop - at < CHUNK ? cursor->stop - at : CHUNK;
        const uint16_t *restrict ids = index->ids + at;
        const float *restrict chunk = scratch->chunk;
        contribute(index, range->base, at, count, cursor->weight, scratch->chunk);
        for (int64_t i = 0; i < count; i++)
            accumulator[ids[i]] += chunk[i];
    }
}

/* ---- the best so far ---- */

/* What a score must exceed (a later row also loses a tie). */
static float threshold(const Heap *heap) { return heap->size == heap->k ? heap->scores[0] : 0.0f; }

/* ---- over a whole range ---- */

/* Which of 64 scores are above `low`: bit i for the i-th. */
static uint64_t above(const float *scores, float low) {
    uint64_t bits = 0;
#if defined(__SSE2__) || defined(_M_X64)
    const __m128 lows = _mm_set1_ps(low);
    for (int i = 0; i < LANES; i += 16) {
        const __m128i a = _mm_castps_si128(_mm_cmpgt_ps(_mm_loadu_ps(scores + i), lows));
        const __m128i b = _mm_castps_si128(_mm_cmpgt_ps(_mm_loadu_ps(scores + i + 4), lows));
        const __m128i c = _mm_castps_si128(_mm_cmpgt_ps(_mm_loadu_ps(scores + i + 8), lows));
        const __m128i d = _mm_castps_si128(_mm_cmpgt_ps(_mm_loadu_ps(scores + i + 12), lows));
        const __m128i all = _mm_packs_epi16(_mm_packs_epi32(a, b), _mm_packs_epi32(c, d));
        bits |= (uint64_t)(uint32_t)_mm_movemask_epi8(all) << i;
    }
#else
    for (int i = 0; i < LANES; i++)
        bits |= (uint64_t)(scores[i] > low) << i;
#endif
    return bits;
}

/* Offer every row of the range, ascending. */
static void scan(const Index *index, const Range *range, const float *accumulator, Heap *heap) {
    for (int64_t from = 0; from < range->limit; from += LANES)
        for (uint64_t bits = above(accumulator + from, threshold(heap)); bits != 0; bits &= bits - 1) {
            const int64_t id = from + LOWEST_BIT(bits);
            if (accumulator[id] > threshold(heap) && id < range->limit && permitted(index, range->base + id))
                offer(heap, accumulator[id], range->base + id);
        }
}

static void search_whole(const Index *index, const Range *range, Scratch *scratch, Heap *heap) {
    float *accumulator = scratch->accumulator;
    for (int64_t i = 0; i < range->count; i++)
        accumulate(index, range, scratch->active[i], scratch);
    if (range->total >= SWEEP) {
        scan(index, range, accumulator, heap);
        memset(accumulator, 0, sizeof scratch->accumulator);
        return;
    }
    for (int64_t i = 0; i < range->count; i++)
        for (int64_t at = scratch->active[i]->start; at < scratch->active[i]->stop; at++) {
            const uint16_t id = index->ids[at];
            const float score = accumulator[id];
            accumulator[id] = 0.0f;
            if (score > 0.0f && score >= threshold(heap) && id < range->limit && permitted(index, range->base + id))
                offer(heap, score, range->base + id);
        }
}

/* ---- a query ---- */

int next_range(const Index *index, Scratch *scratch, int64_t count, Range *range) {
    uint32_t next = UINT32_MAX;
    int found = 0;
    for (int64_t i = 0; i < count; i++) {
        const Cursor *cursor = scratch->cursors + i;
        if (cursor->block < cursor->end && index->block_range[cursor->block] <= next)
            next = index->block_range[cursor->block], found = 1;
    }
    if (!found)
        return 0;
    range->base = (int64_t)next * RANGE;
    if (range->base >= index->n)
        return -1;
    range->limit = index->n - range->base < RANGE ? index->n - range->base : RANGE;
    range->total = range->count = 0;
    for (int64_t i = 0; i < count; i++) {
        Cursor *cursor = scratch->cursors + i;
        if (cursor->block >= cursor->end || index->block_range[cursor->block] != next)
            continue;
        cursor->start = index->block_start[cursor->block];
        cursor->stop = index->block_start[cursor->block + 1];
        if (cursor->start < 0 || cursor->stop < cursor->start || cursor->stop > index->posting_count)
            return -1;
        cursor->block++;
        range->total += cursor->stop - cursor->start;
        scratch->active[range->count++] = cursor;
    }
    return 1;
}

int start_cursors(const Index *index, const int64_t *slots, const float *weights, int64_t count, Scratch *scratch) {
    for (int64_t i = 0; i < count; i++) {
        if (slots[i] < 0 || slots[i] >= index->term_count)
            return -1;
        Cursor *cursor = scratch->cursors + i;
        cursor->block = index->term_blocks[slots[i]];
        cursor->end = index->term_blocks[slots[i] + 1];
        cursor->weight = weights[i];
        if (cursor->block < 0 || cursor->end < cursor->block || cursor->end > index->block_count)
            return -1;
    }
    return 0;
}

int inverted_query(const Index *index, Coarse *coarse, const int64_t *slots, const float *weights, int64_t count,
                   Scratch *scratch, Heap *heap) {
    if (start_cursors(index, slots, weights, count, scratch) < 0)
        return -1;
    uint64_t total = 0; /* of offsets that nothing has checked yet */
    for (int64_t i = 0; i < count; i++)
        total += (uint64_t)index->block_start[scratch->cursors[i].end] - (uint64_t)index->block_start[scratch->cursors[i].block];
    int status = 0;
    if (coarse != NULL && count <= COARSE_TERMS && heap->k <= COARSE_K && total > COARSE_FROM)
        status = coarse_query(index, coarse, slots, weights, count, scratch, heap);
    if (status < 0)
        return -1;
    if (status == 0) {
        Range range;
        (void)start_cursors(index, slots, weights, count, scratch);
        while ((status = next_range(index, scratch, count, &range)) > 0)
            search_whole(index, &range, scratch, heap);
    }
    sort_best_first(heap);
    return status < 0 ? -1 : 0;
}
