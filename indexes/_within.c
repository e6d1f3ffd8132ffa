/* Search that gives up a part: rows by slices of 8, those with the highest bounds first, until the rest cannot matter.
 *
 * A slice's bound is what a row would score that had of every term of the query the most that any row of the slice has.
 * It is added up as scores are, in float32 by ascending terms, and no operation of these falls where an operand rises:
 * no row's score is above the bound of its slice. _inverted_numpy.py does the same, to the last bit.
 *
 * The most that a term adds in each slice is kept for terms that stand in many rows, rounded up to a code of 8 bits, with
 * the place of its first posting in every 32 rows. Room for these is made with Python's lock held; threads may fill them
 * at the same time: they write the same. For other terms both are made anew for each query. */

#include "_kernels.h" /* first: Python.h says what the headers of the system declare, such as clock_gettime */

#include "_within.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    SLICE = 8,                     /* rows; a byte of the mask */
    STRIDE = 4,                    /* slices for which the place of the first posting is known */
    GROUP = 16,                    /* slices that take part in the order together */
    RANGE_SLICES = RANGE / SLICE,  /* of a range */
    SHARE = 32                     /* terms in at least one of so many rows are kept */
};

typedef struct { /* what is kept of a term */
    uint8_t *codes;   /* [slices]: the most, in steps; 0 where no row holds the term */
    uint16_t *firsts; /* [strides]: 1 + the first posting, from the block's start; 0 where there is none */
    float step;
    uint8_t ready;
} Kept;

typedef struct { /* a term of a query */
    const uint8_t *codes; /* NULL where they are not kept */
    uint16_t *firsts;
    float weight, step;
} Term;

typedef struct {
    int64_t start, stop;
} Span;

struct Room {
    float *bounds; /* [slices]; 0 for those that are read */
    float *tops;   /* [groups]: the highest bound */
    int32_t *order; /* [groups]: a heap, the highest top first, and of equal ones the first */
    Term *terms;
    Span *spans;      /* [ranges, terms] */
    uint16_t *firsts; /* [terms, strides] of terms that are not kept */
};

struct Slices {
    int64_t n, term_count, posting_count, ranges, slices, strides, groups;
    Kept *kept; /* [terms] */
};

void slices_free(Slices *slices) {
    if (slices == NULL)
        return;
    for (int64_t term = 0; slices->kept != NULL && term < slices->term_count; term++) {
        free(slices->kept[term].codes);
        free(slices->kept[term].firsts);
    }
    free(slices->kept);
    free(slices);
}

Slices *slices_new(int64_t n, int64_t terms, int64_t postings) {
    Slices *slices = calloc(1, sizeof *slices);
    if (slices == NULL)
        return NULL;
    slices->n = n, slices->term_count = terms, slices->posting_count = postings;
    slices->ranges = (n + RANGE - 1) / RANGE;
    slices->groups = (n + GROUP * SLICE - 1) / (GROUP * SLICE);
    slices->slices = slices->groups * GROUP;
    slices->strides = slices->slices / STRIDE;
    slices->kept = calloc((size_t)terms + 1, sizeof *slices->kept);
    if (slices->kept == NULL || slices->groups > INT32_MAX) {
        slices_free(slices);
        return NULL;
    }
    return slices;
}

int slices_fit(const Slices *slices, const Index *index) {
    return slices->n == index->n && slices->term_count == index->term_count && slices->posting_count == index->posting_count;
}

int slices_room(const Index *index, Slices *slices, const int64_t *slots, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        if (slots[i] < 0 || slots[i] >= index->term_count) /* the search says so */
            continue;
        const int64_t first = index->term_blocks[slots[i]], last = index->term_blocks[slots[i] + 1];
        if (first < 0 || first > last || last > index->block_count)
            continue;
        const uint64_t rows = (uint64_t)index->block_start[last] - (uint64_t)index->block_start[first];
        Kept *kept = slices->kept + slots[i];
        if (rows < (uint64_t)index->n / SHARE || kept->codes != NULL)
            continue;
        uint8_t *codes = calloc((size_t)slices->slices + 1, 1);
        kept->firsts = calloc((size_t)slices->strides + 1, sizeof *kept->firsts);
        if (codes == NULL || kept->firsts == NULL) {
            free(codes);
            free(kept->firsts);
            kept->firsts = NULL;
            return -1;
        }
        kept->codes = codes;
    }
    return 0;
}

void room_free(Room *room) {
    if (room == NULL)
        return;
    free(room->bounds);
    free(room->tops);
    free(room->order);
    free(room->terms);
    free(room->spans);
    free(room->firsts);
    free(room);
}

Room *room_new(const Slices *slices, const int64_t *slots, int64_t count) {
    size_t rare = 0;
    for (int64_t i = 0; i < count; i++)
        rare += slots[i] >= 0 && slots[i] < slices->term_count && slices->kept[slots[i]].codes == NULL;
    Room *room = calloc(1, sizeof *room);
    if (room == NULL)
        return NULL;
    room->bounds = malloc(((size_t)slices->slices + 1) * sizeof *room->bounds);
    room->tops = calloc((size_t)slices->groups + 1, sizeof *room->tops);
    room->order = malloc(((size_t)slices->groups + 1) * sizeof *room->order);
    room->terms = malloc(((size_t)count + 1) * sizeof *room->terms);
    room->spans = calloc((size_t)slices->ranges * (size_t)count + 1, sizeof *room->spans);
    room->firsts = calloc(rare * (size_t)slices->strides + 1, sizeof *room->firsts);
    if (room->bounds == NULL || room->tops == NULL || room->order == NULL || room->terms == NULL || room->spans == NULL ||
        room->firsts == NULL) {
        room_free(room);
        return NULL;
    }
    return room;
}

/* ---- what is kept ---- */

CLONES static void encode(const float *restrict values, int64_t count, float step, uint8_t *restrict codes) {
    for (int64_t i = 0; i < count; i++) {
        const float steps = values[i] / step;
        int32_t code = (int32_t)(steps < 255.0f ? steps : 255.0f); /* NaN, of a spoilt file, is 255 */
        code += (float)code * step < values[i];
        codes[i] = (uint8_t)(code < 1 ? 1 : code > 255 ? 255 : code);
    }
}

/* Make what is kept of a term. Returns -1 where a block or range is out of bounds. */
static int fill(const Index *index, const Slices *slices, int64_t slot, float *chunk) {
    Kept *kept = slices->kept + slot;
    const int64_t first = index->term_blocks[slot], last = index->term_blocks[slot + 1];
    float unit = 1.0f; /* frequency / (frequency + norm) is no more */
    if (index->kind == IMPACTS_16) {
        unit = 0.0f;
        for (int64_t block = first; block < last; block++) {
            const float bound = impact16(((const uint16_t *)index->block_max)[block]);
            unit = bound > unit ? bound : unit;
        }
    }
    /* A little more, so that 255 steps, whatever is rounded, are no less than the unit. */
    kept->step = index->kind == IMPACTS_8 ? 1.0f : unit / 255.0f * 1.000001f;
    uint8_t codes[CHUNK];
    for (int64_t block = first; block < last; block++) {
        const int64_t start = index->block_start[block], stop = index->block_start[block + 1];
        const int64_t base = (int64_t)index->block_range[block] * RANGE;
        if (start < 0 || stop < start || stop > index->posting_count || base >= index->n)
            return -1;
        for (int64_t at = start; at < stop; at += CHUNK) {
            const int64_t count = stop - at < CHUNK ? stop - at : CHUNK;
            contribute(index, base, at, count, 1.0f, chunk);
            encode(chunk, count, kept->step, codes);
            for (int64_t i = 0; i < count; i++) {
                const int64_t row = base + index->ids[at + i], slice = row / SLICE;
                if (row >= index->n)
                    continue;
                if (kept->codes[slice] < codes[i])
                    kept->codes[slice] = codes[i];
                if (kept->firsts[slice / STRIDE] == 0)
                    kept->firsts[slice / STRIDE] = (uint16_t)(at + i - start + 1);
            }
        }
    }
    STORE_RELEASE(&kept->ready, 1);
    return 0;
}

/* ---- bounds ---- */

CLONES static void add_kept(float *restrict bounds, const uint8_t *restrict codes, float weight, float step, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        bounds[i] += weight * (step * (float)codes[i]);
}

static void add_rare(const Index *index, const Range *range, const Span *span, const Term *term, float *chunk, float *bounds) {
    int64_t current = -1;
    float most = 0.0f;
    for (int64_t at = span->start; at < span->stop; at += CHUNK) {
        const int64_t count = span->stop - at < CHUNK ? span->stop - at : CHUNK;
        contribute(index, range->base, at, count, term->weight, chunk);
        for (int64_t i = 0; i < count; i++) {
            const int64_t id = index->ids[at + i], slice = id / SLICE, stride = (range->base / SLICE + slice) / STRIDE;
            if (id >= range->limit)
                continue;
            if (slice != current) {
                if (current >= 0)
                    bounds[current] += most;
                current = slice, most = 0.0f;
            }
            most = chunk[i] > most ? chunk[i] : most;
            if (term->firsts[stride] == 0)
                term->firsts[stride] = (uint16_t)(at + i - span->start + 1);
        }
    }
    if (current >= 0)
        bounds[current] += most;
}

/* Drop the slices of which no row is permitted. */
CLONES static void drop(float *restrict bounds, const uint8_t *restrict mask, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        bounds[i] = mask[i] ? bounds[i] : 0.0f;
}

static int64_t documents(const Index *index, int64_t slice) {
    if (index->mask != NULL) {
        int64_t count = 0;
        for (unsigned bits = index->mask[slice]; bits; bits &= bits - 1)
            count++;
        return count;
    }
    return index->n - slice * SLICE < SLICE ? index->n - slice * SLICE : SLICE;
}

static float top_of(const float *bounds) {
    float top = 0.0f;
    for (int i = 0; i < GROUP; i++)
        top = bounds[i] > top ? bounds[i] : top;
    return top;
}

/* The bounds of a range's slices, and the tops of its groups. */
static void bound_range(const Index *index, const Range *range, int64_t count, Scratch *scratch, Room *room, Looked *looked) {
    const int64_t first = range->base / SLICE, number = (range->limit + SLICE - 1) / SLICE;
    const int64_t groups = (number + GROUP - 1) / GROUP;
    float *bounds = room->bounds + first;
    Span *spans = room->spans + range->base / RANGE * count;
    memset(bounds, 0, (size_t)groups * GROUP * sizeof *bounds);
    for (int64_t i = 0; i < range->count; i++) {
        const Cursor *cursor = scratch->active[i];
        const int64_t at = cursor - scratch->cursors;
        const Term *term = room->terms + at;
        spans[at] = (Span){cursor->start, cursor->stop};
        if (term->codes != NULL)
            add_kept(bounds, term->codes + first, term->weight, term->step, number);
        else
            add_rare(index, range, spans + at, term, scratch->chunk, bounds);
    }
    if (index->mask != NULL)
        drop(bounds, index->mask + first, number);
    for (int64_t i = 0; i < number; i++)
        if (bounds[i] > 0.0f)
            looked->slices++, looked->documents += documents(index, first + i);
    for (int64_t group = 0; group < groups; group++)
        room->tops[first / GROUP + group] = top_of(bounds + group * GROUP);
}

/* ---- the order ---- */

static int before(const Room *room, int32_t a, int32_t b) {
    return room->tops[a] > room->tops[b] || (room->tops[a] == room->tops[b] && a < b);
}

static void settle(Room *room, int64_t size, int64_t at) {
    const int32_t group = room->order[at];
    for (;;) {
        int64_t child = 2 * at + 1;
        if (child >= size)
            break;
        if (child + 1 < size && before(room, room->order[child + 1], room->order[child]))
            child++;
        if (!before(room, room->order[child], group))
            break;
        room->order[at] = room->order[child];
        at = child;
    }
    room->order[at] = group;
}

/* ---- rows ---- */

static inline float added(const Index *index, const int kind, int64_t at, float weight, float norm) {
    switch (kind) {
    case IMPACTS_16:
        return weight * impact16(((const uint16_t *)index->payload)[at]);
    case IMPACTS_8:
        return weight * (float)((const uint8_t *)index->payload)[at];
    default: {
        const float frequency = kind == FREQUENCIES_8    ? (float)((const uint8_t *)index->payload)[at]
                                : kind == FREQUENCIES_16 ? (float)((const uint16_t *)index->payload)[at]
                                                         : (float)((const uint32_t *)index->payload)[at];
        return weight * (frequency / (frequency + norm));
    }
    }
}

/* The scores of a slice's rows; how many postings they took. */
static inline int64_t read_slice(const Index *index, const int kind, int64_t slice, int64_t count, const Room *room,
                                 float *scores) {
    const Span *spans = room->spans + slice / RANGE_SLICES * count;
    const int64_t base = slice / RANGE_SLICES * RANGE, low = slice * SLICE - base;
    int64_t postings = 0;
    for (int64_t i = 0; i < count; i++) {
        const Term *term = room->terms + i;
        if (term->codes != NULL && term->codes[slice] == 0)
            continue;
        const uint16_t first = term->firsts[slice / STRIDE];
        if (first == 0)
            continue;
        int64_t at = spans[i].start + first - 1;
        while (at < spans[i].stop && index->ids[at] < low)
            at++;
        for (; at < spans[i].stop && index->ids[at] < low + SLICE; at++, postings++) {
            const int64_t row = base + index->ids[at];
            const float norm = kind > IMPACTS_8 ? index->norms[row < index->n ? row : index->n - 1] : 0.0f;
            scores[index->ids[at] % SLICE] += added(index, kind, at, term->weight, norm);
        }
    }
    return postings;
}

static int64_t read_any(const Index *index, int64_t slice, int64_t count, const Room *room, float *scores) {
    switch (index->kind) { /* each with a loop of its own */
    case IMPACTS_16:
        return read_slice(index, IMPACTS_16, slice, count, room, scores);
    case IMPACTS_8:
        return read_slice(index, IMPACTS_8, slice, count, room, scores);
    case FREQUENCIES_8:
        return read_slice(index, FREQUENCIES_8, slice, count, room, scores);
    case FREQUENCIES_16:
        return read_slice(index, FREQUENCIES_16, slice, count, room, scores);
    default:
        return read_slice(index, FREQUENCIES_32, slice, count, room, scores);
    }
}

/* ---- a query ---- */

static double now(void) {
    struct timespec time;
#if defined(CLOCK_MONOTONIC)
    clock_gettime(CLOCK_MONOTONIC, &time);
#else
    timespec_get(&time, TIME_UTC);
#endif
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

int within_query(const Index *index, Slices *slices, const int64_t *slots, const float *weights, int64_t count, float least,
                 double give_up, double seconds, Scratch *scratch, Room *room, Heap *heap, Looked *looked) {
    const double start = now();
    if (start_cursors(index, slots, weights, count, scratch) < 0)
        return -1;
    uint16_t *firsts = room->firsts;
    for (int64_t i = 0; i < count; i++) {
        Kept *kept = slices->kept + slots[i];
        Term *term = room->terms + i;
        *term = (Term){kept->codes, kept->firsts, weights[i], 0.0f};
        if (kept->codes == NULL)
            term->firsts = firsts, firsts += slices->strides;
        else if (!LOAD_ACQUIRE(&kept->ready) && fill(index, slices, slots[i], scratch->chunk) < 0)
            return -1;
        term->step = kept->step;
    }
    Range range;
    int status;
    while ((status = next_range(index, scratch, count, &range)) > 0)
        bound_range(index, &range, count, scratch, room, looked);
    if (status < 0)
        return -1;
    int64_t size = 0;
    for (int64_t group = 0; group < slices->groups; group++)
        if (room->tops[group] > 0.0f)
            room->order[size++] = (int32_t)group;
    for (int64_t at = size / 2 - 1; at >= 0; at--)
        settle(room, size, at);
    while (size > 0) {
        const int32_t group = room->order[0];
        float *bounds = room->bounds + (int64_t)group * GROUP;
        const float top = room->tops[group], kth = heap->size == heap->k ? heap->scores[0] : 0.0f;
        if ((double)top * (1.0 - give_up) < (double)(kth > least ? kth : least))
            break;
        int64_t at = 0;
        while (at < GROUP - 1 && bounds[at] != top)
            at++;
        const int64_t slice = (int64_t)group * GROUP + at;
        float scores[SLICE] = {0.0f};
        looked->slices_read++, looked->documents_read += documents(index, slice);
        looked->postings_read += read_any(index, slice, count, room, scores);
        for (int64_t i = 0, row = slice * SLICE; i < SLICE && row < index->n; i++, row++)
            if (scores[i] > 0.0f && permitted(index, row))
                offer(heap, scores[i], row);
        bounds[at] = 0.0f;
        room->tops[group] = top_of(bounds);
        if (!(room->tops[group] > 0.0f))
            room->order[0] = room->order[--size];
        settle(room, size, 0);
        if (seconds < HUGE_VAL && now() - start >= seconds)
            break;
    }
    looked->ceiling = size > 0 ? room->tops[room->order[0]] : 0.0f;
    sort_best_first(heap);
    return 0;
}
