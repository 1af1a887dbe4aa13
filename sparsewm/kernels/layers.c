/* A frame of a planner's rollout through all layers of the predictor, in float32, on processors with AVX2.
 *
 * Candidates are independent within a frame, so a thread takes a few of them through all layers: their activations
 * stay in its cache, nothing is written between layers, and threads meet once a frame. Keys are kept in the layout
 * that scores are computed from, eight keys side by side, values as rows; frames of the past are read where they were
 * written.
 *
 * Compiled at first use by sparsewm/kernels/layers.py.
 */

#include <immintrin.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "layers.h"

enum { TILE = 6, LANES = 8, PANEL = 2 * LANES, DEPTH = 256, BLOCK = 96, GROUP = 192, LINE = 64 };

static inline float sum_of(__m256 x) {
    __m128 low = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    low = _mm_add_ps(low, _mm_movehl_ps(low, low));
    return _mm_cvtss_f32(_mm_add_ss(low, _mm_shuffle_ps(low, low, 1)));
}

static inline float top_of(__m256 x) {
    __m128 low = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    low = _mm_max_ps(low, _mm_movehl_ps(low, low));
    return _mm_cvtss_f32(_mm_max_ss(low, _mm_shuffle_ps(low, low, 1)));
}

/* 2^x for x <= 0; below -126 it is 0 or nearly so. Relative error 2e-7. */
static inline __m256 exp2_of(__m256 x) {
    x = _mm256_max_ps(x, _mm256_set1_ps(-126.0f));
    const __m256 whole = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256 f = _mm256_sub_ps(x, whole);
    __m256 p = _mm256_set1_ps(1.54035304e-4f);
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.33335581e-3f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(9.61812911e-3f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(5.55041087e-2f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(2.40226507e-1f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(6.93147181e-1f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f));
    const __m256i power = _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), power));
}

/* Some rows against one panel of 16 columns, added to `bias`, or to what is there where that is NULL. */
INLINE void multiply(const float *rows, int64_t stride, const float *panel, int64_t inputs, const float *bias,
                     float *out, int64_t out_stride, int relu, int count) {
    __m256 sums[TILE][2];
    for (int r = 0; r < count; r++) {
        const float *from = bias ? bias : out + r * out_stride;
        sums[r][0] = _mm256_loadu_ps(from);
        sums[r][1] = _mm256_loadu_ps(from + LANES);
    }
    for (int64_t k = 0; k < inputs; k++) {
        const __m256 w0 = _mm256_loadu_ps(panel + k * PANEL), w1 = _mm256_loadu_ps(panel + k * PANEL + LANES);
        for (int r = 0; r < count; r++) {
            const __m256 a = _mm256_broadcast_ss(rows + r * stride + k);
            sums[r][0] = _mm256_fmadd_ps(a, w0, sums[r][0]);
            sums[r][1] = _mm256_fmadd_ps(a, w1, sums[r][1]);
        }
    }
    for (int r = 0; r < count; r++) {
        if (relu) {
            sums[r][0] = _mm256_max_ps(sums[r][0], _mm256_setzero_ps());
            sums[r][1] = _mm256_max_ps(sums[r][1], _mm256_setzero_ps());
        }
        _mm256_storeu_ps(out + r * out_stride, sums[r][0]);
        _mm256_storeu_ps(out + r * out_stride + LANES, sums[r][1]);
    }
}

/* Calls `call` with the number of rows that are left, at most TILE, as a constant. */
#define CONSTANT(call, left)                                                                                  \
    switch (left) {                                                                                           \
    case 1: call(1); break;                                                                                   \
    case 2: call(2); break;                                                                                   \
    case 3: call(3); break;                                                                                   \
    case 4: call(4); break;                                                                                   \
    case 5: call(5); break;                                                                                   \
    default: call(TILE);                                                                                      \
    }

/* Some rows through a linear layer, DEPTH inputs at a time: so much of a panel stays in the first-level
 * cache. */
static __attribute__((noinline)) void linear(const Linear *layer, const float *rows, int64_t stride, int64_t count,
                                             float *out, int64_t out_stride, int relu) {
    for (int64_t k = 0; k < layer->inputs; k += DEPTH) {
        const int64_t inputs = layer->inputs - k < DEPTH ? layer->inputs - k : DEPTH;
        const int last = k + inputs == layer->inputs;
        for (int64_t p = 0; p < layer->panels; p++) {
            const float *panel = (const float *)layer->weights + (p * layer->inputs + k) * PANEL;
            const float *bias = k ? NULL : layer->bias + p * PANEL;
            for (int64_t r = 0; r < count; r += TILE) {
#define SOME(n)                                                                                               \
    multiply(rows + r * stride + k, stride, panel, inputs, bias, out + r * out_stride + p * PANEL, out_stride,\
             relu && last, n)
                CONSTANT(SOME, count - r)
#undef SOME
            }
        }
    }
}

/* shift + scale * layer norm of a row. */
static void normalize(const float *row, int64_t width, const float *shift, const float *scale, float epsilon,
                      float *out) {
    __m256 sum = _mm256_setzero_ps(), squares = sum;
    for (int64_t i = 0; i < width; i += LANES) sum = _mm256_add_ps(sum, _mm256_loadu_ps(row + i));
    const __m256 mean = _mm256_set1_ps(sum_of(sum) / (float)width);
    for (int64_t i = 0; i < width; i += LANES) {
        const __m256 value = _mm256_sub_ps(_mm256_loadu_ps(row + i), mean);
        squares = _mm256_fmadd_ps(value, value, squares);
    }
    const __m256 factor = _mm256_set1_ps(1.0f / sqrtf(sum_of(squares) / (float)width + epsilon));
    for (int64_t i = 0; i < width; i += LANES) {
        const __m256 value = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(row + i), mean), factor);
        _mm256_storeu_ps(out + i, _mm256_fmadd_ps(value, _mm256_loadu_ps(scale + i), _mm256_loadu_ps(shift + i)));
    }
}

/* x += gate * added. */
static void add_gated(float *x, const float *gate, const float *added, int64_t width) {
    for (int64_t i = 0; i < width; i += LANES) {
        const __m256 part = _mm256_loadu_ps(added + i);
        _mm256_storeu_ps(x + i, _mm256_fmadd_ps(_mm256_loadu_ps(gate + i), part, _mm256_loadu_ps(x + i)));
    }
}

/* Scores of some queries for 8 or 16 keys of a frame, `count` and `wide` constants. */
INLINE void score(const float *queries, int64_t stride, const float *keys, int64_t d, const float *clock, float *out,
                  int64_t out_stride, int count, int wide) {
    __m256 sums[TILE][2];
    for (int r = 0; r < count; r++) sums[r][0] = sums[r][1] = _mm256_set1_ps(clock[r]);
    for (int64_t k = 0; k < d; k++) {
        const __m256 k0 = _mm256_loadu_ps(keys + k * LANES);
        const __m256 k1 = wide ? _mm256_loadu_ps(keys + (d + k) * LANES) : k0;
        for (int r = 0; r < count; r++) {
            const __m256 q = _mm256_broadcast_ss(queries + r * stride + k);
            sums[r][0] = _mm256_fmadd_ps(q, k0, sums[r][0]);
            if (wide) sums[r][1] = _mm256_fmadd_ps(q, k1, sums[r][1]);
        }
    }
    for (int r = 0; r < count; r++) {
        _mm256_storeu_ps(out + r * out_stride, sums[r][0]);
        if (wide) _mm256_storeu_ps(out + r * out_stride + LANES, sums[r][1]);
    }
}

/* Weighted sums of `wide` times 8 of the values' numbers, added to `out`. */
INLINE void mix(const float *weights, int64_t stride, const float *values, int64_t d, int64_t length, float *out,
                int64_t out_stride, int count, int wide) {
    __m256 sums[TILE][2];
    for (int r = 0; r < count; r++)
        for (int j = 0; j < wide; j++) sums[r][j] = _mm256_loadu_ps(out + r * out_stride + j * LANES);
    for (int64_t n = 0; n < length; n++) {
        const __m256 v0 = _mm256_loadu_ps(values + n * d);
        const __m256 v1 = wide == 2 ? _mm256_loadu_ps(values + n * d + LANES) : v0;
        for (int r = 0; r < count; r++) {
            const __m256 w = _mm256_broadcast_ss(weights + r * stride + n);
            sums[r][0] = _mm256_fmadd_ps(w, v0, sums[r][0]);
            if (wide == 2) sums[r][1] = _mm256_fmadd_ps(w, v1, sums[r][1]);
        }
    }
    for (int r = 0; r < count; r++)
        for (int j = 0; j < wide; j++) _mm256_storeu_ps(out + r * out_stride + j * LANES, sums[r][j]);
}

/* Up to six queries of one head against the keys of all frames. */
INLINE void attend_some(const float *queries, int64_t q_stride, const Frame *frames, const Sizes *sizes, int64_t layer,
                        int64_t b, int64_t s, int64_t h, const float *ages, float *scores, int64_t room, float *out,
                        int count) {
    const int64_t d = sizes->width / sizes->heads, o_stride = sizes->width;
    float clock[TILE] = {0};
    int64_t at = 0;
    for (int64_t f = 0; f < sizes->frames; f++) {
        const Frame *frame = frames + f;
        const int64_t blocks = up(frame->length, LANES) / LANES;
        const float *keys = (const float *)frame->keys + keys_at(frame, layer, b, s) + h * blocks * d * LANES;
        const float *age = ages + (frame->age * sizes->heads + h) * d;
        for (int r = 0; r < count; r++) {
            __m256 sum = _mm256_setzero_ps();
            if (frame->age)
                for (int64_t k = 0; k < d; k += LANES)
                    sum = _mm256_fmadd_ps(_mm256_loadu_ps(queries + r * q_stride + k), _mm256_loadu_ps(age + k), sum);
            clock[r] = sum_of(sum);
        }
        int64_t block = 0;
        for (; block + 2 <= blocks; block += 2)
            score(queries, q_stride, keys + block * d * LANES, d, clock, scores + at + block * LANES, room, count, 1);
        if (block < blocks)
            score(queries, q_stride, keys + block * d * LANES, d, clock, scores + at + block * LANES, room, count, 0);
        for (int r = 0; r < count; r++)
            for (int64_t n = frame->length; n < blocks * LANES; n++) scores[r * room + at + n] = -INFINITY;
        at += blocks * LANES;
    }
    float scale[TILE];
    for (int r = 0; r < count; r++) {
        float *row = scores + r * room;
        __m256 most = _mm256_loadu_ps(row), sum = _mm256_setzero_ps();
        for (int64_t n = LANES; n < at; n += LANES) most = _mm256_max_ps(most, _mm256_loadu_ps(row + n));
        most = _mm256_set1_ps(top_of(most));
        for (int64_t n = 0; n < at; n += LANES) {
            const __m256 weight = exp2_of(_mm256_sub_ps(_mm256_loadu_ps(row + n), most));
            _mm256_storeu_ps(row + n, weight);
            sum = _mm256_add_ps(sum, weight);
        }
        scale[r] = 1.0f / sum_of(sum);
        memset(out + r * o_stride, 0, d * sizeof(float));
    }
    at = 0;
    for (int64_t f = 0; f < sizes->frames; f++) {
        const Frame *frame = frames + f;
        const float *values = (const float *)frame->values + values_at(frame, layer, b, s) + h * frame->length * d;
        int64_t k = 0;
        for (; k + PANEL <= d; k += PANEL)
            mix(scores + at, room, values + k, d, frame->length, out + k, o_stride, count, 2);
        if (k < d) mix(scores + at, room, values + k, d, frame->length, out + k, o_stride, count, 1);
        at += up(frame->length, LANES);
    }
    for (int r = 0; r < count; r++)
        for (int64_t k = 0; k < d; k += LANES)
            _mm256_storeu_ps(out + r * o_stride + k,
                             _mm256_mul_ps(_mm256_loadu_ps(out + r * o_stride + k), _mm256_set1_ps(scale[r])));
}

/* Keys and values of one candidate from rows of queries, keys and values. */
static void remember(const float *qkv, const Sizes *sizes, float *keys, float *values) {
    const int64_t width = sizes->width, d = width / sizes->heads, blocks = up(sizes->length, LANES) / LANES;
    for (int64_t h = 0; h < sizes->heads; h++, keys += blocks * d * LANES, values += sizes->length * d) {
        for (int64_t n = 0; n < blocks * LANES; n++) {
            const float *row = qkv + n * 3 * width + width + h * d;
            float *to = keys + n / LANES * d * LANES + n % LANES;
            for (int64_t k = 0; k < d; k++) to[k * LANES] = n < sizes->length ? row[k] : 0.0f;
        }
        for (int64_t n = 0; n < sizes->length; n++)
            memcpy(values + n * d, qkv + n * 3 * width + 2 * width + h * d, d * sizeof(float));
    }
}

/* All layers of one imagined frame.
 *
 * from: embedded tokens (episodes, from_candidates, length, width). modulation: (episodes * candidates, layers, 6,
 * width): shift, scale and gate before attention, the same before the MLP, with the "1 +" of scales and gates. norm:
 * shift and scale (2, width) of the last layer norm. frames: the present one first, which is written; then what else
 * is seen. out: normalized tokens (episodes, candidates, length, width). Widths are multiples of 16. Returns 0, or 1
 * when there is no memory.
 */
int advance(const float *from, const float *modulation, const float *norm, const Layer *layers, const Frame *frames,
            const Sizes *sizes, float *out, int threads) {
    const int64_t width = sizes->width, length = sizes->length, mlp = sizes->mlp, d = width / sizes->heads;
    const int64_t groups = sizes->episodes * sizes->candidates, fair = up(groups, 4 * threads) / (4 * threads);
    const int64_t fitting = length >= GROUP ? 1 : GROUP / length, together = fitting < fair ? fitting : fair;
    const int64_t most = together * length;
    const int64_t room = room_of(frames, sizes->frames, LANES), deep = 2 * BLOCK;
    const int64_t floats[] = {most * width, 3 * most * width, most * width, deep * width, deep * mlp, TILE * room};
    enum { PARTS = sizeof floats / sizeof *floats };
    int64_t whole = 0;
    for (int i = 0; i < PARTS; i++) whole += up(floats[i] * sizeof(float), LINE);
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        uint8_t *memory = aligned_alloc(LINE, whole);
        if (!memory) {
#pragma omp atomic write
            failed = 1;
        }
        float *part[PARTS];
        uint8_t *next = memory;
        for (int i = 0; i < PARTS; i++) {
            part[i] = (float *)next;
            next += up(floats[i] * sizeof(float), LINE);
        }
        float *x = part[0], *qkv = part[1], *mixed = part[2], *y = part[3], *hidden = part[4], *scores = part[5];
#pragma omp for schedule(dynamic)
        for (int64_t first = 0; first < groups; first += together) {
            if (!memory) continue;
            const int64_t count = groups - first < together ? groups - first : together, rows = count * length;
            const int64_t block = block_of(rows, BLOCK, TILE);
            for (int64_t g = 0; g < count; g++)
                memcpy(x + g * length * width, from + source_of(sizes, first + g) * width,
                       length * width * sizeof(float));
            for (int64_t l = 0; l < sizes->layers; l++) {
                const Layer *layer = layers + l;
#define MODULATION(row, which) (modulation + (((first + (row) / length) * sizes->layers + l) * 6 + (which)) * width)
                for (int64_t at = 0; at < rows; at += block) {
                    const int64_t some = rows - at < block ? rows - at : block;
                    for (int64_t r = 0; r < some; r++)
                        normalize(x + (at + r) * width, width, MODULATION(at + r, 0), MODULATION(at + r, 1),
                                  sizes->epsilon, y + r * width);
                    linear(&layer->qkv, y, width, some, qkv + at * 3 * width, 3 * width, 0);
                }
                for (int64_t g = 0; g < count; g++) {
                    const int64_t b = (first + g) / sizes->candidates, s = (first + g) % sizes->candidates;
                    const float *own = qkv + g * length * 3 * width;
                    remember(own, sizes, (float *)frames->keys + keys_at(frames, l, b, s),
                             (float *)frames->values + values_at(frames, l, b, s));
                    for (int64_t h = 0; h < sizes->heads; h++)
                        for (int64_t r = 0; r < length; r += TILE) {
#define SOME(n)                                                                                               \
    attend_some(own + r * 3 * width + h * d, 3 * width, frames, sizes, l, b, s, h, layer->ages, scores, room, \
                mixed + (g * length + r) * width + h * d, n)
                            CONSTANT(SOME, length - r)
#undef SOME
                        }
                }
                for (int64_t at = 0; at < rows; at += block) {
                    const int64_t some = rows - at < block ? rows - at : block;
                    linear(&layer->out, mixed + at * width, width, some, y, width, 0);
                    for (int64_t r = 0; r < some; r++) {
                        float *row = x + (at + r) * width;
                        add_gated(row, MODULATION(at + r, 2), y + r * width, width);
                        normalize(row, width, MODULATION(at + r, 3), MODULATION(at + r, 4), sizes->epsilon,
                                  y + r * width);
                    }
                    linear(&layer->up, y, width, some, hidden, mlp, 1);
                    linear(&layer->down, hidden, mlp, some, y, width, 0);
                    for (int64_t r = 0; r < some; r++)
                        add_gated(x + (at + r) * width, MODULATION(at + r, 5), y + r * width, width);
                }
#undef MODULATION
            }
            for (int64_t r = 0; r < rows; r++)
                normalize(x + r * width, width, norm, norm + width, sizes->epsilon,
                          out + (first * length + r) * width);
        }
        free(memory);
    }
    return failed;
}
