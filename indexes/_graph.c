/* Walks over a graph of near neighbours (HNSW) by codes of eight bits, which take a quarter of the memory's time. */

#include "_dense_sieve.h"
#include "_kernels.h"

#include <stdlib.h>
#include <string.h>

enum { WIDEST = 1 << 20, HIGHEST = 64 };

typedef struct {
    Sieve sieve;
    const int32_t *links;  /* [n, width], -1 after the last of a node */
    const int32_t *starts; /* [n]: the first row of a node in upper, -1 where it is on the bottom alone */
    const int32_t *upper;  /* [uppers, upper_width], the links of a node level by level from the second up */
    int64_t n, width, uppers, upper_width, entry, levels;
} Graph;

typedef struct {
    float score;
    int32_t row; /* less 2^31 once its links have been followed */
} Found;

typedef struct {
    Found *found; /* the best first, of equal ones the lowest row first */
    int64_t size, most, next; /* next: the first whose links have not been followed */
} Beam;

static inline int32_t row_of(Found found) {
    return found.row & 0x7fffffff;
}

static inline int ahead_of(float score, int32_t row, Found other) {
    return score > other.score || (score == other.score && row < row_of(other));
}

static void keep(Beam *beam, float score, int32_t row) {
    if (beam->size == beam->most && !ahead_of(score, row, beam->found[beam->size - 1]))
        return;
    int64_t low = 0, high = beam->size;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (ahead_of(score, row, beam->found[middle]))
            high = middle;
        else
            low = middle + 1;
    }
    const int64_t moved = (beam->size < beam->most ? beam->size++ : beam->size - 1) - low;
    memmove(beam->found + low + 1, beam->found + low, (size_t)moved * sizeof(Found));
    beam->found[low] = (Found){score, row};
    if (low < beam->next)
        beam->next = low;
}

/* Up to the best node that is reached from level to level, above the bottom. */
static int descend(const Graph *graph, const Sieved *query, int32_t *row, float *score, int32_t *rows, float *scores) {
    *row = (int32_t)graph->entry;
    sieve_scores(&graph->sieve, query, row, 1, score);
    for (int64_t level = graph->levels; level > 0; level--)
        for (int moved = 1; moved;) {
            const int64_t at = graph->starts[*row] + level - 1;
            moved = 0;
            if (graph->starts[*row] < 0 || at >= graph->uppers)
                return NO_ROW;
            const int32_t *links = graph->upper + at * graph->upper_width;
            int64_t count = 0;
            while (count < graph->upper_width && links[count] >= 0) {
                if (links[count] >= graph->n)
                    return NO_ROW;
                rows[count] = links[count], count++;
            }
            sieve_scores(&graph->sieve, query, rows, count, scores);
            for (int64_t i = 0; i < count; i++)
                if (scores[i] > *score)
                    *score = scores[i], *row = rows[i], moved = 1;
        }
    return SOUND;
}

static int walk(const Graph *graph, const Sieved *query, Beam *beam, uint8_t *seen, int32_t *rows, float *scores) {
    float score;
    int32_t row;
    if (descend(graph, query, &row, &score, rows, scores) != SOUND)
        return NO_ROW;
    beam->size = beam->next = 0;
    keep(beam, score, row);
    seen[row >> 3] |= (uint8_t)(1 << (row & 7));
    while (beam->next < beam->size) {
        Found *best = beam->found + beam->next;
        const int32_t *links = graph->links + best->row * graph->width;
        int64_t count = 0;
        best->row |= INT32_MIN;
        for (int64_t i = 0; i < graph->width && links[i] >= 0; i++) {
            const int32_t to = links[i];
            if (to >= graph->n)
                return NO_ROW;
            rows[count] = to;
            count += !(seen[to >> 3] >> (to & 7) & 1);
            seen[to >> 3] |= (uint8_t)(1 << (to & 7));
        }
        sieve_scores(&graph->sieve, query, rows, count, scores);
        for (int64_t i = 0; i < count; i++)
            keep(beam, scores[i], rows[i]);
        while (beam->next < beam->size && beam->found[beam->next].row < 0)
            beam->next++;
    }
    return SOUND;
}

/* The best that are permitted, and -1 where there are fewer. */
static void take_best(const Beam *beam, const uint8_t *mask, int64_t *rows, int64_t count) {
    int64_t kept = 0;
    for (int64_t at = 0; at < beam->size && kept < count; at++) {
        const int32_t row = row_of(beam->found[at]);
        if (mask == NULL || (mask[row >> 3] >> (row & 7) & 1))
            rows[kept++] = row;
    }
    while (kept < count)
        rows[kept++] = -1;
}

/* graph_search(dimension, codes, bounds, spread, links, starts, upper, upper_width, entry, levels, queries, mask | None, effort,
 * rows) -> SOUND or NO_ROW */
PyObject *graph_search(PyObject *module, PyObject *arguments) {
    (void)module;
    enum { CODES, BOUNDS, SPREAD, LINKS, STARTS, UPPER, QUERIES, MASK, ROWS, BUFFERS };
    Py_buffer b[BUFFERS];
    long long dimension, upper_width, entry, levels, effort;
    if (!PyArg_ParseTuple(arguments, "Ly*y*y*y*y*y*LLLy*z*Lw*", &dimension, b + CODES, b + BOUNDS, b + SPREAD, b + LINKS,
                          b + STARTS, b + UPPER, &upper_width, &entry, &levels, b + QUERIES, b + MASK, &effort, b + ROWS))
        return NULL;
    const int64_t n = item_count(b + STARTS, 4), links = item_count(b + LINKS, 4), upper = item_count(b + UPPER, 4);
    const int64_t cells = item_count(b + QUERIES, 4), count = dimension > 0 && cells >= 0 ? cells / dimension : 0;
    const int64_t places = item_count(b + ROWS, 8), each = count > 0 ? places / count : 0;
    Graph graph;
    if (n < 1 || n > INT32_MAX || dimension < 1 || dimension > 1 << 24 || links < 0 || links % n != 0 || links / n > WIDEST ||
        upper_width < 1 || upper_width > WIDEST || upper < 0 || upper % upper_width != 0 || cells != count * dimension ||
        places != each * count || effort < 1 || effort > INT32_MAX || entry < 0 || entry >= n || levels < 0 || levels > HIGHEST ||
        (b[MASK].obj != NULL && (int64_t)b[MASK].len != n / 8 + (n % 8 != 0)) ||
        !take_sieve(&graph.sieve, b + CODES, b + BOUNDS, b + SPREAD, n, dimension)) {
        PyErr_SetString(PyExc_ValueError, "the sizes of the buffers do not fit together, or a number is out of bounds");
        return answer(b, BUFFERS, NULL);
    }
    graph.links = b[LINKS].buf, graph.starts = b[STARTS].buf, graph.upper = b[UPPER].buf;
    graph.n = n, graph.width = links / n, graph.uppers = upper / upper_width, graph.upper_width = upper_width;
    graph.entry = entry, graph.levels = levels;
    const int64_t width = graph.width > upper_width ? graph.width : upper_width, bytes = n / 8 + 1;
    Beam beam = {NULL, 0, effort < n ? effort : n, 0};
    beam.found = malloc((size_t)(beam.most + 1) * sizeof *beam.found);
    uint8_t *seen = malloc((size_t)bytes);
    int32_t *near = malloc((size_t)width * sizeof *near);
    float *scores = malloc((size_t)width * sizeof *scores);
    Sieved query = {malloc((size_t)graph.sieve.padded * sizeof *query.shorts), 0, 0, 0, 0};
    const int ready = beam.found != NULL && seen != NULL && near != NULL && scores != NULL && query.shorts != NULL;
    int outcome = SOUND;
    Py_BEGIN_ALLOW_THREADS
    for (int64_t i = 0; i < count && ready && outcome == SOUND; i++) {
        memset(seen, 0, (size_t)bytes);
        sieve_query(&graph.sieve, (const float *)b[QUERIES].buf + i * dimension, &query);
        outcome = walk(&graph, &query, &beam, seen, near, scores);
        take_best(&beam, b[MASK].buf, (int64_t *)b[ROWS].buf + i * each, each);
    }
    Py_END_ALLOW_THREADS
    free(beam.found), free(seen), free(near), free(scores), free(query.shorts);
    return answer(b, BUFFERS, ready ? PyLong_FromLong(outcome) : PyErr_NoMemory());
}
