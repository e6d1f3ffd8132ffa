/* Which entries of a vocabulary a text may have: an upper bound of the highest logit of any of its tokens, by products of
 * 8-bit numbers (retrievers/encoders/head_bounds.py says what the arguments mean, and why the bounds hold).
 *
 * AVX2 multiplies pairs of an unsigned and a signed byte and sums them in 16 bits. Sums may wrap around on their way:
 * what they come to fits (head_bounds.py scales the numbers so), and so is exact. Elsewhere there is no such pass
 * (bytes_level is 0). */

#include "_kernels.h"

#if defined(__GNUC__) && defined(__x86_64__)
#define BYTES 1
#define AVX2 __attribute__((target("avx2")))
#include <immintrin.h>
#include <string.h>
#else
#define BYTES 0
#endif

enum {
    ENTRIES = 16, /* of a panel: two registers of eight */
    HALF = 8,
    QUAD = 4,   /* dimensions that lie beside one another: two pairs */
    CHUNK = 32, /* quads whose products are summed in 16 bits */
    TOKENS = 6  /* whose sums stay in registers */
};

typedef struct {
    const uint8_t *codes;       /* [tokens, quads, QUAD], OFFSET added */
    const int8_t *panels;       /* [panels, quads, ENTRIES, QUAD] */
    const int16_t *corrections; /* [panels, chunks, ENTRIES, 2]: what takes OFFSET off again */
    const float *steps, *bases, *norms, *errors; /* [panels * ENTRIES] */
    int32_t *found;
    int64_t tokens, quads, panel_count, entries;
    float step, norm_slack, error_slack;
} Text;

#if BYTES

/* The products of some tokens with a panel, folded into the highest. `count` is known when this is compiled. */
AVX2 __attribute__((always_inline)) static inline void fold(const Text *text, const uint8_t *codes, const int8_t *panel,
                                                            const int16_t *corrections, const int count, __m256i *highest) {
    const int64_t quads = text->quads, width = quads * QUAD;
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i sums[TOKENS][2];
    for (int i = 0; i < count; i++)
        sums[i][0] = sums[i][1] = _mm256_setzero_si256();
    for (int64_t first = 0; first < quads; first += CHUNK, corrections += 2 * ENTRIES) {
        const int64_t end = first + CHUNK < quads ? first + CHUNK : quads;
        const __m256i left = _mm256_loadu_si256((const __m256i *)corrections);
        const __m256i right = _mm256_loadu_si256((const __m256i *)(corrections + ENTRIES));
        __m256i part[TOKENS][2];
        for (int i = 0; i < count; i++)
            part[i][0] = left, part[i][1] = right;
        for (int64_t quad = first; quad < end; quad++) {
            const __m256i a = _mm256_loadu_si256((const __m256i *)(panel + quad * ENTRIES * QUAD));
            const __m256i b = _mm256_loadu_si256((const __m256i *)(panel + quad * ENTRIES * QUAD + HALF * QUAD));
#pragma GCC unroll 6
            for (int i = 0; i < count; i++) {
                int32_t four;
                memcpy(&four, codes + i * width + quad * QUAD, sizeof four);
                const __m256i token = _mm256_set1_epi32(four);
                part[i][0] = _mm256_add_epi16(part[i][0], _mm256_maddubs_epi16(token, a));
                part[i][1] = _mm256_add_epi16(part[i][1], _mm256_maddubs_epi16(token, b));
            }
        }
        for (int i = 0; i < count; i++)
            for (int half = 0; half < 2; half++)
                sums[i][half] = _mm256_add_epi32(sums[i][half], _mm256_madd_epi16(part[i][half], ones));
    }
    for (int i = 0; i < count; i++)
        for (int half = 0; half < 2; half++)
            highest[half] = _mm256_max_epi32(highest[half], sums[i][half]);
}

/* The number of entries, in order, whose bound is not below zero: found[0], found[1] and so on. */
AVX2 static int64_t bound(const Text *text) {
    const int64_t width = text->quads * QUAD, chunks = (text->quads + CHUNK - 1) / CHUNK;
    int64_t count = 0;
    for (int64_t at = 0; at < text->panel_count; at++) {
        const int8_t *panel = text->panels + at * width * ENTRIES;
        const int16_t *corrections = text->corrections + at * chunks * 2 * ENTRIES;
        __m256i highest[2] = {_mm256_set1_epi32(INT32_MIN), _mm256_set1_epi32(INT32_MIN)};
        int64_t token = 0;
        for (; token + TOKENS <= text->tokens; token += TOKENS)
            fold(text, text->codes + token * width, panel, corrections, TOKENS, highest);
        for (; token + 2 <= text->tokens; token += 2)
            fold(text, text->codes + token * width, panel, corrections, 2, highest);
        if (token < text->tokens)
            fold(text, text->codes + token * width, panel, corrections, 1, highest);
        int32_t products[ENTRIES];
        _mm256_storeu_si256((__m256i *)products, highest[0]);
        _mm256_storeu_si256((__m256i *)(products + HALF), highest[1]);
        for (int i = 0; i < ENTRIES; i++) {
            const int64_t entry = at * ENTRIES + i;
            const float most = (float)products[i] * (text->step * text->steps[entry]) + text->bases[entry] +
                               text->norm_slack * text->norms[entry] + text->error_slack * text->errors[entry];
            text->found[count] = (int32_t)entry;
            count += entry < text->entries && !(most < 0);
        }
    }
    return count;
}

#else

static int64_t bound(const Text *text) {
    (void)text;
    return 0;
}

#endif

/* vocabulary_bound(entries, quads, codes, panels, corrections, factors, step, norm_slack, error_slack, found) -> count */
PyObject *vocabulary_bound(PyObject *module, PyObject *arguments) {
    (void)module;
    enum { CODES, PANELS, CORRECTIONS, FACTORS, FOUND, BUFFERS };
    Py_buffer b[BUFFERS];
    long long entries, quads;
    float step, norm_slack, error_slack;
    if (!PyArg_ParseTuple(arguments, "LLy*y*y*y*fffw*", &entries, &quads, b + CODES, b + PANELS, b + CORRECTIONS, b + FACTORS,
                          &step, &norm_slack, &error_slack, b + FOUND))
        return NULL;
    int failed = !has_bytes() || entries < 0 || entries > INT32_MAX - ENTRIES || quads < 1 || quads > 1 << 20;
    int64_t count = 0;
    if (!failed) {
        const int64_t panels = (entries + ENTRIES - 1) / ENTRIES, cells = panels * ENTRIES, width = quads * QUAD;
        const float *factors = b[FACTORS].buf;
        const Text text = {b[CODES].buf, b[PANELS].buf, b[CORRECTIONS].buf, factors, factors + cells, factors + 2 * cells,
                           factors + 3 * cells, b[FOUND].buf, b[CODES].len / width, quads, panels, entries, step, norm_slack,
                           error_slack};
        failed = b[CODES].len % width != 0 || b[PANELS].len != cells * width ||
                 item_count(b + CORRECTIONS, 2) != panels * ((quads + CHUNK - 1) / CHUNK) * 2 * ENTRIES ||
                 item_count(b + FACTORS, 4) != 4 * cells || item_count(b + FOUND, 4) != cells;
        if (!failed) {
            Py_BEGIN_ALLOW_THREADS
            count = bound(&text);
            Py_END_ALLOW_THREADS
        }
    }
    if (failed)
        PyErr_SetString(PyExc_ValueError, "the sizes of the buffers do not fit together");
    for (int i = 0; i < BUFFERS; i++)
        PyBuffer_Release(b + i);
    return failed ? NULL : PyLong_FromLongLong(count);
}
