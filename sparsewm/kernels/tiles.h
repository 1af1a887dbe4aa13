/* Products of bfloat16 rows, or of 8-bit integers, on a matrix unit (AMX): of 16 rows, and of 16 columns of which two
 * numbers (or four) lie side by side; sums stay in tiles 0 to 3. What becomes of sums is computed while the unit is at
 * the next ones. */

#ifndef SPARSEWM_TILES_H
#define SPARSEWM_TILES_H

#ifndef INTEGERS
#define INTEGERS 0
#endif
#ifndef TILES
#define TILES 0
#endif

#if TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "numbers.h"

enum { SIDE = 16 }; /* rows of a tile */

#if TILES

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} TileConfig;

/* All tiles are whole, or the last two of half the depth: what is multiplied by them are 16 rows of 32 bytes and 8 of
 * 64. */
static void configure(int half) {
    TileConfig config;
    memset(&config, 0, sizeof config);
    config.palette = 1;
    for (int tile = 0; tile < 8; tile++) {
        config.bytes[tile] = half && tile == 6 ? LINE / 2 : LINE;
        config.rows[tile] = half && tile == 7 ? SIDE / 2 : SIDE;
    }
    _tile_loadconfig(&config);
}

static void release(void) {
    _tile_release();
}

/* The system lets a process use tiles after this call. Returns 0 when it does. */
int request_tiles(void) {
    return (int)syscall(SYS_arch_prctl, 0x1023, 18);
}

#if INTEGERS
#define ADD_TILES _tile_dpbusd
#else
#define ADD_TILES _tile_dpbf16ps
#endif

/* Sums begin at zero. */
INLINE void clear_tiles(void) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

/* Up to four tiles of sums side by side, as many as `columns` need, in rows of `room` numbers. */
INLINE void store_tiles(float *to, int64_t room, int64_t columns) {
    _tile_stored(0, to, room * sizeof(float));
    if (columns > SIDE) _tile_stored(1, to + SIDE, room * sizeof(float));
    if (columns > 2 * SIDE) _tile_stored(2, to + 2 * SIDE, room * sizeof(float));
    if (columns > 3 * SIDE) _tile_stored(3, to + 3 * SIDE, room * sizeof(float));
}

enum { SOME = 4 }; /* rows that are concluded together */

/* A part of other work, the `part`th of it. */
typedef void Part(void *work, int64_t part);

/* Sums of the products of 16 rows, or 32 if `wide`, `stride` bytes apart, with a panel of 32 columns, `steps` times 64
 * bytes of a row; `parts` of other work are done meanwhile. sums: rows of 32 numbers of 32 bits. */
INLINE void multiply_tiles(const void *rows, int64_t stride, const void *panel, int64_t steps, int wide, void *sums,
                           Part *part, void *work, int64_t parts) {
    const char *a = rows, *b = panel;
    char *to = sums;
    int64_t done = 0;
    clear_tiles();
    for (int64_t k = 0; k < steps; k++, a += LINE, b += SIDE * 2 * LINE) {
        _tile_loadd(6, b, 2 * LINE);
        _tile_loadd(4, a, stride);
        ADD_TILES(0, 4, 6);
        _tile_loadd(7, b + LINE, 2 * LINE);
        ADD_TILES(1, 4, 7);
        if (wide) {
            _tile_loadd(5, a + SIDE * stride, stride);
            ADD_TILES(2, 5, 6);
            ADD_TILES(3, 5, 7);
        }
        for (; done < parts && done * SOME * steps <= k * PANEL; done++) part(work, done);
    }
    _tile_stored(0, to, 2 * LINE);
    _tile_stored(1, to + LINE, 2 * LINE);
    if (wide) {
        _tile_stored(2, to + SIDE * 2 * LINE, 2 * LINE);
        _tile_stored(3, to + SIDE * 2 * LINE + LINE, 2 * LINE);
    }
    for (; done < parts; done++) part(work, done);
}

#else

static inline void configure(int half) {
    (void)half;
}

static inline void release(void) {
}

#endif

#endif
