/* The tiles of a matrix unit (AMX) in plain C: what is written for it runs on processors without one.
 *
 * Included before a kernel's own source. All tiles have sixteen rows of 64 bytes, as the kernels configure them. */

#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

static _Thread_local uint8_t emulated_tiles[8][16][64];

static inline float emulated_number(const uint8_t *at) {
    uint16_t half;
    memcpy(&half, at, sizeof half);
    uint32_t bits = (uint32_t)half << 16;
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

static inline void emulated_load(int tile, const void *from, int64_t stride) {
    for (int row = 0; row < 16; row++) memcpy(emulated_tiles[tile][row], (const uint8_t *)from + row * stride, 64);
}

static inline void emulated_store(int tile, void *to, int64_t stride) {
    for (int row = 0; row < 16; row++) memcpy((uint8_t *)to + row * stride, emulated_tiles[tile][row], 64);
}

/* sums (16, 16) += rows (16, 32) times columns, of which two numbers each lie side by side (16, 16, 2). */
static inline void emulated_product(int sums, int rows, int columns) {
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 16; n++) {
            float sum;
            memcpy(&sum, emulated_tiles[sums][m] + 4 * n, sizeof sum);
            for (int k = 0; k < 16; k++)
                for (int one = 0; one < 2; one++)
                    sum += emulated_number(emulated_tiles[rows][m] + 4 * k + 2 * one) *
                           emulated_number(emulated_tiles[columns][k] + 4 * n + 2 * one);
            memcpy(emulated_tiles[sums][m] + 4 * n, &sum, sizeof sum);
        }
}

#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) ((void)(config))
#define _tile_release() ((void)0)
#define _tile_zero(tile) memset(emulated_tiles[tile], 0, sizeof emulated_tiles[tile])
#define _tile_loadd(tile, from, stride) emulated_load(tile, from, stride)
#define _tile_stored(tile, to, stride) emulated_store(tile, to, stride)
#define _tile_dpbf16ps(sums, rows, columns) emulated_product(sums, rows, columns)
#define syscall(...) 0 /* nobody needs to lend a unit */
