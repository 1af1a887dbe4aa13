/* Attention of `advance` (layers.c), a few queries of one head at a time. */

#include "layers.h"
#include "panels.h"

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

#if TILES
/* Products of one slab of queries with up to four blocks of 16 keys, added to tiles 0 to 3. */
INLINE void score(const bf16 *keys, int64_t block, int64_t blocks) {
#define ONE(i)                                                                                                \
    if (blocks > (i)) {                                                                                       \
        _tile_loadd(5, keys + (i) * block, LINE);                                                             \
        _tile_dpbf16ps(i, 4, 5);                                                                              \
    }
    ONE(0) ONE(1) ONE(2) ONE(3)
#undef ONE
}

/* Scores of 16 queries for the keys of a frame, or one number for each age. */
static void score_all(const bf16 *queries, int64_t stride, const bf16 *keys, int64_t deep, int64_t blocks, float *out,
                      int64_t room) {
    for (int64_t at = 0; at < blocks; at += 4, keys += 4 * deep * LANES, out += 4 * LANES) {
        const int64_t some = blocks - at;
        clear_tiles();
        for (int64_t k = 0; k < deep; k += PANEL) {
            _tile_loadd(4, queries + k, stride * sizeof(bf16));
            if (some >= 4)
                score(keys + k * LANES, deep * LANES, 4);
            else
                score(keys + k * LANES, deep * LANES, some);
        }
        store_tiles(out, room, some * LANES);
    }
}

/* Adds the values of 32 keys, or of 16 where `half`, by their weights to tiles 0 to 3, 16 numbers each. */
INLINE void mix_some(const bf16 *weights, int64_t room, const bf16 *values, int64_t padded, int64_t numbers,
                     int half) {
    if (half)
        _tile_loadd(6, weights, room * sizeof(bf16));
    else
        _tile_loadd(4, weights, room * sizeof(bf16));
#define ONE(i)                                                                                                \
    if (numbers > (i) * LANES) {                                                                              \
        if (half) {                                                                                           \
            _tile_loadd(7, values + (i) * PANEL, 2 * padded * sizeof(bf16));                                  \
            _tile_dpbf16ps(i, 6, 7);                                                                          \
        } else {                                                                                              \
            _tile_loadd(5, values + (i) * PANEL, 2 * padded * sizeof(bf16));                                  \
            _tile_dpbf16ps(i, 4, 5);                                                                          \
        }                                                                                                     \
    }
    ONE(0) ONE(1) ONE(2) ONE(3)
#undef ONE
}

/* Up to 64 numbers of what 16 queries read of the values, by their weights (16, room). */
INLINE void mix(const bf16 *weights, int64_t room, const bf16 *const *values, const Frame *frames, int64_t count,
                int64_t padded, int64_t at, int64_t numbers, float *out) {
    clear_tiles();
    for (int64_t f = 0; f < count; f++) {
        const bf16 *value = values[f] + 2 * at;
        int64_t left = up(frames[f].length, LANES);
        for (; left >= PANEL; left -= PANEL, weights += PANEL, value += PANEL * padded)
            mix_some(weights, room, value, padded, numbers, 0);
        if (left) mix_some(weights, room, value, padded, numbers, 1);
        weights += left;
    }
    store_tiles(out, 4 * LANES, numbers);
}

/* Sixteen queries of one head against the keys of all frames; the first `real` of them are kept. */
static void attend_some(const bf16 *queries, const Frame *frames, const Sizes *sizes, const Head *head,
                        const Scratch *scratch, bf16 *out, int64_t real) {
    enum { FRAMES = LANES };
    const int64_t d = sizes->head, inner = sizes->heads * d, deep = up(d, DEEP), padded = up(d, LANES);
    const int64_t room = scratch->room;
    const bf16 *values[FRAMES];
    float clocks[SIDE * LANES] __attribute__((aligned(LINE))), mixed[SIDE * 4 * LANES] __attribute__((aligned(LINE)));
    float scale[SIDE];
    if (sizes->frames > 1) /* every age is one number more for all keys of a frame */
        score_all(queries, 3 * inner, head->ages + head->h * deep * LANES, deep, 1, clocks, LANES);
    int64_t at = 0;
    for (int64_t f = 0; f < sizes->frames; f++) {
        const Frame *frame = frames + f;
        const bf16 *keys = f ? keys_of(frame, sizes, head->layer, head->b, head->s, head->h) : head->keys;
        const int64_t blocks = up(frame->length, LANES) / LANES;
        values[f] = f ? values_of(frame, sizes, head->layer, head->b, head->s, head->h) : head->values;
        score_all(queries, 3 * inner, keys, deep, blocks, scratch->scores + at, room);
        at += blocks * LANES;
    }
    if (real > SIDE) real = SIDE;
    for (int64_t r = 0; r < real; r++) {
        const float *row = scratch->scores + r * room;
        float clock[FRAMES];
        __m512 top = _mm512_set1_ps(LEAST);
        for (int64_t f = 0; f < sizes->frames; f++) {
            const int64_t length = frames[f].length;
            __m512 here = _mm512_set1_ps(LEAST);
            int64_t n = 0;
            for (; n + LANES <= length; n += LANES) here = _mm512_max_ps(here, _mm512_loadu_ps(row + n));
            const __mmask16 last = (__mmask16)first_of(length - n);
            if (last) here = _mm512_mask_max_ps(here, last, here, _mm512_loadu_ps(row + n));
            clock[f] = frames[f].age ? clocks[r * LANES + frames[f].age] : 0.0f;
            top = _mm512_max_ps(top, _mm512_add_ps(here, _mm512_set1_ps(clock[f])));
            row += up(length, LANES);
        }
        const float most = _mm512_reduce_max_ps(top);
        row = scratch->scores + r * room;
        bf16 *to = scratch->weights + r * room;
        __m512 sum = _mm512_setzero_ps();
        for (int64_t f = 0; f < sizes->frames; f++) {
            const __m512 shift = _mm512_set1_ps(clock[f] - most);
            for (int64_t n = 0; n < frames[f].length; n += LANES, row += LANES, to += LANES) {
                const __mmask16 there = (__mmask16)first_of(frames[f].length - n);
                const __m512 weight = _mm512_maskz_mov_ps(there, exp2_of(_mm512_add_ps(_mm512_loadu_ps(row), shift)));
                sum = _mm512_add_ps(sum, weight);
                store(to, weight);
            }
        }
        scale[r] = 1.0f / _mm512_reduce_add_ps(sum);
    }
    for (int64_t k = 0; k < d; k += 4 * LANES) {
        if (d - k >= 4 * LANES)
            mix(scratch->weights, room, values, frames, sizes->frames, padded, k, 4 * LANES, mixed);
        else
            mix(scratch->weights, room, values, frames, sizes->frames, padded, k, d - k, mixed);
        for (int64_t r = 0; r < real; r++) {
            const __m512 by = _mm512_set1_ps(scale[r]);
            for (int64_t j = 0; k + j < d && j < 4 * LANES; j += LANES)
                _mm256_mask_storeu_epi16(out + r * inner + k + j, (__mmask16)first_of(d - k - j),
                                         narrow(_mm512_mul_ps(_mm512_load_ps(mixed + r * 4 * LANES + j), by)));
        }
    }
}
#else
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
#endif

/* A head's keys and values of one candidate from rows of queries, keys and values: keys (blocks, deep / 2, 16, 2) and
 * values (pairs of keys, padded d, 2); what they are filled up with is 0. */
static void remember(const bf16 *qkv, const Sizes *sizes, const Head *head) {
    const int64_t d = sizes->head, inner = sizes->heads * d, length = sizes->length, padded = up(d, LANES);
    const int64_t deep = up(d, DEEP);
    const bf16 *key = qkv + inner + head->h * d, *value = key + inner;
    for (int64_t n = 0; n < length; n += LANES)
        for (int64_t k = 0; k < deep; k += PANEL) {
            const __mmask32 mask = first_of(d - k);
            __m512i part[LANES];
            for (int i = 0; i < LANES; i++)
                part[i] = _mm512_maskz_loadu_epi16(n + i < length ? mask : 0, key + (n + i) * 3 * inner + k);
            bf16 *to = head->keys + n * deep + k * LANES;
            if (deep - k >= PANEL) {
                turn(part, to, PANEL);
                continue;
            }
            bf16 some[LANES * PANEL];
            turn(part, some, PANEL);
            memcpy(to, some, (deep - k) * LANES * sizeof(bf16));
        }
    for (int64_t n = 0; n < up(length, KEYS); n += 2)
        for (int64_t k = 0; k < padded; k += LANES) {
            const __mmask16 mask = (__mmask16)first_of(d - k), even = n < length ? mask : 0;
            const __mmask16 odd = n + 1 < length ? mask : 0;
            const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(even, value + n * 3 * inner + k));
            const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(odd, value + (n + 1) * 3 * inner + k));
            _mm512_storeu_si512(head->values + n * padded + 2 * k, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
}
