/* Residual, layer norm and modulation in one pass over a row: what attention or the MLP adds is taken in, and the
 * next product's input is made while the row is in the cache. bfloat16 in and out, float32 between.
 *
 * Compiled at first use by sparsewm/kernels/__init__.py.
 */

#include "numbers.h"

enum { WIDEST = 4096 };

/* x += gate * added, where there is something to add; y = shift + scale * (x - mean) / deviation.
 *
 * x, added, y: rows of `width` numbers, a multiple of 16, (groups, length, width); gate, shift, scale: one row for
 * all `length` rows of a group, `stride` numbers from group to group (norm_stride for shift and scale). from: where
 * x is read, (groups, length, width) or, where from_groups is smaller, the same for several groups in a row.
 */
void modulate(const bf16 *from, int64_t from_groups, bf16 *x, const bf16 *added, const bf16 *gate, int64_t stride,
              const bf16 *shift, const bf16 *scale, int64_t norm_stride, bf16 *y, int64_t groups, int64_t length,
              int64_t width, float epsilon, int threads) {
#pragma omp parallel num_threads(threads)
    {
        const uint32_t csr = flush_denormals();
#pragma omp for schedule(static) collapse(2)
        for (int64_t group = 0; group < groups; group++)
            for (int64_t row = 0; row < length; row++) {
                float values[WIDEST] __attribute__((aligned(64)));
                const int64_t at = (group * length + row) * width;
                const bf16 *source = from + (group / (groups / from_groups) * length + row) * width;
                for (int64_t i = 0; i < width; i += LANES) {
                    __m512 value = load(source + i);
                    if (added) {
                        value = _mm512_fmadd_ps(load(gate + group * stride + i), load(added + at + i), value);
                        store(x + at + i, value);
                    }
                    _mm512_store_ps(values + i, value);
                }
                const Moments of = moments(values, width, epsilon);
                const int64_t norm = group * norm_stride;
                for (int64_t i = 0; i < width; i += LANES)
                    store(y + at + i,
                          _mm512_fmadd_ps(normal(values + i, of), load(scale + norm + i), load(shift + norm + i)));
            }
        restore(csr);
    }
}
