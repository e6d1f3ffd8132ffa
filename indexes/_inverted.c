/* Search over postings, range by range of 65,536 rows, term at a time within a range.
 *
 * The score of a row is the float32 sum of its contributions in ascending order of terms, from 0. Every path below
 * returns exactly that number and the same rows as _inverted_numpy.py; the pruned path (MaxScore: Turtle and Flood,
 * "Query evaluation: strategies and optimizations", 1995, section 4) only avoids work whose outcome is known.
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
    PRUNE_FROM = 16384, /* below so many postings, pruning costs more than it saves */
    PROBE = 8,          /* the cost of finding a row in a block, in postings */
    ESTIMATE = 16384    /* the cost of estimating the k-th score, in postings */
};

static const double PLAUSIBLE = 0.45; /* of all bounds together: the k-th score of a long query is seldom higher */
static const double WORTHWHILE = 0.1; /* of them, between two estimates */

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

CLONES static void contribute(const Index *index, int64_t base, int64_t start, int64_t count, float weight,
                              float *restrict out) {
    const uint16_t *restrict ids = index->ids + start;
    if (index->norms != NULL)
        gather(index->norms + base, ids, count, index->n - base < RANGE ? (int32_t)(index->n - base) - 1 : RANGE - 1, out);
    switch (index->kind) {
    case IMPACTS_16: {
        const uint16_t *restrict codes = (const uint16_t *)index->payload + start;
        for (int64_t i = 0; i < count; i++) {
            const uint32_t bits = ((uint32_t)codes[i] << 12) + (111u << 23);
            float value;
            memcpy(&value, &bits, sizeof value);
            out[i] = weight * value;
        }
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

static double bound_of(const Index *index, int64_t block, float weight) {
    if (index->kind == IMPACTS_16) {
        const uint32_t bits = ((uint32_t)((const uint16_t *)index->block_max)[block] << 12) + (111u << 23);
        float value;
        memcpy(&value, &bits, sizeof value);
        return (double)(weight * value);
    }
    if (index->kind == IMPACTS_8)
        return (double)(weight * (float)((const uint8_t *)index->block_max)[block]);
    return (double)weight; /* frequency / (frequency + norm) is at most 1 */
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

static int permitted(const Index *index, int64_t row) {
    return index->mask == NULL || (index->mask[row >> 3] >> (row & 7) & 1);
}

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

/* The permitted rows above `low`, ascending. */
static int64_t collect(const Index *index, const Range *range, Scratch *scratch, float low) {
    int64_t count = 0;
    for (int64_t from = 0; from < range->limit; from += LANES)
        for (uint64_t bits = above(scratch->accumulator + from, low); bits != 0; bits &= bits - 1) {
            const int64_t id = from + LOWEST_BIT(bits);
            if (id < range->limit && permitted(index, range->base + id))
                scratch->candidates[count++] = (uint16_t)id;
        }
    return count;
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

/* ---- with pruning ---- */

/* The first posting from `from` on whose id is at least `id`. */
static int64_t lower_bound(const uint16_t *ids, int64_t from, int64_t to, uint16_t id) {
    while (from < to) {
        const int64_t middle = from + (to - from) / 2;
        if (ids[middle] < id)
            from = middle + 1;
        else
            to = middle;
    }
    return from;
}

static int64_t gallop(const uint16_t *ids, int64_t from, int64_t to, uint16_t id) {
    int64_t step = 1;
    while (from + step < to && ids[from + step] < id) {
        from += step;
        step *= 2;
    }
    return lower_bound(ids, from, from + step + 1 < to ? from + step + 1 : to, id);
}

static float rescore(const Index *index, const Range *range, const Scratch *scratch, uint16_t id) {
    float score = 0.0f;
    for (int64_t i = 0; i < range->count; i++) {
        const Cursor *cursor = scratch->active[i];
        const int64_t at = lower_bound(index->ids, cursor->start, cursor->stop, id);
        if (at < cursor->stop && index->ids[at] == id) {
            float contribution;
            contribute(index, range->base, at, 1, cursor->weight, &contribution);
            score += contribution;
        }
    }
    return score;
}

/* What a partial sum must be above where `rest` may yet come and `low` has to be reached; 0 is no demand. */
static float wanted(double low, double rest, double slack) {
    const double least = (low - rest) / slack;
    return least > 1e-30 ? (float)(least * (1.0 - 1e-6)) : 0.0f; /* the margin covers the rounding to float32 */
}

/* Keep the candidates above `low`, then add the contributions of one term to them. */
static int64_t refine(const Index *index, const Range *range, Scratch *scratch, const Cursor *cursor, int64_t count,
                      float low) {
    int64_t kept = 0, at = cursor->start;
    for (int64_t i = 0; i < count; i++) {
        const uint16_t id = scratch->candidates[i];
        if (!(scratch->accumulator[id] > low))
            continue;
        scratch->candidates[kept++] = id;
        at = gallop(index->ids, at, cursor->stop, id);
        if (at < cursor->stop && index->ids[at] == id) {
            float contribution;
            contribute(index, range->base, at, 1, cursor->weight, &contribution);
            scratch->accumulator[id] += contribution;
        }
    }
    return kept;
}

/* Terms in descending order of their bounds, until what is left can bring no new row into the best k; then only the
 * rows that are still in question are looked up in the rest. Partial sums are taken in another order than the score's,
 * so they are compared with a slack above float32's error and the few rows that pass are scored again, in order.
 * Returns 0, with the heap as it was, where so many rows pass (equal scores) that the whole range is cheaper. */
static int search_pruned(const Index *index, const Range *range, Scratch *scratch, Heap *heap) {
    const int64_t terms = range->count;
    const double slack = 1.0 + (double)(terms + 4) * 0x1p-22;
    Cursor **by_bound = scratch->by_bound;
    double *rest = scratch->rest;
    for (int64_t i = 0; i < terms; i++) {
        int64_t at = i;
        for (; at > 0 && by_bound[at - 1]->bound < scratch->active[i]->bound; at--)
            by_bound[at] = by_bound[at - 1];
        by_bound[at] = scratch->active[i];
    }
    rest[terms] = 0.0;
    for (int64_t i = terms - 1; i >= 0; i--)
        rest[i] = rest[i + 1] + by_bound[i]->bound * slack;

    double low = (double)threshold(heap), estimated = rest[0];
    if (rest[0] < low)
        return 1;
    int64_t pending = range->total, done = 0, count = -1;
    for (; done < terms; done++) {
        const Cursor *cursor = by_bound[done];
        const int64_t length = cursor->stop - cursor->start;
        if (rest[done] < low && length > SWEEP) {
            count = collect(index, range, scratch, wanted(low, rest[done], slack));
            if (count * PROBE < length)
                break;
        }
        accumulate(index, range, cursor, scratch);
        pending -= length;
        const int last = done == terms - 1;
        if (heap->size < heap->k &&
            (last || (pending > ESTIMATE && rest[done + 1] < PLAUSIBLE * rest[0] &&
                      estimated - rest[done + 1] > WORTHWHILE * rest[0]))) {
            Heap estimate = {scratch->estimate_scores, scratch->estimate_rows, 0, heap->k};
            scan(index, range, scratch->accumulator, &estimate);
            const double reached = (double)threshold(&estimate) / slack;
            low = reached > low ? reached : low;
            estimated = rest[done + 1];
        }
    }
    if (done == terms)
        count = collect(index, range, scratch, wanted(low, 0.0, slack));
    for (; done < terms; done++)
        count = refine(index, range, scratch, by_bound[done], count, wanted(low, rest[done], slack));

    const int worth = count * terms * PROBE < range->total + RANGE || count <= 64;
    for (int64_t i = 0; i < count && worth; i++) {
        const uint16_t id = scratch->candidates[i];
        const double now = (double)threshold(heap) > low ? (double)threshold(heap) : low;
        if ((double)scratch->accumulator[id] * slack < now)
            continue;
        const float score = rescore(index, range, scratch, id);
        if (score > 0.0f)
            offer(heap, score, range->base + id);
    }
    memset(scratch->accumulator, 0, sizeof scratch->accumulator);
    return worth;
}

/* ---- a query ---- */

/* Bring the cursors that have a block in the next range into `active`. Returns 1, 0 at the end, -1 for damage. */
static int next_range(const Index *index, Scratch *scratch, int64_t count, Range *range) {
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
        cursor->bound = bound_of(index, cursor->block, cursor->weight);
        cursor->block++;
        range->total += cursor->stop - cursor->start;
        scratch->active[range->count++] = cursor;
    }
    return 1;
}

int inverted_query(const Index *index, const int64_t *slots, const float *weights, int64_t count, Scratch *scratch,
                        Heap *heap) {
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
    Range range;
    int status;
    while ((status = next_range(index, scratch, count, &range)) > 0) {
        const int prune = range.count > 1 && range.count <= PRUNE_TERMS && heap->k <= PRUNE_K && range.total > PRUNE_FROM;
        if (!prune || !search_pruned(index, &range, scratch, heap))
            search_whole(index, &range, scratch, heap);
    }
    sort_best_first(heap);
    return status;
}
