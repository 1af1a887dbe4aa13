/* What a frame of a planner's rollout is made of; see layers_avx512.c. */

#include "numbers.h"

typedef struct {
    const void *weights;    /* (panels, inputs / together, PANEL, together) */
    const float *bias;      /* (panels * PANEL) */
    const int32_t *offsets; /* of integers, as many: where sums begin, for the zero of the rows */
    const float *units;     /* of integers, as many: what 1 is of a column */
    int64_t inputs, panels;
} Linear;

typedef struct {
    Linear qkv, out, up, down;
    const void *ages; /* added to keys of that age; in units of the queries */
} Layer;

typedef struct {
    void *keys, *values; /* of all layers, episodes and candidates */
    int64_t length, age;
    int64_t key_stride[2], value_stride[2]; /* of episode and candidate, in numbers; 0 where candidates share */
    int64_t layer_keys, layer_values;       /* from layer to layer */
} Frame;

typedef struct {
    int64_t episodes, candidates, length, width, mlp, heads, layers, frames;
    int64_t from_candidates; /* of the input: 1 where they share it */
    float epsilon;
} Sizes;

/* Rows that go through a layer together: about `most` of them, in blocks of one size, a multiple of `tile`. */
static inline int64_t block_of(int64_t rows, int64_t most, int64_t tile) {
    int64_t blocks = (rows + most / 2) / most;
    if (blocks < 1) blocks = 1;
    return up((rows + blocks - 1) / blocks, tile);
}

/* Keys of all frames, each frame's filled up to a multiple of `lanes`. */
static inline int64_t room_of(const Frame *frames, int64_t count, int64_t lanes) {
    int64_t room = 0;
    for (int64_t f = 0; f < count; f++) room += up(frames[f].length, lanes);
    return room;
}

/* Where the input of a candidate, the `group`th of all, begins, in rows. */
static inline int64_t source_of(const Sizes *sizes, int64_t group) {
    const int64_t b = group / sizes->candidates, s = group % sizes->candidates;
    return (b * sizes->from_candidates + (sizes->from_candidates > 1 ? s : 0)) * sizes->length;
}

/* Where the keys or values of a layer, episode and candidate begin, in numbers. */
static inline int64_t keys_at(const Frame *frame, int64_t layer, int64_t b, int64_t s) {
    return layer * frame->layer_keys + b * frame->key_stride[0] + s * frame->key_stride[1];
}

static inline int64_t values_at(const Frame *frame, int64_t layer, int64_t b, int64_t s) {
    return layer * frame->layer_values + b * frame->value_stride[0] + s * frame->value_stride[1];
}
