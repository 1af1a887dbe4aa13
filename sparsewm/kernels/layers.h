/* What a frame of a planner's rollout is made of; see layers.c. */

#include "tiles.h"

#if TILES /* what keys and values are filled up to, and rows that are computed together at most */
enum { DEEP = 2 * LANES, KEYS = LANES, ROWS = PANEL, QUERIES = SIDE };
#else
enum { DEEP = 2, KEYS = 2, ROWS = TILE, QUERIES = TILE };
#endif

typedef struct {
    const void *weights;    /* (panels, inputs / together, PANEL, together); inputs fill whole tiles, where there are */
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
    bf16 *keys, *values; /* of all layers, episodes and candidates; NULL: not kept */
    int64_t length, age;
    int64_t key_stride[2], value_stride[2]; /* of episode and candidate, in numbers; 0 where candidates share */
    int64_t layer_keys, layer_values;       /* from layer to layer */
} Frame;

typedef struct {
    int64_t episodes, candidates, length, width, mlp, heads, head, layers, frames;
    int64_t from_candidates; /* of the input: 1 where they share it */
    int64_t modulation;      /* numbers from a candidate's to the next one's: 0 where they share it */
    int64_t gelu, precise;   /* the MLP has a GELU, no ReLU; input and output are float32 */
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

/* Numbers of a head's keys, and of its values, of one frame. */
static inline int64_t head_keys(int64_t length, int64_t d) {
    return up(length, LANES) * up(d, DEEP);
}

static inline int64_t head_values(int64_t length, int64_t d) {
    return up(length, KEYS) * up(d, LANES);
}

/* Where the keys or values of a layer, episode, candidate and head begin. */
static inline bf16 *keys_of(const Frame *frame, const Sizes *sizes, int64_t layer, int64_t b, int64_t s, int64_t h) {
    return frame->keys + layer * frame->layer_keys + b * frame->key_stride[0] + s * frame->key_stride[1] +
           h * head_keys(frame->length, sizes->head);
}

static inline bf16 *values_of(const Frame *frame, const Sizes *sizes, int64_t layer, int64_t b, int64_t s, int64_t h) {
    return frame->values + layer * frame->layer_values + b * frame->value_stride[0] + s * frame->value_stride[1] +
           h * head_values(frame->length, sizes->head);
}
