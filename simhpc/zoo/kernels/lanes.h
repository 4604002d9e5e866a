/* Vectors of as many numbers as a register of the processor holds: of longer ones compilers make slow code. */

#ifndef SIMHPC_LANES_H
#define SIMHPC_LANES_H

#if defined(__AVX512F__)
#include <immintrin.h>
enum { LANES = 16 };
#elif defined(__AVX__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int flags __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline lanes loaded(const float *from) { return *(const lanes *)from; }

static inline void stored(float *to, lanes value) { *(lanes *)to = value; }

/* Past the caches, which need not read first what will be overwritten. `to` is a multiple of 64 bytes. */
static inline void streamed(float *to, lanes value) {
#if defined(__AVX512F__)
  _mm512_stream_ps(to, (__m512)value);
#else
  stored(to, value);
#endif
}

/* Before another thread reads what was streamed. */
static inline void all_streamed(void) {
#if defined(__AVX512F__)
  _mm_sfence();
#endif
}

/* NaN stays, as it does in torch. */
static inline lanes relu(lanes value) { return (lanes)((flags)value & ~(value <= (lanes){0})); }

/* What of a gradient comes back through a ReLU that made `output`. */
static inline lanes let_through(lanes gradient, lanes output) {
  return (lanes)((flags)gradient & ~(output <= (lanes){0}));
}

#endif
