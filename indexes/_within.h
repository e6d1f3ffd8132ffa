/* Search that reads the slices of rows with the highest bounds first, and not all of them. */

#ifndef RETRIEVERS_WITHIN_H
#define RETRIEVERS_WITHIN_H

#include "_inverted.h"

typedef struct Slices Slices; /* what is kept of an index */
typedef struct Room Room;     /* what one query takes */

typedef struct {
    int64_t slices, slices_read;       /* that hold a term of the query and a permitted row */
    int64_t documents, documents_read; /* permitted rows in those */
    int64_t postings_read;
    float ceiling; /* the most that a row of a slice scores that was not read, 0 where all were */
} Looked;

/* NULL without memory. */
Slices *slices_new(int64_t n, int64_t terms, int64_t postings);
void slices_free(Slices *slices);

/* Whether it was made for postings of these sizes. */
int slices_fit(const Slices *slices, const Index *index);

/* Make room for what is kept of these terms; one thread at a time. Returns -1 without memory. */
int slices_room(const Index *index, Slices *slices, const int64_t *slots, int64_t count);

/* Room for a query of so many terms, to be given back; one thread at a time. NULL without memory. */
Room *take_room(Slices *slices, int64_t count);
void give_room(Slices *slices, Room *room);

/* Search one query of `count` terms (slots ascending), for which there is room: slices by descending bound, until that less the share `give_up` is
 * below `least` or the k-th best score, or, after one slice or more, until the seconds are over. `heap` and `looked`, empty at
 * first, tell the outcome. Returns 0, or -1 where a slot, block or range is out of bounds. */
int within_query(const Index *index, Slices *slices, const int64_t *slots, const float *weights, int64_t count, float least,
                 double give_up, double seconds, Scratch *scratch, Room *room, Heap *heap, Looked *looked);

#endif
