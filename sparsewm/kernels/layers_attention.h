/* Attention of `advance` (layers.c), a few queries of one head at a time. */

#include "layers.h"

/* Scores of some queries for 16 or 32 keys, `count` and `wide` constants; their largest goes into `most`. */
INLINE void score(const bf16 *queries, int64_t stride, const bf16 *keys, int64_t d, const float *clock, float *out,
                  int64_t room, __m512 *most, __mmask16 last, int count, int wide) {
    __m512 sums[TILE][2];
    for (int r = 0; r < count; r++) sums[r][0] = sums[r][1] = _mm512_set1_ps(clock[r]);
    for (int64_t k = 0; k < d; k += 2) {
        const __m512bh k0 = pairs(keys + k * LANES), k1 = wide ? pairs(keys + (d + k) * LANES) : k0;
        for (int r = 0; r < count; r++) {
            const __m512bh q = both(queries + r * stride + k);
            sums[r][0] = _mm512_dpbf16_ps(sums[r][0], q, k0);
            if (wide) sums[r][1] = _mm512_dpbf16_ps(sums[r][1], q, k1);
        }
    }
    const __m512 least = _mm512_set1_ps(LEAST);
    for (int r = 0; r < count; r++) {
        sums[r][wide] = _mm512_mask_mov_ps(least, last, sums[r][wide]);
        for (int i = 0; i <= wide; i++) {
            most[r] = _mm512_max_ps(most[r], sums[r][i]);
            _mm512_storeu_ps(out + r * room + i * LANES, sums[r][i]);
        }
    }
}

/* What some queries read of `wide` times 16 of the values' numbers, by their weights (count, room). */
INLINE void mix(const bf16 *weights, int64_t room, const bf16 *const *values, const Frame *frames, int64_t frame_count,
                int64_t padded, const float *scale, int64_t numbers, bf16 *out, int64_t stride, int count, int wide,
                int64_t real) {
    __m512 sums[TILE][2];
    for (int r = 0; r < count; r++)
        for (int j = 0; j < wide; j++) sums[r][j] = _mm512_setzero_ps();
    for (int64_t f = 0; f < frame_count; f++) {
        const bf16 *value = values[f];
        for (int64_t n = 0; n < frames[f].length; n += 2, value += 2 * padded) {
            const __m512bh v0 = pairs(value), v1 = wide == 2 ? pairs(value + PANEL) : v0;
            for (int r = 0; r < count; r++) {
                const __m512bh w = both(weights + r * room + n);
                sums[r][0] = _mm512_dpbf16_ps(sums[r][0], w, v0);
                if (wide == 2) sums[r][1] = _mm512_dpbf16_ps(sums[r][1], w, v1);
            }
        }
        weights += up(frames[f].length, LANES);
    }
    for (int r = 0; r < count && r < real; r++)
        for (int j = 0; j < wide; j++) {
            const __mmask16 mask = (__mmask16)first_of(numbers - j * LANES);
            _mm256_mask_storeu_epi16(out + r * stride + j * LANES, mask,
                                     narrow(_mm512_mul_ps(sums[r][j], _mm512_set1_ps(scale[r]))));
        }
}

/* Room for a block of queries: scores as float32, weights as bfloat16. */
typedef struct {
    float *scores;
    bf16 *weights;
    int64_t room;
} Scratch;

/* A head of a candidate in a layer. */
typedef struct {
    int64_t layer, b, s, h;
    bf16 *keys, *values; /* of the present frame */
    const bf16 *ages;
} Head;

/* Up to twelve queries of one head against the keys of all frames. */
INLINE void attend_some(const bf16 *queries, const Frame *frames, const Sizes *sizes, const Head *head,
                        const Scratch *scratch, bf16 *out, int count, int64_t real) {
    enum { FRAMES = LANES };
    const int64_t d = sizes->head, inner = sizes->heads * d, padded = up(d, LANES), room = scratch->room;
    const bf16 *values[FRAMES];
    float clocks[TILE * LANES], clock[TILE], zero[TILE] = {0}, scale[TILE];
    __m512 most[TILE];
    for (int r = 0; r < count; r++) most[r] = _mm512_set1_ps(LEAST);
    if (sizes->frames > 1) { /* every age is one number more for all keys of a frame */
        __m512 unused[TILE];
        for (int r = 0; r < count; r++) unused[r] = most[r];
        score(queries, 3 * inner, head->ages + head->h * d * LANES, d, zero, clocks, LANES, unused, 0xffff, count,
              0);
    }
    int64_t at = 0;
    for (int64_t f = 0; f < sizes->frames; f++) {
        const Frame *frame = frames + f;
        const int64_t blocks = up(frame->length, LANES) / LANES, rest = frame->length - (blocks - 1) * LANES;
        const bf16 *keys = f ? keys_of(frame, sizes, head->layer, head->b, head->s, head->h) : head->keys;
        values[f] = f ? values_of(frame, sizes, head->layer, head->b, head->s, head->h) : head->values;
        for (int r = 0; r < count; r++) clock[r] = frame->age ? clocks[r * LANES + frame->age] : 0.0f;
        const __mmask16 last = (__mmask16)first_of(rest);
        int64_t block = 0;
        for (; block + 2 <= blocks; block += 2, at += PANEL)
            score(queries, 3 * inner, keys + block * d * LANES, d, clock, scratch->scores + at, room, most,
                  block + 2 == blocks ? last : 0xffff, count, 1);
        if (block < blocks) {
            score(queries, 3 * inner, keys + block * d * LANES, d, clock, scratch->scores + at, room, most, last,
                  count, 0);
            at += LANES;
        }
    }
    for (int r = 0; r < count; r++) {
        const float *row = scratch->scores + r * room;
        const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(most[r]));
        __m512 sum = _mm512_setzero_ps();
        for (int64_t n = 0; n < at; n += LANES) {
            const __m512 weight = exp2_of(_mm512_sub_ps(_mm512_loadu_ps(row + n), top));
            sum = _mm512_add_ps(sum, weight);
            store(scratch->weights + r * room + n, weight);
        }
        scale[r] = 1.0f / _mm512_reduce_add_ps(sum);
    }
    int64_t k = 0;
    for (; k + PANEL <= padded; k += PANEL) {
        mix(scratch->weights, room, values, frames, sizes->frames, padded, scale, d - k, out + k, inner, count, 2,
            real);
        for (int64_t f = 0; f < sizes->frames; f++) values[f] += 2 * PANEL;
    }
    if (k < padded)
        mix(scratch->weights, room, values, frames, sizes->frames, padded, scale, d - k, out + k, inner, count, 1,
            real);
}

/* A head's keys and values of one candidate from rows of queries, keys and values: keys (blocks, d / 2, 16, 2) and
 * values (pairs of keys, padded d, 2). */
static void remember(const bf16 *qkv, const Sizes *sizes, const Head *head) {
    const int64_t d = sizes->head, inner = sizes->heads * d, length = sizes->length, padded = up(d, LANES);
    for (int64_t n = 0; n < up(length, LANES); n++) {
        const bf16 *row = qkv + n * 3 * inner + inner + head->h * d;
        bf16 *to = head->keys + (n / LANES * d / 2 * LANES + n % LANES) * 2;
        for (int64_t k = 0; k < d; k += 2, to += 2 * LANES) {
            uint32_t pair = 0;
            if (n < length) memcpy(&pair, row + k, sizeof pair);
            memcpy(to, &pair, sizeof pair);
        }
    }
    for (int64_t n = 0; n < length; n += 2) {
        const bf16 *even = qkv + (n * 3 + 2) * inner + head->h * d, *odd = even + 3 * inner;
        for (int64_t k = 0; k < padded; k += LANES) {
            const __mmask16 mask = (__mmask16)first_of(d - k);
            const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, even + k));
            __m512i pair = low;
            if (n + 1 < length) {
                const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, odd + k));
                pair = _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
            }
            _mm512_storeu_si512(head->values + (n / 2 * padded + k) * 2, pair);
        }
    }
}
