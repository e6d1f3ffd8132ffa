/* Late interaction in int16, for processors with AVX2 that do not multiply bfloat16: tokens times a step of their own.
 *
 * Documents share one step, a query's token has its own: a 32,767th of the greatest length. Sums of products are exact in 32
 * bits, for by Cauchy-Schwarz none is above the product of two lengths (maxsim.py makes the codes of queries). */

#include "_maxsim.h"

#if WIDE

#include <immintrin.h>
#include <math.h>
#include <string.h>

enum { HALF = 8, TOKENS = 6 }; /* numbers of a register; document tokens whose sums stay in registers */

/* Eight numbers of a token, zeros beyond its end. Infinity and NaN become 65536 and more, as in maxsim.py. */
AVX2 static inline __m256 eight(const uint16_t *halves, int64_t left) {
    uint16_t cut[HALF] = {0};
    if (left < HALF)
        memcpy(cut, halves, (size_t)left * sizeof *cut);
    const __m128i found = _mm_loadu_si128((const __m128i *)(left < HALF ? cut : halves));
    const __m256i bits =
        _mm256_and_si256(_mm256_slli_epi32(_mm256_cvtepi16_epi32(found), 13), _mm256_set1_epi32(-0x70002000));
    return _mm256_mul_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(0x1p112f));
}

AVX2 float short_fill(const Job *job, int64_t token, uint16_t *out) {
    const int64_t dimension = job->dimension, first = token * dimension;
    if (job->scales != NULL) {
        const int8_t *codes = (const int8_t *)job->values + first;
        for (int64_t at = 0; at < dimension; at++)
            out[at] = (uint16_t)codes[at];
        memset(out + dimension, 0, (size_t)(job->padded - dimension) * sizeof *out);
        return job->scales[token];
    }
    const uint16_t *halves = (const uint16_t *)job->values + first;
    const float step = job->longest / 32767;
    const __m256 scale = _mm256_set1_ps(1 / step), sign = _mm256_set1_ps(-0.0f);
    __m256 most = _mm256_setzero_ps();
    for (int64_t at = 0; at < job->padded; at += 2 * HALF) {
        const __m256 low = at < dimension ? eight(halves + at, dimension - at) : _mm256_setzero_ps();
        const __m256 high = at + HALF < dimension ? eight(halves + at + HALF, dimension - at - HALF) : _mm256_setzero_ps();
        most = _mm256_max_ps(most, _mm256_max_ps(_mm256_andnot_ps(sign, low), _mm256_andnot_ps(sign, high)));
        const __m256i both = _mm256_packs_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(low, scale)),
                                                _mm256_cvtps_epi32(_mm256_mul_ps(high, scale)));
        _mm256_storeu_si256((__m256i *)(out + at), _mm256_permute4x64_epi64(both, 0xD8));
    }
    return _mm256_movemask_ps(_mm256_cmp_ps(most, _mm256_set1_ps(job->longest), _CMP_GT_OQ)) ? NAN : step;
}

AVX2 float short_round(const float *values, int64_t padded, uint16_t *out) {
    __m256 left = _mm256_setzero_ps(), right = left;
    for (int64_t at = 0; at < padded; at += 2 * HALF) {
        const __m256 x = _mm256_loadu_ps(values + at), y = _mm256_loadu_ps(values + at + HALF);
        left = _mm256_fmadd_ps(x, x, left), right = _mm256_fmadd_ps(y, y, right);
    }
    float lanes[HALF], squares = 0;
    _mm256_storeu_ps(lanes, _mm256_add_ps(left, right));
    for (int i = 0; i < HALF; i++)
        squares += lanes[i];
    if (!(squares < INFINITY))
        return NAN;
    const float step = fmaxf(sqrtf(squares) / 32767, 1e-20f);
    const __m256 scale = _mm256_set1_ps(1 / step);
    for (int64_t at = 0; at < padded; at += 2 * HALF) {
        const __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(values + at), scale));
        const __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(values + at + HALF), scale));
        _mm256_storeu_si256((__m256i *)(out + at), _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xD8));
    }
    return step;
}

/* The nearest whole number, within 16 bits. */
static int16_t code_of(float value) {
    const int code = _mm_cvtss_si32(_mm_set_ss(value)); /* the lowest int for what is no number, or too large */
    return (int16_t)(code > 32767 ? 32767 : code < -32767 ? -32767 : code);
}

static float wide_of(uint16_t narrow) {
    const uint32_t bits = (uint32_t)narrow << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

void short_panels(const float *query, int64_t tokens, int64_t dimension, int64_t padded, int64_t lanes, uint16_t *panels,
                  float *steps) {
    memset(panels, 0, (size_t)(lanes * padded) * sizeof *panels);
    memset(steps, 0, (size_t)lanes * sizeof *steps);
    for (int64_t token = 0; token < tokens; token++) {
        uint16_t *panel = panels + token / LANES * LANES * padded + token % LANES * 2;
        const float *values = query + token * dimension;
        double squares = 0;
        for (int64_t at = 0; at < dimension; at++)
            squares += (double)values[at] * values[at];
        steps[token] = fmaxf((float)(sqrt(squares) / 32767), 1e-36f);
        for (int64_t at = 0; at < dimension; at++)
            panel[at / 2 * 2 * LANES + at % 2] = (uint16_t)code_of(values[at] / steps[token]);
    }
}

/* sum += products of pairs, in place: left to itself the compiler moves and spills the sums. */
AVX2 __attribute__((always_inline)) static inline void add_products(__m256i *sum, __m256i token, __m256i others) {
    __m256i products;
    __asm__("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(*sum), "=&x"(products) : "x"(token), "x"(others));
}

/* The sums of products of TOKENS rows with one panel. */
AVX2 __attribute__((always_inline)) static inline void multiply_tile(const uint16_t *rows, const uint16_t *panel, int64_t padded,
                                                                     __m256i (*sums)[2]) {
    for (int i = 0; i < TOKENS; i++)
        sums[i][0] = sums[i][1] = _mm256_setzero_si256();
    for (int64_t at = 0; at < padded; at += 2) {
        const __m256i a = _mm256_loadu_si256((const __m256i *)(panel + at * LANES));
        const __m256i b = _mm256_loadu_si256((const __m256i *)(panel + at * LANES + LANES));
#pragma GCC unroll 6
        for (int i = 0; i < TOKENS; i++) {
            int32_t two;
            memcpy(&two, rows + i * padded + at, sizeof two);
            const __m256i token = _mm256_set1_epi32(two);
            add_products(&sums[i][0], token, a);
            add_products(&sums[i][1], token, b);
        }
    }
}

AVX2 void short_multiply(const Job *job, int64_t count) {
    const int64_t width = job->panel_count * LANES;
    for (int64_t panel = 0; panel < job->panel_count; panel++)
        for (int64_t first = 0; first < count; first += TOKENS) {
            __m256i sums[TOKENS][2];
            multiply_tile(job->block + first * job->padded, job->panels + panel * LANES * job->padded, job->padded, sums);
            for (int i = 0; i < TOKENS && first + i < count; i++) {
                float *mine = job->best + job->owners[first + i] * width + panel * LANES;
                const __m256 factor = _mm256_set1_ps(job->factors[first + i]);
                for (int half = 0; half < 2; half++) {
                    const __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[i][half]), factor);
                    _mm256_storeu_ps(mine + half * HALF, _mm256_max_ps(_mm256_loadu_ps(mine + half * HALF), product));
                }
            }
        }
}

void short_rows(const uint16_t *rows, int64_t count, int64_t padded, int16_t *out) {
    float most = 0;
    for (int64_t row = 0; row < count; row++) {
        double squares = 0;
        for (int64_t at = 0; at < padded; at++) {
            const double value = wide_of(rows[row * padded + at]);
            squares += value * value;
        }
        most = fmaxf(most, (float)sqrt(squares));
    }
    const float step = most > 0 && most < INFINITY ? most / 32767 : 1;
    for (int64_t at = 0; at < count * padded; at++)
        out[at] = code_of(wide_of(rows[at]) / step);
}

AVX2 void short_nearest(const int16_t *rows, int64_t count, const uint16_t *panels, int64_t panel_count, int64_t padded,
                        int32_t *nearest, int32_t *highest) {
    for (int64_t i = 0; i < panel_count * LANES; i++)
        highest[i] = INT32_MIN, nearest[i] = 0;
    /* Some rows at a time, which stay in a cache while all panels go by. */
    for (int64_t from = 0; from < count; from += TOGETHER / TOKENS * TOKENS)
        for (int64_t panel = 0; panel < panel_count; panel++) {
            const int64_t end = count - from < TOGETHER / TOKENS * TOKENS ? count : from + TOGETHER / TOKENS * TOKENS;
            __m256i *best = (__m256i *)(highest + panel * LANES), *at = (__m256i *)(nearest + panel * LANES);
            for (int64_t first = from; first < end; first += TOKENS) {
                __m256i sums[TOKENS][2];
                multiply_tile((const uint16_t *)rows + first * padded, panels + panel * LANES * padded, padded, sums);
                for (int i = 0; i < TOKENS && first + i < end; i++)
                    for (int half = 0; half < 2; half++) {
                        const __m256i before = _mm256_loadu_si256(best + half), place = _mm256_loadu_si256(at + half);
                        const __m256i higher = _mm256_cmpgt_epi32(sums[i][half], before);
                        const __m256i mine = _mm256_set1_epi32((int32_t)(first + i));
                        _mm256_storeu_si256(best + half, _mm256_max_epi32(before, sums[i][half]));
                        _mm256_storeu_si256(at + half, _mm256_blendv_epi8(place, mine, higher));
                    }
            }
        }
}

#endif
