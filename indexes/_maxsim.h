/* What the loops over token vectors share: blocks of bfloat16 multiplied with panels of query tokens (_maxsim.c). */

#ifndef RETRIEVERS_MAXSIM_H
#define RETRIEVERS_MAXSIM_H

#include "_kernels.h"

/* WIDE: whether the compiler can make what multiplies bfloat16; bfloat16_level tells whether the processor can. */
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 11 && defined(__x86_64__) && defined(__linux__)
#define WIDE 1
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#define AVX2 __attribute__((target("avx2,fma")))
#else
#define WIDE 0
#endif

enum { LANES = 16, STEP = 32, TOGETHER = 256 }; /* tokens of a panel, dimensions of a tile, document tokens at a time */
enum { NONE, AVX512_BF16, AMX_BF16, AVX2_INT16 };
enum { SPARE = 8 }; /* tokens beyond a block that are multiplied and not looked at */

typedef struct Job Job;

struct Job {
    const void *values; /* [tokens, dimension], float16 or int8 */
    const float *scales; /* [tokens], or NULL for float16 */
    const int64_t *starts, *sizes; /* [rows] */
    const uint16_t *panels; /* bfloat16, or int16, [panels, padded / 2, LANES, 2] */
    const int64_t *offsets; /* [queries + 1] into the tokens of the panels */
    float *scores; /* [rows, queries] */
    int64_t tokens, dimension, padded, rows, panel_count, queries;
    uint16_t *block; /* [TOGETHER + SPARE, padded] */
    float *factors; /* [TOGETHER + SPARE], the scales of the block */
    int64_t *owners; /* [TOGETHER], which row of the group a token of the block belongs to */
    float *best; /* [rows of a group, panels, LANES] */
    float (*fill)(const Job *, int64_t token, uint16_t *out); /* one token as bfloat16 or int16 [padded]; its scale */
    const void *codec; /* what fill needs besides */
    const float *steps; /* [panels, LANES] of int16, else NULL */
    float longest; /* no token of float16 is longer: what int16 needs */
};

/* Which instructions there are: NONE, AVX512_BF16 or AMX_BF16. */
int bfloat16_level(void);

/* Whether AVX2_INT16 can be had. */
int short_there(void);

/* With AVX2, tokens as int16 (_maxsim_short.c). What fills a block from float16 or int8: the scale is NaN for a token with a
 * number above the longest. */
float short_fill(const Job *job, int64_t token, uint16_t *out);

/* From float32 [padded]: the scale is NaN for what is no finite number. */
float short_round(const float *values, int64_t padded, uint16_t *out);

/* The panels of a query, float [tokens, dimension], and their steps [lanes]. */
void short_panels(const float *query, int64_t tokens, int64_t dimension, int64_t padded, int64_t lanes, uint16_t *panels,
                  float *steps);

/* A block multiplied with all panels. */
void short_multiply(const Job *job, int64_t count);

/* bfloat16 [count, padded] as int16 with one step, and as nearest_rows, without bias: SPARE rows behind the last are read. */
void short_rows(const uint16_t *rows, int64_t count, int64_t padded, int16_t *out);
void short_nearest(const int16_t *rows, int64_t count, const uint16_t *panels, int64_t panel_count, int64_t padded,
                   int32_t *nearest, int32_t *highest);

/* Room for a job whose sizes are set: 0 where there is no memory. To be freed in any case. */
int job_allocate(Job *job);
void job_free(Job *job);

/* The scores of all rows, by the instructions of a level that is there. */
void job_score(const Job *job, int level);

/* Of each token of panels (bfloat16 [panels, padded / 2, LANES, 2]) the row (bfloat16 [rows, padded], a multiple of 32 of
 * them) whose inner product plus bias (float [rows, LANES], each number repeated) is highest, the first of equal ones. */
void nearest_rows(const uint16_t *rows, const float *bias, int64_t count, const uint16_t *panels, int64_t panel_count,
                  int64_t padded, int32_t *nearest, float *highest, int level);

/* The inner products of rows (bfloat16 [count, padded], a multiple of 32 of them) and the tokens of panels: float
 * [count, panels, LANES]. */
void multiply_rows(const uint16_t *rows, int64_t count, const uint16_t *panels, int64_t panel_count, int64_t padded,
                   float *products, int level);

#endif
