/* A training step of the predictor between its products, forward and backward, on processors with AVX512-BF16: gated
 * sums with modulated norms.
 *
 * Rows between layers, and their gradients, are float32; what products read and give is bfloat16. A sequence is a
 * window's tokens of one frame; windows are independent, so threads share them, and every number is summed in one
 * order, however many threads there are.
 *
 * Compiled at first use by sparsewm/kernels/training.py.
 */

#include "panels.h"

/* What modulates a norm, a row for every sequence, and the gate (or NULL) of what is added before it; where their
 * gradients go. `one` is added to the scale, 1 to the gate. */
typedef struct {
    const bf16 *shift, *scale, *gate;
    float *d_shift, *d_scale, *d_gate;
    int64_t stride, gate_stride, d_stride, d_gate_stride;
    float one;
} Modulation;

/* x + (1 + gate) * added, where something is added; then its layer norm, and shift + (one + scale) * norm.
 *
 * x: (sequences * length, width), in place. added: alike. hat: the norm. factors: 1 / deviation of every row. */
void enter(float *x, const bf16 *added, const Modulation *m, int64_t sequences, int64_t length, int64_t width,
           float epsilon, bf16 *hat, float *factors, bf16 *out, int threads) {
    const __m512 one = _mm512_set1_ps(m->one), gate_one = _mm512_set1_ps(1.0f);
#pragma omp parallel num_threads(threads)
    {
        const uint32_t before = flush_denormals();
#pragma omp for schedule(static)
        for (int64_t s = 0; s < sequences; s++) {
            const bf16 *shift = m->shift + s * m->stride, *scale = m->scale + s * m->stride;
            const bf16 *gate = m->gate ? m->gate + s * m->gate_stride : NULL;
            for (int64_t r = s * length; r < (s + 1) * length; r++) {
                float *row = x + r * width;
                for (int64_t i = 0; added && i < width; i += LANES) {
                    const __m512 other = load(added + r * width + i), value = _mm512_loadu_ps(row + i);
                    const __m512 sum = gate ? _mm512_fmadd_ps(_mm512_add_ps(gate_one, load(gate + i)), other, value)
                                            : _mm512_add_ps(other, value);
                    _mm512_storeu_ps(row + i, sum);
                }
                const Moments of = moments(row, width, epsilon);
                factors[r] = _mm512_cvtss_f32(of.factor);
                for (int64_t i = 0; i < width; i += LANES) {
                    const __m512 value = normal(row + i, of);
                    store(hat + r * width + i, value);
                    store(out + r * width + i,
                          _mm512_fmadd_ps(value, _mm512_add_ps(one, load(scale + i)), load(shift + i)));
                }
            }
        }
        restore(before);
    }
}

/* The way back through `enter`.
 *
 * d_out: gradient of what it gave; what it gave is written there anew, for the gradient of weights. dx: gradient of
 * the sum, moved on; `fresh`: it was 0 so far. added: replaced by its own gradient. */
void leave(bf16 *d_out, const bf16 *hat, const float *factors, float *dx, int fresh, bf16 *added,
           const Modulation *m, int64_t sequences, int64_t length, int64_t width, int threads) {
    const __m512 one = _mm512_set1_ps(m->one), gate_one = _mm512_set1_ps(1.0f);
    const __m512 zero = _mm512_setzero_ps();
#pragma omp parallel num_threads(threads)
    {
        const uint32_t before = flush_denormals();
#pragma omp for schedule(static)
        for (int64_t s = 0; s < sequences; s++) {
            const bf16 *shift = m->shift + s * m->stride, *scale = m->scale + s * m->stride;
            const bf16 *gate = m->gate ? m->gate + s * m->gate_stride : NULL;
            float *d_shift = m->d_shift + s * m->d_stride, *d_scale = m->d_scale + s * m->d_stride;
            float *d_gate = m->gate ? m->d_gate + s * m->d_gate_stride : NULL;
            memset(d_shift, 0, width * sizeof *d_shift);
            memset(d_scale, 0, width * sizeof *d_scale);
            if (gate) memset(d_gate, 0, width * sizeof *d_gate);
            for (int64_t r = s * length; r < (s + 1) * length; r++) {
                bf16 *error = d_out + r * width;
                __m512 sum = zero, product = zero;
                for (int64_t i = 0; i < width; i += LANES) {
                    const __m512 e = load(error + i), h = load(hat + r * width + i);
                    const __m512 d = _mm512_mul_ps(e, _mm512_add_ps(one, load(scale + i)));
                    sum = _mm512_add_ps(sum, d);
                    product = _mm512_fmadd_ps(d, h, product);
                }
                const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / (float)width);
                const __m512 slope = _mm512_set1_ps(_mm512_reduce_add_ps(product) / (float)width);
                const __m512 factor = _mm512_set1_ps(factors[r]);
                for (int64_t i = 0; i < width; i += LANES) {
                    const __m512 e = load(error + i), h = load(hat + r * width + i);
                    const __m512 factors_of = _mm512_add_ps(one, load(scale + i));
                    _mm512_storeu_ps(d_shift + i, _mm512_add_ps(_mm512_loadu_ps(d_shift + i), e));
                    _mm512_storeu_ps(d_scale + i, _mm512_fmadd_ps(e, h, _mm512_loadu_ps(d_scale + i)));
                    const __m512 d = _mm512_fnmadd_ps(h, slope, _mm512_fmsub_ps(e, factors_of, mean));
                    float *to = dx + r * width + i;
                    const __m512 total = _mm512_fmadd_ps(d, factor, fresh ? zero : _mm512_loadu_ps(to));
                    _mm512_storeu_ps(to, total);
                    store(error + i, _mm512_fmadd_ps(h, factors_of, load(shift + i)));
                    if (gate) {
                        bf16 *other = added + r * width + i;
                        _mm512_storeu_ps(d_gate + i, _mm512_fmadd_ps(total, load(other), _mm512_loadu_ps(d_gate + i)));
                        store(other, _mm512_mul_ps(total, _mm512_add_ps(gate_one, load(gate + i))));
                    }
                }
            }
        }
        restore(before);
    }
}

/* Adds the sums of columns (rows, columns) to float32 `to`. */
void add_columns(const bf16 *from, int64_t rows, int64_t columns, float *to, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t c = 0; c < columns; c += PANEL) {
        const __mmask32 mask = first_of(columns - c);
        const __mmask16 half[2] = {(__mmask16)mask, (__mmask16)(mask >> LANES)};
        __m512 low = _mm512_maskz_loadu_ps(half[0], to + c), high = _mm512_maskz_loadu_ps(half[1], to + c + LANES);
        for (int64_t r = 0; r < rows; r++) {
            const __m512i row = _mm512_maskz_loadu_epi16(mask, from + r * columns + c);
            low = _mm512_add_ps(low, widen(_mm512_castsi512_si256(row)));
            high = _mm512_add_ps(high, widen(_mm512_extracti64x4_epi64(row, 1)));
        }
        _mm512_mask_storeu_ps(to + c, half[0], low);
        _mm512_mask_storeu_ps(to + c + LANES, half[1], high);
    }
}
