/* A linear layer in 8-bit integers (retrievers/encoders/int8.py says what the arguments mean, and how weights are made so
 * that no sum below overflows).
 *
 * A row's inputs become unsigned bytes, GROUP of them with a step and a zero of their own, so that no outlier coarsens more
 * than its group. AVX2 multiplies pairs of an unsigned and a signed byte and sums them in 16 bits, here a CHUNK long; these
 * may wrap around on their way, what they come to fits. Groups are summed in float32. Elsewhere there is no such kernel
 * (bytes_level is 0). */

#include "_kernels.h"

#if defined(__GNUC__) && defined(__x86_64__)
#define BYTES 1
#define AVX2 __attribute__((target("avx2,fma")))
#include <immintrin.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#else
#define BYTES 0
#endif

enum {
    OUTPUTS = 16, /* of a panel: two registers of eight */
    HALF = 8,
    QUAD = 4,   /* inputs that lie beside one another: two pairs */
    CHUNK = 64, /* inputs whose products are summed in 16 bits */
    GROUP = 128, /* inputs with one step: two chunks */
    ROWS = 6,   /* whose sums stay in registers */
    MOST_BLOCK = 96,
    BLOCK_BYTES = 1 << 17 /* of codes, which stay in a cache while all weights go by */
};

typedef struct {
    const float *values; /* [rows, inputs] */
    const int8_t *panels; /* [panels, groups, GROUP / QUAD, OUTPUTS, QUAD] */
    const int16_t *sums;  /* [panels, groups, GROUP / CHUNK, OUTPUTS, 2]: of the weights that are summed in one place */
    const float *steps;   /* [panels, groups, OUTPUTS] */
    const float *bias;    /* [panels, OUTPUTS] */
    float *out;           /* [rows, outputs] */
    int64_t rows, inputs, outputs, groups;
} Layer;

/* The codes of some rows. */
typedef struct {
    uint8_t *codes; /* [rows, groups, GROUP] */
    float *steps;   /* [rows, groups] */
    int16_t *zeros; /* [rows, groups] */
} Codes;

int has_bytes(void) {
#if BYTES
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return 0;
#endif
}

#if BYTES

/* As in int8.py: the numbers of a group span so many steps at most, and what is summed in one place is no longer than that. */
static const float SPAN = 254, NORM = 189, LEAST = 1e-15f;

/* Of a group the step, or NaN where it holds what is no finite number, and the code of zero. */
AVX2 static void choose_step(const float *values, float *step, int16_t *zero) {
    enum { REGISTERS = CHUNK / HALF };
    const __m256 none = _mm256_setzero_ps();
    __m256 low = none, high = none;
    __m128 most = _mm_setzero_ps(), total = most;
    for (int chunk = 0; chunk < GROUP / CHUNK; chunk++, values += CHUNK) {
        __m256 squares = none;
        for (int i = 0; i < REGISTERS; i++) {
            const __m256 x = _mm256_loadu_ps(values + i * HALF);
            low = _mm256_min_ps(low, x), high = _mm256_max_ps(high, x);
            squares = _mm256_fmadd_ps(x, x, squares);
        }
        /* The first pairs of quads are summed in one place, the second in another. */
        __m128 places = _mm_add_ps(_mm256_castps256_ps128(squares), _mm256_extractf128_ps(squares, 1));
        places = _mm_add_ps(places, _mm_movehdup_ps(places)); /* the first and the third count */
        most = _mm_max_ps(most, places), total = _mm_add_ps(total, places);
    }
    /* The lowest, and the highest with its sign turned, in one go. */
    const __m256 turned = _mm256_xor_ps(high, _mm256_set1_ps(-0.0f));
    __m256 ends = _mm256_min_ps(_mm256_permute2f128_ps(low, turned, 0x20), _mm256_permute2f128_ps(low, turned, 0x31));
    ends = _mm256_min_ps(ends, _mm256_permute_ps(ends, 0x4E));
    ends = _mm256_min_ps(ends, _mm256_permute_ps(ends, 0xB1));
    const __m128 lowest = _mm256_castps256_ps128(ends), span = _mm_add_ss(lowest, _mm256_extractf128_ps(ends, 1));
    const __m128 longest = _mm_sqrt_ss(_mm_max_ss(most, _mm_movehl_ps(most, most)));
    __m128 size = _mm_max_ss(_mm_mul_ss(span, _mm_set_ss(-1 / SPAN)), _mm_mul_ss(longest, _mm_set_ss(1 / NORM)));
    size = _mm_max_ss(size, _mm_set_ss(LEAST));
    const float sum = _mm_cvtss_f32(_mm_add_ss(total, _mm_movehl_ps(total, total)));
    *step = sum < INFINITY ? _mm_cvtss_f32(size) : NAN;
    *zero = (int16_t)-_mm_cvtss_si32(_mm_div_ss(lowest, size));
}

/* The codes of a group; those of a step that is NaN mean nothing. */
AVX2 static void round_group(const float *values, float step, int16_t zero, uint8_t *codes) {
    const __m256 scale = _mm256_set1_ps(1 / step);
    const __m256i shift = _mm256_set1_epi16(zero), order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (int i = 0; i < GROUP; i += 4 * HALF) {
        __m256i whole[4];
        for (int j = 0; j < 4; j++)
            whole[j] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(values + i + j * HALF), scale));
        const __m256i left = _mm256_add_epi16(_mm256_packs_epi32(whole[0], whole[1]), shift);
        const __m256i right = _mm256_add_epi16(_mm256_packs_epi32(whole[2], whole[3]), shift);
        const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(left, right), order);
        _mm256_storeu_si256((__m256i *)(codes + i), bytes);
    }
}

AVX2 static void encode(const Layer *layer, int64_t first, int64_t count, const Codes *codes) {
    const int64_t groups = layer->groups, whole = layer->inputs / GROUP, left = layer->inputs % GROUP;
    for (int64_t row = 0; row < count; row++) {
        const float *values = layer->values + (first + row) * layer->inputs;
        float *steps = codes->steps + row * groups, padded[GROUP] = {0};
        int16_t *zeros = codes->zeros + row * groups;
        uint8_t *bytes = codes->codes + row * groups * GROUP;
        memcpy(padded, values + whole * GROUP, (size_t)left * sizeof *padded);
        for (int64_t group = 0; group < groups; group++)
            choose_step(group < whole ? values + group * GROUP : padded, steps + group, zeros + group);
        for (int64_t group = 0; group < groups; group++)
            round_group(group < whole ? values + group * GROUP : padded, steps[group], zeros[group], bytes + group * GROUP);
    }
}

/* sum += products of pairs, in place: left to itself the compiler moves and spills the sums. */
AVX2 __attribute__((always_inline)) static inline void add_products(__m256i *sum, __m256i token, __m256i weights) {
    __m256i products;
    __asm__("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(*sum), "=&x"(products) : "x"(token), "x"(weights));
}

/* The outputs of a panel for some rows. `count` is known when this is compiled. */
AVX2 __attribute__((always_inline)) static inline void multiply(const Layer *layer, const Codes *codes, int64_t row,
                                                                int64_t panel, const int count, float *found,
                                                                int64_t apart) {
    const int64_t groups = layer->groups;
    const __m256i ones = _mm256_set1_epi16(1);
    const uint8_t *tokens = codes->codes + row * groups * GROUP;
    const int8_t *weights = layer->panels + panel * groups * GROUP * OUTPUTS;
    const int16_t *sums = layer->sums + panel * groups * (GROUP / CHUNK) * OUTPUTS * 2;
    const float *steps = layer->steps + panel * groups * OUTPUTS;
    __m256 total[ROWS][2];
    for (int i = 0; i < count; i++)
        for (int half = 0; half < 2; half++)
            total[i][half] = _mm256_loadu_ps(layer->bias + panel * OUTPUTS + half * HALF);
    for (int64_t group = 0; group < groups; group++, steps += OUTPUTS) {
        __m256i whole[ROWS][2];
        for (int i = 0; i < count; i++)
            whole[i][0] = whole[i][1] = _mm256_setzero_si256();
        for (int chunk = 0; chunk < GROUP / CHUNK; chunk++, sums += 2 * OUTPUTS) {
            const __m256i left = _mm256_loadu_si256((const __m256i *)sums);
            const __m256i right = _mm256_loadu_si256((const __m256i *)(sums + OUTPUTS));
            __m256i part[ROWS][2];
            for (int i = 0; i < count; i++) {
                const __m256i zero = _mm256_set1_epi16((int16_t)-codes->zeros[(row + i) * groups + group]);
                part[i][0] = _mm256_mullo_epi16(zero, left), part[i][1] = _mm256_mullo_epi16(zero, right);
            }
            for (int quad = 0; quad < CHUNK / QUAD; quad++, weights += OUTPUTS * QUAD, tokens += QUAD) {
                const __m256i a = _mm256_loadu_si256((const __m256i *)weights);
                const __m256i b = _mm256_loadu_si256((const __m256i *)(weights + HALF * QUAD));
#pragma GCC unroll 6
                for (int i = 0; i < count; i++) {
                    int32_t four;
                    memcpy(&four, tokens + i * groups * GROUP, sizeof four);
                    const __m256i token = _mm256_set1_epi32(four);
                    add_products(&part[i][0], token, a);
                    add_products(&part[i][1], token, b);
                }
            }
            for (int i = 0; i < count; i++) {
                for (int half = 0; half < 2; half++)
                    whole[i][half] = _mm256_add_epi32(whole[i][half], _mm256_madd_epi16(part[i][half], ones));
                __asm__("" : "+m"(whole[i][0]), "+m"(whole[i][1]));
            }
        }
        const __m256 left = _mm256_loadu_ps(steps), right = _mm256_loadu_ps(steps + HALF);
        for (int i = 0; i < count; i++) {
            const __m256 step = _mm256_set1_ps(codes->steps[(row + i) * groups + group]);
            total[i][0] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole[i][0]), _mm256_mul_ps(step, left), total[i][0]);
            total[i][1] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole[i][1]), _mm256_mul_ps(step, right), total[i][1]);
            __asm__("" : "+m"(total[i][0]), "+m"(total[i][1]));
        }
    }
    for (int i = 0; i < count; i++)
        for (int half = 0; half < 2; half++)
            _mm256_storeu_ps(found + i * apart + half * HALF, total[i][half]);
}

AVX2 static void multiply_all(const Layer *layer, const Codes *codes, int64_t first, int64_t count) {
    for (int64_t panel = 0; panel * OUTPUTS < layer->outputs; panel++) {
        const int64_t left = layer->outputs - panel * OUTPUTS;
        for (int64_t row = 0; row < count;) {
            const int step = count - row >= ROWS ? ROWS : count - row >= 2 ? 2 : 1;
            float cut[ROWS * OUTPUTS], *out = layer->out + (first + row) * layer->outputs + panel * OUTPUTS;
            float *found = left < OUTPUTS ? cut : out;
            const int64_t apart = left < OUTPUTS ? OUTPUTS : layer->outputs;
            if (step == ROWS)
                multiply(layer, codes, row, panel, ROWS, found, apart);
            else if (step == 2)
                multiply(layer, codes, row, panel, 2, found, apart);
            else
                multiply(layer, codes, row, panel, 1, found, apart);
            for (int i = 0; left < OUTPUTS && i < step; i++)
                memcpy(out + i * layer->outputs, cut + i * OUTPUTS, (size_t)left * sizeof *cut);
            row += step;
        }
    }
}

/* x times the normal distribution's share below x; erfc by Abramowitz and Stegun (1964), 7.1.26, off by 1.5e-7 at most. */
AVX2 static __m256 gelu_of(__m256 x) {
    const __m256 one = _mm256_set1_ps(1), sign = _mm256_set1_ps(-0.0f), size = _mm256_andnot_ps(sign, x);
    const __m256 t = _mm256_div_ps(one, _mm256_fmadd_ps(size, _mm256_set1_ps(0.3275911f * 0.70710678f), one));
    __m256 share = _mm256_set1_ps(1.061405429f);
    share = _mm256_fmadd_ps(share, t, _mm256_set1_ps(-1.453152027f));
    share = _mm256_fmadd_ps(share, t, _mm256_set1_ps(1.421413741f));
    share = _mm256_fmadd_ps(share, t, _mm256_set1_ps(-0.284496736f));
    share = _mm256_mul_ps(_mm256_fmadd_ps(share, t, _mm256_set1_ps(0.254829592f)), t);
    /* exp(y) as 2 ** whole, by an addition to the exponent, times the series of what is left. */
    const __m256 y = _mm256_max_ps(_mm256_mul_ps(_mm256_mul_ps(x, x), _mm256_set1_ps(-0.5f)), _mm256_set1_ps(-87));
    const __m256 whole = _mm256_round_ps(_mm256_mul_ps(y, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    __m256 left = _mm256_fmadd_ps(whole, _mm256_set1_ps(-0.693359375f), y);
    left = _mm256_fmadd_ps(whole, _mm256_set1_ps(2.12194440e-4f), left);
    __m256 power = _mm256_set1_ps(1.0f / 720);
    power = _mm256_fmadd_ps(power, left, _mm256_set1_ps(1.0f / 120));
    power = _mm256_fmadd_ps(power, left, _mm256_set1_ps(1.0f / 24));
    power = _mm256_fmadd_ps(power, left, _mm256_set1_ps(1.0f / 6));
    power = _mm256_fmadd_ps(power, left, _mm256_set1_ps(0.5f));
    power = _mm256_fmadd_ps(_mm256_fmadd_ps(power, left, one), left, one);
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23);
    power = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(power), exponent));
    const __m256 tail = _mm256_mul_ps(_mm256_mul_ps(share, power), _mm256_set1_ps(0.5f)); /* beyond |x| */
    return _mm256_mul_ps(x, _mm256_blendv_ps(_mm256_sub_ps(one, tail), tail, x));
}

AVX2 static void gelu_all(const float *values, float *out, int64_t count) {
    int64_t at = 0;
    for (; at + HALF <= count; at += HALF)
        _mm256_storeu_ps(out + at, gelu_of(_mm256_loadu_ps(values + at)));
    float rest[HALF] = {0};
    memcpy(rest, values + at, (size_t)(count - at) * sizeof *rest);
    _mm256_storeu_ps(rest, gelu_of(_mm256_loadu_ps(rest)));
    memcpy(out + at, rest, (size_t)(count - at) * sizeof *rest);
}

/* False where there is no memory. */
static int run(const Layer *layer) {
    int64_t block = BLOCK_BYTES / (layer->groups * GROUP) / ROWS * ROWS;
    block = block > MOST_BLOCK ? MOST_BLOCK : block < ROWS ? ROWS : block;
    block = block > layer->rows ? layer->rows : block;
    const size_t cells = (size_t)(block * layer->groups);
    const Codes codes = {malloc(cells * GROUP + 1), malloc(cells * sizeof(float) + 1), malloc(cells * sizeof(int16_t) + 1)};
    const int held = codes.codes != NULL && codes.steps != NULL && codes.zeros != NULL;
    for (int64_t first = 0; held && first < layer->rows; first += block) {
        const int64_t count = layer->rows - first < block ? layer->rows - first : block;
        encode(layer, first, count, &codes);
        multiply_all(layer, &codes, first, count);
    }
    free(codes.codes), free(codes.steps), free(codes.zeros);
    return held;
}

#else

static int run(const Layer *layer) {
    (void)layer;
    return 0;
}

static void gelu_all(const float *values, float *out, int64_t count) { (void)values, (void)out, (void)count; }

#endif

/* bytes_level(): 1 where gelu, linear_bytes and vocabulary_bound can run, 0 elsewhere. */
PyObject *bytes_level(PyObject *module, PyObject *arguments) {
    (void)module;
    (void)arguments;
    return PyLong_FromLong(has_bytes());
}

/* linear_bytes(inputs, outputs, values, panels, sums, steps, bias, out) */
PyObject *linear_bytes(PyObject *module, PyObject *arguments) {
    (void)module;
    enum { VALUES, PANELS, SUMS, STEPS, BIAS, OUT, BUFFERS };
    Py_buffer b[BUFFERS];
    long long inputs, outputs;
    if (!PyArg_ParseTuple(arguments, "LLy*y*y*y*y*w*", &inputs, &outputs, b + VALUES, b + PANELS, b + SUMS, b + STEPS,
                          b + BIAS, b + OUT))
        return NULL;
    int failed = !has_bytes() || inputs < 1 || inputs > 1 << 24 || outputs < 1 || outputs > 1 << 24, held = 1;
    if (!failed) {
        const int64_t groups = (inputs + GROUP - 1) / GROUP, panels = (outputs + OUTPUTS - 1) / OUTPUTS;
        const Layer layer = {b[VALUES].buf, b[PANELS].buf, b[SUMS].buf, b[STEPS].buf, b[BIAS].buf, b[OUT].buf,
                             item_count(b + VALUES, sizeof(float)) / inputs, inputs, outputs, groups};
        failed = item_count(b + VALUES, sizeof(float)) != layer.rows * inputs ||
                 b[PANELS].len != panels * groups * GROUP * OUTPUTS ||
                 item_count(b + SUMS, sizeof(int16_t)) != panels * groups * (GROUP / CHUNK) * OUTPUTS * 2 ||
                 item_count(b + STEPS, sizeof(float)) != panels * groups * OUTPUTS ||
                 item_count(b + BIAS, sizeof(float)) != panels * OUTPUTS ||
                 item_count(b + OUT, sizeof(float)) != layer.rows * outputs;
        if (!failed) {
            Py_BEGIN_ALLOW_THREADS
            held = run(&layer);
            Py_END_ALLOW_THREADS
        }
    }
    if (failed)
        PyErr_SetString(PyExc_ValueError, "the sizes of the buffers do not fit together");
    for (int i = 0; i < BUFFERS; i++)
        PyBuffer_Release(b + i);
    if (!failed && !held)
        return PyErr_NoMemory();
    if (failed)
        return NULL;
    Py_RETURN_NONE;
}

/* gelu(values, out) */
PyObject *gelu(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer values, out;
    if (!PyArg_ParseTuple(arguments, "y*w*", &values, &out))
        return NULL;
    const int64_t count = item_count(&values, sizeof(float));
    const int failed = !has_bytes() || count < 0 || count != item_count(&out, sizeof(float));
    if (!failed) {
        Py_BEGIN_ALLOW_THREADS
        gelu_all(values.buf, out.buf, count);
        Py_END_ALLOW_THREADS
    } else
        PyErr_SetString(PyExc_ValueError, "the sizes of the buffers do not fit together");
    PyBuffer_Release(&values);
    PyBuffer_Release(&out);
    if (failed)
        return NULL;
    Py_RETURN_NONE;
}
