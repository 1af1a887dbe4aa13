/* Attention of a planner's rollout, in one pass: scores, softmax and mixed values of 16 queries never leave the
 * cache. bfloat16 in and out, float32 between; products on the matrix unit (AMX), exponentials on AVX-512.
 *
 * Keys and values are read where the linear layer wrote them, frame by frame, so that nothing is copied between
 * imagined steps. The age of a frame is a vector per head that is added to its keys while they are packed.
 *
 * Compiled at first use by sparsewm/kernels/__init__.py.
 */

#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef uint16_t bf16;

enum { ROWS = 16, PAIRS = 32, LINE = 64 }; /* of a tile: rows, bfloat16 numbers a row, bytes a row */

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

/* The kernel lets a process use tiles after this call. Returns 0 when it does. */
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

static inline __m512 widen(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

static inline __m256i narrow(__m512 x) {
    return (__m256i)_mm512_cvtneps_pbh(x);
}

/* 32 numbers of a row, the first `count` of them; the rest is 0. */
static inline __m512i row_of(const bf16 *from, int64_t count) {
    return _mm512_maskz_loadu_epi16(count >= PAIRS ? 0xffffffffu : (1u << count) - 1, from);
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

/* 32 numbers of a key with its age. */
static inline __m512i aged(const bf16 *key, const bf16 *age, int64_t count) {
    __m512i k = row_of(key, count);
    if (!age) return k;
    __m512i a = row_of(age, count);
    __m512 low = _mm512_add_ps(widen(_mm512_castsi512_si256(k)), widen(_mm512_castsi512_si256(a)));
    __m512 high =
        _mm512_add_ps(widen(_mm512_extracti64x4_epi64(k, 1)), widen(_mm512_extracti64x4_epi64(a, 1)));
    return _mm512_inserti64x4(_mm512_castsi256_si512(narrow(low)), narrow(high), 1);
}

typedef struct {
    const bf16 *row;
    const bf16 *age;
} Key;

/* Where the keys or values of all frames lie, one pointer each. */
static void find(const Frame *frames, int64_t count, int64_t b, int64_t s, int64_t h, int64_t d, Key *keys,
                 const bf16 **values) {
    for (int64_t f = 0; f < count; f++) {
        const Frame *frame = frames + f;
        const int64_t *k = frame->key_stride, *v = frame->value_stride;
        const bf16 *key = frame->keys + b * k[0] + s * k[1] + h * k[3];
        const bf16 *value = frame->values + b * v[0] + s * v[1] + h * v[3];
        const bf16 *age = frame->age ? frame->age + h * d : NULL;
        for (int64_t n = 0; n < frame->length; n++) {
            keys->row = key + n * k[2];
            keys++->age = age;
            *values++ = value + n * v[2];
        }
    }
}

/* Keys as tiles for the product with queries: per 16 keys and 32 numbers, 16 pairs of numbers x 16 keys. */
static void pack_keys(const Key *keys, int64_t count, int64_t padded, int64_t d, int64_t slabs, uint8_t *out) {
    for (int64_t n = 0; n < padded; n += ROWS)
        for (int64_t slab = 0; slab < slabs; slab++, out += ROWS * LINE) {
            __m512i r[16];
            for (int i = 0; i < ROWS; i++) {
                const Key *key = keys + n + i;
                const bf16 *age = n + i < count && key->age ? key->age + slab * PAIRS : NULL;
                r[i] = n + i < count ? aged(key->row + slab * PAIRS, age, d - slab * PAIRS)
                                     : _mm512_setzero_si512();
            }
            transpose(r);
            for (int i = 0; i < ROWS; i++) _mm512_store_si512(out + i * LINE, r[i]);
        }
}

/* Values as tiles for the product with weights: per 32 keys and 16 numbers, 16 pairs of keys x 16 numbers. */
static void pack_values(const bf16 **values, int64_t count, int64_t padded, int64_t d, int64_t blocks,
                        uint8_t *out) {
    for (int64_t n = 0; n < padded; n += PAIRS)
        for (int64_t block = 0; block < blocks; block++, out += ROWS * LINE)
            for (int i = 0; i < ROWS; i++) {
                int64_t first = n + 2 * i, left = d - block * ROWS;
                __mmask16 mask = left >= ROWS ? 0xffff : (__mmask16)((1u << left) - 1);
                __m256i even = _mm256_setzero_si256(), odd = even;
                if (first < count) even = _mm256_maskz_loadu_epi16(mask, values[first] + block * ROWS);
                if (first + 1 < count) odd = _mm256_maskz_loadu_epi16(mask, values[first + 1] + block * ROWS);
                __m512i pair = _mm512_or_si512(_mm512_cvtepu16_epi32(even),
                                               _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
                _mm512_store_si512(out + i * LINE, pair);
            }
}

/* 2^x to 8e-5 of its value, which bfloat16 does not see. */
static inline __m512 exp2_of(__m512 x) {
    __m512 f = _mm512_reduce_ps(x, 0x09); /* x - floor(x) */
    __m512 p = _mm512_set1_ps(0.07790728f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.22623387f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.69577639f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.99992795f));
    return _mm512_scalef_ps(p, x);
}

/* Scores of one query to weights, in their place as bfloat16; the sum of the weights before rounding.
 * A row is as long as `padded`; what lies behind `count` becomes 0. */
static inline float soften(float *row, int64_t count, int64_t padded) {
    const __m512 log2e = _mm512_set1_ps(1.44269504f);
    __m512 top = _mm512_set1_ps(-3.0e38f);
    int64_t n = 0, whole = count & ~(int64_t)15;
    __mmask16 rest = (__mmask16)((1u << (count - whole)) - 1);
    for (; n < whole; n += 16) top = _mm512_max_ps(top, _mm512_load_ps(row + n));
    if (rest) top = _mm512_mask_max_ps(top, rest, top, _mm512_load_ps(row + n));
    const __m512 shift = _mm512_set1_ps(-1.44269504f * _mm512_reduce_max_ps(top));
    __m512 sum = _mm512_setzero_ps();
    bf16 *out = (bf16 *)row; /* never ahead of what is read */
    for (n = 0; n < padded; n += 32) {
        __m512 a = _mm512_load_ps(row + n), b = _mm512_load_ps(row + n + 16);
        a = exp2_of(_mm512_fmadd_ps(a, log2e, shift));
        b = exp2_of(_mm512_fmadd_ps(b, log2e, shift));
        if (n + 32 > count) {
            int64_t left = count - n;
            a = _mm512_maskz_mov_ps(left >= 16 ? 0xffff : (__mmask16)((1u << (left > 0 ? left : 0)) - 1), a);
            left -= 16;
            b = _mm512_maskz_mov_ps(left >= 16 ? 0xffff : (__mmask16)((1u << (left > 0 ? left : 0)) - 1), b);
        }
        sum = _mm512_add_ps(sum, _mm512_add_ps(a, b));
        _mm512_store_si512(out + n, (__m512i)_mm512_cvtne2ps_pbh(b, a));
    }
    return _mm512_reduce_add_ps(sum);
}

/* Sixteen queries (padded, in `queries`) against all packed keys and values. */
static void block(const bf16 *queries, const uint8_t *keys, const uint8_t *values, int64_t count,
                  int64_t padded, int64_t slabs, int64_t blocks, float *scores, float *mixed, float *scale) {
    const int64_t stride = padded * sizeof(float);
    _tile_loadd(0, queries, slabs * LINE);
    if (slabs == 2) _tile_loadd(1, queries + PAIRS, slabs * LINE);
    for (int64_t n = 0; n < padded; n += 2 * ROWS) { /* two tiles of scores at once: their products overlap */
        _tile_zero(2);
        _tile_zero(3);
        _tile_loadd(4, keys, LINE);
        _tile_dpbf16ps(2, 0, 4);
        if (slabs == 2) {
            _tile_loadd(5, keys + ROWS * LINE, LINE);
            _tile_dpbf16ps(2, 1, 5);
        }
        keys += slabs * ROWS * LINE;
        _tile_loadd(6, keys, LINE);
        _tile_dpbf16ps(3, 0, 6);
        if (slabs == 2) {
            _tile_loadd(7, keys + ROWS * LINE, LINE);
            _tile_dpbf16ps(3, 1, 7);
        }
        keys += slabs * ROWS * LINE;
        _tile_stored(2, scores + n, stride);
        _tile_stored(3, scores + n + ROWS, stride);
    }
    for (int i = 0; i < ROWS; i++) scale[i] = 1.0f / soften(scores + i * padded, count, padded);
    const int64_t slab = blocks * ROWS * LINE;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t n = 0; n < padded; n += PAIRS, values += slab) {
        _tile_loadd(4, (const bf16 *)scores + n, stride);
        _tile_loadd(5, values, LINE);
        _tile_dpbf16ps(0, 4, 5);
        if (blocks > 1) {
            _tile_loadd(6, values + ROWS * LINE, LINE);
            _tile_dpbf16ps(1, 4, 6);
        }
        if (blocks > 2) {
            _tile_loadd(5, values + 2 * ROWS * LINE, LINE);
            _tile_dpbf16ps(2, 4, 5);
        }
        if (blocks > 3) {
            _tile_loadd(6, values + 3 * ROWS * LINE, LINE);
            _tile_dpbf16ps(3, 4, 6);
        }
    }
    const int64_t wide = blocks * ROWS * sizeof(float);
    _tile_stored(0, mixed, wide);
    if (blocks > 1) _tile_stored(1, mixed + ROWS, wide);
    if (blocks > 2) _tile_stored(2, mixed + 2 * ROWS, wide);
    if (blocks > 3) _tile_stored(3, mixed + 3 * ROWS, wide);
}

static int64_t up(int64_t value, int64_t step) {
    return (value + step - 1) / step * step;
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
    const int64_t padded = up(count, PAIRS), slabs = up(d, PAIRS) / PAIRS, blocks = up(d, ROWS) / ROWS;
    const size_t keys_size = padded * slabs * LINE, values_size = padded * blocks * ROWS * sizeof(bf16);
    const size_t scores_size = ROWS * padded * sizeof(float), mixed_size = ROWS * blocks * ROWS * sizeof(float);
    const size_t queries_size = ROWS * slabs * LINE;
    const size_t pointers = up(count * (sizeof(Key) + sizeof(bf16 *)), LINE);
    const size_t whole = keys_size + values_size + scores_size + mixed_size + queries_size + pointers;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        uint8_t *memory = aligned_alloc(LINE, up(whole, LINE));
        if (!memory) {
#pragma omp atomic write
            failed = 1;
        } else {
            configure();
            memset(memory, 0, whole);
        }
        uint8_t *keys = memory, *values = keys + keys_size;
        float *scores = (float *)(values + values_size), *mixed = (float *)((uint8_t *)scores + scores_size);
        bf16 *padded_queries = (bf16 *)((uint8_t *)mixed + mixed_size);
        Key *key_rows = (Key *)((uint8_t *)padded_queries + queries_size);
        const bf16 **value_rows = (const bf16 **)(key_rows + count);
        float scale[ROWS];
#pragma omp for schedule(static) collapse(3)
        for (int64_t b = 0; b < episodes; b++)
            for (int64_t s = 0; s < candidates; s++)
                for (int64_t h = 0; h < heads; h++) {
                    if (!memory) continue;
                    find(frames, frame_count, b, s, h, d, key_rows, value_rows);
                    pack_keys(key_rows, count, padded, d, slabs, keys);
                    pack_values(value_rows, count, padded, d, blocks, values);
                    const bf16 *q = queries + b * q_stride[0] + s * q_stride[1] + h * q_stride[3];
                    bf16 *o = out + ((b * candidates + s) * length * heads + h) * d;
                    for (int64_t first = 0; first < length; first += ROWS) {
                        int64_t rows = length - first < ROWS ? length - first : ROWS;
                        for (int64_t i = 0; i < rows; i++)
                            for (int64_t slab = 0; slab < slabs; slab++)
                                _mm512_store_si512(
                                    padded_queries + (i * slabs + slab) * PAIRS,
                                    row_of(q + (first + i) * q_stride[2] + slab * PAIRS, d - slab * PAIRS));
                        block(padded_queries, keys, values, count, padded, slabs, blocks, scores, mixed, scale);
                        for (int64_t i = 0; i < rows; i++) {
                            const __m512 factor = _mm512_set1_ps(scale[i]);
                            for (int64_t c = 0; c < blocks; c++) {
                                int64_t left = d - c * ROWS;
                                __mmask16 mask = left >= ROWS ? 0xffff : (__mmask16)((1u << left) - 1);
                                __m512 x = _mm512_load_ps(mixed + (i * blocks + c) * ROWS);
                                _mm256_mask_storeu_epi16(o + (first + i) * heads * d + c * ROWS, mask,
                                                         narrow(_mm512_mul_ps(x, factor)));
                            }
                        }
                    }
                }
        if (memory) _tile_release();
        free(memory);
    }
    return failed;
}
