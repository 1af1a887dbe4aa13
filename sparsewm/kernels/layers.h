/* What a frame of a planner's rollout is made of; see layers.c and layers_avx512.c. */

#include <stdint.h>

#define INLINE static inline __attribute__((always_inline)) /* row counts want to be constants */

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

static inline int64_t up(int64_t value, int64_t step) {
    return (value + step - 1) / step * step;
}

/* Where the keys or values of a layer, episode and candidate begin, in numbers. */
static inline int64_t keys_at(const Frame *frame, int64_t layer, int64_t b, int64_t s) {
    return layer * frame->layer_keys + b * frame->key_stride[0] + s * frame->key_stride[1];
}

static inline int64_t values_at(const Frame *frame, int64_t layer, int64_t b, int64_t s) {
    return layer * frame->layer_values + b * frame->value_stride[0] + s * frame->value_stride[1];
}
