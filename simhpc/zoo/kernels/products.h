/* Products of matrices, as one thread computes them.

   The left one lies in rows. The right one lies in panels of WIDTH columns, a panel's rows one after the other; where
   columns do not fill the last panel, it is LANES wide. A tile of ROWS rows and a panel's columns stays in registers
   until it is complete, and whatever follows the product is done there. */

#ifndef SIMHPC_PRODUCTS_H
#define SIMHPC_PRODUCTS_H

#include <stddef.h>

#include "lanes.h"

/* Of 32 registers, or 16. */
#if defined(__AVX512F__)
enum { ROWS = 10, VECTORS = 2 };
#elif defined(__aarch64__)
enum { ROWS = 6, VECTORS = 4 };
#else
enum { ROWS = 6, VECTORS = 2 };
#endif
enum { WIDTH = VECTORS * LANES };

/* What is added to a product, each null or of its columns, whether a ReLU follows, and whether it is large. */
struct after {
  const float *bias, *added;
  int is_relu, is_streamed;
};

/* Where `added` is what is added there, or null. */
static inline __attribute__((always_inline)) void put(float *to, lanes value, const float *added, struct after after) {
  if (added) value += loaded(added);
  if (after.is_relu) value = relu(value);
  if (after.is_streamed)
    streamed(to, value);
  else
    stored(to, value);
}

static inline __attribute__((always_inline)) void tile(const float *left, long stride, const float *next,
                                                       const float *panel, long depth, float *made, long made_stride,
                                                       struct after after, const int rows, const int vectors) {
  lanes sum[ROWS][VECTORS];
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) {
      sum[i][v] = (lanes){0};
      /* It is in memory, and wanted at the end. */
      if (after.added) __builtin_prefetch(after.added + i * made_stride + v * LANES);
    }
  for (long k = 0; k < depth; k++) {
    /* These are too many streams for the processor to see. */
    __builtin_prefetch(next + k * rows);
    lanes right[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) right[v] = loaded(panel + (k * vectors + v) * LANES);
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
      const float x = left[i * stride + k];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; v++) sum[i][v] += x * right[v];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) {
      const long at = i * made_stride + v * LANES;
      if (after.bias) sum[i][v] += loaded(after.bias + v * LANES);
      put(made + at, sum[i][v], after.added ? after.added + at : NULL, after);
    }
}

#define TILE(name, rows, vectors)                                                                                      \
  __attribute__((noinline)) static void name(const float *left, long stride, const float *next, const float *panel,   \
                                             long depth, float *made, long made_stride, struct after after) {          \
    tile(left, stride, next, panel, depth, made, made_stride, after, rows, vectors);                                   \
  }
TILE(tile_wide, ROWS, VECTORS)
TILE(tile_narrow, ROWS, 1)
TILE(row_wide, 1, VECTORS)
TILE(row_narrow, 1, 1)

/* `n` rows of `left`, `stride` numbers from one to the next, times depth x columns of `panels`; columns are a multiple
   of LANES. The last tile begins earlier where rows do not fill it: what it makes again is the same. */
static void products(const float *left, long stride, long n, const float *panels, long depth, long columns,
                     float *made, long made_stride, struct after after) {
  const long rows = n < ROWS ? 1 : ROWS;
  for (long j = 0; j < columns; j += WIDTH) {
    const int is_wide = columns - j >= WIDTH;
    for (long i = 0; i < n; i += rows) {
      const long row = i + rows <= n ? i : n - rows, to = row * made_stride + j;
      struct after here = after;
      here.bias = after.bias ? after.bias + j : NULL;
      here.added = after.added ? after.added + to : NULL;
      const float *from = left + row * stride, *panel = panels + j * depth;
      const float *next = row + 2 * rows <= n ? from + rows * stride : from;
      if (rows > 1)
        (is_wide ? tile_wide : tile_narrow)(from, stride, next, panel, depth, made + to, made_stride, here);
      else
        (is_wide ? row_wide : row_narrow)(from, stride, next, panel, depth, made + to, made_stride, here);
    }
  }
}

#endif
