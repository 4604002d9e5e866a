/* 3 x 3 convolutions by Winograd's algorithm: winograd.py.

   Images lie in memory as (n, height, width, channels), what stands for their pixels as (36, tiles, channels), with
   height / 4 times width / 4 tiles to an image, rounded up. A tile makes 4 x 4 pixels of 6 x 6; both transforms are the
   matrices of F(4 x 4, 3 x 3) in Lavin & Gray 2015 (arXiv 1509.09308, section 4.3). */

#include <omp.h>

#include "products.h"

enum { SIDE = 4, SEEN = 6, POINTS = SEEN * SEEN };

struct shape {
  long height, width, channels;
};

static long along(long side) { return (side + SIDE - 1) / SIDE; }

/* The matrix B' of the paper. */
static void seen(const lanes d[SEEN], lanes made[SEEN]) {
  const lanes a = d[4] - 4.0f * d[2], b = d[3] - 4.0f * d[1], c = d[4] - d[2], e = 2.0f * (d[3] - d[1]);
  made[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
  made[1] = a + b;
  made[2] = a - b;
  made[3] = c + e;
  made[4] = c - e;
  made[5] = 4.0f * d[1] - 5.0f * d[3] + d[5];
}

/* The matrix A' of the paper. */
static void pixels(const lanes m[SEEN], lanes made[SIDE]) {
  const lanes a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], e = m[3] - m[4];
  made[0] = m[0] + a + c;
  made[1] = b + 2.0f * e;
  made[2] = a + 4.0f * c;
  made[3] = b + 8.0f * e + m[5];
}

/* One tile's 6 x 6 pixels, from `top` and `left` on, 0 outside the image, to points that lie `apart` from each other;
   `gate` and `gated` as in pointwise.c. */
static void points_of(const float *image, const float *gate, float *gated, float *points, long apart,
                      struct shape shape, long top, long left) {
  const long channels = shape.channels;
  for (long channel = 0; channel < channels; channel += LANES) {
    lanes columns[SEEN][SEEN];
    for (int x = 0; x < SEEN; x++) {
      lanes column[SEEN], made[SEEN];
      for (int y = 0; y < SEEN; y++) {
        const long row = top + y, at = left + x, from = (row * shape.width + at) * channels + channel;
        if (row < 0 || row >= shape.height || at < 0 || at >= shape.width)
          column[y] = (lanes){0};
        else {
          column[y] = gate ? let_through(loaded(image + from), loaded(gate + from)) : loaded(image + from);
          /* In the middle of no other tile. */
          if (gated && x >= 1 && x <= SIDE && y >= 1 && y <= SIDE) streamed(gated + from, column[y]);
        }
      }
      seen(column, made);
      for (int y = 0; y < SEEN; y++) columns[y][x] = made[y];
    }
    for (int y = 0; y < SEEN; y++) {
      lanes made[SEEN];
      seen(columns[y], made);
      for (int x = 0; x < SEEN; x++) stored(points + (y * SEEN + x) * apart + channel, made[x]);
    }
  }
}

/* One tile's 4 x 4 pixels, those inside the image, from `top` and `left` on. */
static void pixels_of(const float *points, long apart, float *image, struct shape shape, long top, long left,
                      struct after after) {
  const long channels = shape.channels;
  for (long channel = 0; channel < channels; channel += LANES) {
    const lanes bias = after.bias ? loaded(after.bias + channel) : (lanes){0};
    lanes rows[SIDE][SEEN];
    for (int x = 0; x < SEEN; x++) {
      lanes column[SEEN], made[SIDE];
      for (int y = 0; y < SEEN; y++) column[y] = loaded(points + (y * SEEN + x) * apart + channel);
      pixels(column, made);
      for (int y = 0; y < SIDE; y++) rows[y][x] = made[y];
    }
    for (int y = 0; y < SIDE && top + y < shape.height; y++) {
      lanes made[SIDE];
      pixels(rows[y], made);
      for (int x = 0; x < SIDE && left + x < shape.width; x++) {
        const long to = ((top + y) * shape.width + left + x) * channels + channel;
        put(image + to, made[x] + bias, after.added ? after.added + to : NULL, after);
      }
    }
  }
}

struct job {
  const float *images, *gate, *filters, *bias, *added;
  float *gated, *made;
  struct shape in, out;
  long room; /* for tiles */
  int is_relu, is_streamed;
};

/* Tiles `first` to `end` of all images, not more than there is room for, of which `threads` do a part each, this one
   as number `thread`. */
static void turn(const struct job *job, float *points, float *products_of_points, long first, long end, long thread,
                 long threads) {
  const struct shape in = job->in, out = job->out;
  const long rows = along(in.height), columns = along(in.width), n = end - first;
  const struct after nothing = {NULL, NULL, 0, 0};
  for (long t = first + thread; t < end; t += threads) {
    const long from = t / columns / rows * in.height * in.width * in.channels;
    points_of(job->images + from, job->gate ? job->gate + from : NULL, job->gated ? job->gated + from : NULL,
              points + (t - first) * in.channels, job->room * in.channels, in, t / columns % rows * SIDE - 1,
              t % columns * SIDE - 1);
  }
  if (threads > 1) {
#pragma omp barrier
  }
  for (long p = thread; p < POINTS; p += threads)
    /* Fewer rows take longer; there is room for what is in the others. */
    products(points + p * job->room * in.channels, in.channels, n < ROWS ? ROWS : n,
             job->filters + p * in.channels * out.channels, in.channels, out.channels,
             products_of_points + p * job->room * out.channels, out.channels, nothing);
  if (threads > 1) {
#pragma omp barrier
  }
  for (long t = first + thread; t < end; t += threads) {
    const long to = t / columns / rows * out.height * out.width * out.channels;
    const struct after after = {job->bias, job->added ? job->added + to : NULL, job->is_relu, job->is_streamed};
    pixels_of(products_of_points + (t - first) * out.channels, job->room * out.channels, job->made + to, out,
              t / columns % rows * SIDE, t % columns * SIDE, after);
  }
}

/* n images through `filters`, which are panels (products.h) for each point. What is added has the shape of what is
   made; `gate`, `gated` and `is_streamed` as in pointwise.c. In `buffers` there is room for so many tiles, ROWS or
   more: for each thread's own, or if `is_shared` for those of all together. */
void simhpc_winograd(const float *images, const float *gate, float *gated, const float *filters, const float *bias,
                     const float *added, float *made, float *buffers, long n, long height, long width, long channels,
                     long out_channels, long room, long n_threads, int is_shared, int is_relu, int is_streamed) {
  const struct job job = {images, gate, filters, bias, added, gated, made, {height, width, channels},
                          {height, width, out_channels}, room, is_relu, is_streamed};
  const long tiles = n * along(height) * along(width), floats = POINTS * room * (channels + out_channels);
#pragma omp parallel num_threads(n_threads)
  {
    const long thread = omp_get_thread_num(), threads = omp_get_num_threads();
    float *points = buffers + (is_shared ? 0 : thread * floats), *products = points + POINTS * room * channels;
    const long begin = is_shared ? 0 : tiles * thread / threads;
    const long end = is_shared ? tiles : tiles * (thread + 1) / threads;
    for (long first = begin; first < end; first += room)
      turn(&job, points, products, first, end - first < room ? end : first + room, is_shared ? thread : 0,
           is_shared ? threads : 1);
    all_streamed();
  }
}
