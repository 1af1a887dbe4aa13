/* Attention of a training step, forward and backward, on processors with AVX512-BF16: short sequences, whose scores
 * never leave the cache. What the way back needs of them is computed anew.
 *
 * Windows and heads are independent, so threads share them, and every number is summed in one order, however many
 * threads there are.
 *
 * Compiled at first use by sparsewm/kernels/training.py.
 */

#include "panels.h"

/* Of a rollout's queries, keys and values (frames, windows, length, 3, heads, d) and what attention gives of them
 * (frames, windows, length, heads, d): a frame sees itself and up to `history` - 1 frames before it. */
typedef struct {
    int64_t windows, length, heads, d, frames, history, begin, end; /* the frames from begin to end are computed */
} Shape;

/* One sequence and head. Matrices are filled up with zeros: heads to a multiple of 32, keys of it, queries of 12. */
typedef struct {
    int64_t length, keys, room, deep, rows; /* keys in sight; filled up, like a head and the queries */
    int64_t steps;                          /* pairs of numbers of a head */
    bf16 *query, *error, *key, *value;      /* (rows, deep), (room, deep) */
    bf16 *turned_keys, *turned_values;      /* (room / 16, deep / 2, 16, 2) */
    bf16 *paired_keys, *paired_values;      /* (room / 2, deep, 2) */
    bf16 *paired_queries, *paired_errors;   /* (rows / 2, deep, 2) */
    bf16 *weights;                          /* (12, room) */
    bf16 *paired_weights, *paired_slopes;   /* (rows / 2, room, 2) */
    float *scores;                          /* (2, 12, room) */
    float *d_keys, *d_values;               /* (room, deep) */
} Head;

/* Rows of a head, filled up; with a vector added to all, or NULL. Those of the next head, `ahead` numbers on, are
 * fetched meanwhile. */
static void take(bf16 *to, const bf16 *from, int64_t stride, int64_t count, int64_t d, int64_t deep,
                 const float *added, int64_t ahead) {
    for (int64_t r = 0; r < count; r++)
        for (int64_t k = 0; k < deep; k += PANEL) {
            _mm_prefetch((const char *)(from + r * stride + k + ahead), _MM_HINT_T0);
            __m512i row = _mm512_maskz_loadu_epi16(first_of(d - k), from + r * stride + k);
            if (added) {
                const __m512 low = _mm512_maskz_loadu_ps((__mmask16)first_of(d - k), added + k);
                const __m512 high = _mm512_maskz_loadu_ps((__mmask16)(first_of(d - k) >> LANES), added + k + LANES);
                row = (__m512i)_mm512_cvtne2ps_pbh(
                    _mm512_add_ps(widen(_mm512_extracti64x4_epi64(row, 1)), high),
                    _mm512_add_ps(widen(_mm512_castsi512_si256(row)), low));
            }
            _mm512_storeu_si512(to + r * deep + k, row);
        }
}

static void turn_rows(bf16 *to, const bf16 *from, int64_t rows, int64_t deep) {
    for (int64_t r = 0; r < rows; r += LANES, to += LANES * deep)
        for (int64_t k = 0; k < deep; k += PANEL) {
            __m512i part[LANES];
            for (int i = 0; i < LANES; i++) part[i] = _mm512_loadu_si512(from + (r + i) * deep + k);
            turn(part, to + k * LANES, PANEL);
        }
}

static void pair_rows(bf16 *to, const bf16 *from, int64_t rows, int64_t deep) {
    for (int64_t r = 0; r < rows; r += 2, from += 2 * deep)
        for (int64_t k = 0; k < deep; k += PANEL, to += 2 * PANEL)
            interleave(_mm512_loadu_si512(from + k), _mm512_loadu_si512(from + deep + k), to, PANEL);
}

/* How far it is from a head's row of `stride` numbers to the next head's, at the end of a window to the next one's. */
static int64_t next_head(const Shape *s, int64_t h, int64_t stride) {
    return h + 1 < s->heads ? s->d : s->length * stride - h * s->d;
}

/* Queries, keys and values of frame f; the keys of the youngest frame come first, with their ages. */
static void look(Head *head, const bf16 *qkv, const float *ages, const Shape *s, int64_t f, int64_t b, int64_t h) {
    const int64_t inner = s->heads * s->d, stride = 3 * inner, step = s->windows * s->length * stride;
    const int64_t seen = f + 1 < s->history ? f + 1 : s->history, ahead = next_head(s, h, stride);
    const bf16 *from = qkv + f * step + b * s->length * stride + h * s->d;
    head->keys = seen * s->length;
    head->room = up(head->keys, PANEL);
    take(head->query, from, stride, s->length, s->d, head->deep, NULL, ahead);
    for (int64_t j = 0; j < seen; j++, from -= step) {
        const int64_t at = j * s->length * head->deep;
        take(head->key + at, from + inner, stride, s->length, s->d, head->deep, ages + (j * s->heads + h) * s->d,
             ahead);
        take(head->value + at, from + 2 * inner, stride, s->length, s->d, head->deep, NULL, ahead);
    }
    const int64_t size = (head->room - head->keys) * head->deep * sizeof(bf16);
    memset(head->key + head->keys * head->deep, 0, size);
    memset(head->value + head->keys * head->deep, 0, size);
}

INLINE void score(const Head *head, const bf16 *rows, const bf16 *columns, int64_t block, __m512 (*sums)[2],
                  int count) {
    for (int r = 0; r < count; r++) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    add_products(sums, rows, head->deep, 2, columns + block * head->deep, LANES * head->deep, PANEL, head->steps,
                 count);
}

INLINE void attend_some(const Head *head, int64_t row, float scale, int64_t d, bf16 *out, int64_t stride,
                        float *levels, int count, int64_t real) {
    __m512 most[TILE], sums[TILE][2];
    float share[TILE];
    for (int r = 0; r < count; r++) most[r] = _mm512_set1_ps(-3.0e38f);
    for (int64_t block = 0; block < head->room; block += PANEL) {
        score(head, head->query + row * head->deep, head->turned_keys, block, sums, count);
        const __mmask32 there = first_of(head->keys - block);
        for (int r = 0; r < count; r++)
            for (int i = 0; i < 2; i++) {
                most[r] = _mm512_mask_max_ps(most[r], (__mmask16)(there >> (i * LANES)), most[r], sums[r][i]);
                _mm512_storeu_ps(head->scores + r * head->room + block + i * LANES, sums[r][i]);
            }
    }
    const __m512 unit = _mm512_set1_ps(scale);
    for (int r = 0; r < count; r++) {
        const float top = scale * _mm512_reduce_max_ps(most[r]);
        const __m512 level = _mm512_set1_ps(top);
        __m512 total = _mm512_setzero_ps();
        for (int64_t i = 0; i < head->room; i += LANES) {
            const __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(head->scores + r * head->room + i), unit, level);
            const __m512 weight = _mm512_maskz_mov_ps((__mmask16)first_of(head->keys - i), exp2_of(x));
            total = _mm512_add_ps(total, weight);
            store(head->weights + r * head->room + i, weight);
        }
        const float sum = _mm512_reduce_add_ps(total);
        share[r] = 1.0f / sum;
        if (r < real) levels[r] = top + log2f(sum);
    }
    for (int64_t k = 0; k < head->deep; k += PANEL) {
        for (int r = 0; r < count; r++) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
        add_products(sums, head->weights, head->room, 2, head->paired_values + 2 * k, PANEL, 2 * head->deep,
                     up(head->keys, 2) / 2, count);
        for (int r = 0; r < count && r < real; r++) {
            const __m512 by = _mm512_set1_ps(share[r]);
            _mm512_mask_storeu_epi16(
                out + r * stride + k, first_of(d - k),
                (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(sums[r][1], by), _mm512_mul_ps(sums[r][0], by)));
        }
    }
}

/* Room of a thread; NULL where there is none. */
static void *room_of(Head *head, const Shape *s, int back) {
    const int64_t rows = up(s->length, TILE), room = up(s->history * s->length, PANEL), deep = up(s->d, PANEL);
    const int64_t small = up(rows * deep * 2, LINE), large = up(room * deep * 2, LINE);
    const int64_t square = up((rows * room + 2 * TILE) * 2, LINE), slice = up((TILE * room + TILE) * 2, LINE);
    const int64_t whole = 4 * small + 6 * large + slice + 2 * square + 4 * slice + (back ? 4 : 0) * large;
    uint8_t *memory = aligned_alloc(LINE, whole), *at = memory;
    if (!memory) return NULL;
    memset(memory, 0, whole);
    head->length = s->length;
    head->rows = rows;
    head->deep = deep;
    head->steps = up(s->d, 2) / 2;
#define PART(name, size) head->name = (void *)at, at += (size)
    PART(query, small);
    PART(error, small);
    PART(paired_queries, small);
    PART(paired_errors, small);
    PART(key, large);
    PART(value, large);
    PART(turned_keys, large);
    PART(turned_values, large);
    PART(paired_keys, large);
    PART(paired_values, large);
    PART(weights, slice);
    PART(paired_weights, square);
    PART(paired_slopes, square);
    PART(scores, 4 * slice);
    PART(d_keys, 2 * large);
    PART(d_values, 2 * large);
#undef PART
    return memory;
}

/* Attention of some frames. ages: float32 (history, heads, d), added to keys. levels: log2 of the sum of a query's
 * weights (frames, windows, heads, length). Returns 0, or 1 when there is no memory. */
int attend(const bf16 *qkv, const float *ages, const Shape *s, bf16 *mixed, float *levels, int threads) {
    const int64_t inner = s->heads * s->d;
    const float scale = 1.44269504f / sqrtf((float)s->d);
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        const uint32_t before = flush_denormals();
        Head head;
        void *memory = room_of(&head, s, 0);
        if (!memory) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(static) collapse(2)
        for (int64_t b = 0; b < s->windows; b++)
            for (int64_t h = 0; h < s->heads; h++)
                for (int64_t f = s->begin; memory && f < s->end; f++) {
                    const int64_t sequence = f * s->windows + b;
                    look(&head, qkv, ages, s, f, b, h);
                    turn_rows(head.turned_keys, head.key, head.room, head.deep);
                    pair_rows(head.paired_values, head.value, up(head.keys, 2), head.deep);
                    for (int64_t r = 0; r < s->length; r += TILE) {
#define SOME(n)                                                                                               \
    attend_some(&head, r, scale, s->d, mixed + (sequence * s->length + r) * inner + h * s->d, inner,          \
                levels + (sequence * s->heads + h) * s->length + r, n, s->length - r)
                        CONSTANT(SOME, s->length - r)
#undef SOME
                    }
                }
        free(memory);
        restore(before);
    }
    return failed;
}

/* Pairs of two rows' numbers. */
INLINE void store_pairs(bf16 *to, __m512 even, __m512 odd) {
    const __m512i low = _mm512_cvtepu16_epi32(narrow(even)), high = _mm512_cvtepu16_epi32(narrow(odd));
    _mm512_storeu_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}

INLINE void return_some(const Head *head, int64_t row, float scale, int64_t d, const float *levels, bf16 *d_query,
                        int64_t stride, int count, int64_t real) {
    const __m512 unit = _mm512_set1_ps(scale), size = _mm512_set1_ps(scale * 0.69314718f);
    __m512 sums[TILE][2], means[TILE];
    for (int r = 0; r < count; r++) means[r] = _mm512_setzero_ps();
    for (int64_t block = 0; block < head->room; block += PANEL) {
        float *weights = head->scores + block, *errors = weights + TILE * head->room;
        score(head, head->query + row * head->deep, head->turned_keys, block, sums, count);
        for (int r = 0; r < count; r++)
            for (int i = 0; i < 2; i++) {
                const __m512 level = _mm512_set1_ps(r < real ? levels[r] : 1e30f);
                const __mmask16 there = (__mmask16)first_of(head->keys - block - i * LANES);
                const __m512 weight = exp2_of(_mm512_fmsub_ps(sums[r][i], unit, level));
                _mm512_storeu_ps(weights + r * head->room + i * LANES, _mm512_maskz_mov_ps(there, weight));
            }
        score(head, head->error + row * head->deep, head->turned_values, block, sums, count);
        for (int r = 0; r < count; r++)
            for (int i = 0; i < 2; i++) {
                const __m512 weight = _mm512_loadu_ps(weights + r * head->room + i * LANES);
                means[r] = _mm512_fmadd_ps(weight, sums[r][i], means[r]);
                _mm512_storeu_ps(errors + r * head->room + i * LANES, sums[r][i]);
            }
    }
    for (int r = 0; r < count; r += 2) {
        const float *weights = head->scores + r * head->room, *errors = weights + TILE * head->room;
        const __m512 mean[2] = {_mm512_set1_ps(_mm512_reduce_add_ps(means[r])),
                                _mm512_set1_ps(_mm512_reduce_add_ps(means[r + 1]))};
        for (int64_t i = 0; i < head->room; i += LANES) {
            const int64_t at = ((row + r) / 2 * head->room + i) * 2;
            __m512 weight[2], slope[2];
            for (int j = 0; j < 2; j++) {
                weight[j] = _mm512_loadu_ps(weights + j * head->room + i);
                const __m512 error = _mm512_sub_ps(_mm512_loadu_ps(errors + j * head->room + i), mean[j]);
                slope[j] = _mm512_mul_ps(_mm512_mul_ps(weight[j], size), error);
                store(head->weights + (r + j) * head->room + i, slope[j]);
            }
            store_pairs(head->paired_weights + at, weight[0], weight[1]);
            store_pairs(head->paired_slopes + at, slope[0], slope[1]);
        }
    }
    for (int64_t k = 0; k < head->deep; k += PANEL) {
        for (int r = 0; r < count; r++) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
        add_products(sums, head->weights, head->room, 2, head->paired_keys + 2 * k, PANEL, 2 * head->deep,
                     up(head->keys, 2) / 2, count);
        for (int r = 0; r < count && r < real; r++)
            _mm512_mask_storeu_epi16(d_query + r * stride + k, first_of(d - k),
                                     (__m512i)_mm512_cvtne2ps_pbh(sums[r][1], sums[r][0]));
    }
}

/* Some keys' gradients: sums over queries of weights with errors, or of slopes with queries. */
INLINE void gather_some(const Head *head, const bf16 *weights, const bf16 *rows, float *out, int64_t key, int count) {
    for (int64_t k = 0; k < head->deep; k += PANEL) {
        __m512 sums[TILE][2];
        for (int r = 0; r < count; r++) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
        add_products(sums, weights + 2 * key, 2, 2 * head->room, rows + 2 * k, PANEL, 2 * head->deep,
                     up(head->length, 2) / 2, count);
        for (int r = 0; r < count && key + r < head->keys; r++)
            for (int i = 0; i < 2; i++)
                _mm512_storeu_ps(out + (key + r) * head->deep + k + i * LANES, sums[r][i]);
    }
}

/* A gradient of keys or values of a frame to where it belongs: added to what later frames gave so far where that is
 * `known`, and rounded into `out`. What the next head is to add to is fetched meanwhile, `ahead` numbers on. */
static void hand_on(const float *from, int64_t deep, int64_t d, int64_t length, const bf16 *known, int64_t stride,
                    int64_t ahead, bf16 *out, int64_t out_stride) {
    for (int64_t r = 0; r < length; r++, from += deep, known += known ? stride : 0, out += out_stride)
        for (int64_t k = 0; k < d; k += LANES) {
            const __mmask16 mask = (__mmask16)first_of(d - k < LANES ? d - k : LANES);
            __m512 value = _mm512_loadu_ps(from + k);
            if (known) {
                value = _mm512_add_ps(value, widen(_mm256_maskz_loadu_epi16(mask, known + k)));
                _mm_prefetch((const char *)(known + k + ahead), _MM_HINT_T0);
            }
            _mm256_mask_storeu_epi16(out + k, mask, narrow(value));
        }
}

/* The sum of rows, added to a vector. */
static void add_rows(const float *from, int64_t deep, int64_t d, int64_t length, float *to) {
    for (int64_t k = 0; k < d; k += LANES) {
        const __mmask16 mask = (__mmask16)first_of(d - k < LANES ? d - k : LANES);
        __m512 sum = _mm512_maskz_loadu_ps(mask, to + k);
        for (int64_t r = 0; r < length; r++) sum = _mm512_add_ps(sum, _mm512_loadu_ps(from + r * deep + k));
        _mm512_mask_storeu_ps(to + k, mask, sum);
    }
}

/* Gradients of queries, keys and values, frames from the last to the first, and of ages.
 *
 * levels: as `attend` gave them. error: gradient of what it mixed, of the frames from begin to end alone, like d_qkv.
 * pending: (history, windows, length, 2, heads, d), what later frames gave to keys and values so far. d_ages: float32
 * (windows, history, heads, d), added to. Returns 0, or 1 when there is no memory. */
int attend_back(const bf16 *qkv, const float *ages, const Shape *s, const float *levels, const bf16 *error,
                bf16 *d_qkv, bf16 *pending, float *d_ages, int threads) {
    const int64_t inner = s->heads * s->d, length = s->length;
    const float scale = 1.44269504f / sqrtf((float)s->d);
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        const uint32_t before = flush_denormals();
        Head head;
        void *memory = room_of(&head, s, 1);
        if (!memory) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(static) collapse(2)
        for (int64_t b = 0; b < s->windows; b++)
            for (int64_t h = 0; h < s->heads; h++)
                for (int64_t f = s->end - 1; memory && f >= s->begin; f--) {
                    const int64_t sequence = f * s->windows + b, here = (sequence - s->begin * s->windows) * length;
                    const float *level = levels + (sequence * s->heads + h) * length;
                    bf16 *to = d_qkv + here * 3 * inner + h * s->d;
                    look(&head, qkv, ages, s, f, b, h);
                    take(head.error, error + here * inner + h * s->d, inner, length, s->d, head.deep, NULL,
                         next_head(s, h, inner));
                    turn_rows(head.turned_keys, head.key, head.room, head.deep);
                    turn_rows(head.turned_values, head.value, head.room, head.deep);
                    pair_rows(head.paired_keys, head.key, up(head.keys, 2), head.deep);
                    pair_rows(head.paired_queries, head.query, up(length, 2), head.deep);
                    pair_rows(head.paired_errors, head.error, up(length, 2), head.deep);
                    for (int64_t r = 0; r < length; r += TILE) {
#define SOME(n)                                                                                               \
    return_some(&head, r, scale, s->d, level + r, to + r * 3 * inner, 3 * inner, n, length - r)
                        CONSTANT(SOME, length - r)
#undef SOME
                    }
                    for (int64_t k = 0; k < head.keys; k += TILE) {
#define SOME(n)                                                                                               \
    gather_some(&head, head.paired_slopes, head.paired_queries, head.d_keys, k, n);                           \
    gather_some(&head, head.paired_weights, head.paired_errors, head.d_values, k, n)
                        CONSTANT(SOME, head.keys - k)
#undef SOME
                    }
                    for (int64_t j = 0; j * length < head.keys; j++) { /* frames, from the youngest on */
                        const float *d_key = head.d_keys + j * length * head.deep;
                        const float *d_value = head.d_values + j * length * head.deep;
                        const int64_t stride = 2 * inner, ahead = next_head(s, h, stride);
                        bf16 *wait = pending + ((f - j) % s->history * s->windows + b) * length * stride + h * s->d;
                        const int known = j + 1 < s->history && f + 1 < s->frames; /* a later frame saw it, too */
                        add_rows(d_key, head.deep, s->d, length, d_ages + ((b * s->history + j) * s->heads + h) * s->d);
                        hand_on(d_key, head.deep, s->d, length, known ? wait : NULL, stride, ahead,
                                j ? wait : to + inner, j ? stride : 3 * inner);
                        hand_on(d_value, head.deep, s->d, length, known ? wait + inner : NULL, stride, ahead,
                                j ? wait + inner : to + 2 * inner, j ? stride : 3 * inner);
                    }
                }
        free(memory);
        restore(before);
    }
    return failed;
}
