/* Search that gives up a part: rows by slices of 8, those with the highest bounds first, until the rest cannot matter.
 *
 * A slice's bound is what a row would score that had of every term of the query the most that any row of the slice has.
 * It is added up as scores are, in float32 by ascending terms, and no operation of these falls where an operand rises:
 * no row's score is above the bound of its slice. _inverted_numpy.py does the same, to the last bit.
 *
 * The most that a term adds in each slice is kept, rounded up to a code of 8 bits: by slices for terms that stand in many
 * rows, with the place of the first posting in every 32 rows; and for others by postings. These are kept from the first
 * query for a term on. Room for them is made with Python's lock held; threads may fill it at the same time: none writes a
 * code that is too low, not even for a while. */

#include "_kernels.h" /* first: Python.h says what the headers of the system declare, such as clock_gettime */

#include "_within.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    SLICE = 8,                    /* rows; a byte of the mask */
    STRIDE = 4,                   /* slices for which the place of the first posting of a common term is known, */
    LONG_STRIDE = 32,             /* and of a rare one */
    GROUP = 32,                   /* slices that take part in the order together */
    RANGE_SLICES = RANGE / SLICE, /* of a range */
    SHARE = 32                    /* terms in at least one of so many rows are common */
};

typedef struct { /* what is kept of a term */
    uint8_t *codes;   /* [slices], common: the most, in steps, 0 where no row holds the term; */
                      /* [postings], rare: the same with the first posting of a slice, 0 with the others */
    uint16_t *firsts; /* [slices / STRIDE]: 1 + the first posting, from the block's start, or 0; NULL: rare */
    int64_t rows;
    float step;
    uint8_t ready;
} Kept;

typedef struct { /* a term of a query */
    const uint8_t *codes;
    uint16_t *firsts;
    int64_t start, stop; /* of its postings */
    int64_t stride; /* slices for which there is one of the firsts */
    float weight, step;
} Term;

typedef struct {
    int64_t start, stop;
} Span;

struct Room {
    int64_t count;    /* of terms, at most */
    float *bounds;    /* [slices]; 0 for those that are read */
    float *tops;      /* [groups]: the highest bound */
    int32_t *order;   /* [groups]: a heap, the highest top first, and of equal ones the first */
    Term *terms;      /* [terms] */
    Span *spans;      /* [ranges, terms] */
    uint16_t *firsts; /* [terms, slices / LONG_STRIDE], of rare terms */
    int32_t *present; /* [terms]: in a slice */
};

struct Slices {
    int64_t n, term_count, posting_count, ranges;
    int64_t slices, groups; /* of all ranges, the last as long as the others */
    Kept *kept;             /* [terms] */
    uint8_t *ones;          /* [slices] */
    Room *spare;            /* changes hands with Python's lock held; fresh memory costs as much as a short search */
};

static void room_free(Room *room) {
    if (room == NULL)
        return;
    free(room->bounds);
    free(room->tops);
    free(room->order);
    free(room->terms);
    free(room->spans);
    free(room->firsts);
    free(room->present);
    free(room);
}

void slices_free(Slices *slices) {
    if (slices == NULL)
        return;
    for (int64_t term = 0; slices->kept != NULL && term < slices->term_count; term++) {
        free(slices->kept[term].codes);
        free(slices->kept[term].firsts);
    }
    free(slices->kept);
    free(slices->ones);
    room_free(slices->spare);
    free(slices);
}

Slices *slices_new(int64_t n, int64_t terms, int64_t postings) {
    Slices *slices = calloc(1, sizeof *slices);
    if (slices == NULL)
        return NULL;
    slices->n = n, slices->term_count = terms, slices->posting_count = postings;
    slices->ranges = (n + RANGE - 1) / RANGE;
    slices->slices = slices->ranges * RANGE_SLICES;
    slices->groups = slices->slices / GROUP;
    slices->kept = calloc((size_t)terms + 1, sizeof *slices->kept);
    slices->ones = malloc((size_t)slices->slices + 1);
    if (slices->ones != NULL)
        memset(slices->ones, 1, (size_t)slices->slices);
    if (slices->kept == NULL || slices->ones == NULL || slices->groups > INT32_MAX) {
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
        if (kept->codes != NULL || rows > (uint64_t)index->posting_count)
            continue;
        const int common = rows >= (uint64_t)index->n / SHARE;
        if (common && (kept->firsts = calloc((size_t)(slices->slices / STRIDE) + 1, sizeof *kept->firsts)) == NULL)
            return -1;
        kept->codes = calloc(common ? (size_t)slices->slices + 1 : (size_t)rows + 1, 1);
        if (kept->codes == NULL) {
            free(kept->firsts);
            kept->firsts = NULL;
            return -1;
        }
        kept->rows = (int64_t)rows;
    }
    return 0;
}

Room *take_room(Slices *slices, int64_t count) {
    Room *room = slices->spare;
    slices->spare = NULL;
    if (room != NULL && room->count >= count)
        return room;
    room_free(room);
    room = calloc(1, sizeof *room);
    if (room == NULL)
        return NULL;
    const size_t all = (size_t)slices->slices, terms = (size_t)count + 1;
    room->count = count;
    room->bounds = malloc((all + 1) * sizeof *room->bounds);
    room->tops = malloc(((size_t)slices->groups + 1) * sizeof *room->tops);
    room->order = malloc(((size_t)slices->groups + 1) * sizeof *room->order);
    room->terms = malloc(terms * sizeof *room->terms);
    room->spans = malloc(((size_t)slices->ranges * terms + 1) * sizeof *room->spans);
    room->firsts = malloc((all / LONG_STRIDE * terms + 1) * sizeof *room->firsts);
    room->present = malloc(terms * sizeof *room->present);
    if (room->bounds == NULL || room->tops == NULL || room->order == NULL || room->terms == NULL || room->spans == NULL ||
        room->firsts == NULL || room->present == NULL) {
        room_free(room);
        return NULL;
    }
    return room;
}

void give_room(Slices *slices, Room *room) {
    if (slices->spare == NULL)
        slices->spare = room;
    else
        room_free(room);
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
    uint8_t codes[CHUNK], most = 0;
    int64_t current = -1, place = 0; /* the slice of a rare term, and its first posting */
    for (int64_t block = first; block < last; block++) {
        const int64_t start = index->block_start[block], stop = index->block_start[block + 1];
        const int64_t base = (int64_t)index->block_range[block] * RANGE;
        if (start < index->block_start[first] || stop < start || stop > index->block_start[last] || stop > index->posting_count ||
            stop - start > RANGE || base >= index->n)
            return -1;
        for (int64_t at = start; at < stop; at += CHUNK) {
            const int64_t count = stop - at < CHUNK ? stop - at : CHUNK;
            contribute(index, base, at, count, 1.0f, chunk);
            encode(chunk, count, kept->step, codes);
            for (int64_t i = 0; i < count; i++) {
                const int64_t slice = (base + index->ids[at + i]) / SLICE;
                if (kept->firsts != NULL) {
                    if (kept->codes[slice] < codes[i])
                        kept->codes[slice] = codes[i];
                    if (kept->firsts[slice / STRIDE] == 0)
                        kept->firsts[slice / STRIDE] = (uint16_t)(at + i - start + 1);
                } else if (slice != current) {
                    if (current >= 0)
                        kept->codes[place] = most;
                    current = slice, place = at + i - index->block_start[first], most = codes[i];
                } else
                    most = codes[i] > most ? codes[i] : most;
            }
        }
    }
    if (current >= 0)
        kept->codes[place] = most;
    STORE_RELEASE(&kept->ready, 1);
    return 0;
}

/* ---- bounds ---- */

CLONES static void add_common(float *restrict bounds, const uint8_t *restrict codes, float weight, float step, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        bounds[i] += weight * (step * (float)codes[i]);
}

/* Backwards, so that the place that stays is that of the first. */
static void add_rare(const Index *index, const Range *range, const Span *span, const Term *term, float *restrict bounds) {
    const uint16_t *restrict ids = index->ids + span->start;
    const uint8_t *restrict codes = term->codes + (span->start - term->start);
    uint16_t *restrict firsts = term->firsts + range->base / (SLICE * LONG_STRIDE);
    for (int64_t i = span->stop - span->start - 1; i >= 0; i--) {
        bounds[ids[i] / SLICE] += term->weight * (term->step * (float)codes[i]);
        firsts[ids[i] / (SLICE * LONG_STRIDE)] = (uint16_t)(i + 1);
    }
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

/* The highest bound of each group. Bounds are 0 or more, and so are ordered as the whole numbers with their bits. */
CLONES static void find_tops(const float *restrict bounds, float *restrict tops, int64_t groups) {
    for (int64_t group = 0; group < groups; group++) {
        int32_t bits[GROUP], top = 0;
        memcpy(bits, bounds + group * GROUP, sizeof bits);
        for (int i = 0; i < GROUP; i++)
            top = bits[i] > top ? bits[i] : top;
        memcpy(tops + group, &top, sizeof top);
    }
}

CLONES static int32_t above_zero(const float *bounds, int64_t count) {
    int32_t above = 0;
    for (int64_t i = 0; i < count; i++)
        above += bounds[i] > 0.0f;
    return above;
}

/* The bounds of a range's slices, and the tops of its groups. Returns -1 where a block is not within its term. */
static int bound_range(const Index *index, const Range *range, int64_t count, Scratch *scratch, Room *room, Looked *looked) {
    const int64_t first = range->base / SLICE, number = (range->limit + SLICE - 1) / SLICE;
    const int64_t groups = (number + GROUP - 1) / GROUP;
    float *bounds = room->bounds + first;
    Span *spans = room->spans + range->base / RANGE * count;
    memset(bounds, 0, (size_t)groups * GROUP * sizeof *bounds);
    for (int64_t i = 0; i < range->count; i++) {
        const Cursor *cursor = scratch->active[i];
        const int64_t at = cursor - scratch->cursors;
        const Term *term = room->terms + at;
        if (cursor->start < term->start || cursor->stop > term->stop)
            return -1;
        spans[at] = (Span){cursor->start, cursor->stop};
        if (term->stride == STRIDE)
            add_common(bounds, term->codes + first, term->weight, term->step, number);
        else
            add_rare(index, range, spans + at, term, bounds);
    }
    if (index->mask != NULL)
        drop(bounds, index->mask + first, number);
    const int32_t above = above_zero(bounds, number);
    looked->slices += above;
    if (index->mask == NULL)
        looked->documents += (int64_t)above * SLICE - (bounds[number - 1] > 0.0f ? number * SLICE - range->limit : 0);
    else
        for (int64_t i = 0; i < number; i++)
            looked->documents += bounds[i] > 0.0f ? documents(index, first + i) : 0;
    find_tops(bounds, room->tops + first / GROUP, groups);
    return 0;
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
                                 const uint8_t *ones, float *scores) {
    const Span *spans = room->spans + slice / RANGE_SLICES * count;
    const int64_t base = slice / RANGE_SLICES * RANGE, low = slice * SLICE - base;
    const int64_t width = kind == FREQUENCIES_32 ? 4 : kind == FREQUENCIES_16 || kind == IMPACTS_16 ? 2 : 1;
    int32_t *present = room->present;
    int64_t postings = 0, number = 0;
    for (int64_t i = 0; i < count; i++) {
        const Term *term = room->terms + i;
        const uint16_t first = term->firsts[slice / term->stride];
        const uint8_t *codes = term->stride == STRIDE ? term->codes : ones;
        PREFETCH(index->ids + spans[i].start + first);
        PREFETCH((const char *)index->payload + (spans[i].start + first) * width);
        present[number] = (int32_t)i;
        number += (codes[slice] != 0) & (first != 0);
    }
    for (int64_t j = 0; j < number; j++) {
        const int32_t i = present[j];
        const Term *term = room->terms + i;
        int64_t at = spans[i].start + term->firsts[slice / term->stride] - 1;
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

static int64_t read_any(const Index *index, int64_t slice, int64_t count, const Room *room, const uint8_t *ones, float *scores) {
    switch (index->kind) { /* each with a loop of its own */
    case IMPACTS_16:
        return read_slice(index, IMPACTS_16, slice, count, room, ones, scores);
    case IMPACTS_8:
        return read_slice(index, IMPACTS_8, slice, count, room, ones, scores);
    case FREQUENCIES_8:
        return read_slice(index, FREQUENCIES_8, slice, count, room, ones, scores);
    case FREQUENCIES_16:
        return read_slice(index, FREQUENCIES_16, slice, count, room, ones, scores);
    default:
        return read_slice(index, FREQUENCIES_32, slice, count, room, ones, scores);
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
    memset(room->tops, 0, (size_t)slices->groups * sizeof *room->tops);
    memset(room->spans, 0, (size_t)(slices->ranges * count) * sizeof *room->spans);
    for (int64_t i = 0; i < count; i++) {
        Kept *kept = slices->kept + slots[i];
        if (kept->codes == NULL || (!LOAD_ACQUIRE(&kept->ready) && fill(index, slices, slots[i], scratch->chunk) < 0))
            return -1;
        uint16_t *firsts = kept->firsts;
        if (firsts == NULL) {
            const int64_t strides = slices->slices / LONG_STRIDE;
            firsts = room->firsts + i * strides;
            memset(firsts, 0, (size_t)strides * sizeof *firsts);
        }
        const int64_t start = index->block_start[index->term_blocks[slots[i]]];
        room->terms[i] = (Term){kept->codes, firsts, start, start + kept->rows, kept->firsts == NULL ? LONG_STRIDE : STRIDE, weights[i], kept->step};
    }
    Range range;
    int status;
    while ((status = next_range(index, scratch, count, &range)) > 0)
        if (bound_range(index, &range, count, scratch, room, looked) < 0)
            return -1;
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
        looked->postings_read += read_any(index, slice, count, room, slices->ones, scores);
        for (int64_t i = 0, row = slice * SLICE; i < SLICE && row < index->n; i++, row++)
            if (scores[i] > 0.0f && permitted(index, row))
                offer(heap, scores[i], row);
        bounds[at] = 0.0f;
        find_tops(bounds, room->tops + group, 1);
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
