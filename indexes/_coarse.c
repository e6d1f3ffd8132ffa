/* Exact search by way of small whole numbers: what most searches go through.
 *
 * What a posting adds to its row is kept as a code from 1 to 255, of the highest that its term adds anywhere. A query
 * adds these up, scaled by its weights, in 16 bits, over 16,384 rows at a time: the sums of those stay in the nearest cache.
 * A term that stands in many rows is kept row by row, too, so that it is added by vector instructions, and looked up
 * at once. Mostly the terms that can add least come first, and the rows that come to the threshold while the others are added
 * are all that matters. How far the sums may be off is known, so that only few rows may be among the best k. These are scored
 * anew in float32 as _inverted.c does it: rows and scores are the same to the last bit.
 *
 * Codes are made when a term is first asked for. Threads may make them at the same time: they write the same. */

#include "_inverted.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    PARTS = 4,               /* of a range, */
    PART = RANGE / PARTS,    /* so many rows each */
    DENSE_SHARE = 8,         /* terms in more than an eighth of the rows are kept row by row */
    LANES = 64,              /* rows that a scan looks at together */
    STREAMED = 8192,         /* postings left to add from which it is tried to look up a few rows in them instead */
    LOOK_UP = 100,           /* the cost of finding a row in a block, in postings */
    FEW = 16,                /* postings that are not worth vector instructions */
    RISEN = 128,             /* rows of a part that are sorted rather than looked for again */
    DENSE_COST = 1024        /* the cost of adding a term row by row over a part, in postings */
};

struct Coarse {
    int64_t ranges, dense_terms;
    uint8_t *codes;   /* [postings] */
    int32_t *ends;    /* [blocks, PARTS]: where the postings of each part end, from the block's start */
    uint8_t *highest; /* [blocks, PARTS]: the highest code */
    float *units;     /* [terms]: what 255 stands for, at a weight of 1 */
    uint8_t *raised;  /* [terms]: whether something that is nearer to 0 has the code 1 */
    uint8_t *ready;   /* [terms] */
    int32_t *places;  /* [terms]: among the terms kept row by row, or -1 */
    uint8_t *dense;   /* [dense terms, ranges * RANGE]: codes, 0 where a row does not hold the term */
};

void coarse_free(Coarse *coarse) {
    if (coarse == NULL)
        return;
    free(coarse->codes);
    free(coarse->ends);
    free(coarse->highest);
    free(coarse->units);
    free(coarse->raised);
    free(coarse->ready);
    free(coarse->places);
    free(coarse->dense);
    free(coarse);
}

/* What is large is zero pages until it is used. */
Coarse *coarse_new(const Index *index) {
    Coarse *coarse = calloc(1, sizeof *coarse);
    if (coarse == NULL)
        return NULL;
    const size_t terms = (size_t)index->term_count, blocks = (size_t)index->block_count;
    coarse->ranges = (index->n + RANGE - 1) / RANGE;
    coarse->codes = calloc((size_t)index->posting_count + 1, 1);
    coarse->ends = calloc(blocks * PARTS + 1, sizeof *coarse->ends);
    coarse->highest = calloc(blocks * PARTS + 1, 1);
    coarse->units = calloc(terms + 1, sizeof *coarse->units);
    coarse->raised = calloc(terms + 1, 1);
    coarse->ready = calloc(terms + 1, 1);
    coarse->places = calloc(terms + 1, sizeof *coarse->places);
    int sound = coarse->codes != NULL && coarse->ends != NULL && coarse->highest != NULL && coarse->units != NULL &&
                coarse->raised != NULL && coarse->ready != NULL && coarse->places != NULL;
    for (int64_t term = 0; term < index->term_count && sound; term++) {
        const int64_t first = index->term_blocks[term], last = index->term_blocks[term + 1];
        coarse->places[term] = -1;
        if (first < 0 || first > last || last > index->block_count) /* a search says what is wrong */
            continue;
        const uint64_t rows = (uint64_t)index->block_start[last] - (uint64_t)index->block_start[first];
        if (rows > (uint64_t)index->n / DENSE_SHARE && rows <= (uint64_t)index->n && rows <= (uint64_t)index->posting_count &&
            index->n > PART / 4 && coarse->dense_terms < INT32_MAX)
            coarse->places[term] = (int32_t)coarse->dense_terms++;
    }
    if (sound) {
        coarse->dense = calloc((size_t)(coarse->dense_terms * coarse->ranges) * RANGE + 1, 1);
        sound = coarse->dense != NULL;
    }
    if (!sound) {
        coarse_free(coarse);
        return NULL;
    }
    return coarse;
}

/* Whether any is raised to 1. */
CLONES static int encode(const float *restrict values, int64_t count, float factor, uint8_t *restrict codes) {
    int raised = 0;
    for (int64_t i = 0; i < count; i++) {
        const float scaled = values[i] * factor + 0.5f;
        codes[i] = (uint8_t)(scaled < 256.0f ? (scaled > 1.0f ? scaled : 1.0f) : 255.0f); /* NaN, of a spoilt file, is 255 */
        raised |= scaled < 1.0f;
    }
    return raised;
}

/* Make the codes of a term. Returns -1 where a block or range is out of bounds. */
static int prepare(const Index *index, Coarse *coarse, int64_t term, float *chunk) {
    const int64_t first = index->term_blocks[term], last = index->term_blocks[term + 1];
    if (first < 0 || last < first || last > index->block_count)
        return -1;
    float unit = 1.0f; /* frequency / (frequency + norm) is less */
    if (index->kind == IMPACTS_8)
        unit = 255.0f;
    else if (index->kind == IMPACTS_16) {
        unit = 0.0f;
        for (int64_t block = first; block < last; block++) {
            const float bound = impact16(((const uint16_t *)index->block_max)[block]);
            unit = bound > unit ? bound : unit;
        }
    }
    int raised = 0;
    uint8_t *dense = coarse->places[term] < 0 ? NULL : coarse->dense + coarse->places[term] * coarse->ranges * RANGE;
    for (int64_t block = first; block < last; block++) {
        const int64_t start = index->block_start[block], stop = index->block_start[block + 1];
        const int64_t range = index->block_range[block];
        if (start < 0 || stop < start || stop > index->posting_count || stop - start > RANGE || range >= coarse->ranges)
            return -1;
        for (int64_t at = start; at < stop; at += CHUNK) {
            const int64_t count = stop - at < CHUNK ? stop - at : CHUNK;
            if (index->kind == IMPACTS_8)
                memcpy(coarse->codes + at, (const uint8_t *)index->payload + at, (size_t)count);
            else {
                contribute(index, range * RANGE, at, count, 1.0f, chunk);
                raised |= encode(chunk, count, 255.0f / unit, coarse->codes + at);
            }
        }
        int64_t at = start;
        for (int part = 0; part < PARTS; part++) {
            uint8_t highest = 0;
            for (; at < stop && index->ids[at] / PART <= part; at++)
                highest = coarse->codes[at] > highest ? coarse->codes[at] : highest;
            coarse->ends[block * PARTS + part] = (int32_t)(at - start);
            coarse->highest[block * PARTS + part] = highest;
        }
        if (dense != NULL)
            for (int64_t i = start; i < stop; i++)
                dense[range * RANGE + index->ids[i]] = coarse->codes[i];
    }
    coarse->units[term] = unit;
    coarse->raised[term] = (uint8_t)raised;
    STORE_RELEASE(coarse->ready + term, 1);
    return 0;
}

/* What a code adds: at least 1, unless it is 0. */
static inline uint16_t value_of(uint16_t code, uint16_t factor) {
    const uint16_t scaled = (uint16_t)((uint32_t)(uint16_t)(code << 8) * factor >> 16), least = code < 1 ? code : 1;
    return scaled > least ? scaled : least;
}

CLONES static void to_values(const uint8_t *restrict codes, uint16_t factor, int64_t count, uint16_t *restrict values) {
    for (int64_t i = 0; i < count; i++)
        values[i] = value_of(codes[i], factor);
}

CLONES static void add_dense(uint16_t *restrict sums, const uint8_t *restrict codes, uint16_t factor, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        sums[i] = (uint16_t)(sums[i] + value_of(codes[i], factor));
}

CLONES static void set_dense(uint16_t *restrict sums, const uint8_t *restrict codes, uint16_t factor, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        sums[i] = value_of(codes[i], factor);
}

SCALAR static void add_values(uint16_t *restrict sums, const uint16_t *restrict ids, const uint16_t *restrict values,
                              int64_t count) {
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) {
        sums[ids[i]] = (uint16_t)(sums[ids[i]] + values[i]);
        sums[ids[i + 1]] = (uint16_t)(sums[ids[i + 1]] + values[i + 1]);
        sums[ids[i + 2]] = (uint16_t)(sums[ids[i + 2]] + values[i + 2]);
        sums[ids[i + 3]] = (uint16_t)(sums[ids[i + 3]] + values[i + 3]);
    }
    for (; i < count; i++)
        sums[ids[i]] = (uint16_t)(sums[ids[i]] + values[i]);
}

/* The same, with the rows that are at `low` or above after the `found` that are known, of which RISEN are kept; returns how many
 * there are. A row comes once for each term that finds it there. */
SCALAR static int64_t add_watched(uint16_t *restrict sums, const uint16_t *restrict ids, const uint16_t *restrict values,
                                  int64_t count, uint16_t low, uint16_t *restrict risen, int64_t found) {
    for (int64_t i = 0; i < count; i++) {
        const uint16_t id = ids[i], sum = (uint16_t)(sums[id] + values[i]);
        sums[id] = sum;
        if (sum >= low) {
            if (found < RISEN)
                risen[found] = id;
            found++;
        }
    }
    return found;
}

/* The next 64 rows from `from` on of which one reaches `low`; the end where there are none. */
CLONES static int64_t next_lanes(const uint16_t *restrict sums, int64_t from, int64_t end, uint16_t low) {
    for (; from < end; from += LANES) {
        int any = 0;
        for (int i = 0; i < LANES; i++)
            any |= sums[from + i] >= low;
        if (any)
            break;
    }
    return from;
}

/* The rows of a part whose sums reach `low`, ascending; -1 where they are more than `most`. */
static int64_t reached(const uint16_t *sums, int64_t base, int64_t limit, uint16_t low, uint16_t *ids, int64_t most) {
    int64_t count = 0;
    const int64_t end = base + limit;
    for (int64_t from = next_lanes(sums, base, end, low); from < end; from = next_lanes(sums, from + LANES, end, low)) {
        for (int64_t id = from; id < from + LANES && id < end; id++)
            if (sums[id] >= low)
                ids[count++] = (uint16_t)id;
        if (count > most)
            return -1;
    }
    return count;
}

/* The k-th best sum so far: the least of a heap of the k best. */
static void rank_sum(Scratch *scratch, int64_t k, uint16_t sum) {
    uint16_t *best = scratch->best_sums;
    int64_t at;
    if (scratch->best_count < k) {
        at = scratch->best_count++;
        for (; at > 0 && best[(at - 1) / 2] > sum; at = (at - 1) / 2)
            best[at] = best[(at - 1) / 2];
    } else {
        if (sum <= best[0])
            return;
        for (at = 0;;) {
            int64_t child = 2 * at + 1;
            if (child >= k)
                break;
            if (child + 1 < k && best[child + 1] < best[child])
                child++;
            if (best[child] >= sum)
                break;
            best[at] = best[child];
            at = child;
        }
    }
    best[at] = sum;
}

static int low_of(const Scratch *scratch, int64_t k, int margin) {
    const int low = scratch->best_count < k ? 0 : scratch->best_sums[0] - margin;
    return low > 1 ? low : 1;
}

/* Keep a row, ascending. Returns 0 where there are too many. */
static int keep(Scratch *scratch, int64_t row, uint16_t sum, int low) {
    if (scratch->kept_count == KEPT) {
        int64_t kept = 0;
        for (int64_t i = 0; i < KEPT; i++)
            if (scratch->kept_sums[i] >= low) {
                scratch->kept_rows[kept] = scratch->kept_rows[i];
                scratch->kept_sums[kept++] = scratch->kept_sums[i];
            }
        scratch->kept_count = kept;
        if (kept > KEPT / 2)
            return 0;
    }
    scratch->kept_rows[scratch->kept_count] = row;
    scratch->kept_sums[scratch->kept_count++] = sum;
    return 1;
}

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

/* Take a row whose sum reaches `low`, which may rise by it. Returns 0 where too many rows are kept. */
static int take(const Index *index, const Range *range, Scratch *scratch, int64_t k, int margin, uint16_t id, int *low) {
    if (!permitted(index, range->base + id))
        return 1;
    rank_sum(scratch, k, scratch->sums[id]);
    *low = low_of(scratch, k, margin);
    return keep(scratch, range->base + id, scratch->sums[id], *low);
}

/* The postings of a term in a part of the current range. */
static int64_t part_of(const Coarse *coarse, const Cursor *cursor, int part, int64_t *stop) {
    const int32_t *ends = coarse->ends + (cursor->block - 1) * PARTS;
    const int64_t start = cursor->start + (part ? ends[part - 1] : 0), end = cursor->start + ends[part];
    *stop = end < cursor->stop ? end : cursor->stop;
    return start < *stop ? start : *stop;
}

/* Add the postings of a term in a part to the sums; where `low` is not 0, the rows that come to it go to the candidates after
 * the first `found`. Returns how many candidates there are, which may be more than are kept. */
static int64_t add_postings(const Index *index, const Coarse *coarse, const Cursor *cursor, int part, Scratch *scratch,
                            int low, int64_t found) {
    uint16_t values[CHUNK];
    int64_t stop;
    for (int64_t at = part_of(coarse, cursor, part, &stop); at < stop; at += CHUNK) {
        const int64_t count = stop - at < CHUNK ? stop - at : CHUNK;
        if (count < FEW)
            for (int64_t i = 0; i < count; i++)
                values[i] = value_of(coarse->codes[at + i], scratch->factors[cursor->number]);
        else
            to_values(coarse->codes + at, scratch->factors[cursor->number], count, values);
        if (low == 0)
            add_values(scratch->sums, index->ids + at, values, count);
        else
            found = add_watched(scratch->sums, index->ids + at, values, count, (uint16_t)low, scratch->candidates, found);
    }
    return found;
}

static const uint8_t *dense_of(const Coarse *coarse, const Cursor *cursor, const Range *range, int64_t base) {
    return coarse->dense + coarse->places[cursor->slot] * coarse->ranges * RANGE + range->base + base;
}

/* Sort a few ids, each once; returns how many are left. */
static int64_t sort_ids(uint16_t *ids, int64_t count) {
    int64_t sorted = 0;
    for (int64_t i = 0; i < count; i++) {
        const uint16_t id = ids[i];
        int64_t at = sorted;
        for (; at > 0 && ids[at - 1] > id; at--)
            ;
        if (at > 0 && ids[at - 1] == id)
            continue;
        memmove(ids + at + 1, ids + at, (size_t)(sorted - at) * sizeof *ids);
        ids[at] = id;
        sorted++;
    }
    return sorted;
}

/* Take the rows of a part whose sums reach `low`. Returns 0 where too many rows are kept. */
static int take_reached(const Index *index, const Range *range, int64_t base, int64_t limit, Scratch *scratch, int64_t k,
                        int margin, int low) {
    const uint16_t *sums = scratch->sums;
    const int64_t end = base + limit;
    for (int64_t from = next_lanes(sums, base, end, (uint16_t)low); from < end;
         from = next_lanes(sums, from + LANES, end, (uint16_t)low))
        for (int64_t id = from; id < from + LANES && id < end; id++)
            if (sums[id] >= low && !take(index, range, scratch, k, margin, (uint16_t)id, &low))
                return 0;
    return 1;
}

/* What of the terms is left in a part, by the most that they can add, descending, from each on. */
typedef struct {
    int32_t most[COARSE_TERMS + 1];
    int64_t cost[COARSE_TERMS + 1];
    int32_t common; /* what all terms that are kept row by row can add */
} Left;

/* Add all terms, those that can add least first: so few postings are left when the sums can come to `low`. The candidates are
 * the rows that come to it; returns how many, or -1 where they have to be looked for. */
static int64_t add_ascending(const Index *index, const Coarse *coarse, const Range *range, int part, Scratch *scratch,
                             const Left *left, int64_t whole, int watch, int low) {
    uint16_t *sums = scratch->sums + (int64_t)part * PART;
    Cursor **ordered = scratch->by_bound;
    int fresh = 1;
    for (int64_t i = 0; i < range->count; i++)
        if (coarse->places[ordered[i]->slot] >= 0) {
            const uint8_t *codes = dense_of(coarse, ordered[i], range, (int64_t)part * PART);
            (fresh ? set_dense : add_dense)(sums, codes, scratch->factors[ordered[i]->number], whole);
            fresh = 0;
        }
    if (fresh)
        memset(sums, 0, (size_t)whole * sizeof *sums);
    int32_t most = left->common;
    int64_t found = 0;
    watch &= most < low;
    for (int64_t i = range->count - 1; i >= 0; i--)
        if (coarse->places[ordered[i]->slot] < 0) {
            most += left->most[i] - left->most[i + 1];
            found = add_postings(index, coarse, ordered[i], part, scratch, watch && most >= low ? low : 0, found);
        }
    return watch && found <= RISEN ? sort_ids(scratch->candidates, found) : -1;
}

/* Add terms, those that can add most first, until few rows can still come to `low`: what the others add is looked up for these
 * alone. Returns as add_ascending does. */
static int64_t add_descending(const Index *index, const Coarse *coarse, const Range *range, int part, Scratch *scratch,
                              const Left *left, int64_t limit, int low) {
    const int64_t base = (int64_t)part * PART, count = range->count;
    uint16_t *sums = scratch->sums;
    Cursor **ordered = scratch->by_bound;
    int64_t found = -1, i = 0;
    int tried = 0;
    for (; i < count; i++) {
        if (!tried && left->most[i] < low && left->cost[i] > STREAMED) {
            tried = 1;
            found = reached(sums, base, limit, (uint16_t)(low - left->most[i]), scratch->candidates,
                            left->cost[i] / (LOOK_UP * (count - i)));
            if (found >= 0)
                break;
        }
        if (coarse->places[ordered[i]->slot] < 0)
            (void)add_postings(index, coarse, ordered[i], part, scratch, 0, 0);
        else
            add_dense(sums + base, dense_of(coarse, ordered[i], range, base), scratch->factors[ordered[i]->number], limit);
    }
    for (; i < count; i++) {
        const Cursor *cursor = ordered[i];
        int64_t stop;
        const int64_t start = part_of(coarse, cursor, part, &stop);
        const uint16_t factor = scratch->factors[cursor->number];
        int64_t kept = 0, from = start;
        for (int64_t j = 0; j < found; j++) {
            const uint16_t id = scratch->candidates[j];
            if (sums[id] + left->most[i] < low)
                continue;
            scratch->candidates[kept++] = id;
            if (coarse->places[cursor->slot] >= 0)
                sums[id] = (uint16_t)(sums[id] + value_of(dense_of(coarse, cursor, range, 0)[id], factor));
            else {
                from = gallop(index->ids, from, stop, id);
                if (from < stop && index->ids[from] == id)
                    sums[id] = (uint16_t)(sums[id] + value_of(coarse->codes[from], factor));
            }
        }
        found = kept;
    }
    return found;
}

/* One part of a range. Terms come by the most that they can add, descending. Returns 0 where too many rows are kept. */
static int search_part(const Index *index, const Coarse *coarse, const Range *range, int part, Scratch *scratch, int64_t k,
                       int margin) {
    const int64_t base = (int64_t)part * PART, count = range->count;
    const int64_t limit = range->limit - base < PART ? range->limit - base : PART;
    const int64_t whole = (limit + LANES - 1) / LANES * LANES; /* dense codes and sums go on to there */
    uint16_t *sums = scratch->sums;
    Left left;
    left.most[count] = 0, left.cost[count] = 0, left.common = 0;
    for (int64_t i = count - 1; i >= 0; i--) {
        const Cursor *cursor = scratch->by_bound[i];
        int64_t stop;
        const int64_t start = part_of(coarse, cursor, part, &stop), postings = stop - start;
        const int dense = coarse->places[cursor->slot] >= 0;
        const int32_t most = value_of(coarse->highest[(cursor->block - 1) * PARTS + part], scratch->factors[cursor->number]);
        left.most[i] = left.most[i + 1] + most;
        left.common += dense ? most : 0;
        left.cost[i] = left.cost[i + 1] + (dense ? DENSE_COST : postings);
    }
    int low = low_of(scratch, k, margin);
    if (left.most[0] < low)
        return 1;
    int64_t found, enough = 0; /* terms without which no row comes to `low` */
    while (left.most[enough] >= low)
        enough++;
    if (left.cost[enough] <= STREAMED)
        found = add_ascending(index, coarse, range, part, scratch, &left, whole, scratch->best_count == k, low);
    else {
        memset(sums + base, 0, (size_t)whole * sizeof *sums);
        found = add_descending(index, coarse, range, part, scratch, &left, limit, low);
    }
    if (found < 0)
        return take_reached(index, range, base, limit, scratch, k, margin, low);
    for (int64_t j = 0; j < found; j++)
        if (sums[scratch->candidates[j]] >= low && !take(index, range, scratch, k, margin, scratch->candidates[j], &low))
            return 0;
    return 1;
}

/* Add up the scores of the first `count` candidates, ascending rows of the current range, term by term as they ascend. */
static void score(const Index *index, const Range *range, Scratch *scratch, int64_t count) {
    for (int64_t i = 0; i < range->count && count > 0; i++) {
        const Cursor *cursor = scratch->active[i];
        int64_t at = cursor->start;
        for (int64_t j = 0; j < count; j++) {
            const uint16_t id = scratch->candidates[j];
            at = gallop(index->ids, at, cursor->stop, id);
            if (at < cursor->stop && index->ids[at] == id) {
                float added;
                contribute(index, range->base, at, 1, cursor->weight, &added);
                scratch->accumulator[id] += added;
            }
        }
    }
}

/* Returns 1 with the best in the heap, 0 where the search has to go another way, -1 where something is out of bounds. */
int coarse_query(const Index *index, Coarse *coarse, const int64_t *slots, const float *weights, int64_t count,
                 Scratch *scratch, Heap *heap) {
    double total = 0.0;
    for (int64_t i = 0; i < count; i++) {
        Cursor *cursor = scratch->cursors + i;
        if (!LOAD_ACQUIRE(coarse->ready + slots[i]) && prepare(index, coarse, slots[i], scratch->chunk) < 0)
            return -1;
        cursor->bound = (double)weights[i] * (double)coarse->units[slots[i]];
        cursor->number = i, cursor->slot = slots[i];
        total += cursor->bound;
    }
    if (!(total > 0.0 && total < 1e30))
        return 0;
    const double scale = 65000.0 / total;
    double off = 4.0; /* what float32 rounds */
    for (int64_t i = 0; i < count; i++) {
        const double most = scratch->cursors[i].bound * scale;
        const double factor = most * 256.0 / 255.0 + 0.5;
        scratch->factors[i] = (uint16_t)(factor < 65535.0 ? factor : 65535.0);
        /* Half a step below and above, or a whole one above; and what factors round, on both sides. */
        off += 4.0 + (index->kind == IMPACTS_8 ? 0.0 : most / 255.0 * (coarse->raised[slots[i]] ? 1.5 : 1.0));
    }
    const int margin = (int)off + 1; /* between the least sum of the k best rows and the k-th best sum */
    scratch->best_count = scratch->kept_count = 0;
    Range range;
    int status;
    while ((status = next_range(index, scratch, count, &range)) > 0) {
        for (int64_t i = 0; i < range.count; i++) {
            int64_t at = i;
            for (; at > 0 && scratch->by_bound[at - 1]->bound < scratch->active[i]->bound; at--)
                scratch->by_bound[at] = scratch->by_bound[at - 1];
            scratch->by_bound[at] = scratch->active[i];
        }
        for (int part = 0; part < PARTS && (int64_t)part * PART < range.limit; part++)
            if (!search_part(index, coarse, &range, part, scratch, heap->k, margin))
                return 0;
    }
    if (status < 0)
        return -1;
    const int low = low_of(scratch, heap->k, margin);
    (void)start_cursors(index, slots, weights, count, scratch);
    int64_t at = 0;
    while (at < scratch->kept_count && (status = next_range(index, scratch, count, &range)) > 0) {
        int64_t found = 0;
        for (; at < scratch->kept_count && scratch->kept_rows[at] < range.base + RANGE; at++)
            if (scratch->kept_sums[at] >= low)
                scratch->candidates[found++] = (uint16_t)(scratch->kept_rows[at] - range.base);
        score(index, &range, scratch, found);
        for (int64_t i = 0; i < found; i++) {
            const uint16_t id = scratch->candidates[i];
            if (scratch->accumulator[id] > 0.0f)
                offer(heap, scratch->accumulator[id], range.base + id);
            scratch->accumulator[id] = 0.0f;
        }
    }
    return status < 0 ? -1 : 1;
}
