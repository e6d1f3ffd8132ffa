/* Late interaction in bfloat16: for every document the sum, over the tokens of a query, of the highest inner product.
 *
 * Documents are turned to bfloat16 some hundred tokens at a time, which stay in the cache while the tokens of all queries
 * pass, sixteen (a panel) beside one another. Products are summed in float32, by the tiles of AMX or the dot products of
 * AVX-512; maxsim.py says how far the scores may be off. With AVX2 alone (maxsim_level is 0) numbers are int16 instead. */

#include "_maxsim.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#if WIDE
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

enum { GROUP = 64 }; /* rows whose best products are held at a time */

#if WIDE

/* The compiler does not know what the instructions for tiles read. */
#define BARRIER __asm__ volatile("" ::: "memory")
#define AMX __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16")))

int bfloat16_level(void) {
    static int known = -1;
    if (known >= 0)
        return known;
    unsigned a, b, c, d;
    __builtin_cpu_init();
    /* The operating system's part (xcr0) is in what the compiler's library looks at. */
    int found = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16")
                    ? AVX512_BF16
                    : NONE;
    if (found && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1) && (d >> 24 & 1)) {
        enum { REQUEST = 0x1023, TILES = 18 }; /* ARCH_REQ_XCOMP_PERM: Linux gives the tiles to those who ask */
        if (syscall(SYS_arch_prctl, REQUEST, TILES) == 0)
            found = AMX_BF16;
    }
    return known = found;
}

/* One token as bfloat16, zeros behind it. Infinity and NaN become 65536 and more, as in maxsim.py. */
AVX512 static float narrow(const Job *job, int64_t token, uint16_t *out) {
    int64_t at = 0;
    const int64_t first = token * job->dimension;
    for (; at < job->dimension; at += LANES) {
        const int64_t left = job->dimension - at;
        const __mmask16 lanes = left >= LANES ? 0xffff : (__mmask16)((1u << left) - 1);
        __m512 wide;
        if (job->scales != NULL) {
            const __m128i codes = _mm_maskz_loadu_epi8(lanes, (const int8_t *)job->values + first + at);
            wide = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
        } else {
            const __m256i halves = _mm256_maskz_loadu_epi16(lanes, (const uint16_t *)job->values + first + at);
            const __m512i bits = _mm512_and_si512(_mm512_slli_epi32(_mm512_cvtepi16_epi32(halves), 13),
                                                  _mm512_set1_epi32(-0x70002000));
            wide = _mm512_mul_ps(_mm512_castsi512_ps(bits), _mm512_set1_ps(0x1p112f));
        }
        _mm256_storeu_si256((__m256i *)(out + at), (__m256i)_mm512_cvtneps_pbh(wide));
    }
    for (; at < job->padded; at += LANES)
        _mm256_storeu_si256((__m256i *)(out + at), _mm256_setzero_si256());
    return job->scales != NULL ? job->scales[token] : 1;
}

/* Products of `count` document tokens of the block, from `first`, with one panel: folded into the best of their rows. */
AVX512 static inline void fold(const Job *job, const float *products, int64_t first, int64_t count, int64_t panel) {
    const int64_t width = job->panel_count * LANES;
    int64_t at = 0;
    while (at < count) {
        const int64_t owner = job->owners[first + at];
        float *mine = job->best + owner * width + panel * LANES;
        __m512 highest = _mm512_loadu_ps(mine);
        for (; at < count && job->owners[first + at] == owner; at++) {
            __m512 product = _mm512_loadu_ps(products + at * LANES);
            if (job->scales != NULL)
                product = _mm512_mul_ps(product, _mm512_set1_ps(job->factors[first + at]));
            highest = _mm512_max_ps(highest, product);
        }
        _mm512_storeu_ps(mine, highest);
    }
}

enum { ROWS = 8 }; /* document tokens whose sums stay in registers */

AVX512 static void multiply_avx512(const Job *job, int64_t count) {
    const int64_t pairs = job->padded / 2;
    float products[2][ROWS * LANES];
    for (int64_t panel = 0; panel < job->panel_count; panel += 2) {
        const int both = panel + 1 < job->panel_count;
        const uint16_t *left = job->panels + panel * pairs * 2 * LANES, *right = both ? left + pairs * 2 * LANES : left;
        for (int64_t first = 0; first < count; first += ROWS) {
            __m512 sums[2][ROWS];
            for (int i = 0; i < ROWS; i++)
                sums[0][i] = sums[1][i] = _mm512_setzero_ps();
            const uint16_t *tokens = job->block + first * job->padded;
            for (int64_t pair = 0; pair < pairs; pair++) {
                const __m512bh a = (__m512bh)_mm512_loadu_si512(left + pair * 2 * LANES);
                const __m512bh b = (__m512bh)_mm512_loadu_si512(right + pair * 2 * LANES);
#pragma GCC unroll 8
                for (int i = 0; i < ROWS; i++) {
                    int32_t two;
                    memcpy(&two, tokens + i * job->padded + 2 * pair, sizeof two);
                    const __m512bh token = (__m512bh)_mm512_set1_epi32(two);
                    sums[0][i] = _mm512_dpbf16_ps(sums[0][i], a, token);
                    sums[1][i] = _mm512_dpbf16_ps(sums[1][i], b, token);
                }
            }
            for (int i = 0; i < ROWS; i++) {
                _mm512_storeu_ps(products[0] + i * LANES, sums[0][i]);
                _mm512_storeu_ps(products[1] + i * LANES, sums[1][i]);
            }
            const int64_t filled = count - first < ROWS ? count - first : ROWS;
            fold(job, products[0], first, filled, panel);
            if (both)
                fold(job, products[1], first, filled, panel + 1);
        }
    }
}

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t lines[16];
} __attribute__((packed)) Tiles;

AMX static void multiply_amx(const Job *job, int64_t count) {
    const int64_t pairs = job->padded / 2, stride = 2 * job->padded;
    float products[4][LANES * LANES];
    BARRIER;
    for (int64_t panel = 0; panel < job->panel_count; panel += 2) {
        const int both = panel + 1 < job->panel_count;
        const uint16_t *left = job->panels + panel * pairs * 2 * LANES, *right = left + pairs * 2 * LANES;
        for (int64_t first = 0; first < count; first += 2 * LANES) {
            const uint16_t *upper = job->block + first * job->padded, *lower = upper + LANES * job->padded;
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            for (int64_t at = 0; at < job->padded; at += STEP) {
                _tile_loadd(4, upper + at, stride);
                _tile_loadd(5, lower + at, stride);
                _tile_loadd(6, left + at * LANES, 4 * LANES);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 5, 6);
                if (both) {
                    _tile_loadd(7, right + at * LANES, 4 * LANES);
                    _tile_dpbf16ps(2, 4, 7);
                    _tile_dpbf16ps(3, 5, 7);
                }
            }
            _tile_stored(0, products[0], 4 * LANES);
            _tile_stored(1, products[1], 4 * LANES);
            _tile_stored(2, products[2], 4 * LANES);
            _tile_stored(3, products[3], 4 * LANES);
            for (int part = 0; part < 2; part++) {
                const int64_t from = first + part * LANES;
                const int64_t filled = count - from < LANES ? count - from : LANES;
                if (filled > 0)
                    fold(job, products[part], from, filled, panel);
                if (filled > 0 && both)
                    fold(job, products[2 + part], from, filled, panel + 1);
            }
        }
    }
}

AMX static void tiles_on(void) {
    Tiles tiles = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        tiles.bytes[i] = 4 * LANES;
        tiles.lines[i] = LANES;
    }
    BARRIER;
    _tile_loadconfig(&tiles);
}

AMX static void tiles_off(void) { _tile_release(); }

/* The group of rows from `first`: as many as begin in a block, at least one. Returns the row after them. */
static int64_t score_group(const Job *job, int64_t first, int chosen) {
    const int64_t width = job->panel_count * LANES;
    void (*const multiply)(const Job *, int64_t) = chosen == AMX_BF16      ? multiply_amx
                                                   : chosen == AVX512_BF16 ? multiply_avx512
                                                                           : short_multiply;
    float spoilt[GROUP] = {0};
    int64_t row = first, count = 0;
    for (; row < job->rows && row - first < GROUP; row++) {
        float *mine = job->best + (row - first) * width;
        for (int64_t i = 0; i < width; i++)
            mine[i] = -INFINITY;
        for (int64_t token = 0; token < job->sizes[row]; token++) {
            const int64_t at = job->starts[row] + token;
            job->factors[count] = job->fill(job, at, job->block + count * job->padded);
            if (isnan(job->factors[count])) /* which a maximum would lose */
                spoilt[row - first] = NAN;
            job->owners[count++] = row - first;
            if (count == TOGETHER) {
                multiply(job, count);
                count = 0;
            }
        }
    }
    if (count > 0)
        multiply(job, count);
    for (int64_t done = first; done < row; done++) {
        const float *mine = job->best + (done - first) * width;
        for (int64_t query = 0; query < job->queries; query++) {
            float sum = spoilt[done - first];
            for (int64_t token = job->offsets[query]; token < job->offsets[query + 1]; token++)
                sum += job->steps == NULL ? mine[token] : mine[token] * job->steps[token];
            job->scores[done * job->queries + query] = sum;
        }
    }
    return row;
}

void job_score(const Job *job, int chosen) {
    if (chosen == AMX_BF16)
        tiles_on();
    for (int64_t row = 0; row < job->rows;)
        row = score_group(job, row, chosen);
    if (chosen == AMX_BF16)
        tiles_off();
}

/* Products of LANES rows from `first` with one panel: where they are higher than before. */
AVX512 static inline void challenge(const float *products, int64_t first, float *highest, int32_t *nearest) {
    __m512 best = _mm512_loadu_ps(highest);
    __m512i at = _mm512_loadu_si512(nearest);
    for (int row = 0; row < LANES; row++) {
        const __m512 product = _mm512_loadu_ps(products + row * LANES);
        const __mmask16 higher = _mm512_cmp_ps_mask(product, best, _CMP_GT_OQ);
        best = _mm512_mask_mov_ps(best, higher, product);
        at = _mm512_mask_mov_epi32(at, higher, _mm512_set1_epi32((int32_t)first + row));
    }
    _mm512_storeu_ps(highest, best);
    _mm512_storeu_si512(nearest, at);
}

AVX512 static void nearest_avx512(const uint16_t *rows, const float *bias, int64_t count, const uint16_t *panel, int64_t padded,
                                  int32_t *nearest, float *highest) {
    float products[LANES * LANES];
    for (int64_t first = 0; first < count; first += LANES) {
        for (int part = 0; part < LANES; part += ROWS) {
            __m512 sums[ROWS];
            for (int i = 0; i < ROWS; i++)
                sums[i] = _mm512_loadu_ps(bias + (first + part + i) * LANES);
            for (int64_t pair = 0; pair < padded / 2; pair++) {
                const __m512bh tokens = (__m512bh)_mm512_loadu_si512(panel + pair * 2 * LANES);
#pragma GCC unroll 8
                for (int i = 0; i < ROWS; i++) {
                    int32_t two;
                    memcpy(&two, rows + (first + part + i) * padded + 2 * pair, sizeof two);
                    sums[i] = _mm512_dpbf16_ps(sums[i], tokens, (__m512bh)_mm512_set1_epi32(two));
                }
            }
            for (int i = 0; i < ROWS; i++)
                _mm512_storeu_ps(products + (part + i) * LANES, sums[i]);
        }
        challenge(products, first, highest, nearest);
    }
}

AMX static void nearest_amx(const uint16_t *rows, const float *bias, int64_t count, const uint16_t *panels, int64_t panel_count,
                            int64_t padded, int32_t *nearest, float *highest) {
    const int64_t stride = 2 * padded;
    float products[4][LANES * LANES];
    BARRIER;
    for (int64_t first = 0; first < count; first += 2 * LANES) {
        const uint16_t *upper = rows + first * padded, *lower = upper + LANES * padded;
        const float *upper_bias = bias + first * LANES, *lower_bias = upper_bias + LANES * LANES;
        for (int64_t panel = 0; panel < panel_count; panel += 2) {
            const int64_t other = panel + 1 < panel_count ? panel + 1 : panel;
            const uint16_t *left = panels + panel * padded * LANES, *right = panels + other * padded * LANES;
            _tile_loadd(0, upper_bias, 4 * LANES);
            _tile_loadd(1, lower_bias, 4 * LANES);
            _tile_loadd(2, upper_bias, 4 * LANES);
            _tile_loadd(3, lower_bias, 4 * LANES);
            for (int64_t at = 0; at < padded; at += STEP) {
                _tile_loadd(4, upper + at, stride);
                _tile_loadd(5, lower + at, stride);
                _tile_loadd(6, left + at * LANES, 4 * LANES);
                _tile_loadd(7, right + at * LANES, 4 * LANES);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 5, 6);
                _tile_dpbf16ps(2, 4, 7);
                _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(0, products[0], 4 * LANES);
            _tile_stored(1, products[1], 4 * LANES);
            _tile_stored(2, products[2], 4 * LANES);
            _tile_stored(3, products[3], 4 * LANES);
            BARRIER;
            for (int part = 0; part < 2; part++) {
                challenge(products[part], first + part * LANES, highest + panel * LANES, nearest + panel * LANES);
                if (other != panel)
                    challenge(products[2 + part], first + part * LANES, highest + other * LANES, nearest + other * LANES);
            }
        }
    }
}

AVX512 static void multiply_rows_avx512(const uint16_t *rows, int64_t count, const uint16_t *panels, int64_t panel_count,
                                        int64_t padded, float *products) {
    const int64_t width = panel_count * LANES;
    for (int64_t panel = 0; panel < panel_count; panel++)
        for (int64_t first = 0; first < count; first += ROWS) {
            const uint16_t *left = panels + panel * padded * LANES;
            __m512 sums[ROWS];
            for (int i = 0; i < ROWS; i++)
                sums[i] = _mm512_setzero_ps();
            for (int64_t pair = 0; pair < padded / 2; pair++) {
                const __m512bh tokens = (__m512bh)_mm512_loadu_si512(left + pair * 2 * LANES);
#pragma GCC unroll 8
                for (int i = 0; i < ROWS; i++) {
                    int32_t two;
                    memcpy(&two, rows + (first + i) * padded + 2 * pair, sizeof two);
                    sums[i] = _mm512_dpbf16_ps(sums[i], tokens, (__m512bh)_mm512_set1_epi32(two));
                }
            }
            for (int i = 0; i < ROWS; i++)
                _mm512_storeu_ps(products + (first + i) * width + panel * LANES, sums[i]);
        }
}

AMX static void multiply_rows_amx(const uint16_t *rows, int64_t count, const uint16_t *panels, int64_t panel_count,
                                  int64_t padded, float *products) {
    const int64_t stride = 2 * padded, width = panel_count * LANES;
    BARRIER;
    for (int64_t first = 0; first < count; first += 2 * LANES) {
        const uint16_t *upper = rows + first * padded, *lower = upper + LANES * padded;
        for (int64_t panel = 0; panel < panel_count; panel += 2) {
            const int both = panel + 1 < panel_count;
            const uint16_t *left = panels + panel * padded * LANES, *right = left + padded * LANES;
            float *out = products + first * width + panel * LANES;
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            for (int64_t at = 0; at < padded; at += STEP) {
                _tile_loadd(4, upper + at, stride);
                _tile_loadd(5, lower + at, stride);
                _tile_loadd(6, left + at * LANES, 4 * LANES);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 5, 6);
                if (both) {
                    _tile_loadd(7, right + at * LANES, 4 * LANES);
                    _tile_dpbf16ps(2, 4, 7);
                    _tile_dpbf16ps(3, 5, 7);
                }
            }
            _tile_stored(0, out, 4 * width);
            _tile_stored(1, out + LANES * width, 4 * width);
            if (both) {
                _tile_stored(2, out + LANES, 4 * width);
                _tile_stored(3, out + LANES * width + LANES, 4 * width);
            }
        }
    }
    BARRIER;
}

void multiply_rows(const uint16_t *rows, int64_t count, const uint16_t *panels, int64_t panel_count, int64_t padded,
                   float *products, int chosen) {
    if (chosen == AMX_BF16) {
        tiles_on();
        multiply_rows_amx(rows, count, panels, panel_count, padded, products);
        tiles_off();
    } else
        multiply_rows_avx512(rows, count, panels, panel_count, padded, products);
}

void nearest_rows(const uint16_t *rows, const float *bias, int64_t count, const uint16_t *panels, int64_t panel_count,
                  int64_t padded, int32_t *nearest, float *highest, int chosen) {
    for (int64_t i = 0; i < panel_count * LANES; i++) {
        highest[i] = -INFINITY;
        nearest[i] = 0;
    }
    if (chosen == AMX_BF16) {
        tiles_on();
        nearest_amx(rows, bias, count, panels, panel_count, padded, nearest, highest);
        tiles_off();
    } else
        for (int64_t panel = 0; panel < panel_count; panel++)
            nearest_avx512(rows, bias, count, panels + panel * padded * LANES, padded, nearest + panel * LANES,
                           highest + panel * LANES);
}

#else

int bfloat16_level(void) { return NONE; }

static float narrow(const Job *job, int64_t token, uint16_t *out) {
    (void)job, (void)token, (void)out;
    return 0;
}

float short_fill(const Job *job, int64_t token, uint16_t *out) { return narrow(job, token, out); }

float short_round(const float *values, int64_t padded, uint16_t *out) {
    (void)values, (void)padded, (void)out;
    return 0;
}

void short_panels(const float *query, int64_t tokens, int64_t dimension, int64_t padded, int64_t lanes, uint16_t *panels,
                  float *steps) {
    (void)query, (void)tokens, (void)dimension, (void)padded, (void)lanes, (void)panels, (void)steps;
}

void short_rows(const uint16_t *rows, int64_t count, int64_t padded, int16_t *out) {
    (void)rows, (void)count, (void)padded, (void)out;
}

void short_nearest(const int16_t *rows, int64_t count, const uint16_t *panels, int64_t panel_count, int64_t padded,
                   int32_t *nearest, int32_t *highest) {
    (void)rows, (void)count, (void)panels, (void)panel_count, (void)padded, (void)nearest, (void)highest;
}

void job_score(const Job *job, int chosen) {
    (void)job;
    (void)chosen;
}

void nearest_rows(const uint16_t *rows, const float *bias, int64_t count, const uint16_t *panels, int64_t panel_count,
                  int64_t padded, int32_t *nearest, float *highest, int chosen) {
    (void)rows, (void)bias, (void)count, (void)panels, (void)panel_count, (void)padded, (void)nearest, (void)highest;
    (void)chosen;
}

void multiply_rows(const uint16_t *rows, int64_t count, const uint16_t *panels, int64_t panel_count, int64_t padded,
                   float *products, int chosen) {
    (void)rows, (void)count, (void)panels, (void)panel_count, (void)padded, (void)products, (void)chosen;
}

#endif

int short_there(void) { return WIDE && has_bytes(); }

/* maxsim_level(): 0 where there is no pass in bfloat16, 1 with AVX-512's dot products, 2 with AMX. */
PyObject *maxsim_level(PyObject *module, PyObject *arguments) {
    (void)module;
    (void)arguments;
    return PyLong_FromLong(bfloat16_level());
}

int job_allocate(Job *job) {
    /* Tokens beyond the last of a block are multiplied and not looked at. */
    job->block = calloc((size_t)((TOGETHER + SPARE) * job->padded), sizeof *job->block);
    job->factors = calloc(TOGETHER + SPARE, sizeof *job->factors);
    job->owners = malloc(TOGETHER * sizeof *job->owners);
    job->best = malloc((size_t)(GROUP * job->panel_count * LANES + 1) * sizeof *job->best);
    return job->block != NULL && job->factors != NULL && job->owners != NULL && job->best != NULL;
}

void job_free(Job *job) {
    free(job->block);
    free(job->factors);
    free(job->owners);
    free(job->best);
}

/* Whether everything lies within its buffer. */
static int sound(const Job *job) {
    for (int64_t row = 0; row < job->rows; row++)
        if (job->starts[row] < 0 || job->sizes[row] < 0 || job->starts[row] > job->tokens ||
            job->sizes[row] > job->tokens - job->starts[row])
            return 0;
    for (int64_t query = 0; query < job->queries; query++)
        if (job->offsets[query] < 0 || job->offsets[query] > job->offsets[query + 1] ||
            job->offsets[query + 1] > job->panel_count * LANES)
            return 0;
    return 1;
}

/* maxsim_scores(level, dimension, longest, values, scales | None, starts, sizes, panels, steps | None, offsets, scores) */
PyObject *maxsim_scores(PyObject *module, PyObject *arguments) {
    (void)module;
    enum { VALUES, SCALES, STARTS, SIZES, PANELS, STEPS, OFFSETS, SCORES, BUFFERS };
    Py_buffer b[BUFFERS];
    int chosen;
    long long dimension;
    float longest;
    if (!PyArg_ParseTuple(arguments, "iLfy*z*y*y*y*z*y*w*", &chosen, &dimension, &longest, b + VALUES, b + SCALES, b + STARTS,
                          b + SIZES, b + PANELS, b + STEPS, b + OFFSETS, b + SCORES))
        return NULL;
    Job job = {b[VALUES].buf, b[SCALES].buf, b[STARTS].buf, b[SIZES].buf, b[PANELS].buf, b[OFFSETS].buf, b[SCORES].buf,
               0, dimension, 0, 0, 0, 0, NULL, NULL, NULL, NULL,
               chosen == AVX2_INT16 ? short_fill : narrow, NULL, b[STEPS].buf, longest};
    const int64_t numbers = item_count(b + VALUES, job.scales == NULL ? 2 : 1), cells = item_count(b + PANELS, 2);
    const int is_short = chosen == AVX2_INT16; /* with more dimensions its sums of 8-bit codes would not fit */
    const int there = is_short ? short_there() && dimension <= 1 << 16 && longest > 1e-30f && longest < 1e30f
                               : chosen >= AVX512_BF16 && chosen <= bfloat16_level();
    int failed = !there || is_short != (job.steps != NULL) || dimension < 1 || dimension > 1 << 24 || numbers < 0 || cells < 0;
    if (!failed) {
        job.padded = (dimension + STEP - 1) / STEP * STEP;
        job.tokens = numbers / dimension;
        job.panel_count = cells / (job.padded * LANES);
        job.rows = item_count(b + STARTS, 8);
        job.queries = item_count(b + OFFSETS, 8) - 1;
        failed = numbers % dimension != 0 || cells % (job.padded * LANES) != 0 || job.rows < 0 || job.queries < 0 ||
                 item_count(b + SIZES, 8) != job.rows ||
                 (job.steps != NULL && item_count(b + STEPS, 4) != job.panel_count * LANES) ||
                 (job.scales != NULL && item_count(b + SCALES, 4) != job.tokens) ||
                 (job.rows > 0 && job.queries > INT64_MAX / 8 / job.rows) ||
                 item_count(b + SCORES, 4) != job.rows * job.queries || !sound(&job);
    }
    int out_of_memory = 0;
    if (failed)
        PyErr_SetString(PyExc_ValueError, "the sizes of the buffers do not fit together, or a token is out of bounds");
    else {
        out_of_memory = !job_allocate(&job);
        if (out_of_memory)
            PyErr_NoMemory();
        else {
            Py_BEGIN_ALLOW_THREADS
            job_score(&job, chosen);
            Py_END_ALLOW_THREADS
        }
        job_free(&job);
    }
    for (int i = 0; i < BUFFERS; i++)
        PyBuffer_Release(b + i);
    if (failed || out_of_memory)
        return NULL;
    Py_RETURN_NONE;
}
