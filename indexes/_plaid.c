/* Late interaction over compressed token vectors: a centroid and the codes of a residual for each token. The best
 * centroids of every query token lead to documents; these are scored by their centroids alone, and the best of them by the
 * vectors that the codes stand for. _plaid_numpy.py says what the arguments mean, and computes the same at level NONE.
 *
 * Sources: PLAID (Santhanam et al., 2022) for the stages; WARP (Scheerer et al., 2025) for what stands in for tokens that
 * no probed list holds. Whatever the arrays hold, nothing is read outside them: centroids are a power of two, by which
 * codes are masked, and rows of lists are compared with the number of documents. */

#include "_maxsim.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

enum { BYTES = 32, BLOCK = 512, BINS = 8192, AHEAD = 12, STAMPS = 255, SUM = 0xffffff };

typedef struct {
    const uint16_t *centroids; /* bfloat16 [count, padded] */
    const uint16_t *codes; /* [tokens], which centroid */
    const uint8_t *residuals; /* [tokens, width] */
    const uint8_t *steps; /* [tokens, 2], places in the two tables */
    const float *tables; /* [2, 256]: the scale of a residual, and that of the sum */
    const float *levels; /* [2^bits] */
    int64_t dimension, padded, count, tokens, width;
    int bits;
    float *unpacked; /* [256, 8 / bits], the levels of every byte of codes */
    float *row; /* [padded + 8] */
    float spread[LANES]; /* levels, zeros behind them */
} Codec;

static int unpack(Codec *codec) {
    const int each = 8 / codec->bits, mask = (1 << codec->bits) - 1;
    codec->unpacked = malloc((size_t)(256 * each) * sizeof(float));
    codec->row = malloc((size_t)(codec->padded + 8) * sizeof(float));
    if (codec->unpacked == NULL || codec->row == NULL)
        return 0;
    memcpy(codec->spread, codec->levels, (size_t)(mask + 1) * sizeof(float));
    for (int byte = 0; byte < 256; byte++)
        for (int i = 0; i < each; i++)
            codec->unpacked[byte * each + i] = codec->levels[byte >> (i * codec->bits) & mask];
    return 1;
}

static void forget(Codec *codec) {
    free(codec->unpacked);
    free(codec->row);
}

/* The vector that the codes of a token stand for, float32 [dimension]. */
CLONES static void decode(const Codec *codec, int64_t token, float *restrict out) {
    const int each = 8 / codec->bits;
    const uint8_t *bytes = codec->residuals + token * codec->width, *steps = codec->steps + 2 * token;
    const uint16_t *centroid = codec->centroids + (codec->codes[token] & (codec->count - 1)) * codec->padded;
    const float step = codec->tables[steps[0]], whole = codec->tables[256 + steps[1]];
    float *levels = codec->row;
    switch (each) { /* of constant size, the copies are single instructions */
    case 8:
        for (int64_t i = 0; i < codec->width; i++)
            memcpy(levels + 8 * i, codec->unpacked + 8 * bytes[i], 8 * sizeof(float));
        break;
    case 4:
        for (int64_t i = 0; i < codec->width; i++)
            memcpy(levels + 4 * i, codec->unpacked + 4 * bytes[i], 4 * sizeof(float));
        break;
    default:
        for (int64_t i = 0; i < codec->width; i++)
            memcpy(levels + 2 * i, codec->unpacked + 2 * bytes[i], 2 * sizeof(float));
    }
    for (int64_t d = 0; d < codec->dimension; d++) {
        const uint32_t bits = (uint32_t)centroid[d] << 16;
        float value;
        memcpy(&value, &bits, sizeof value);
        out[d] = whole * (value + step * levels[d]);
    }
}

/* The nearest bfloat16 of finite numbers. */
CLONES static void round_all(const float *restrict values, int64_t count, uint16_t *restrict out) {
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, values + i, sizeof bits);
        out[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
}

static float fill(const Job *job, int64_t token, uint16_t *out) {
    const Codec *codec = job->codec;
    float *decoded = (float *)job->values; /* [padded], room of this job's own */
    decode(codec, token, decoded);
    round_all(decoded, codec->dimension, out);
    memset(out + codec->dimension, 0, (size_t)(codec->padded - codec->dimension) * sizeof *out);
    return 1;
}

static float fill_short(const Job *job, int64_t token, uint16_t *out) {
    float *decoded = (float *)job->values; /* [padded], zeros behind the dimensions */
    decode(job->codec, token, decoded);
    return short_round(decoded, job->padded, out);
}

#if WIDE

/* The same where dimensions are a multiple of 8: as many codes at a time are spread over the lanes of a register. */
AVX2 __attribute__((always_inline)) static inline float fill_eights(const Job *job, int64_t token, uint16_t *out,
                                                                    const int bits) {
    enum { EIGHT = 8 };
    const Codec *codec = job->codec;
    float *decoded = (float *)job->values;
    const uint8_t *bytes = codec->residuals + token * codec->width, *steps = codec->steps + 2 * token;
    const uint16_t *centroid = codec->centroids + (codec->codes[token] & (codec->count - 1)) * codec->padded;
    const __m256 step = _mm256_set1_ps(codec->tables[steps[0]]), whole = _mm256_set1_ps(codec->tables[256 + steps[1]]);
    const __m256 lower = _mm256_loadu_ps(codec->spread), upper = _mm256_loadu_ps(codec->spread + EIGHT);
    const __m256i shifts = _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(bits));
    const __m256i mask = _mm256_set1_epi32((1 << bits) - 1);
    if (token + AHEAD < codec->tokens) {
        const uint16_t *next = codec->centroids + (codec->codes[token + AHEAD] & (codec->count - 1)) * codec->padded;
        for (int64_t line = 0; line < codec->dimension; line += 2 * LANES)
            PREFETCH(next + line);
    }
    for (int64_t at = 0; at < codec->dimension; at += EIGHT) {
        uint32_t word = 0;
        memcpy(&word, bytes + at * bits / EIGHT, (size_t)bits);
        const __m256i codes = _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32((int32_t)word), shifts), mask);
        __m256 level = _mm256_permutevar8x32_ps(lower, codes);
        if (bits == 4) /* the code's highest digit as a sign */
            level = _mm256_blendv_ps(level, _mm256_permutevar8x32_ps(upper, codes),
                                     _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28)));
        const __m128i halves = _mm_loadu_si128((const __m128i *)(centroid + at));
        const __m256 base = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
        _mm256_storeu_ps(decoded + at, _mm256_mul_ps(whole, _mm256_fmadd_ps(step, level, base)));
    }
    return short_round(decoded, job->padded, out);
}

AVX2 static float fill_short_wide(const Job *job, int64_t token, uint16_t *out) {
    switch (((const Codec *)job->codec)->bits) { /* of constant size, the copies are single instructions */
    case 1:
        return fill_eights(job, token, out, 1);
    case 2:
        return fill_eights(job, token, out, 2);
    default:
        return fill_eights(job, token, out, 4);
    }
}

/* The same where dimensions are a multiple of LANES: LANES codes at a time are spread over the lanes of a register. */
AVX512 static float fill_wide(const Job *job, int64_t token, uint16_t *out) {
    const Codec *codec = job->codec;
    const uint8_t *bytes = codec->residuals + token * codec->width, *steps = codec->steps + 2 * token;
    const uint16_t *centroid = codec->centroids + (codec->codes[token] & (codec->count - 1)) * codec->padded;
    const __m512 step = _mm512_set1_ps(codec->tables[steps[0]]), whole = _mm512_set1_ps(codec->tables[256 + steps[1]]);
    const __m512 levels = _mm512_maskz_loadu_ps((__mmask16)((1u << (1 << codec->bits)) - 1), codec->levels);
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const int bits = codec->bits, held = 32 / bits; /* codes in a word */
    const __m512i shifts = _mm512_mullo_epi32(_mm512_and_si512(lane, _mm512_set1_epi32(held - 1)), _mm512_set1_epi32(bits));
    const __m512i mask = _mm512_set1_epi32((1 << bits) - 1);
    if (token + AHEAD < codec->tokens) {
        const uint16_t *next = codec->centroids + (codec->codes[token + AHEAD] & (codec->count - 1)) * codec->padded;
        for (int64_t line = 0; line < codec->dimension; line += 2 * LANES)
            PREFETCH(next + line);
    }
    int64_t at = 0;
    for (; at < codec->dimension; at += LANES) {
        uint64_t word = 0;
        memcpy(&word, bytes + at * bits / 8, (size_t)(2 * bits));
        __m512i codes = _mm512_set1_epi32((int32_t)word);
        if (bits == 4)
            codes = _mm512_mask_mov_epi32(codes, 0xff00, _mm512_set1_epi32((int32_t)(word >> 32)));
        codes = _mm512_and_si512(_mm512_srlv_epi32(codes, shifts), mask);
        const __m256i halves = _mm256_loadu_si256((const __m256i *)(centroid + at));
        const __m512 base = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
        const __m512 rest = _mm512_mul_ps(step, _mm512_permutexvar_ps(codes, levels));
        const __m512 value = _mm512_mul_ps(whole, _mm512_add_ps(base, rest));
        _mm256_storeu_si256((__m256i *)(out + at), (__m256i)_mm512_cvtneps_pbh(value));
    }
    for (; at < codec->padded; at += LANES)
        _mm256_storeu_si256((__m256i *)(out + at), _mm256_setzero_si256());
    return 1;
}

#else

static float fill_wide(const Job *job, int64_t token, uint16_t *out) { return fill(job, token, out); }

static float fill_short_wide(const Job *job, int64_t token, uint16_t *out) { return fill_short(job, token, out); }

#endif

/* --- the stages of a search --- */

typedef struct {
    Codec codec;
    int level;
    const float *query; /* [asked, dimension] */
    const uint16_t *panels; /* the same as bfloat16, NULL at levels that have none */
    const int64_t *lists; /* [count + 1] into list_rows */
    const uint32_t *list_rows;
    const int64_t *offsets; /* [documents + 1] into the tokens */
    const uint8_t *live; /* permitted documents, or NULL for all */
    int64_t asked, lanes, width, documents, probes, shortlist, candidates;
    float scale; /* from scores to bytes */
    uint8_t *table; /* [count, width], scores of centroids and query tokens */
    float *heap_scores; /* [asked, probes], best first */
    int32_t *heap_centroids;
    int64_t *heap_sizes; /* [asked] */
    float *low; /* [lanes], what a score has to pass */
    uint32_t *sums; /* [documents]: the last query token that found it, and what the tokens found in all */
    int64_t *rows; /* [shortlist] */
    uint32_t *row_sums; /* [shortlist] */
    int64_t *kept; /* [candidates] */
    float *block; /* [BLOCK, lanes] */
    float *wide; /* [dimension, lanes] the query, and [padded] of a centroid, at levels without bfloat16 */
} Search;

#if WIDE

/* What multiply_plain computes of `count` rows of bfloat16 [padded], but for rounding: some rows together, sums in registers. */
AVX2 static void multiply_rows_avx2(const float *query, const uint16_t *rows, int64_t count, int64_t dimension, int64_t padded,
                                    int64_t lanes, float *products) {
    enum { ROWS = 3, REGISTERS = BYTES / 8 };
    for (int64_t first = 0; first < lanes; first += BYTES)
        for (int64_t row = 0; row < count; row += ROWS) {
            const int64_t left = count - row < ROWS ? count - row : ROWS;
            __m256 sums[ROWS][REGISTERS];
            for (int i = 0; i < ROWS; i++)
                for (int j = 0; j < REGISTERS; j++)
                    sums[i][j] = _mm256_setzero_ps();
            for (int64_t d = 0; d < dimension; d++) {
                const float *asked = query + d * lanes + first;
#pragma GCC unroll 3
                for (int i = 0; i < ROWS; i++) {
                    const uint32_t bits = (uint32_t)rows[(row + (i < left ? i : 0)) * padded + d] << 16;
                    const __m256 value = _mm256_castsi256_ps(_mm256_set1_epi32((int32_t)bits));
#pragma GCC unroll 4
                    for (int j = 0; j < REGISTERS; j++)
                        sums[i][j] = _mm256_fmadd_ps(_mm256_loadu_ps(asked + 8 * j), value, sums[i][j]);
                }
            }
            for (int64_t i = 0; i < left; i++)
                for (int j = 0; j < REGISTERS; j++)
                    _mm256_storeu_ps(products + (row + i) * lanes + first + 8 * j, sums[i][j]);
        }
}

#else

static void multiply_rows_avx2(const float *query, const uint16_t *rows, int64_t count, int64_t dimension, int64_t padded,
                               int64_t lanes, float *products) {
    (void)query, (void)rows, (void)count, (void)dimension, (void)padded, (void)lanes, (void)products;
}

#endif

static int has_bfloat16(int level) { return level == AVX512_BF16 || level == AMX_BF16; }

/* BYTES lanes at a time, whose sums the compiler keeps in registers; `lanes` is a multiple of that. */
CLONES static void multiply_plain(const float *restrict query, const float *restrict token, int64_t dimension, int64_t lanes,
                                  float *restrict products) {
    for (int64_t first = 0; first < lanes; first += BYTES) {
        float sums[BYTES] = {0};
        for (int64_t d = 0; d < dimension; d++) {
            const float value = token[d];
            for (int lane = 0; lane < BYTES; lane++)
                sums[lane] += query[d * lanes + first + lane] * value;
        }
        memcpy(products + first, sums, sizeof sums);
    }
}

CLONES static void to_bytes(const float *restrict scores, int64_t count, float scale, uint8_t *restrict out) {
    for (int64_t i = 0; i < count; i++) {
        float byte = scores[i] * scale + 0.5f;
        byte = byte > 0 ? byte : 0;
        out[i] = (uint8_t)(int32_t)(byte < 255 ? byte : 255);
    }
}

CLONES static int any_higher(const float *restrict scores, const float *restrict low, int64_t lanes) {
    int any = 0;
    for (int64_t lane = 0; lane < lanes; lane++)
        any |= scores[lane] > low[lane];
    return any;
}

static void probe(Search *s, int64_t token, float score, int32_t centroid) {
    float *scores = s->heap_scores + token * s->probes;
    int32_t *centroids = s->heap_centroids + token * s->probes;
    int64_t at = s->heap_sizes[token] < s->probes ? s->heap_sizes[token]++ : s->probes - 1;
    for (; at > 0 && scores[at - 1] < score; at--) {
        scores[at] = scores[at - 1];
        centroids[at] = centroids[at - 1];
    }
    scores[at] = score;
    centroids[at] = centroid;
    if (s->heap_sizes[token] == s->probes)
        s->low[token] = scores[s->probes - 1];
}

/* Scores of all centroids as bytes, and the best of each query token; of equal ones the first. */
static void score_centroids(Search *s) {
    const Codec *c = &s->codec;
    for (int64_t lane = 0; lane < s->lanes; lane++)
        s->low[lane] = lane < s->asked ? -INFINITY : INFINITY;
    for (int64_t first = 0; first < c->count; first += BLOCK) {
        const int64_t some = c->count - first < BLOCK ? c->count - first : BLOCK;
        if (has_bfloat16(s->level))
            multiply_rows(c->centroids + first * c->padded, some, s->panels, s->lanes / LANES, c->padded, s->block, s->level);
        else if (s->level == AVX2_INT16)
            multiply_rows_avx2(s->wide, c->centroids + first * c->padded, some, c->dimension, c->padded, s->lanes, s->block);
        else
            for (int64_t i = 0; i < some; i++) {
                float *wide = s->wide + c->dimension * s->lanes;
                for (int64_t d = 0; d < c->dimension; d++) {
                    const uint32_t bits = (uint32_t)c->centroids[(first + i) * c->padded + d] << 16;
                    memcpy(wide + d, &bits, sizeof bits);
                }
                multiply_plain(s->wide, wide, c->dimension, s->lanes, s->block + i * s->lanes);
            }
        for (int64_t i = 0; i < some; i++) {
            const float *scores = s->block + i * s->lanes;
            to_bytes(scores, s->lanes, s->scale, s->table + (first + i) * s->width);
            if (any_higher(scores, s->low, s->lanes))
                for (int64_t token = 0; token < s->asked; token++)
                    if (scores[token] > s->low[token])
                        probe(s, token, scores[token], (int32_t)(first + i));
        }
    }
}

/* What the probed lists tell of each document: of every query token the first, and so the best, that they hold. What a
 * token did not find counts as the last list that was probed, which is left out of all sums alike. */
static void visit_lists(Search *s) {
    memset(s->sums, 0, (size_t)s->documents * sizeof *s->sums);
    for (int64_t token = 0; token < s->asked; token++) {
        const uint32_t stamp = (uint32_t)(token % STAMPS + 1) << 24;
        if (token > 0 && token % STAMPS == 0)
            for (int64_t row = 0; row < s->documents; row++)
                s->sums[row] &= SUM;
        const int64_t found = s->heap_sizes[token];
        const int32_t *centroids = s->heap_centroids + token * s->probes;
        if (found == 0)
            continue;
        const uint8_t least = s->table[centroids[found - 1] * s->width + token];
        for (int64_t at = 0; at < found; at++) {
            const int64_t centroid = centroids[at];
            const uint32_t more = (uint32_t)(s->table[centroid * s->width + token] - least) + 1; /* found beats not found */
            const uint32_t *rows = s->list_rows + s->lists[centroid];
            const int64_t length = s->lists[centroid + 1] - s->lists[centroid];
            for (int64_t i = 0; i < length; i++) {
                if (i + AHEAD < length)
                    PREFETCH(s->sums + rows[i + AHEAD]);
                if (rows[i] >= s->documents)
                    continue;
                const uint32_t sum = s->sums[rows[i]];
                if ((sum & ~(uint32_t)SUM) != stamp)
                    s->sums[rows[i]] = stamp | ((sum & SUM) + more);
            }
        }
    }
}

/* The places of the `most` highest of `count` numbers that are not 0, in ascending order; of those that equal the least of
 * them (as far as BINS tells numbers apart) the first. Returns how many. */
static int64_t highest_of(const uint32_t *numbers, uint32_t mask, int64_t count, const uint8_t *live, int64_t most,
                          int64_t *places) {
    static const int64_t none = -1;
    uint32_t largest = 0;
    for (int64_t i = 0; i < count; i++)
        largest = (numbers[i] & mask) > largest ? numbers[i] & mask : largest;
    int shift = 0;
    while (largest >> shift >= BINS)
        shift++;
    int64_t bins[BINS] = {0}, above = 0, found = 0, bin = BINS;
    for (int64_t i = 0; i < count; i++)
        if ((numbers[i] & mask) != 0 && (live == NULL || live[i >> 3] >> (i & 7) & 1))
            bins[(numbers[i] & mask) >> shift]++;
    while (bin > 0 && above + bins[bin - 1] <= most)
        above += bins[--bin];
    int64_t partly = most - above, last = bin > 0 ? bin - 1 : none; /* of the bin that does not fit in whole */
    for (int64_t i = 0; i < count; i++) {
        const uint32_t number = numbers[i] & mask;
        if (number == 0 || (live != NULL && !(live[i >> 3] >> (i & 7) & 1)))
            continue;
        const int64_t mine = number >> shift;
        if (mine >= bin || (mine == last && partly-- > 0))
            places[found++] = i;
    }
    return found;
}

/* The sum of the highest bytes over the tokens of a document. */
static uint32_t by_centroids(const Search *s, int64_t row) {
    const uint16_t *codes = s->codec.codes;
    const int64_t mask = s->codec.count - 1, first = s->offsets[row], last = s->offsets[row + 1];
    uint32_t sum = 0;
    for (int64_t part = 0; part < s->width; part += BYTES) {
        const uint8_t *table = s->table + part;
        uint8_t best[BYTES] = {0};
#if defined(__SSE2__)
        __m128i low = _mm_setzero_si128(), high = _mm_setzero_si128();
        for (int64_t token = first; token < last; token++) {
            const uint8_t *bytes = table + (codes[token] & mask) * s->width;
            if (token + AHEAD < s->codec.tokens)
                PREFETCH(table + (codes[token + AHEAD] & mask) * s->width);
            low = _mm_max_epu8(low, _mm_loadu_si128((const __m128i *)bytes));
            high = _mm_max_epu8(high, _mm_loadu_si128((const __m128i *)(bytes + BYTES / 2)));
        }
        _mm_storeu_si128((__m128i *)best, low);
        _mm_storeu_si128((__m128i *)(best + BYTES / 2), high);
#else
        for (int64_t token = first; token < last; token++) {
            const uint8_t *bytes = table + (codes[token] & mask) * s->width;
            for (int i = 0; i < BYTES; i++)
                best[i] = bytes[i] > best[i] ? bytes[i] : best[i];
        }
#endif
        for (int i = 0; i < BYTES; i++)
            sum += best[i];
    }
    return sum;
}

/* Scores by what the codes stand for, in float32, where bfloat16 is not multiplied. */
static void by_codes(const Search *s, const int64_t *rows, int64_t count, float *scores) {
    const Codec *c = &s->codec;
    float *decoded = s->wide + c->dimension * s->lanes, *products = s->block, *best = s->block + s->lanes;
    for (int64_t i = 0; i < count; i++) {
        for (int64_t lane = 0; lane < s->lanes; lane++)
            best[lane] = -INFINITY;
        for (int64_t token = s->offsets[rows[i]]; token < s->offsets[rows[i] + 1]; token++) {
            decode(c, token, decoded);
            multiply_plain(s->wide, decoded, c->dimension, s->lanes, products);
            for (int64_t lane = 0; lane < s->lanes; lane++)
                best[lane] = products[lane] > best[lane] ? products[lane] : best[lane];
        }
        float sum = 0;
        for (int64_t lane = 0; lane < s->asked; lane++)
            sum += best[lane];
        scores[i] = sum;
    }
}

static int search(Search *s, int64_t *out_rows, float *out_scores, int64_t *found) {
    const Codec *c = &s->codec;
    score_centroids(s);
    visit_lists(s);
    const int64_t listed = highest_of(s->sums, SUM, s->documents, s->live, s->shortlist, s->rows);
    for (int64_t i = 0; i < listed; i++) {
        if (i + 1 < listed)
            PREFETCH(c->codes + s->offsets[s->rows[i + 1]]);
        s->row_sums[i] = by_centroids(s, s->rows[i]) + 1; /* 0 stands for nothing */
    }
    *found = highest_of(s->row_sums, UINT32_MAX, listed, NULL, s->candidates, s->kept);
    for (int64_t i = 0; i < *found; i++)
        out_rows[i] = s->rows[s->kept[i]];
    if (s->level == NONE) {
        by_codes(s, out_rows, *found, out_scores);
        return 1;
    }
    const int64_t whole[2] = {0, s->asked};
    const int narrow = has_bfloat16(s->level), even = c->dimension % (narrow ? LANES : 8) == 0;
    Job job = {.codec = c, .fill = narrow ? even ? fill_wide : fill : even ? fill_short_wide : fill_short, .panels = s->panels,
               .offsets = whole, .scores = out_scores, .dimension = c->dimension, .padded = c->padded, .rows = *found,
               .panel_count = s->lanes / LANES, .queries = 1};
    int64_t *starts = malloc((size_t)(2 * *found + 1) * sizeof *starts);
    float *decoded = calloc((size_t)c->padded, sizeof *decoded), *steps = NULL;
    uint16_t *panels = NULL;
    int ready = job_allocate(&job) && starts != NULL && decoded != NULL;
    if (ready && !narrow) {
        steps = malloc((size_t)s->lanes * sizeof *steps);
        panels = malloc((size_t)(s->lanes * c->padded) * sizeof *panels);
        ready = steps != NULL && panels != NULL;
        if (ready)
            short_panels(s->query, s->asked, c->dimension, c->padded, s->lanes, panels, steps);
        job.steps = steps, job.panels = panels;
    }
    if (ready) {
        for (int64_t i = 0; i < *found; i++) {
            starts[i] = s->offsets[out_rows[i]];
            starts[*found + i] = s->offsets[out_rows[i] + 1] - starts[i];
        }
        job.values = decoded;
        job.starts = starts;
        job.sizes = starts + *found;
        job_score(&job, s->level);
    }
    job_free(&job);
    free(starts);
    free(decoded);
    free(steps);
    free(panels);
    return ready;
}

/* Room for a search, cut out of one buffer; returns the bytes that it takes. */
static int64_t lay_out(Search *s, uint8_t *room) {
    int64_t used = 0;
    const Codec *c = &s->codec;
#define ROOM(member, number)                                                                                                   \
    do {                                                                                                                       \
        s->member = (void *)(room + used);                                                                                     \
        used += ((int64_t)(number) * (int64_t)sizeof *s->member + 63) / 64 * 64;                                               \
    } while (0)
    ROOM(table, c->count * s->width);
    ROOM(sums, s->documents);
    ROOM(heap_scores, s->asked * s->probes);
    ROOM(heap_centroids, s->asked * s->probes);
    ROOM(heap_sizes, s->asked);
    ROOM(low, s->lanes);
    ROOM(rows, s->shortlist);
    ROOM(row_sums, s->shortlist);
    ROOM(kept, s->candidates);
    ROOM(block, BLOCK * s->lanes);
    ROOM(wide, c->dimension * s->lanes + c->padded);
#undef ROOM
    return used;
}

/* --- what Python calls --- */

static const char *unfit = "the sizes of the buffers do not fit together";

static int power_of_two(int64_t number) { return number > 0 && (number & (number - 1)) == 0; }

/* Of what a codec's buffers hold: 0 where they do not fit together. */
static int fits(Codec *c, const Py_buffer *centroids, const Py_buffer *codes, const Py_buffer *residuals,
                const Py_buffer *steps, const Py_buffer *tables, const Py_buffer *levels) {
    c->centroids = centroids->buf;
    c->codes = codes->buf;
    c->residuals = residuals->buf;
    c->steps = steps->buf;
    c->tables = tables->buf;
    c->levels = levels->buf;
    if (c->dimension < 1 || c->dimension > 1 << 24 || (c->bits != 1 && c->bits != 2 && c->bits != 4))
        return 0;
    c->padded = (c->dimension + STEP - 1) / STEP * STEP;
    c->width = (c->dimension * c->bits + 7) / 8;
    const int64_t cells = item_count(centroids, 2);
    c->tokens = item_count(codes, 2);
    if (cells < 0 || c->tokens < 0 || cells % c->padded != 0)
        return 0;
    c->count = cells / c->padded;
    return power_of_two(c->count) && c->count >= 2 * LANES && c->count <= 1 << 16 && residuals->len == c->tokens * c->width &&
           steps->len == 2 * c->tokens && item_count(tables, 4) == 512 && item_count(levels, 4) == 1 << c->bits;
}

/* plaid_assign(level, dimension, vectors, centroids, nearest) */
PyObject *plaid_assign(PyObject *module, PyObject *arguments) {
    (void)module;
    enum { VECTORS, CENTROIDS, NEAREST, BUFFERS, PANELS = 32 };
    Py_buffer b[BUFFERS];
    int level;
    long long dimension;
    if (!PyArg_ParseTuple(arguments, "iLy*y*w*", &level, &dimension, b + VECTORS, b + CENTROIDS, b + NEAREST))
        return NULL;
    const int64_t cells = item_count(b + CENTROIDS, 2), numbers = item_count(b + VECTORS, 4), padded = (dimension + STEP - 1) / STEP * STEP;
    const int is_short = level == AVX2_INT16;
    int failed = !(is_short ? short_there() : has_bfloat16(level) && level <= bfloat16_level()) || dimension < 1 ||
                 dimension > (is_short ? 1 << 16 : 1 << 24) || cells < 0 ||
                 numbers < 0 || cells % (2 * LANES * padded) != 0 || cells / padded > 1 << 24 || numbers % dimension != 0 ||
                 item_count(b + NEAREST, 4) != numbers / dimension;
    int out_of_memory = 0;
    if (failed)
        PyErr_SetString(PyExc_ValueError, unfit);
    else {
        const int64_t count = cells / padded, vectors = numbers / dimension;
        const float *values = b[VECTORS].buf;
        int32_t *out = b[NEAREST].buf;
        float *bias = calloc((size_t)(count * LANES), sizeof *bias), *highest = malloc(PANELS * LANES * sizeof *highest);
        int32_t *nearest = malloc(PANELS * LANES * sizeof *nearest);
        uint16_t *panels = malloc((size_t)(PANELS * LANES * padded) * sizeof *panels), *row = calloc((size_t)padded, sizeof *row);
        /* What int16 needs besides; the room of `highest` serves its sums, too. */
        int16_t *rows = calloc(is_short ? (size_t)((count + SPARE) * padded) : 1, sizeof *rows);
        float *steps = malloc(PANELS * LANES * sizeof *steps);
        out_of_memory = bias == NULL || highest == NULL || nearest == NULL || panels == NULL || row == NULL || rows == NULL || steps == NULL;
        if (out_of_memory)
            PyErr_NoMemory();
        else {
            Py_BEGIN_ALLOW_THREADS
            if (is_short)
                short_rows(b[CENTROIDS].buf, count, padded, rows);
            for (int64_t first = 0; first < vectors; first += PANELS * LANES) {
                const int64_t some = vectors - first < PANELS * LANES ? vectors - first : PANELS * LANES;
                const int64_t filled = (some + LANES - 1) / LANES;
                if (is_short) {
                    short_panels(values + first * dimension, some, dimension, padded, filled * LANES, panels, steps);
                    short_nearest(rows, count, panels, filled, padded, nearest, (int32_t *)highest);
                    memcpy(out + first, nearest, (size_t)some * sizeof *out);
                    continue;
                }
                memset(panels, 0, (size_t)(filled * LANES * padded) * sizeof *panels);
                for (int64_t i = 0; i < some; i++) {
                    round_all(values + (first + i) * dimension, dimension, row);
                    uint16_t *panel = panels + i / LANES * padded * LANES + i % LANES * 2;
                    for (int64_t pair = 0; pair < padded / 2; pair++)
                        memcpy(panel + pair * 2 * LANES, row + 2 * pair, 2 * sizeof *row);
                }
                nearest_rows(b[CENTROIDS].buf, bias, count, panels, filled, padded, nearest, highest, level);
                memcpy(out + first, nearest, (size_t)some * sizeof *out);
            }
            Py_END_ALLOW_THREADS
        }
        free(bias);
        free(highest);
        free(nearest);
        free(panels);
        free(row);
        free(rows);
        free(steps);
    }
    for (int i = 0; i < BUFFERS; i++)
        PyBuffer_Release(b + i);
    if (failed || out_of_memory)
        return NULL;
    Py_RETURN_NONE;
}

/* plaid_decode(dimension, bits, centroids, codes, residuals, steps, tables, levels, starts, sizes, out) */
PyObject *plaid_decode(PyObject *module, PyObject *arguments) {
    (void)module;
    enum { CENTROIDS, CODES, RESIDUALS, STEPS, TABLES, LEVELS, STARTS, SIZES, OUT, BUFFERS };
    Py_buffer b[BUFFERS];
    long long dimension;
    int bits;
    if (!PyArg_ParseTuple(arguments, "Liy*y*y*y*y*y*y*y*w*", &dimension, &bits, b + CENTROIDS, b + CODES, b + RESIDUALS,
                          b + STEPS, b + TABLES, b + LEVELS, b + STARTS, b + SIZES, b + OUT))
        return NULL;
    Codec codec = {.dimension = dimension, .bits = bits};
    const int64_t *starts = b[STARTS].buf, *sizes = b[SIZES].buf, rows = item_count(b + STARTS, 8);
    int failed = !fits(&codec, b + CENTROIDS, b + CODES, b + RESIDUALS, b + STEPS, b + TABLES, b + LEVELS) || rows < 0 ||
                 item_count(b + SIZES, 8) != rows;
    int64_t total = 0;
    for (int64_t row = 0; !failed && row < rows; row++) {
        failed = starts[row] < 0 || sizes[row] < 0 || starts[row] > codec.tokens || sizes[row] > codec.tokens - starts[row];
        total += failed ? 0 : sizes[row];
        failed = failed || total > INT64_MAX >> 26;
    }
    failed = failed || item_count(b + OUT, 4) != total * dimension;
    int out_of_memory = 0;
    if (failed)
        PyErr_SetString(PyExc_ValueError, unfit);
    else {
        out_of_memory = !unpack(&codec);
        if (out_of_memory)
            PyErr_NoMemory();
        else {
            float *out = b[OUT].buf;
            Py_BEGIN_ALLOW_THREADS
            for (int64_t row = 0; row < rows; row++)
                for (int64_t token = starts[row]; token < starts[row] + sizes[row]; token++, out += dimension)
                    decode(&codec, token, out);
            Py_END_ALLOW_THREADS
        }
        forget(&codec);
    }
    for (int i = 0; i < BUFFERS; i++)
        PyBuffer_Release(b + i);
    if (failed || out_of_memory)
        return NULL;
    Py_RETURN_NONE;
}

/* plaid_search(level, dimension, bits, centroids, codes, residuals, steps, tables, levels, query, panels | None, scale, lists,
 *              list_rows, offsets, live | None, probes, shortlist, rows, scores, room | None) -> how many were found, or
 * the bytes of room that are wanted where there is none */
PyObject *plaid_search(PyObject *module, PyObject *arguments) {
    (void)module;
    enum { CENTROIDS, CODES, RESIDUALS, STEPS, TABLES, LEVELS, QUERY, PANELS, LISTS, LIST_ROWS, OFFSETS, LIVE, ROWS, SCORES,
           WORK, BUFFERS };
    Py_buffer b[BUFFERS];
    long long dimension, probes, shortlist;
    int bits, level;
    float scale;
    if (!PyArg_ParseTuple(arguments, "iLiy*y*y*y*y*y*y*z*fy*y*y*z*LLw*w*z*", &level, &dimension, &bits, b + CENTROIDS, b + CODES,
                          b + RESIDUALS, b + STEPS, b + TABLES, b + LEVELS, b + QUERY, b + PANELS, &scale, b + LISTS,
                          b + LIST_ROWS, b + OFFSETS, b + LIVE, &probes, &shortlist, b + ROWS, b + SCORES, b + WORK))
        return NULL;
    Search s = {.codec = {.dimension = dimension, .bits = bits}, .level = level, .query = b[QUERY].buf, .panels = b[PANELS].buf,
                .lists = b[LISTS].buf, .list_rows = b[LIST_ROWS].buf, .offsets = b[OFFSETS].buf, .live = b[LIVE].buf,
                .probes = probes, .shortlist = shortlist, .scale = scale};
    Codec *c = &s.codec;
    int failed = !fits(c, b + CENTROIDS, b + CODES, b + RESIDUALS, b + STEPS, b + TABLES, b + LEVELS) ||
                 !(level == NONE || (level == AVX2_INT16 && short_there()) || (has_bfloat16(level) && level <= bfloat16_level())) ||
                 probes < 1 || probes > c->count || shortlist < 1 || shortlist > INT64_MAX >> 16;
    int64_t found = 0, wanted = 0;
    int out_of_memory = 0;
    if (!failed) {
        const int64_t cells = item_count(b + QUERY, 4), postings = item_count(b + LIST_ROWS, 4);
        s.asked = cells < 0 ? 0 : cells / dimension;
        s.lanes = (s.asked + BYTES - 1) / BYTES * BYTES;
        s.width = s.lanes;
        s.documents = item_count(b + OFFSETS, 8) - 1;
        s.candidates = item_count(b + ROWS, 8);
        failed = cells < 1 || cells % dimension != 0 || s.asked > 1 << 16 || postings < 0 || s.documents < 1 ||
                 s.documents > UINT32_MAX || item_count(b + LISTS, 8) != c->count + 1 || s.candidates < 1 ||
                 s.candidates > shortlist || item_count(b + SCORES, 4) != s.candidates ||
                 (s.live != NULL && b[LIVE].len != (s.documents + 7) / 8) ||
                 (has_bfloat16(level) && (s.panels == NULL || item_count(b + PANELS, 2) != s.lanes * c->padded)) ||
                 s.offsets[0] != 0 || s.offsets[s.documents] != c->tokens || s.lists[0] != 0 || s.lists[c->count] != postings;
        wanted = failed ? 0 : lay_out(&s, NULL);
        failed = failed || (b[WORK].buf != NULL && (b[WORK].len < wanted || (uintptr_t)b[WORK].buf % 64 != 0 || b[WORK].readonly));
    }
    if (failed)
        PyErr_SetString(PyExc_ValueError, unfit);
    else if (b[WORK].buf != NULL) {
        lay_out(&s, b[WORK].buf);
        for (int64_t token = 0; token < s.asked; token++)
            s.heap_sizes[token] = 0;
        if (!has_bfloat16(level)) {
            memset(s.wide, 0, (size_t)(dimension * s.lanes) * sizeof *s.wide);
            for (int64_t token = 0; token < s.asked; token++)
                for (int64_t d = 0; d < dimension; d++)
                    s.wide[d * s.lanes + token] = s.query[token * dimension + d];
        }
        out_of_memory = !unpack(c);
        if (!out_of_memory) {
            Py_BEGIN_ALLOW_THREADS
            out_of_memory = !search(&s, b[ROWS].buf, b[SCORES].buf, &found);
            Py_END_ALLOW_THREADS
        }
        forget(c);
        if (out_of_memory)
            PyErr_NoMemory();
    }
    const int laid = b[WORK].buf != NULL;
    for (int i = 0; i < BUFFERS; i++)
        PyBuffer_Release(b + i);
    if (failed || out_of_memory)
        return NULL;
    return PyLong_FromLongLong(laid ? found : wanted);
}
