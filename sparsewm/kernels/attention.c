/* Attention of a planner's rollout, in one pass: of 16 queries at a time, 32 keys at a time, scores become weights
 * and weights mixed values without leaving the first-level cache. bfloat16 in and out, float32 between; products
 * on the matrix unit (AMX), exponentials on AVX-512.
 *
 * Exponents need only be small, not least: a query's are lowered by its largest score of the first 32 keys, so that
 * no pass over all scores is needed first. Should a later score be so much larger that the sum overflows, the
 * largest of all is found and the block computed again.
 *
 * Keys and values are read where the linear layer wrote them, frame by frame, so that nothing is copied between
 * imagined steps. The age of a frame is a vector per head that is added to its keys while they are packed.
 *
 * Compiled at first use by sparsewm/kernels/__init__.py.
 */

#include <sys/syscall.h>
#include <unistd.h>

#include "numbers.h"

enum { ROWS = 16, PAIRS = 32 }; /* of a tile: rows, bfloat16 numbers a row; a row has LINE bytes */

typedef struct {
    const bf16 *keys, *values;
    const bf16 *age;       /* (heads, d) added to keys, or NULL */
    int64_t length;        /* keys of this frame */
    int64_t key_stride[4]; /* of episode, candidate, key, head; in numbers */
    int64_t value_stride[4];
} Frame;

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} TileConfig;

/* The system lets a process use tiles after this call. Returns 0 when it does. */
int request_tiles(void) {
    return (int)syscall(SYS_arch_prctl, 0x1023, 18);
}

static void configure(void) {
    TileConfig config;
    memset(&config, 0, sizeof config);
    config.palette = 1;
    for (int tile = 0; tile < 8; tile++) {
        config.bytes[tile] = LINE;
        config.rows[tile] = ROWS;
    }
    _tile_loadconfig(&config);
}

/* Sixteen rows of sixteen 32-bit words, rows become columns. */
static inline void transpose(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

/* Goes through the keys or values of all frames, one after the other. */
typedef struct {
    const Frame *frame;
    const bf16 *row, *age;
    int64_t left, step, b, s, h, d;
    int values;
} Cursor;

static inline void enter(Cursor *at, const Frame *frame) {
    const int64_t *stride = at->values ? frame->value_stride : frame->key_stride;
    const bf16 *base = at->values ? frame->values : frame->keys;
    at->frame = frame;
    at->row = base + at->b * stride[0] + at->s * stride[1] + at->h * stride[3];
    at->age = frame->age && !at->values ? frame->age + at->h * at->d : NULL;
    at->left = frame->length;
    at->step = stride[2];
}

/* The next row; not called after the last one of the last frame. */
static inline const bf16 *next(Cursor *at, const bf16 **age) {
    while (at->left == 0) enter(at, at->frame + 1);
    const bf16 *row = at->row;
    *age = at->age;
    at->row += at->step;
    at->left--;
    return row;
}

/* 32 numbers of a key with its age. */
static inline __m512i aged(const bf16 *key, const bf16 *age, __mmask32 mask) {
    __m512i k = _mm512_maskz_loadu_epi16(mask, key);
    if (!age) return k;
    __m512i a = _mm512_maskz_loadu_epi16(mask, age);
    __m512 low = _mm512_add_ps(widen(_mm512_castsi512_si256(k)), widen(_mm512_castsi512_si256(a)));
    __m512 high =
        _mm512_add_ps(widen(_mm512_extracti64x4_epi64(k, 1)), widen(_mm512_extracti64x4_epi64(a, 1)));
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

/* Keys as tiles for the product with queries: per 16 keys and 32 numbers, 16 pairs of numbers x 16 keys. */
static void pack_keys(Cursor at, int64_t count, int64_t padded, int64_t slabs, uint8_t *out) {
    const __mmask32 masks[2] = {first_of(at.d), first_of(at.d - PAIRS)};
    for (int64_t n = 0; n < padded; n += ROWS) {
        __m512i r[2][16];
        for (int i = 0; i < ROWS; i++) {
            r[0][i] = r[1][i] = _mm512_setzero_si512();
            if (n + i < count) {
                const bf16 *age, *row = next(&at, &age);
                r[0][i] = aged(row, age, masks[0]);
                if (slabs == 2) r[1][i] = aged(row + PAIRS, age ? age + PAIRS : NULL, masks[1]);
            }
        }
        for (int64_t slab = 0; slab < slabs; slab++, out += ROWS * LINE) {
            transpose(r[slab]);
            for (int i = 0; i < ROWS; i++) _mm512_store_si512(out + i * LINE, r[slab][i]);
        }
    }
}

/* Values as tiles for the product with weights: per 32 keys and 32 numbers two tiles of 16 pairs of keys x 16
 * numbers. The first has numbers 0-3, 8-11, 16-19 and 24-27 of the 32, as they come: `write_row` puts them right. */
static void pack_values(Cursor at, int64_t count, int64_t padded, int64_t slabs, uint8_t *out) {
    const __mmask32 masks[2] = {first_of(at.d), first_of(at.d - PAIRS)};
    for (int64_t n = 0; n < padded; n += PAIRS, out += 2 * slabs * ROWS * LINE)
        for (int i = 0; i < ROWS; i++) {
            const bf16 *none, *even = n + 2 * i < count ? next(&at, &none) : NULL;
            const bf16 *odd = n + 2 * i + 1 < count ? next(&at, &none) : NULL;
            for (int64_t slab = 0; slab < slabs; slab++) {
                __m512i a = _mm512_setzero_si512(), b = a;
                if (even) a = _mm512_maskz_loadu_epi16(masks[slab], even + slab * PAIRS);
                if (odd) b = _mm512_maskz_loadu_epi16(masks[slab], odd + slab * PAIRS);
                uint8_t *tile = out + 2 * slab * ROWS * LINE + i * LINE;
                _mm512_store_si512(tile, _mm512_unpacklo_epi16(a, b));
                _mm512_store_si512(tile + ROWS * LINE, _mm512_unpackhi_epi16(a, b));
            }
        }
}

/* 32 numbers of a result, from the order of `pack_values`, times `factor`. */
static inline void write_row(const float *mixed, float factor, __mmask32 mask, bf16 *to) {
    const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    __m512 a = _mm512_load_ps(mixed), b = _mm512_load_ps(mixed + ROWS), f = _mm512_set1_ps(factor);
    __m512 first = _mm512_mul_ps(_mm512_permutex2var_ps(a, low, b), f);
    __m512 second = _mm512_mul_ps(_mm512_permutex2var_ps(a, high, b), f);
    _mm512_mask_storeu_epi16(to, mask, (__m512i)_mm512_cvtne2ps_pbh(second, first));
}

/* Of a block of 16 queries. */
typedef struct {
    float scores[2][ROWS * 2 * ROWS]; /* of 32 keys, and of the 32 before them */
    bf16 weights[ROWS * PAIRS];
    __m512 sums[ROWS];
    float shift[ROWS]; /* what makes exponents small: minus the largest score of the first keys, or of all */
    float mixed[ROWS * 4 * ROWS];
} Block;

/* The largest of the first `count` of 32 scores of every query, taken into `shift`. */
static void lower(Block *block, const float *scores, int64_t count) {
    const __m512 least = _mm512_set1_ps(LEAST);
    for (int i = 0; i < ROWS; i++) {
        __m512 a = _mm512_mask_loadu_ps(least, (__mmask16)first_of(count), scores + i * PAIRS);
        __m512 b = _mm512_mask_loadu_ps(least, (__mmask16)first_of(count - 16), scores + i * PAIRS + 16);
        float top = -1.44269504f * _mm512_reduce_max_ps(_mm512_max_ps(a, b));
        if (top < block->shift[i]) block->shift[i] = top;
    }
}

/* Scores of 32 keys to weights, not yet divided by their sum; those behind `count` become 0. */
INLINE void soften(Block *block, const float *scores, int64_t count) {
    const __m512 log2e = _mm512_set1_ps(1.44269504f);
    for (int i = 0; i < ROWS; i++) {
        const __m512 shift = _mm512_set1_ps(block->shift[i]);
        __m512 a = exp2_of(_mm512_fmadd_ps(_mm512_load_ps(scores + i * PAIRS), log2e, shift));
        __m512 b = exp2_of(_mm512_fmadd_ps(_mm512_load_ps(scores + i * PAIRS + 16), log2e, shift));
        if (count < PAIRS) {
            a = _mm512_maskz_mov_ps((__mmask16)first_of(count), a);
            b = _mm512_maskz_mov_ps((__mmask16)first_of(count - 16), b);
        }
        block->sums[i] = _mm512_add_ps(block->sums[i], _mm512_add_ps(a, b));
        _mm512_store_si512(block->weights + i * PAIRS, (__m512i)_mm512_cvtne2ps_pbh(b, a));
    }
}

/* Scores of 16 queries for 32 keys. */
INLINE void score(const bf16 *queries, const uint8_t *keys, int slabs, float *scores) {
    _tile_zero(4);
    _tile_zero(5);
    if (slabs == 1) { /* queries stay in tile 2 */
        _tile_loadd(6, keys, LINE);
        _tile_dpbf16ps(4, 2, 6);
        _tile_loadd(7, keys + ROWS * LINE, LINE);
        _tile_dpbf16ps(5, 2, 7);
    } else {
        _tile_loadd(6, queries, 2 * LINE);
        _tile_loadd(7, keys, LINE);
        _tile_dpbf16ps(4, 6, 7);
        _tile_loadd(7, keys + 2 * ROWS * LINE, LINE);
        _tile_dpbf16ps(5, 6, 7);
        _tile_loadd(6, queries + PAIRS, 2 * LINE);
        _tile_loadd(7, keys + ROWS * LINE, LINE);
        _tile_dpbf16ps(4, 6, 7);
        _tile_loadd(7, keys + 3 * ROWS * LINE, LINE);
        _tile_dpbf16ps(5, 6, 7);
    }
    _tile_stored(4, scores, 2 * LINE);
    _tile_stored(5, scores + ROWS, 2 * LINE);
}

/* Add the values of 32 keys by their weights. */
INLINE void mix(const bf16 *weights, const uint8_t *values, int slabs) {
    if (slabs == 1) {
        _tile_loadd(3, weights, LINE);
        _tile_loadd(6, values, LINE);
        _tile_dpbf16ps(0, 3, 6);
        _tile_loadd(7, values + ROWS * LINE, LINE);
        _tile_dpbf16ps(1, 3, 7);
    } else {
        _tile_loadd(6, weights, LINE);
        _tile_loadd(7, values, LINE);
        _tile_dpbf16ps(0, 6, 7);
        _tile_loadd(7, values + ROWS * LINE, LINE);
        _tile_dpbf16ps(1, 6, 7);
        _tile_loadd(7, values + 2 * ROWS * LINE, LINE);
        _tile_dpbf16ps(2, 6, 7);
        _tile_loadd(7, values + 3 * ROWS * LINE, LINE);
        _tile_dpbf16ps(3, 6, 7);
    }
}

/* Sixteen queries against all packed keys and values, 32 keys at a time; the product for the next ones runs while
 * the exponentials of these are computed. */
INLINE void pass(Block *block, const bf16 *queries, const uint8_t *keys, const uint8_t *values, int64_t count,
                 int slabs) {
    const int64_t step = 2 * slabs * ROWS * LINE; /* of 32 keys or values */
    memset(block->sums, 0, sizeof block->sums);
    _tile_zero(0);
    _tile_zero(1);
    if (slabs == 1)
        _tile_loadd(2, queries, LINE);
    else {
        _tile_zero(2);
        _tile_zero(3);
    }
    score(queries, keys, slabs, block->scores[0]);
    int which = 0;
    if (block->shift[0] == INFINITY) lower(block, block->scores[0], count);
    for (; count > PAIRS; count -= PAIRS, which ^= 1) {
        keys += step;
        score(queries, keys, slabs, block->scores[which ^ 1]);
        soften(block, block->scores[which], PAIRS);
        mix(block->weights, values, slabs);
        values += step;
    }
    soften(block, block->scores[which], count);
    mix(block->weights, values, slabs);
}

/* Sums of the values times `scale` are what the queries read. */
INLINE void attend_block(Block *block, const bf16 *queries, const uint8_t *keys, const uint8_t *values,
                         int64_t count, int slabs, float *scale) {
    for (int i = 0; i < ROWS; i++) block->shift[i] = INFINITY;
    pass(block, queries, keys, values, count, slabs);
    int large = 0;
    for (int i = 0; i < ROWS; i++) {
        float sum = _mm512_reduce_add_ps(block->sums[i]);
        scale[i] = 1.0f / sum;
        large |= !(sum < 1e37f);
    }
    if (large) { /* a later score is far above those of the first keys: subtract the largest of all */
        const uint8_t *at = keys;
        if (slabs == 1) _tile_loadd(2, queries, LINE);
        for (int64_t left = count; left > 0; left -= PAIRS, at += 2 * slabs * ROWS * LINE) {
            score(queries, at, slabs, block->scores[0]);
            lower(block, block->scores[0], left);
        }
        pass(block, queries, keys, values, count, slabs);
        for (int i = 0; i < ROWS; i++) scale[i] = 1.0f / _mm512_reduce_add_ps(block->sums[i]);
    }
    const int64_t wide = 2 * slabs * LINE;
    _tile_stored(0, block->mixed, wide);
    _tile_stored(1, block->mixed + ROWS, wide);
    if (slabs == 2) {
        _tile_stored(2, block->mixed + 2 * ROWS, wide);
        _tile_stored(3, block->mixed + 3 * ROWS, wide);
    }
}

/* softmax(q k^T) v over the keys of all frames.
 *
 * queries: q_stride of episode, candidate, query, head; already scaled. out: (episodes, candidates, length,
 * heads * d), contiguous. d at most 64 and even. Returns 0, or 1 when there is no memory.
 */
int attend(const bf16 *queries, const int64_t *q_stride, bf16 *out, const Frame *frames, int64_t frame_count,
           int64_t episodes, int64_t candidates, int64_t length, int64_t heads, int64_t d, int threads) {
    int64_t count = 0;
    for (int64_t f = 0; f < frame_count; f++) count += frames[f].length;
    const int64_t padded = up(count, PAIRS), slabs = up(d, PAIRS) / PAIRS;
    const size_t keys_size = padded * slabs * LINE, values_size = keys_size;
    const size_t queries_size = ROWS * slabs * LINE;
    const size_t whole = keys_size + values_size + sizeof(Block) + queries_size;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        const uint32_t before = flush_denormals();
        uint8_t *memory = aligned_alloc(LINE, up(whole, LINE));
        if (!memory) {
#pragma omp atomic write
            failed = 1;
        } else {
            configure();
            memset(memory, 0, whole);
        }
        uint8_t *keys = memory, *values = keys + keys_size;
        Block *block = (Block *)(values + values_size);
        bf16 *padded_queries = (bf16 *)(block + 1);
        float scale[ROWS];
#pragma omp for schedule(static) collapse(3)
        for (int64_t b = 0; b < episodes; b++)
            for (int64_t s = 0; s < candidates; s++)
                for (int64_t h = 0; h < heads; h++) {
                    if (!memory) continue;
                    Cursor at = {.b = b, .s = s, .h = h, .d = d};
                    enter(&at, frames);
                    pack_keys(at, count, padded, slabs, keys);
                    at.values = 1;
                    enter(&at, frames);
                    pack_values(at, count, padded, slabs, values);
                    const bf16 *q = queries + b * q_stride[0] + s * q_stride[1] + h * q_stride[3];
                    bf16 *o = out + ((b * candidates + s) * length * heads + h) * d;
                    for (int64_t first = 0; first < length; first += ROWS) {
                        int64_t rows = length - first < ROWS ? length - first : ROWS;
                        for (int64_t i = 0; i < rows; i++)
                            for (int64_t slab = 0; slab < slabs; slab++)
                                _mm512_store_si512(
                                    padded_queries + (i * slabs + slab) * PAIRS,
                                    _mm512_maskz_loadu_epi16(first_of(d - slab * PAIRS),
                                                             q + (first + i) * q_stride[2] + slab * PAIRS));
                        if (slabs == 1)
                            attend_block(block, padded_queries, keys, values, count, 1, scale);
                        else
                            attend_block(block, padded_queries, keys, values, count, 2, scale);
                        for (int64_t i = 0; i < rows; i++)
                            for (int64_t slab = 0; slab < slabs; slab++)
                                write_row(block->mixed + (i * slabs + slab) * PAIRS, scale[i],
                                          first_of(d - slab * PAIRS), o + (first + i) * heads * d + slab * PAIRS);
                    }
                }
        if (memory) _tile_release();
        free(memory);
        restore(before);
    }
    return failed;
}
