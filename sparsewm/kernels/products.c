/* The products of a training step in bfloat16, on processors with AVX512-BF16: a linear layer, the gradient of what it
 * read, and the gradient of its weights, which adds up in float32.
 *
 * Compiled with TILES=1, products of whole panels are a matrix unit's (AMX).
 *
 * Every number is summed in one order, however many threads there are.
 *
 * Compiled at first use by sparsewm/kernels/training.py.
 */

#include "panels.h"
#include "tiles.h"

enum { BLOCK = TILES ? 128 : 120, TOGETHER = 1024 }; /* rows of a product, and rows that a gradient packs at once */

/* 32 rows (or fewer) of a matrix, whose columns lie in pairs. */
static void pack_row_panel(const bf16 *from, int64_t rows, int64_t columns, bf16 *to) {
    for (int64_t c = 0; c < columns; c += PANEL, to += PANEL * PANEL)
        for (int half = 0; half < 2; half++) {
            __m512i part[LANES];
            bf16 some[LANES * PANEL];
            for (int i = 0; i < LANES; i++) {
                const int64_t r = half * LANES + i;
                part[i] = _mm512_maskz_loadu_epi16(r < rows ? first_of(columns - c) : 0, from + r * columns + c);
            }
            if (columns - c >= PANEL) {
                turn(part, to + half * PANEL, 2 * PANEL);
                continue;
            }
            turn(part, some, PANEL);
            for (int64_t k = 0; 2 * k < columns - c; k++)
                memcpy(to + half * PANEL + k * 2 * PANEL, some + k * PANEL, PANEL * sizeof(bf16));
        }
}

/* A matrix (rows, columns) in panels of 32 rows, whose columns lie in pairs: for products with its rows. */
void pack_rows(const bf16 *from, int64_t rows, int64_t columns, bf16 *to, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < rows; r += PANEL)
        pack_row_panel(from + r * columns, rows - r, columns, to + r * up(columns, 2));
}

/* The rows from `begin` to `end` of 32 columns, in pairs of rows. */
static void pack_panel(const bf16 *from, int64_t stride, int64_t begin, int64_t end, __mmask32 mask, bf16 *to) {
    enum { AHEAD = 128 }; /* rows that come in meanwhile */
    for (int64_t r = begin; r < end; r += 2, to += 2 * PANEL) {
        _mm_prefetch((const char *)(from + (r + AHEAD) * stride), _MM_HINT_T0);
        _mm_prefetch((const char *)(from + (r + AHEAD + 1) * stride), _MM_HINT_T0);
        interleave(_mm512_maskz_loadu_epi16(mask, from + r * stride),
                   _mm512_maskz_loadu_epi16(r + 1 < end ? mask : 0, from + (r + 1) * stride), to, PANEL);
    }
}

/* A matrix (rows, columns) in panels of 32 columns, whose rows lie in pairs: for products with its columns. */
void pack_columns(const bf16 *from, int64_t rows, int64_t columns, bf16 *to, int threads) {
    const int64_t panels = up(columns, PANEL) / PANEL;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t p = 0; p < panels; p++)
        pack_panel(from + p * PANEL, columns, 0, rows, first_of(columns - p * PANEL), to + p * up(rows, 2) * PANEL);
}

/* What becomes of a product. */
typedef struct {
    const float *bias; /* or NULL */
    int relu;
    const bf16 *mask; /* laid out as the rows: where it is 0 they become 0; or NULL */
    bf16 *rows;
    int64_t stride;
} Result;

/* 32 columns of a row become what they are to be. */
INLINE void conclude(const Result *result, int64_t row, int64_t column, __mmask32 mask, __m512 low, __m512 high) {
    const int64_t at = row * result->stride + column;
    __m512i out = (__m512i)_mm512_cvtne2ps_pbh(high, low);
    if (result->relu) { /* what is no number stays */
        const __m512i least = _mm512_set1_epi16((short)0xff80);
        const __mmask32 none = _mm512_cmp_epu16_mask(out, least, _MM_CMPINT_NLE);
        out = _mm512_maskz_mov_epi16(~_mm512_movepi16_mask(out) | none, out);
    }
    if (result->mask) {
        const __m512i there = _mm512_maskz_loadu_epi16(mask, result->mask + at);
        out = _mm512_maskz_mov_epi16(_mm512_test_epi16_mask(there, _mm512_set1_epi16(-1)), out);
    }
    _mm512_mask_storeu_epi16(result->rows + at, mask, out);
}

INLINE void multiply_some(const bf16 *in, int64_t in_stride, const bf16 *panel, int64_t steps, int64_t column,
                          __mmask32 mask, const Result *result, int64_t row, int count, int64_t real) {
    __m512 sums[TILE][2];
    for (int i = 0; i < 2; i++) {
        const __mmask16 half = (__mmask16)(mask >> (i * LANES));
        const __m512 bias = result->bias ? _mm512_maskz_loadu_ps(half, result->bias + column + i * LANES)
                                         : _mm512_setzero_ps();
        for (int r = 0; r < count; r++) sums[r][i] = bias;
    }
    for (int r = 0; r < count && r < real; r++) { /* lines that are written come in meanwhile */
        __builtin_prefetch(result->rows + (row + r) * result->stride + column, 1);
        if (result->mask) __builtin_prefetch(result->mask + (row + r) * result->stride + column);
    }
    add_products(sums, in + row * in_stride, in_stride, 2, panel, PANEL, 2 * PANEL, steps, count);
    for (int r = 0; r < count && r < real; r++) conclude(result, row + r, column, mask, sums[r][0], sums[r][1]);
}

#if TILES
/* 32 rows and columns, whose sums are stored; `real` rows of them: all, or none before the first block. */
typedef struct {
    float sums[PANEL][PANEL] __attribute__((aligned(LINE)));
    int64_t row, column, real;
    const Result *result;
    __mmask32 mask;
} Block;

INLINE void conclude_part(void *work, int64_t part) {
    const Block *block = work;
    const float *bias = block->result->bias ? block->result->bias + block->column : NULL;
    __m512 low = _mm512_setzero_ps(), high = low;
    if (bias) {
        low = _mm512_maskz_loadu_ps((__mmask16)block->mask, bias);
        high = _mm512_maskz_loadu_ps((__mmask16)(block->mask >> LANES), bias + LANES);
    }
    for (int64_t r = part * SOME; r < part * SOME + SOME; r++)
        conclude(block->result, block->row + r, block->column, block->mask,
                 _mm512_add_ps(_mm512_loadu_ps(block->sums[r]), low),
                 _mm512_add_ps(_mm512_loadu_ps(block->sums[r] + LANES), high));
}

/* Whole blocks of rows, from `begin` on, times some panels; inputs are whole tiles. The first row that is left. */
static int64_t multiply_blocks(const bf16 *in, int64_t begin, int64_t end, int64_t inputs, const bf16 *panels,
                               int64_t first, int64_t last, int64_t outputs, const Result *result) {
    Block blocks[2];
    int which = 0;
    blocks[0].result = blocks[1].result = result, blocks[0].real = blocks[1].real = 0;
    end -= (end - begin) % PANEL;
    for (int64_t p = first; p < last; p++)
        for (int64_t r = begin; r < end; r += PANEL, which ^= 1) {
            Block *block = &blocks[which], *before = &blocks[!which];
            block->row = r, block->column = p * PANEL, block->mask = first_of(outputs - p * PANEL);
            block->real = PANEL;
            multiply_tiles(in + r * inputs, inputs * sizeof(bf16), panels + p * inputs * PANEL, inputs / PANEL, 1,
                           block->sums, conclude_part, before, before->real / SOME);
        }
    for (int64_t part = 0; part * SOME < blocks[!which].real; part++) conclude_part(&blocks[!which], part);
    return end;
}
#endif

/* Rows times packed weights: (rows, inputs) -> (rows, outputs). Up to three rows more than there are may be read. */
void multiply(const bf16 *in, int64_t in_stride, int64_t rows, int64_t inputs, const bf16 *panels, int64_t outputs,
              const Result *result, int threads) {
    const int64_t steps = up(inputs, 2) / 2, wide = up(outputs, PANEL) / PANEL;
    const int64_t blocks = (rows + BLOCK - 1) / BLOCK;
    int64_t parts = (4 * threads + blocks - 1) / blocks; /* of the panels, where there are few rows */
    if (blocks >= 4 * threads || threads == 1) parts = 1;
    if (parts > wide) parts = wide;
#pragma omp parallel num_threads(threads)
    {
        const uint32_t before = flush_denormals();
        configure(0);
#pragma omp for schedule(static) collapse(2)
        for (int64_t b = 0; b < blocks; b++)
            for (int64_t part = 0; part < parts; part++) {
                const int64_t end = rows < (b + 1) * BLOCK ? rows : (b + 1) * BLOCK;
                int64_t begin = b * BLOCK;
#if TILES
                if (in_stride == inputs && inputs % PANEL == 0)
                    begin = multiply_blocks(in, begin, end, inputs, panels, part * wide / parts,
                                            (part + 1) * wide / parts, outputs, result);
#endif
                for (int64_t p = part * wide / parts; p < (part + 1) * wide / parts; p++)
                    for (int64_t r = begin; r < end; r += TILE) {
#define FEW(n)                                                                                               \
    multiply_some(in, in_stride, panels + p * steps * 2 * PANEL, steps, p *PANEL, first_of(outputs - p * PANEL), result, \
                  r, n, end - r)
                        CONSTANT(FEW, end - r)
#undef FEW
                    }
            }
        release();
        restore(before);
    }
}

enum { FAR = 128 }; /* rows whose lines stay in the cache while their columns are packed */

/* Twelve columns of some rows, in pairs of rows; their sums are added to `sums`. */
static void pack_tile(const bf16 *from, int64_t stride, int64_t rows, int64_t columns, bf16 *to, float *sums) {
    const __mmask16 mask = (__mmask16)first_of(columns < TILE ? columns : TILE), whole = (1u << TILE) - 1;
    __m512 total = sums ? _mm512_maskz_loadu_ps(mask, sums) : _mm512_setzero_ps();
    for (int64_t r = 0; r < rows; r += 2, to += 2 * TILE) {
        _mm_prefetch((const char *)(from + (r + FAR) * stride), _MM_HINT_T1);
        _mm_prefetch((const char *)(from + (r + FAR + 1) * stride), _MM_HINT_T1);
        const __m512i even = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from + r * stride));
        const __mmask16 next = r + 1 < rows ? mask : 0;
        const __m512i odd =
            _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(next, from + (r + 1) * stride)), 16);
        _mm512_mask_storeu_epi32(to, whole, _mm512_or_si512(even, odd));
        total = _mm512_add_ps(total, _mm512_add_ps(_mm512_castsi512_ps(_mm512_slli_epi32(even, 16)),
                                                   _mm512_castsi512_ps(odd)));
    }
    if (sums) _mm512_mask_storeu_ps(sums, mask, total);
}

#if TILES
/* 32 columns of some rows as tiles of 16 columns, 32 rows deep, whose rows are filled up with zeros; their sums are
 * added to `sums`. */
static void pack_turned(const bf16 *from, int64_t stride, int64_t rows, bf16 *to, float *sums) {
    const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
    __m512 low = sums ? _mm512_loadu_ps(sums) : _mm512_setzero_ps();
    __m512 high = sums ? _mm512_loadu_ps(sums + LANES) : _mm512_setzero_ps();
    for (int64_t r = 0; r < rows; r += PANEL, to += PANEL * PANEL) {
        __m512i part[2][LANES];
        for (int i = 0; i < LANES; i++) {
            const int64_t at = r + 2 * i;
            _mm_prefetch((const char *)(from + (at + FAR) * stride), _MM_HINT_T1);
            _mm_prefetch((const char *)(from + (at + FAR + 1) * stride), _MM_HINT_T1);
            bf16 pairs_of[2 * PANEL];
            interleave(_mm512_maskz_loadu_epi16(at < rows ? 0xffffffff : 0, from + at * stride),
                       _mm512_maskz_loadu_epi16(at + 1 < rows ? 0xffffffff : 0, from + (at + 1) * stride), pairs_of,
                       PANEL);
            part[0][i] = _mm512_loadu_si512(pairs_of), part[1][i] = _mm512_loadu_si512(pairs_of + PANEL);
            low = _mm512_dpbf16_ps(low, (__m512bh)part[0][i], ones);
            high = _mm512_dpbf16_ps(high, (__m512bh)part[1][i], ones);
        }
        turn(part[0], to, PANEL);
        turn(part[1], to + SIDE * PANEL, PANEL);
    }
    if (sums) {
        _mm512_storeu_ps(sums, low);
        _mm512_storeu_ps(sums + LANES, high);
    }
}

/* 32 rows and columns of weights += errors (tiles of `pack_turned`) times inputs (a panel), `steps` times 32 rows. */
INLINE void add_to(float *weights, int64_t inputs, const bf16 *errors, const bf16 *in, int64_t steps) {
    const int64_t stride = inputs * sizeof(float);
    _tile_loadd(0, weights, stride);
    _tile_loadd(1, weights + LANES, stride);
    _tile_loadd(2, weights + SIDE * inputs, stride);
    _tile_loadd(3, weights + SIDE * inputs + LANES, stride);
    for (int64_t k = 0; k < steps; k++, errors += PANEL * PANEL, in += PANEL * PANEL) {
        _tile_loadd(6, in, 2 * LINE);
        _tile_loadd(4, errors, LINE);
        ADD_TILES(0, 4, 6);
        _tile_loadd(7, in + PANEL, 2 * LINE);
        ADD_TILES(1, 4, 7);
        _tile_loadd(5, errors + SIDE * PANEL, LINE);
        ADD_TILES(2, 5, 6);
        ADD_TILES(3, 5, 7);
    }
    _tile_stored(0, weights, stride);
    _tile_stored(1, weights + LANES, stride);
    _tile_stored(2, weights + SIDE * inputs, stride);
    _tile_stored(3, weights + SIDE * inputs + LANES, stride);
}

/* `weigh` of whole panels. */
static void weigh_tiles(const bf16 *errors, int64_t error_stride, int64_t outputs, const bf16 *in, int64_t in_stride,
                        int64_t inputs, int64_t rows, float *weights, float *bias, bf16 *room, int threads) {
    enum { DEPTH = 512 }; /* rows at once: two panels of them stay in the first cache */
    const int64_t across = outputs / PANEL, panels = inputs / PANEL;
    bf16 *const in_room = room + DEPTH * outputs;
#pragma omp parallel num_threads(threads)
    {
        const uint32_t before = flush_denormals();
        configure(0);
        for (int64_t at = 0; at < rows; at += DEPTH) {
            const int64_t count = rows - at < DEPTH ? rows - at : DEPTH, deep = up(count, PANEL);
#pragma omp for schedule(static) nowait
            for (int64_t t = 0; t < across; t++)
                pack_turned(errors + at * error_stride + t * PANEL, error_stride, count, room + t * DEPTH * PANEL,
                            bias ? bias + t * PANEL : NULL);
#pragma omp for schedule(static)
            for (int64_t p = 0; p < panels; p++) {
                bf16 *to = in_room + p * DEPTH * PANEL;
                pack_panel(in + at * in_stride + p * PANEL, in_stride, 0, count, 0xffffffff, to);
                memset(to + up(count, 2) * PANEL, 0, (deep - up(count, 2)) * PANEL * sizeof(bf16));
            }
#pragma omp for schedule(static)
            for (int64_t unit = 0; unit < panels * across; unit++) {
                const int64_t p = unit / across, t = unit % across;
                add_to(weights + t * PANEL * inputs + p * PANEL, inputs, room + t * DEPTH * PANEL,
                       in_room + p * DEPTH * PANEL, deep / PANEL);
            }
        }
        release();
        restore(before);
    }
}
#endif

/* Adds errors^T x in to float32 weights (outputs, inputs), and the sums of errors to a bias, or NULL.
 *
 * errors: (rows, outputs). in: (rows, inputs). room: of TOGETHER * (outputs + 12 + inputs + 32) numbers. */
void weigh(const bf16 *errors, int64_t error_stride, int64_t outputs, const bf16 *in, int64_t in_stride,
           int64_t inputs, int64_t rows, float *weights, float *bias, bf16 *room, int threads) {
#if TILES
    if (outputs % PANEL == 0 && inputs % PANEL == 0) {
        weigh_tiles(errors, error_stride, outputs, in, in_stride, inputs, rows, weights, bias, room, threads);
        return;
    }
#endif
    const int64_t tiles = (outputs + TILE - 1) / TILE, panels = up(inputs, PANEL) / PANEL;
    const int64_t turns = (rows + TOGETHER - 1) / TOGETHER, most = up((rows + turns - 1) / turns, 2);
    bf16 *const in_room = room + tiles * TOGETHER * TILE;
#pragma omp parallel num_threads(threads)
    {
        const uint32_t before = flush_denormals();
        for (int64_t at = 0; at < rows; at += most) {
            const int64_t count = rows - at < most ? rows - at : most, steps = up(count, 2) / 2;
#pragma omp for schedule(static) nowait
            for (int64_t group = 0; group < (tiles + 7) / 8; group++)
                for (int64_t r = 0; r < count; r += FAR)
                    for (int64_t t = group * 8; t < group * 8 + 8 && t < tiles; t++)
                        pack_tile(errors + (at + r) * error_stride + t * TILE, error_stride,
                                  count - r < FAR ? count - r : FAR, outputs - t * TILE,
                                  room + t * TOGETHER * TILE + r * TILE, bias ? bias + t * TILE : NULL);
#pragma omp for schedule(static)
            for (int64_t p = 0; p < panels; p++)
                pack_panel(in + at * in_stride + p * PANEL, in_stride, 0, count, first_of(inputs - p * PANEL),
                           in_room + p * TOGETHER * PANEL);
#pragma omp for schedule(static)
            for (int64_t unit = 0; unit < panels * tiles; unit++) {
                const int64_t p = unit / tiles, t = unit % tiles;
                const __mmask32 mask = first_of(inputs - p * PANEL);
                const __mmask16 half[2] = {(__mmask16)mask, (__mmask16)(mask >> LANES)};
                const int64_t real = outputs - t * TILE < TILE ? outputs - t * TILE : TILE;
                float *to = weights + t * TILE * inputs + p * PANEL;
                __m512 sums[TILE][2];
                for (int r = 0; r < TILE; r++)
                    for (int i = 0; i < 2; i++)
                        sums[r][i] = _mm512_maskz_loadu_ps(r < real ? half[i] : 0, to + r * inputs + i * LANES);
                add_products(sums, room + t * TOGETHER * TILE, 2, 2 * TILE, in_room + p * TOGETHER * PANEL, PANEL,
                             2 * PANEL, steps, TILE);
                for (int r = 0; r < TILE; r++)
                    for (int i = 0; i < 2; i++)
                        _mm512_mask_storeu_ps(to + r * inputs + i * LANES, r < real ? half[i] : 0, sums[r][i]);
            }
        }
        restore(before);
    }
}

/* 32 sums times alpha, and beta times what lies at the same place of another matrix, or NULL. */
INLINE void add_other(const __m512 *sums, float alpha, const bf16 *other, float beta, int64_t at, bf16 *out) {
    const __m512 a = _mm512_set1_ps(alpha), b = _mm512_set1_ps(beta);
    __m512 low = sums[0], high = sums[1];
    if (other) {
        low = _mm512_fmadd_ps(a, low, _mm512_mul_ps(b, load(other + at)));
        high = _mm512_fmadd_ps(a, high, _mm512_mul_ps(b, load(other + at + LANES)));
    }
    _mm512_storeu_si512(out + at, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

/* alpha * (rows times packed columns) + beta * other, (rows, columns) like out, bfloat16; `upper`: a symmetric matrix,
 * of which numbers left of the diagonal's blocks are copied from the right. */
static void combine(const bf16 *in, int64_t rows, int64_t inputs, const bf16 *panels, int64_t columns, float alpha,
                    const bf16 *other, float beta, int upper, bf16 *out) {
    for (int64_t p = 0; p < columns; p += PANEL) {
        const int64_t end = upper ? p + PANEL : rows;
#if TILES
        for (int64_t r = 0; r < end; r += PANEL) {
            __m512 sums[PANEL][2];
            multiply_tiles(in + r * inputs, inputs * sizeof(bf16), panels + p * inputs, inputs / PANEL, 1, sums, NULL,
                           NULL, 0);
            for (int i = 0; i < PANEL; i++)
                add_other(sums[i], alpha, other, beta, (r + i) * columns + p, out);
        }
#else
        for (int64_t r = 0; r < end; r += TILE) {
            __m512 sums[TILE][2];
            for (int i = 0; i < TILE; i++) sums[i][0] = sums[i][1] = _mm512_setzero_ps();
#define FEW(n)                                                                                                \
    add_products(sums, in + r * inputs, inputs, 2, panels + p * inputs, PANEL, 2 * PANEL, inputs / 2, n);     \
    for (int i = 0; i < (n) && r + i < end; i++) add_other(sums[i], alpha, other, beta, (r + i) * columns + p, out);
            CONSTANT(FEW, end - r)
#undef FEW
        }
#endif
        for (int64_t r = 0; upper && r < p; r += LANES) { /* the block of these rows, turned */
            __m512i part[LANES];
            bf16 turned[LANES * PANEL];
            for (int i = 0; i < LANES; i++) part[i] = _mm512_loadu_si512(out + (r + i) * columns + p);
            turn(part, turned, PANEL);
            for (int i = 0; i < LANES; i++) {
                const __m512i pair = _mm512_loadu_si512(turned + i * PANEL);
                bf16 *to = out + (p + 2 * i) * columns + r;
                _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16(pair));
                _mm256_storeu_si256((__m256i *)(to + columns), _mm512_cvtepi32_epi16(_mm512_srli_epi32(pair, 16)));
            }
        }
    }
}

/* Newton-Schulz iterations of `count` matrices (rows, columns) of norm 1, in place: x becomes f[0] x + (f[1] g +
 * f[2] g g) x, where g is x x^T. Sizes are multiples of 32. Returns 0, or 1 when there is no memory. */
int orthogonalize(bf16 *matrices, int64_t count, int64_t rows, int64_t columns, const float *factors, int64_t turns,
                  int threads) {
    const int64_t whole = rows * columns, square = rows * rows;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        const uint32_t before = flush_denormals();
        configure(0);
        bf16 *panels = aligned_alloc(LINE, (2 * whole + 3 * square + 4 * columns) * sizeof(bf16));
        bf16 *gram = panels + whole, *gram_panels = gram + square, *powers = gram_panels + square;
        bf16 *copy = powers + square;
        if (!panels) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic)
        for (int64_t m = 0; m < count; m++) {
            bf16 *x = matrices + m * whole;
            for (int64_t turn = 0; panels && turn < turns; turn++) {
                memcpy(copy, x, whole * sizeof(bf16)); /* more than the last row is read */
                for (int64_t r = 0; r < rows; r += PANEL)
                    pack_row_panel(copy + r * columns, PANEL, columns, panels + r * columns);
                combine(copy, rows, columns, panels, rows, 1.0f, NULL, 0.0f, 1, gram);
                for (int64_t p = 0; p < rows; p += PANEL)
                    pack_panel(gram + p, rows, 0, rows, 0xffffffff, gram_panels + p * rows);
                combine(gram, rows, rows, gram_panels, rows, factors[2], gram, factors[1], 1, powers);
                for (int64_t p = 0; p < columns; p += PANEL)
                    pack_panel(copy + p, columns, 0, rows, 0xffffffff, panels + p * rows);
                combine(powers, rows, rows, panels, columns, 1.0f, copy, factors[0], 0, x);
            }
        }
        free(panels);
        release();
        restore(before);
    }
    return failed;
}
