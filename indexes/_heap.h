/* The best k rows of a query, by score and, where scores are equal, by ascending row. */

#ifndef RETRIEVERS_HEAP_H
#define RETRIEVERS_HEAP_H

#include <stdint.h>

typedef struct { /* the best rows so far, the worst of them first */
    float *scores;
    int64_t *rows;
    int64_t size, k;
} Heap;

static inline int worse(const Heap *heap, int64_t a, int64_t b) {
    return heap->scores[a] < heap->scores[b] || (heap->scores[a] == heap->scores[b] && heap->rows[a] > heap->rows[b]);
}

static inline void swap(Heap *heap, int64_t a, int64_t b) {
    const float score = heap->scores[a];
    const int64_t row = heap->rows[a];
    heap->scores[a] = heap->scores[b], heap->rows[a] = heap->rows[b];
    heap->scores[b] = score, heap->rows[b] = row;
}

static inline void sink(Heap *heap, int64_t at) {
    for (;;) {
        int64_t child = 2 * at + 1;
        if (child >= heap->size)
            return;
        if (child + 1 < heap->size && worse(heap, child + 1, child))
            child++;
        if (!worse(heap, child, at))
            return;
        swap(heap, child, at);
        at = child;
    }
}

static inline void offer(Heap *heap, float score, int64_t row) {
    if (heap->size < heap->k) {
        int64_t at = heap->size++;
        heap->scores[at] = score, heap->rows[at] = row;
        while (at > 0 && worse(heap, at, (at - 1) / 2)) {
            swap(heap, at, (at - 1) / 2);
            at = (at - 1) / 2;
        }
    } else if (score > heap->scores[0] || (score == heap->scores[0] && row < heap->rows[0])) {
        heap->scores[0] = score, heap->rows[0] = row;
        sink(heap, 0);
    }
}

static inline void sort_best_first(Heap *heap) {
    const int64_t size = heap->size;
    while (heap->size > 1) {
        heap->size--;
        swap(heap, 0, heap->size);
        sink(heap, 0);
    }
    heap->size = size;
}

#endif
