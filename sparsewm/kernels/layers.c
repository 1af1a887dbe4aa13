/* A frame of a planner's rollout through all layers of the predictor, or pictures through those of an encoder, in
 * bfloat16, on processors with AVX512-BF16.
 *
 * A thread takes a few candidates through all layers, whose activations stay in its cache. What a product reads is
 * bfloat16, two numbers of a row (or two keys) side by side, as the processor multiplies them; what it adds up is
 * float32, and so are the tokens between layers, norms and exponents. A product ends in what comes after it: bias,
 * ReLU or GELU, or the gated sum with the tokens.
 *
 * Compiled with INTEGERS=1, linear layers multiply 8-bit integers instead (AVX512-VNNI), four at once: a row is
 * rounded to 255 steps of its largest number, a column of weights to 127 of its own. Attention stays as it is.
 *
 * Compiled with TILES=1, products are a matrix unit's (AMX), those of attention, too.
 *
 * Compiled at first use by sparsewm/kernels/layers.py.
 */

#include "layers_attention.h"

#if INTEGERS
typedef uint8_t factor; /* a number as linear layers read it */
enum { TOGETHER = 4 };  /* of them that are multiplied at once */
#else
typedef bf16 factor;
enum { TOGETHER = 2 };
#endif

/* Rows of a product, and rows that go through all layers together: more of them read weights less often, fewer stay
 * nearer. */
#if TILES
enum { BLOCK = 512, GROUP = 512 };
#else
enum { BLOCK = 128, GROUP = 256 };
#endif

typedef enum { NOTHING, RELU, GELU } Activation;

/* What becomes of a product: rows of bfloat16, or a part of the tokens by their gates. */
typedef struct {
    bf16 *rows;
    int64_t stride;
    Activation activation;
    float *tokens; /* where rows is NULL */
    const bf16 *gates;
    int64_t length, gate_stride, first; /* rows of a candidate, numbers from gate to gate, row of the tokens */
} Result;

/* Rows that linear layers read. */
typedef struct {
    factor *numbers;
    float *units; /* of integers: what 1 is, row by row */
} Rows;

#if INTEGERS && !TILES
/* Four products in every lane, added; as an instruction, for compilers copy the sums of the intrinsic to and fro. */
static inline void add_four(__m512i *sum, __m512i row, __m512i weights) {
#ifdef __AVX512VNNI__
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(row), "v"(weights));
#else /* emulated: scripts/trust/wide.h */
    *sum = _mm512_dpbusd_epi32(*sum, row, weights);
#endif
}
#endif

#if INTEGERS
/* Integers of 16 numbers, `unit` apart, from `zero` on. */
static inline void round_to(uint8_t *to, __m512 x, __m512 per_unit, __m512i zero) {
    const __m512i whole = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(x, per_unit)), zero);
    _mm_storeu_si128((__m128i *)to, _mm512_cvtusepi32_epi8(whole));
}

/* The numbers of a row as integers: 128 is zero, or where there are none below zero 0 is. */
static void quantize(const bf16 *row, int64_t width, int positive, const Rows *out, int64_t at) {
    __m512 most = _mm512_set1_ps(1e-30f);
    for (int64_t i = 0; i < width; i += LANES) most = _mm512_max_ps(most, _mm512_abs_ps(load(row + i)));
    const float unit = _mm512_reduce_max_ps(most) / (positive ? 255.0f : 127.0f);
    const __m512 per_unit = _mm512_set1_ps(1.0f / unit);
    const __m512i zero = _mm512_set1_epi32(positive ? 0 : 128);
    for (int64_t i = 0; i < width; i += LANES)
        round_to(out->numbers + at * width + i, load(row + i), per_unit, zero);
    out->units[at] = unit;
}
#endif

/* x by the normal distribution's share below it, exact to 3e-4 of its value. The share is exp(-x^2 / 2) times a
 * polynomial in 1 / (1 + 0.48 |x|), below zero; above it is what the other side leaves. */
INLINE __m512 gelu(__m512 x) {
    const __m512 size = _mm512_abs_ps(x);
    const __m512 u = _mm512_rcp14_ps(_mm512_fmadd_ps(size, _mm512_set1_ps(0.48f), _mm512_set1_ps(1.0f)));
    __m512 p = _mm512_set1_ps(-0.12085323f);
    p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(0.26534404f));
    p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(0.16142514f));
    p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(0.19413659f));
    const __m512 bell = exp2_of(_mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(-0.72134752f)));
    const __m512 share = _mm512_mul_ps(_mm512_mul_ps(p, u), bell);
    return _mm512_fnmadd_ps(size, share, _mm512_max_ps(x, _mm512_setzero_ps()));
}

/* What makes numbers of the sums of 32 columns. */
typedef struct {
    __m512 bias[2];
#if INTEGERS
    __m512 units[2];
    __m512i offsets[2];
#endif
} Columns;

INLINE Columns columns_of(const Linear *layer, int64_t column) {
    Columns found;
    for (int i = 0; i < 2; i++) {
        found.bias[i] = _mm512_loadu_ps(layer->bias + column + i * LANES);
#if INTEGERS
        found.units[i] = _mm512_loadu_ps(layer->units + column + i * LANES);
        found.offsets[i] = _mm512_loadu_si512(layer->offsets + column + i * LANES);
#endif
    }
    return found;
}

/* Sums of 16 columns of a row as numbers; unit: what 1 is in the row. */
INLINE __m512 number(const Columns *columns, int i, __m512i sums, float unit) {
#if INTEGERS
    const __m512 whole = _mm512_cvtepi32_ps(_mm512_add_epi32(sums, columns->offsets[i]));
    return _mm512_fmadd_ps(whole, _mm512_mul_ps(columns->units[i], _mm512_set1_ps(unit)), columns->bias[i]);
#else
    (void)unit;
    return _mm512_add_ps((__m512)sums, columns->bias[i]);
#endif
}

/* What becomes of 32 columns of a row. */
INLINE void write_row(bf16 *to, Activation activation, __m512 low, __m512 high) {
    if (activation == GELU) low = gelu(low), high = gelu(high);
    if (activation == RELU) {
        low = _mm512_max_ps(_mm512_setzero_ps(), low); /* what is no number stays none */
        high = _mm512_max_ps(_mm512_setzero_ps(), high);
    }
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

/* Sums of `count` rows, of 32 columns each, become numbers; the first `real` are kept. */
INLINE void conclude(const Linear *layer, const Rows *in, const __m512i (*sums)[2], int64_t row, int64_t column,
                     const Result *result, int count, int64_t real) {
    const Columns columns = columns_of(layer, column);
    const float *units = INTEGERS ? in->units + row : NULL;
    const int64_t stride = result->stride;
#define HALF(r, i) number(&columns, i, sums[r][i], INTEGERS ? units[r] : 1.0f)
    if (result->rows) {
        bf16 *to = result->rows + row * stride + column;
#define ALL(activation)                                                                                       \
    for (int r = 0; r < count && r < real; r++, to += stride) write_row(to, activation, HALF(r, 0), HALF(r, 1));
        if (result->activation == GELU) {
            ALL(GELU)
        } else if (result->activation == RELU) {
            ALL(RELU)
        } else {
            ALL(NOTHING)
        }
#undef ALL
        return;
    }
    const int64_t at = result->first + row, candidate = at / result->length;
    int64_t end = (candidate + 1) * result->length - at; /* rows of the same candidate */
    const bf16 *gates = result->gates + candidate * result->gate_stride + column;
    __m512 gate[2] = {load(gates), load(gates + LANES)};
    float *to = result->tokens + at * stride + column;
    for (int r = 0; r < count && r < real; r++, to += stride) {
        if (r == end) {
            gates += result->gate_stride, end += result->length;
            gate[0] = load(gates), gate[1] = load(gates + LANES);
        }
        for (int i = 0; i < 2; i++)
            _mm512_storeu_ps(to + i * LANES, _mm512_fmadd_ps(gate[i], HALF(r, i), _mm512_loadu_ps(to + i * LANES)));
    }
#undef HALF
}

#if TILES
/* A block of up to 32 rows and 32 columns; the first `real` rows of it are kept. */
typedef struct {
    __m512i sums[PANEL][2];
    int64_t row, column, real;
    const Linear *layer;
    const Rows *in;
    const Result *result;
} Block;

INLINE void conclude_part(void *work, int64_t part) {
    const Block *block = work;
    const int64_t r = part * SOME;
    conclude(block->layer, block->in, block->sums + r, block->row + r, block->column, block->result, SOME,
             block->real - r);
}

/* Some rows through a linear layer; as many as fill a tile may be read. Rows that fill half of the first cache go
 * through all panels before the next ones. */
static void linear(const Linear *layer, const Rows *in, int64_t count, const Result *result) {
    enum { NEAR = 24 * 1024 };
    const int64_t stride = layer->inputs * sizeof(factor), steps = up(stride, LINE) / LINE;
    Block blocks[2];
    int which = 0;
    for (int i = 0; i < 2; i++)
        blocks[i].layer = layer, blocks[i].in = in, blocks[i].result = result, blocks[i].real = 0;
    int64_t together = NEAR / stride / PANEL * PANEL;
    if (together < PANEL) together = PANEL;
    for (int64_t first = 0; first < count; first += together)
        for (int64_t p = 0; p < layer->panels; p++)
            for (int64_t r = first; r < count && r < first + together; r += PANEL, which ^= 1) {
                Block *block = &blocks[which], *before = &blocks[!which];
                const char *panel = (const char *)layer->weights + p * steps * LINE * PANEL;
                const int64_t parts = (before->real + SOME - 1) / SOME;
                block->row = r, block->column = p * PANEL;
                block->real = count - r < PANEL ? count - r : PANEL;
                if (block->real > SIDE)
                    multiply_tiles((const char *)in->numbers + r * stride, stride, panel, steps, 1, block->sums,
                                   conclude_part, before, parts);
                else
                    multiply_tiles((const char *)in->numbers + r * stride, stride, panel, steps, 0, block->sums,
                                   conclude_part, before, parts);
            }
    for (int64_t part = 0; part * SOME < blocks[!which].real; part++) conclude_part(&blocks[!which], part);
}
#else
/* Some rows against one panel of 32 columns; the first `real` of them are kept. A part of the next panel is fetched
 * meanwhile, `step` bytes for every 32 bits of a row from `ahead` on. */
INLINE void multiply(const Linear *layer, const Rows *in, int64_t row, int64_t column, const char *ahead, int64_t step,
                     const Result *result, int count, int64_t real) {
    const int64_t inputs = layer->inputs;
    const factor *rows = in->numbers + row * inputs, *panel = (const factor *)layer->weights + column * inputs;
    __m512i sums[TILE][2];
    for (int r = 0; r < count; r++) sums[r][0] = sums[r][1] = _mm512_setzero_si512();
    for (int64_t k = 0; k < inputs; k += TOGETHER, ahead += step, panel += TOGETHER * PANEL) {
        const __m512i w0 = _mm512_loadu_si512(panel), w1 = _mm512_loadu_si512((const char *)panel + LINE);
        _mm_prefetch(ahead, _MM_HINT_T1);
        for (int r = 0; r < count; r++) {
            const __m512i a = all_lanes(rows + r * inputs + k);
#if INTEGERS
            add_four(&sums[r][0], a, w0);
            add_four(&sums[r][1], a, w1);
#else
            sums[r][0] = (__m512i)_mm512_dpbf16_ps((__m512)sums[r][0], (__m512bh)a, (__m512bh)w0);
            sums[r][1] = (__m512i)_mm512_dpbf16_ps((__m512)sums[r][1], (__m512bh)a, (__m512bh)w1);
#endif
        }
    }
    conclude(layer, in, sums, row, column, result, count, real);
}

/* Some rows through a linear layer; three more than there are may be read. */
static __attribute__((noinline)) void linear(const Linear *layer, const Rows *rows, int64_t count,
                                             const Result *result) {
    const char *weights = layer->weights;
    const int64_t words = layer->inputs / TOGETHER, step = 2 * LINE * TILE / count + 1;
    for (int64_t p = 0; p < layer->panels; p++)
        for (int64_t r = 0; r < count; r += TILE) {
#define SOME(n)                                                                                               \
    multiply(layer, rows, r, p * PANEL, weights + (p + 1) * words * 2 * LINE + r / TILE * step * words, step, \
             result, n, count - r)
            CONSTANT(SOME, count - r)
#undef SOME
        }
}
#endif

/* `count` numbers of the input, from `at` on, as float32. */
static void enter(const void *from, int64_t at, int precise, float *x, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES)
        _mm512_storeu_ps(x + i, precise ? _mm512_loadu_ps((const float *)from + at + i)
                                        : load((const bf16 *)from + at + i));
}

/* shift + scale * layer norm of a row. */
static void normalize(const float *row, int64_t width, const bf16 *shift, const bf16 *scale, float epsilon,
                      bf16 *out) {
    const Moments of = moments(row, width, epsilon);
    for (int64_t i = 0; i < width; i += LANES)
        store(out + i, _mm512_fmadd_ps(normal(row + i, of), load(scale + i), load(shift + i)));
}

/* The same of the last norm, whose shift and scale are float32; out: the row `at`, float32 or bfloat16. */
static void finish(const float *row, int64_t width, const float *norm, float epsilon, int precise, void *out,
                   int64_t at) {
    const Moments of = moments(row, width, epsilon);
    for (int64_t i = 0; i < width; i += LANES) {
        const __m512 value =
            _mm512_fmadd_ps(normal(row + i, of), _mm512_loadu_ps(norm + width + i), _mm512_loadu_ps(norm + i));
        if (precise)
            _mm512_storeu_ps((float *)out + at * width + i, value);
        else
            store((bf16 *)out + at * width + i, value);
    }
}

/* All layers of one imagined frame, or of pictures.
 *
 * from: embedded tokens (episodes, from_candidates, length, width). modulation: (episodes * candidates or 1, layers, 6,
 * width): shift, scale and gate before attention, the same before the MLP, with the "1 +" of scales and gates. norm:
 * shift and scale (2, width) of the last layer norm, float32. frames: at most 16, the present one first, which is
 * written, or has no memory for keys and values; then what else is seen. out: normalized tokens (episodes, candidates,
 * length, width). `from` and `out` are float32 where `precise`, else bfloat16. Widths (all heads together are one) are
 * multiples of 32, a head's size of 2. Returns 0, or 1 when there is no memory.
 */
int advance(const void *from, const bf16 *modulation, const float *norm, const Layer *layers, const Frame *frames,
            const Sizes *sizes, void *out, int threads) {
    const int64_t width = sizes->width, length = sizes->length, mlp = sizes->mlp, d = sizes->head;
    const int64_t inner = sizes->heads * d, groups = sizes->episodes * sizes->candidates;
    const int64_t units = up(up(groups * length, GROUP) / GROUP, threads); /* as many for every thread */
    const int64_t together = (groups + units - 1) / units;
    const int64_t most = together * length, deep = 2 * BLOCK, step = sizes->modulation;
    const int64_t room = room_of(frames, sizes->frames, LANES), kept = frames->keys != NULL;
    int64_t wide = mlp > width ? mlp : width;
    if (inner > wide) wide = inner;
    /* tokens; then queries, keys and values; mixed values; rows of bfloat16; scores; weights; of integers a product's
     * input with its units; a head's keys and values that are not kept */
    const int64_t bytes[] = {4 * most * width,
                             6 * (most + ROWS) * inner,
                             2 * (most + ROWS) * inner,
                             2 * deep * width,
                             2 * deep * mlp,
                             4 * QUERIES * room,
                             2 * QUERIES * room,
                             INTEGERS * deep * wide,
                             INTEGERS * deep * 4,
                             kept ? 0 : 2 * head_keys(length, d),
                             kept ? 0 : 2 * head_values(length, d)};
    enum { PARTS = sizeof bytes / sizeof *bytes };
    int64_t whole = 0;
    for (int i = 0; i < PARTS; i++) whole += up(bytes[i], LINE);
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        const uint32_t before = flush_denormals();
        configure(0);
        uint8_t *memory = aligned_alloc(LINE, whole);
        if (!memory) {
#pragma omp atomic write
            failed = 1;
        }
        void *part[PARTS];
        uint8_t *next = memory;
        for (int i = 0; i < PARTS; i++) {
            part[i] = next;
            next += up(bytes[i], LINE);
        }
        float *x = part[0];
        bf16 *qkv = part[1], *mixed = part[2], *y = part[3], *hidden = part[4];
        Rows input = {part[7], part[8]}; /* of the product that is next */
        const Scratch scratch = {part[5], part[6], room};
#pragma omp for schedule(dynamic)
        for (int64_t first = 0; first < groups; first += together) {
            if (!memory) continue;
            const int64_t count = groups - first < together ? groups - first : together, rows = count * length;
            const int64_t block = block_of(rows, BLOCK, ROWS);
            for (int64_t g = 0; g < count; g++)
                enter(from, source_of(sizes, first + g) * width, sizes->precise, x + g * length * width,
                      length * width);
            for (int64_t l = 0; l < sizes->layers; l++) {
                const Layer *layer = layers + l;
                const bf16 *parts = modulation + first * step + l * 6 * width; /* of candidate `first` */
#define PART(row, which) (parts + (row) / length * step + (which) * width)
#if INTEGERS
#define READ(from, size, positive)                                                                            \
    for (int64_t r = 0; r < some; r++) quantize((from) + r * (size), size, positive, &input, r)
#else
#define READ(from, size, positive) input.numbers = (from)
#endif
                for (int64_t at = 0; at < rows; at += block) {
                    const int64_t some = rows - at < block ? rows - at : block;
                    for (int64_t r = 0; r < some; r++)
                        normalize(x + (at + r) * width, width, PART(at + r, 0), PART(at + r, 1), sizes->epsilon,
                                  y + r * width);
                    READ(y, width, 0);
                    linear(&layer->qkv, &input, some, &(Result){.rows = qkv + at * 3 * inner, .stride = 3 * inner});
                }
                configure(1);
                for (int64_t g = 0; g < count; g++) {
                    const bf16 *own = qkv + g * length * 3 * inner;
                    Head head = {l, (first + g) / sizes->candidates, (first + g) % sizes->candidates, 0, part[9],
                                 part[10], layer->ages};
                    for (; head.h < sizes->heads; head.h++) {
                        if (kept) {
                            head.keys = keys_of(frames, sizes, l, head.b, head.s, head.h);
                            head.values = values_of(frames, sizes, l, head.b, head.s, head.h);
                        }
                        remember(own, sizes, &head);
#if TILES
                        for (int64_t r = 0; r < length; r += QUERIES)
                            attend_some(own + r * 3 * inner + head.h * d, frames, sizes, &head, &scratch,
                                        mixed + (g * length + r) * inner + head.h * d, length - r);
#else
                        for (int64_t r = 0; r < length; r += TILE) {
#define SOME(n)                                                                                               \
    attend_some(own + r * 3 * inner + head.h * d, frames, sizes, &head, &scratch,                             \
                mixed + (g * length + r) * inner + head.h * d, n, length - r)
                            CONSTANT(SOME, length - r)
#undef SOME
                        }
#endif
                    }
                }
                configure(0);
                for (int64_t at = 0; at < rows; at += block) {
                    const int64_t some = rows - at < block ? rows - at : block;
                    Result sum = {.tokens = x, .stride = width, .length = length, .gate_stride = step, .first = at};
                    sum.gates = parts + 2 * width;
                    READ(mixed + at * inner, inner, 0);
                    linear(&layer->out, &input, some, &sum);
                    for (int64_t r = 0; r < some; r++)
                        normalize(x + (at + r) * width, width, PART(at + r, 3), PART(at + r, 4), sizes->epsilon,
                                  y + r * width);
                    READ(y, width, 0);
                    linear(&layer->up, &input, some,
                           &(Result){.rows = hidden, .stride = mlp, .activation = sizes->gelu ? GELU : RELU});
                    sum.gates = parts + 5 * width;
                    READ(hidden, mlp, !sizes->gelu);
                    linear(&layer->down, &input, some, &sum);
                }
#undef READ
#undef PART
            }
            for (int64_t r = 0; r < rows; r++)
                finish(x + r * width, width, norm, sizes->epsilon, sizes->precise, out, first * length + r);
        }
        free(memory);
        release();
        restore(before);
    }
    return failed;
}
