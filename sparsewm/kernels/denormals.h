/* Numbers so small that processors compute them many times as slowly (denormal ones) count as zero. */

#ifndef SPARSEWM_DENORMALS_H
#define SPARSEWM_DENORMALS_H

#include <immintrin.h>
#include <stdint.h>

enum { FLUSH = 0x8040 }; /* results (FTZ) and operands (DAZ) */

/* On this thread, from here to `restore`. */
static inline uint32_t flush_denormals(void) {
    const uint32_t before = _mm_getcsr();
    _mm_setcsr(before | FLUSH);
    return before;
}

static inline void restore(uint32_t before) {
    _mm_setcsr(before);
}

#endif
