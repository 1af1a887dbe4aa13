/* Compiled at first use by sparsewm/kernels/denormals.py. */

#include "denormals.h"

/* On this thread and on those that help it, torch's: from now on, or no longer. */
void flush_threads(int threads, int on) {
#pragma omp parallel num_threads(threads)
    _mm_setcsr(on ? _mm_getcsr() | FLUSH : _mm_getcsr() & ~FLUSH);
}
