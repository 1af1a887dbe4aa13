/* Products of bfloat16 rows as the processor multiplies them (AVX512-BF16): two neighbours of a sum at once, for 12
 * rows and 32 columns that stay in registers. */

#ifndef SPARSEWM_PANELS_H
#define SPARSEWM_PANELS_H

#include "numbers.h"

/* Adds the products of `steps` pairs of every row with those of 32 columns.
 *
 * a: `a_row` numbers from row to row, `a_step` from pair to pair. b: the pairs of 16 columns side by side, those of
 * the other 16 `b_half` numbers on, the next pairs `b_step` on. */
INLINE void add_products(__m512 (*sums)[2], const bf16 *a, int64_t a_row, int64_t a_step, const bf16 *b,
                         int64_t b_half, int64_t b_step, int64_t steps, int count) {
    for (int64_t k = 0; k < steps; k++, a += a_step, b += b_step) {
        const __m512bh b0 = pairs(b), b1 = pairs(b + b_half);
        for (int r = 0; r < count; r++) {
            const __m512bh row = both(a + r * a_row);
            sums[r][0] = _mm512_dpbf16_ps(sums[r][0], row, b0);
            sums[r][1] = _mm512_dpbf16_ps(sums[r][1], row, b1);
        }
    }
}

/* Two rows of 32 numbers as 32 pairs. */
INLINE void interleave(__m512i even, __m512i odd, bf16 *to, int64_t half) {
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6,
                                         37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    _mm512_storeu_si512(to, _mm512_permutex2var_epi16(even, low, odd));
    _mm512_storeu_si512(to + half, _mm512_permutex2var_epi16(even, high, odd));
}

/* 16 rows of 16 pairs, `from` row to row, as 16 columns of 16. */
INLINE void turn(const __m512i *from, bf16 *to, int64_t step) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(from[i], from[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(from[i], from[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = _mm512_unpacklo_epi64(a[i + j], a[i + j + 2]);
            b[i + 2 * j + 1] = _mm512_unpackhi_epi64(a[i + j], a[i + j + 2]);
        }
    for (int i = 0; i < 4; i++) { /* column i of each quarter, of rows 0-3, 4-7, 8-11, 12-15 */
        const __m512i x = _mm512_shuffle_i32x4(b[i], b[i + 4], 0x88), y = _mm512_shuffle_i32x4(b[i], b[i + 4], 0xdd);
        const __m512i z = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0x88);
        const __m512i w = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0xdd);
        _mm512_storeu_si512(to + i * step, _mm512_shuffle_i32x4(x, z, 0x88));
        _mm512_storeu_si512(to + (i + 4) * step, _mm512_shuffle_i32x4(y, w, 0x88));
        _mm512_storeu_si512(to + (i + 8) * step, _mm512_shuffle_i32x4(x, z, 0xdd));
        _mm512_storeu_si512(to + (i + 12) * step, _mm512_shuffle_i32x4(y, w, 0xdd));
    }
}

#endif
