/* 1 x 1 convolutions, which are products of matrices whose rows are pixels: pointwise.py. */

#include <omp.h>
#include <stdlib.h>

#include "products.h"

/* Rows that a thread takes at a time stay in its cache, and from so many numbers on a row is copied to be there with
   its neighbours: a power of two apart, they would keep each other out. */
enum { BLOCK_BYTES = 1 << 19, COPIED = 1024 };

/* n x depth of `left` times depth x columns of `panels`, with what `products.h` has `after` it. `gate` is what a ReLU
   has made of which `left` is the gradient, or null; `gated` gets what comes back through it, unless it is null.
   Returns whether there was memory. */
int simhpc_pointwise(const float *left, const float *gate, float *gated, const float *panels, const float *bias,
                     const float *added, float *made, long n, long depth, long columns, long n_threads,
                     int is_relu, int is_streamed) {
  const int is_copied = gate || depth >= COPIED;
  const long stride = is_copied ? depth + LANES : depth, fitting = BLOCK_BYTES / (4 * depth) / ROWS * ROWS;
  const long block = fitting > ROWS ? fitting : ROWS;
  int is_done = 1;
#pragma omp parallel num_threads(n_threads) reduction(&& : is_done)
  {
    float *copy = is_copied ? aligned_alloc(4 * LANES, 4 * block * stride) : NULL;
    is_done = !is_copied || copy;
    /* Whole tiles for every thread. */
    const long tiles = (n + ROWS - 1) / ROWS, threads = omp_get_num_threads(), thread = omp_get_thread_num();
    const long begin = tiles * thread / threads * ROWS, until = tiles * (thread + 1) / threads * ROWS;
    const long end = until < n ? until : n;
    for (long first = begin; first < end && is_done; first += block) {
      const long rows = end - first < block ? end - first : block;
      const float *some = left + first * depth;
      if (copy) {
        for (long i = 0; i < rows; i++)
          for (long k = 0; k < depth; k += LANES) {
            const long at = (first + i) * depth + k;
            const lanes value = gate ? let_through(loaded(left + at), loaded(gate + at)) : loaded(left + at);
            stored(copy + i * stride + k, value);
            if (gated) streamed(gated + at, value);
          }
        some = copy;
      }
      const struct after after = {bias, added ? added + first * columns : NULL, is_relu, is_streamed};
      products(some, stride, rows, panels, depth, columns, made + first * columns, columns, after);
    }
    all_streamed();
    free(copy);
  }
  return is_done;
}

long simhpc_panel_width(void) { return WIDTH; }

long simhpc_rows(void) { return ROWS; }
