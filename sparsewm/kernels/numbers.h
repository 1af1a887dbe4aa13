/* Numbers as the compiled functions share them: bfloat16 in and out, float32 between (AVX-512). */

#ifndef SPARSEWM_NUMBERS_H
#define SPARSEWM_NUMBERS_H

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "denormals.h"

typedef uint16_t bf16;

#define INLINE static inline __attribute__((always_inline)) /* row counts want to be constants */

#define LEAST -3.0e38f /* the score of a key that is not there */

enum { LANES = 16, LINE = 64 }; /* float32 numbers of a register, bytes of a line of the cache */

enum { TILE = 12, PANEL = 2 * LANES }; /* rows and columns of a product that stay in registers */

/* Calls `call` with the number of rows to compute, a constant, of those that are left: up to three more are computed
 * and left out. */
#define CONSTANT(call, left)                                                                                  \
    if ((left) > 8) {                                                                                         \
        call(TILE);                                                                                           \
    } else if ((left) > 4) {                                                                                  \
        call(8);                                                                                              \
    } else {                                                                                                  \
        call(4);                                                                                              \
    }

INLINE int64_t up(int64_t value, int64_t step) {
    return (value + step - 1) / step * step;
}

INLINE __m512 widen(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

INLINE __m512 load(const bf16 *from) {
    return widen(_mm256_loadu_si256((const __m256i *)from));
}

INLINE __m256i narrow(__m512 x) {
    return (__m256i)_mm512_cvtneps_pbh(x);
}

INLINE void store(bf16 *to, __m512 x) {
    _mm256_storeu_si256((__m256i *)to, narrow(x));
}

/* Neighbours in a row, 32 bits of them, in all lanes. */
INLINE __m512i all_lanes(const void *from) {
    int32_t bits;
    memcpy(&bits, from, sizeof bits);
    return _mm512_set1_epi32(bits);
}

INLINE __m512bh both(const bf16 *pair) {
    return (__m512bh)all_lanes(pair);
}

INLINE __m512bh pairs(const bf16 *from) {
    return (__m512bh)_mm512_loadu_si512(from);
}

/* A mask of the first `count` of up to 32 numbers. */
INLINE __mmask32 first_of(int64_t count) {
    return count >= 32 ? 0xffffffffu : count <= 0 ? 0 : (1u << count) - 1;
}

/* 2^x to 8e-5 of its value, which bfloat16 does not see. */
INLINE __m512 exp2_of(__m512 x) {
    const __m512 f = _mm512_reduce_ps(x, 0x09); /* x - floor(x) */
    __m512 p = _mm512_set1_ps(0.07790728f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.22623387f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.69577639f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.99992795f));
    return _mm512_scalef_ps(p, x);
}

/* Of a row: its mean, and one by its deviation. */
typedef struct {
    __m512 mean, factor;
} Moments;

INLINE Moments moments(const float *row, int64_t width, float epsilon) {
    __m512 sum = _mm512_setzero_ps(), squares = sum;
    for (int64_t i = 0; i < width; i += LANES) sum = _mm512_add_ps(sum, _mm512_loadu_ps(row + i));
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / (float)width);
    for (int64_t i = 0; i < width; i += LANES) {
        const __m512 value = _mm512_sub_ps(_mm512_loadu_ps(row + i), mean);
        squares = _mm512_fmadd_ps(value, value, squares);
    }
    const float variance = _mm512_reduce_add_ps(squares) / (float)width + epsilon;
    return (Moments){mean, _mm512_set1_ps(1.0f / sqrtf(variance))};
}

/* Sixteen numbers of a row, normalized. */
INLINE __m512 normal(const float *numbers, Moments of) {
    return _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(numbers), of.mean), of.factor);
}

#endif
