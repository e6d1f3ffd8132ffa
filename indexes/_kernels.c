/* The module retrievers.indexes._kernels; retrievers/indexes/kernels.py says what its functions do. */

#include "_kernels.h"

static PyMethodDef methods[] = {
    {"bytes_level", bytes_level, METH_NOARGS, "Whether there are instructions for products of bytes."},
    {"dense_best", dense_best, METH_VARARGS, "The best of the rows that were proposed for every query."},
    {"dense_offer", dense_offer, METH_VARARGS, "The best rows of every query out of a block of scores."},
    {"dense_scan", dense_scan, METH_VARARGS, "The best of all rows, or of those in a bitmap, of every query."},
    {"dense_scores", dense_scores, METH_VARARGS, "Inner products in float64."},
    {"documents_find", documents_find, METH_VARARGS, "The rows of ids of stored documents."},
    {"documents_made", documents_made, METH_VARARGS, "Stored documents as objects."},
    {"documents_read", documents_read, METH_VARARGS, "Parts of stored documents."},
    {"gelu", gelu, METH_VARARGS, "The activation GELU."},
    {"graph_search", graph_search, METH_VARARGS, "The best nodes that a walk over a graph meets."},
    {"inverted_search", inverted_search, METH_VARARGS, "The best rows of every query over postings."},
    {"inverted_count", inverted_count, METH_VARARGS, "How many postings of each block are in a bitmap of rows."},
    {"inverted_prepare", inverted_prepare, METH_VARARGS, "Postings to be searched again and again."},
    {"inverted_slices", inverted_slices, METH_VARARGS, "Room for what searches by slices keep of postings."},
    {"inverted_within", inverted_within, METH_VARARGS, "The best rows of a query but for a part that is given up."},
    {"linear_bytes", linear_bytes, METH_VARARGS, "A linear layer in 8-bit integers."},
    {"lists_search", lists_search, METH_VARARGS, "The best rows of the lists around the nearest centroids."},
    {"maxsim_level", maxsim_level, METH_NOARGS, "Which instructions score late interaction in bfloat16."},
    {"maxsim_scores", maxsim_scores, METH_VARARGS, "Scores of late interaction in bfloat16."},
    {"maxsim_exact", maxsim_exact, METH_VARARGS, "Scores of late interaction in float64."},
    {"plaid_assign", plaid_assign, METH_VARARGS, "The centroid of the highest inner product with each vector."},
    {"plaid_decode", plaid_decode, METH_VARARGS, "The token vectors that codes stand for."},
    {"plaid_search", plaid_search, METH_VARARGS, "Candidates of late interaction over compressed token vectors."},
    {"vocabulary_bound", vocabulary_bound, METH_VARARGS, "Entries of a vocabulary that a text may have."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_kernels", "Compiled loops over postings and scores.", 0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernels(void) { return PyModuleDef_Init(&definition); }
