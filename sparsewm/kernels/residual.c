/* Residual and layer norm in one pass over a row, for layers whose tokens stay float32 between bfloat16 products:
 * what attention or the MLP adds is taken in, and the next product's input is made while the row is in the cache.
 *
 * Compiled at first use by sparsewm/kernels/vit.py.
 */

#include "numbers.h"

/* x += gate * added, where there is something to add; y = shift + scale * (x - mean) / deviation, or where y is NULL
 * the same as float32 in z.
 *
 * x, added, y, z: `rows` rows of `width` numbers, a multiple of 16; gate, shift, scale: one row for all.
 */
void add_and_normalize(float *x, const bf16 *added, const float *gate, const float *shift, const float *scale, bf16 *y,
                       float *z, int64_t rows, int64_t width, float epsilon, int threads) {
#pragma omp parallel num_threads(threads)
    {
        const uint32_t before = flush_denormals();
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) {
            float *to = x + row * width;
            for (int64_t i = 0; added && i < width; i += LANES) {
                const __m512 part = load(added + row * width + i);
                _mm512_storeu_ps(to + i, _mm512_fmadd_ps(_mm512_loadu_ps(gate + i), part, _mm512_loadu_ps(to + i)));
            }
            const Moments of = moments(to, width, epsilon);
            for (int64_t i = 0; i < width; i += LANES) {
                const __m512 value =
                    _mm512_fmadd_ps(normal(to + i, of), _mm512_loadu_ps(scale + i), _mm512_loadu_ps(shift + i));
                if (y)
                    store(y + row * width + i, value);
                else
                    _mm512_storeu_ps(z + row * width + i, value);
            }
        }
        restore(before);
    }
}
