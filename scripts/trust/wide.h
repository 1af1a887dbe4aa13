/* The 512-bit instructions that the kernels use (AVX-512, BF16 and VNNI of it) in plain C: they run on processors
 * without them.
 *
 * Included before a kernel's own source, which is compiled without these instructions. Results are those of the
 * instructions, but for _mm512_rcp14_ps, which is exact here. */

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define WIDE static inline __attribute__((always_inline))
#define EACH(n) for (int i = 0; i < (n); i++)

typedef int32_t wide_i32 __attribute__((vector_size(64), may_alias));
typedef uint32_t wide_u32 __attribute__((vector_size(64), may_alias));
typedef uint16_t wide_u16 __attribute__((vector_size(64), may_alias));
typedef int16_t wide_i16 __attribute__((vector_size(64), may_alias));
typedef uint8_t wide_u8 __attribute__((vector_size(64), may_alias));
typedef int8_t wide_i8 __attribute__((vector_size(64), may_alias));
typedef int64_t wide_i64 __attribute__((vector_size(64), may_alias));
typedef uint16_t half_u16 __attribute__((vector_size(32), may_alias));
typedef uint8_t quarter_u8 __attribute__((vector_size(16), may_alias));

/* Memory: whole, and under a mask, beyond which nothing is touched. */

WIDE __m512i wide_load(const void *from) {
    __m512i x;
    memcpy(&x, from, sizeof x);
    return x;
}

WIDE void wide_store(void *to, __m512i x) {
    memcpy(to, &x, sizeof x);
}

WIDE __m512 wide_mask_load_f32(__m512 x, uint16_t mask, const float *from) {
    EACH(16) if (mask >> i & 1) x[i] = from[i];
    return x;
}

WIDE void wide_mask_store_f32(float *to, uint16_t mask, __m512 x) {
    EACH(16) if (mask >> i & 1) to[i] = x[i];
}

WIDE void wide_mask_store_i32(void *to, uint16_t mask, __m512i x) {
    EACH(16) if (mask >> i & 1) memcpy((char *)to + 4 * i, (char *)&x + 4 * i, 4);
}

WIDE __m512i wide_mask_load_u16(uint32_t mask, const void *from) {
    wide_u16 x = {0};
    EACH(32) if (mask >> i & 1) x[i] = ((const uint16_t *)from)[i];
    return (__m512i)x;
}

WIDE void wide_mask_store_u16(void *to, uint32_t mask, __m512i x) {
    EACH(32) if (mask >> i & 1) ((uint16_t *)to)[i] = ((wide_u16)x)[i];
}

WIDE __m256i half_mask_load_u16(uint16_t mask, const void *from) {
    half_u16 x = {0};
    EACH(16) if (mask >> i & 1) x[i] = ((const uint16_t *)from)[i];
    return (__m256i)x;
}

WIDE void half_mask_store_u16(void *to, uint16_t mask, __m256i x) {
    EACH(16) if (mask >> i & 1) ((uint16_t *)to)[i] = ((half_u16)x)[i];
}

/* Numbers. */

WIDE __m512 wide_set_f32(float x) {
    __m512 all;
    EACH(16) all[i] = x;
    return all;
}

WIDE __m512i wide_set_i32(int32_t x) {
    wide_i32 all;
    EACH(16) all[i] = x;
    return (__m512i)all;
}

WIDE __m512i wide_set_i16(int16_t x) {
    wide_i16 all;
    EACH(32) all[i] = x;
    return (__m512i)all;
}

WIDE __m512i wide_from_last(const int16_t *numbers) {
    wide_i16 x;
    EACH(32) x[i] = numbers[31 - i];
    return (__m512i)x;
}

WIDE __m512 wide_fma(__m512 a, __m512 b, __m512 c) {
    EACH(16) c[i] = fmaf(a[i], b[i], c[i]);
    return c;
}

WIDE __m512 wide_max(__m512 a, __m512 b) {
    EACH(16) b[i] = a[i] > b[i] ? a[i] : b[i];
    return b;
}

WIDE __m512 wide_choose(__m512 other, uint16_t mask, __m512 x) {
    EACH(16) x[i] = mask >> i & 1 ? x[i] : other[i];
    return x;
}

WIDE __m512i wide_choose_u16(uint32_t mask, __m512i x) {
    wide_u16 kept = (wide_u16)x;
    EACH(32) kept[i] = mask >> i & 1 ? kept[i] : 0;
    return (__m512i)kept;
}

WIDE __m512 wide_fraction(__m512 x) {
    EACH(16) x[i] = fabsf(x[i]) < 8388608.0f ? x[i] - floorf(x[i]) : x[i] == x[i] ? 0.0f : x[i];
    return x;
}

/* x * 2^floor(by), by two powers of two that are numbers themselves. */
WIDE __m512 wide_scale(__m512 x, __m512 by) {
    EACH(16) {
        const float least = by[i] < -252.0f ? -252.0f : by[i], most = least > 254.0f ? 254.0f : least;
        const int32_t whole = (int32_t)floorf(most), half = whole >> 1;
        const uint32_t bits[2] = {(uint32_t)(half + 127) << 23, (uint32_t)(whole - half + 127) << 23};
        float factors[2];
        memcpy(factors, bits, sizeof factors);
        x[i] = by[i] == by[i] ? x[i] * factors[0] * factors[1] : by[i];
    }
    return x;
}

WIDE float wide_sum(__m512 x) {
    for (int half = 8; half; half /= 2) EACH(half) x[i] += x[i + half];
    return x[0];
}

WIDE float wide_most(__m512 x) {
    for (int half = 8; half; half /= 2) EACH(half) x[i] = x[i] > x[i + half] ? x[i] : x[i + half];
    return x[0];
}

/* Conversions. */

WIDE uint16_t wide_to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
    const uint32_t kind = bits & 0x7f800000;
    return (kind == 0 ? bits & 0x80000000 : x != x ? bits | 0x400000 : rounded) >> 16;
}

WIDE float wide_from_bf16(uint32_t half) {
    const uint32_t bits = (half & 0x7f80) ? half << 16 : half << 16 & 0x80000000;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

WIDE __m256i wide_narrow(__m512 x) {
    half_u16 to;
    EACH(16) to[i] = wide_to_bf16(x[i]);
    return (__m256i)to;
}

WIDE __m512i wide_narrow_both(__m512 high, __m512 low) {
    wide_u16 to;
    EACH(16) to[i] = wide_to_bf16(low[i]), to[i + 16] = wide_to_bf16(high[i]);
    return (__m512i)to;
}

WIDE __m512i wide_from_u16(__m256i x) {
    wide_i32 to;
    EACH(16) to[i] = ((half_u16)x)[i];
    return (__m512i)to;
}

WIDE __m256i wide_to_u16(__m512i x) {
    half_u16 to;
    EACH(16) to[i] = (uint16_t)((wide_u32)x)[i];
    return (__m256i)to;
}

WIDE __m128i wide_to_u8(__m512i x) {
    quarter_u8 to;
    EACH(16) to[i] = ((wide_u32)x)[i] > 255 ? 255 : (uint8_t)((wide_u32)x)[i];
    return (__m128i)to;
}

WIDE __m512i wide_round(__m512 x) {
    wide_i32 to;
    EACH(16) to[i] = fabsf(x[i]) < 2147483648.0f ? (int32_t)nearbyintf(x[i]) : INT32_MIN;
    return (__m512i)to;
}

WIDE __m512 wide_from_i32(__m512i x) {
    __m512 to;
    EACH(16) to[i] = (float)((wide_i32)x)[i];
    return to;
}

/* Products of neighbours, added. */

WIDE __m512 wide_dot_bf16(__m512 sums, wide_u32 a, wide_u32 b) {
    EACH(16) {
        const float high = fmaf(wide_from_bf16(a[i] >> 16), wide_from_bf16(b[i] >> 16), sums[i]);
        sums[i] = fmaf(wide_from_bf16(a[i] & 0xffff), wide_from_bf16(b[i] & 0xffff), high);
    }
    return sums;
}

WIDE __m512i wide_dot_u8_i8(__m512i sums, __m512i a, __m512i b) {
    wide_i32 to = (wide_i32)sums;
    for (int k = 0; k < 4; k++) EACH(16) to[i] += (int32_t)((wide_u8)a)[4 * i + k] * ((wide_i8)b)[4 * i + k];
    return (__m512i)to;
}

/* Masks of 16-bit numbers. */

WIDE uint32_t wide_signs_u16(__m512i x) {
    uint32_t mask = 0;
    EACH(32) mask |= (uint32_t)(((wide_u16)x)[i] >> 15) << i;
    return mask;
}

WIDE uint32_t wide_above_u16(__m512i a, __m512i b) {
    uint32_t mask = 0;
    EACH(32) mask |= (uint32_t)(((wide_u16)a)[i] > ((wide_u16)b)[i]) << i;
    return mask;
}

WIDE uint32_t wide_test_u16(__m512i a, __m512i b) {
    uint32_t mask = 0;
    EACH(32) mask |= (uint32_t)((((wide_u16)a)[i] & ((wide_u16)b)[i]) != 0) << i;
    return mask;
}

/* Order: of the numbers in every 128 bits, of 128 bits, of all. */

#define WIDE_UNPACK(name, type, lane)                                       \
    WIDE __m512i name(__m512i a, __m512i b, int high) {                     \
        type to;                                                            \
        EACH(4 * (lane)) {                                                  \
            const int from = i / (lane) * (lane) + high * (lane) / 2 + i % (lane) / 2; \
            to[i] = i % 2 ? ((type)b)[from] : ((type)a)[from];              \
        }                                                                   \
        return (__m512i)to;                                                 \
    }
WIDE_UNPACK(wide_unpack_16, wide_u16, 8)
WIDE_UNPACK(wide_unpack_32, wide_i32, 4)
WIDE_UNPACK(wide_unpack_64, wide_i64, 2)

WIDE __m512i wide_shuffle(__m512i a, __m512i b, int order) {
    wide_i64 to;
    EACH(8) to[i] = ((wide_i64)(i < 4 ? a : b))[2 * (order >> 2 * (i / 2) & 3) + i % 2];
    return (__m512i)to;
}

WIDE __m512i wide_pick_u16(__m512i a, __m512i order, __m512i b) {
    wide_u16 to;
    EACH(32) {
        const int at = ((wide_u16)order)[i];
        to[i] = at & 32 ? ((wide_u16)b)[at & 31] : ((wide_u16)a)[at & 31];
    }
    return (__m512i)to;
}

WIDE __m512 wide_pick_f32(__m512 a, __m512i order, __m512 b) {
    __m512 to;
    EACH(16) {
        const int at = ((wide_i32)order)[i];
        to[i] = at & 16 ? b[at & 15] : a[at & 15];
    }
    return to;
}

WIDE __m256i wide_half(__m512i x, int high) {
    __m256i to;
    memcpy(&to, (const char *)&x + 32 * high, sizeof to);
    return to;
}

#define _mm512_abs_ps(x) ((__m512)((wide_u32)(x) & 0x7fffffffu))
#define _mm512_add_epi16(a, b) ((__m512i)((wide_u16)(a) + (wide_u16)(b)))
#define _mm512_add_epi32(a, b) ((__m512i)((wide_u32)(a) + (wide_u32)(b)))
#define _mm512_add_ps(a, b) ((__m512)((a) + (b)))
#define _mm512_castsi512_ps(x) ((__m512)(x))
#define _mm512_castsi512_si256(x) wide_half(x, 0)
#undef _mm512_cmp_epu16_mask
#define _mm512_cmp_epu16_mask(a, b, kind) wide_above_u16(a, b) /* the kernels ask for NLE alone */
#define _mm512_cvtepi32_epi16 wide_to_u16
#define _mm512_cvtepi32_ps wide_from_i32
#define _mm512_cvtepu16_epi32 wide_from_u16
#define _mm512_cvtne2ps_pbh wide_narrow_both
#define _mm512_cvtneps_pbh wide_narrow
#define _mm512_cvtps_epi32 wide_round
#define _mm512_cvtss_f32(x) ((x)[0])
#define _mm512_cvtusepi32_epi8 wide_to_u8
#define _mm512_dpbf16_ps(sums, a, b) wide_dot_bf16(sums, (wide_u32)(a), (wide_u32)(b))
#define _mm512_dpbusd_epi32 wide_dot_u8_i8
#undef _mm512_extracti64x4_epi64
#define _mm512_extracti64x4_epi64 wide_half
#define _mm512_fmadd_ps wide_fma
#define _mm512_fmsub_ps(a, b, c) wide_fma(a, b, -(c))
#define _mm512_fnmadd_ps(a, b, c) wide_fma(-(a), b, c)
#define _mm512_load_ps(from) ((__m512)wide_load(from))
#define _mm512_loadu_ps(from) ((__m512)wide_load(from))
#define _mm512_loadu_si512 wide_load
#define _mm512_mask_loadu_ps wide_mask_load_f32
#define _mm512_mask_max_ps(other, mask, a, b) wide_choose(other, mask, wide_max(a, b))
#define _mm512_mask_mov_ps wide_choose
#define _mm512_mask_storeu_epi16 wide_mask_store_u16
#define _mm512_mask_storeu_epi32 wide_mask_store_i32
#define _mm512_mask_storeu_ps wide_mask_store_f32
#define _mm512_maskz_loadu_epi16 wide_mask_load_u16
#define _mm512_maskz_loadu_ps(mask, from) wide_mask_load_f32((__m512){0}, mask, from)
#define _mm512_maskz_mov_epi16 wide_choose_u16
#define _mm512_maskz_mov_ps(mask, x) wide_choose((__m512){0}, mask, x)
#define _mm512_max_ps wide_max
#define _mm512_movepi16_mask wide_signs_u16
#define _mm512_mul_ps(a, b) ((__m512)((a) * (b)))
#define _mm512_or_si512(a, b) ((__m512i)((wide_i64)(a) | (wide_i64)(b)))
#define _mm512_permutex2var_epi16 wide_pick_u16
#define _mm512_permutex2var_ps wide_pick_f32
#define _mm512_rcp14_ps(x) ((__m512)(1.0f / (x)))
#define _mm512_reduce_add_ps wide_sum
#define _mm512_reduce_max_ps wide_most
#undef _mm512_reduce_ps
#define _mm512_reduce_ps(x, kind) wide_fraction(x) /* the kernels ask for what is above the floor alone */
#undef _mm512_scalef_ps
#define _mm512_scalef_ps wide_scale
#define _mm512_set1_epi16 wide_set_i16
#define _mm512_set1_epi32 wide_set_i32
#define _mm512_set1_ps wide_set_f32
#define _mm512_set_epi16(...) wide_from_last((const int16_t[32]){__VA_ARGS__})
#undef _mm512_setr_epi32
#define _mm512_setr_epi32(...) ((__m512i)(wide_i32){__VA_ARGS__})
#define _mm512_setzero_ps() ((__m512){0})
#define _mm512_setzero_si512() ((__m512i){0})
#undef _mm512_shuffle_i32x4
#define _mm512_shuffle_i32x4 wide_shuffle
#undef _mm512_slli_epi32
#define _mm512_slli_epi32(x, by) ((__m512i)((wide_u32)(x) << (by)))
#undef _mm512_srli_epi32
#define _mm512_srli_epi32(x, by) ((__m512i)((wide_u32)(x) >> (by)))
#define _mm512_store_ps(to, x) wide_store(to, (__m512i)(x))
#define _mm512_store_si512 wide_store
#define _mm512_storeu_ps(to, x) wide_store(to, (__m512i)(x))
#define _mm512_storeu_si512 wide_store
#define _mm512_sub_ps(a, b) ((__m512)((a) - (b)))
#define _mm512_test_epi16_mask wide_test_u16
#define _mm512_unpackhi_epi16(a, b) wide_unpack_16(a, b, 1)
#define _mm512_unpackhi_epi32(a, b) wide_unpack_32(a, b, 1)
#define _mm512_unpackhi_epi64(a, b) wide_unpack_64(a, b, 1)
#define _mm512_unpacklo_epi16(a, b) wide_unpack_16(a, b, 0)
#define _mm512_unpacklo_epi32(a, b) wide_unpack_32(a, b, 0)
#define _mm512_unpacklo_epi64(a, b) wide_unpack_64(a, b, 0)
#define _mm256_mask_storeu_epi16 half_mask_store_u16
#define _mm256_maskz_loadu_epi16 half_mask_load_u16
