/* The tiles of a matrix unit (AMX) in plain C: what is written for it runs on processors without one.
 *
 * Included before a kernel's own source. Tiles have as many rows and bytes as the kernel configures. */

#include <assert.h>
#include <immintrin.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

static _Thread_local uint8_t emulated_tiles[8][16][64];
static _Thread_local uint8_t emulated_rows[8], emulated_bytes[8];

/* Rows of each tile, and their bytes, as the configuration has them. */
static inline void emulated_configure(const void *config) {
    const uint8_t *from = config;
    for (int tile = 0; tile < 8; tile++) {
        emulated_bytes[tile] = from[16 + 2 * tile];
        emulated_rows[tile] = from[48 + tile];
    }
    memset(emulated_tiles, 0, sizeof emulated_tiles);
}

static inline float emulated_number(const uint8_t *at) {
    uint16_t half;
    memcpy(&half, at, sizeof half);
    uint32_t bits = (uint32_t)half << 16;
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

static inline void emulated_load(int tile, const void *from, int64_t stride) {
    for (int row = 0; row < emulated_rows[tile]; row++)
        memcpy(emulated_tiles[tile][row], (const uint8_t *)from + row * stride, emulated_bytes[tile]);
}

static inline void emulated_store(int tile, void *to, int64_t stride) {
    for (int row = 0; row < emulated_rows[tile]; row++)
        memcpy((uint8_t *)to + row * stride, emulated_tiles[tile][row], emulated_bytes[tile]);
}

/* sums (rows, columns) += rows (rows, 2 * depth) times columns, of which two numbers each lie side by side. */
static inline void emulated_product(int sums, int rows, int columns) {
    const int depth = emulated_bytes[rows] / 4, wide = emulated_bytes[sums] / 4;
    assert(emulated_rows[sums] && depth == emulated_rows[columns]);
    for (int m = 0; m < emulated_rows[sums]; m++) {
        float sum[16];
        memcpy(sum, emulated_tiles[sums][m], sizeof sum);
        for (int k = 0; k < depth; k++)
            for (int one = 0; one < 2; one++) {
                const float number = emulated_number(emulated_tiles[rows][m] + 4 * k + 2 * one);
                for (int n = 0; n < wide; n++)
                    sum[n] += number * emulated_number(emulated_tiles[columns][k] + 4 * n + 2 * one);
            }
        memcpy(emulated_tiles[sums][m], sum, sizeof sum);
    }
}

/* The same of integers, four each side by side: rows without sign, columns with one. */
static inline void emulated_whole_product(int sums, int rows, int columns) {
    const int depth = emulated_bytes[rows] / 4, wide = emulated_bytes[sums] / 4;
    assert(emulated_rows[sums] && depth == emulated_rows[columns]);
    for (int m = 0; m < emulated_rows[sums]; m++) {
        int32_t sum[16];
        memcpy(sum, emulated_tiles[sums][m], sizeof sum);
        for (int k = 0; k < depth; k++)
            for (int n = 0; n < wide; n++)
                for (int one = 0; one < 4; one++)
                    sum[n] += emulated_tiles[rows][m][4 * k + one] * (int8_t)emulated_tiles[columns][k][4 * n + one];
        memcpy(emulated_tiles[sums][m], sum, sizeof sum);
    }
}

#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_dpbusd
#define _tile_loadconfig(config) emulated_configure(config)
#define _tile_release() memset(emulated_rows, 0, sizeof emulated_rows)
#define _tile_zero(tile) memset(emulated_tiles[tile], 0, sizeof emulated_tiles[tile])
#define _tile_loadd(tile, from, stride) emulated_load(tile, from, stride)
#define _tile_stored(tile, to, stride) emulated_store(tile, to, stride)
#define _tile_dpbf16ps(sums, rows, columns) emulated_product(sums, rows, columns)
#define _tile_dpbusd(sums, rows, columns) emulated_whole_product(sums, rows, columns)
#define syscall(...) 0 /* nobody needs to lend a unit */
