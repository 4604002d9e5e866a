/* What stands before and after the matrix products of Winograd's convolution: winograd.py.

   Images lie in memory as (n, height, width, channels), tiles as (n, rows, columns, 36, channels), where rows and
   columns are a fourth of height and width, rounded up. A tile makes 4 x 4 pixels of 6 x 6; both transforms are the
   matrices of F(4 x 4, 3 x 3) in Lavin & Gray 2015 (arXiv 1509.09308, section 4.3), for 16 channels at a time.
   Channels are a multiple of 16. */

enum { TILE = 4, SEEN = 6, POINTS = SEEN * SEEN, LANES = 16 };

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static lanes loaded(const float *from) { return *(const lanes *)from; }

static void stored(float *to, lanes value) { *(lanes *)to = value; }

static long tiles_along(long side) { return (side + TILE - 1) / TILE; }

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
static void pixels(const lanes m[SEEN], lanes made[TILE]) {
  const lanes a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], e = m[3] - m[4];
  made[0] = m[0] + a + c;
  made[1] = b + 2.0f * e;
  made[2] = a + 4.0f * c;
  made[3] = b + 8.0f * e + m[5];
}

/* One tile's 6 x 6 pixels, from `top` and `left` on; 0 outside the image. */
static void tile_of(const float *image, float *points, long height, long width, long channels, long top, long left) {
  for (long channel = 0; channel < channels; channel += LANES) {
    lanes columns[SEEN][SEEN];
    for (int x = 0; x < SEEN; x++) {
      lanes column[SEEN], made[SEEN];
      for (int y = 0; y < SEEN; y++) {
        const long row = top + y, at = left + x;
        const int is_inside = row >= 0 && row < height && at >= 0 && at < width;
        column[y] = is_inside ? loaded(image + (row * width + at) * channels + channel) : (lanes){0};
      }
      seen(column, made);
      for (int y = 0; y < SEEN; y++) columns[y][x] = made[y];
    }
    for (int y = 0; y < SEEN; y++) {
      lanes made[SEEN];
      seen(columns[y], made);
      for (int x = 0; x < SEEN; x++) stored(points + (y * SEEN + x) * channels + channel, made[x]);
    }
  }
}

/* One tile's 4 x 4 pixels, those inside the image, from `top` and `left` on. */
static void pixels_of(const float *points, const float *bias, float *image, long height, long width, long channels,
                      long top, long left) {
  for (long channel = 0; channel < channels; channel += LANES) {
    const lanes added = bias ? loaded(bias + channel) : (lanes){0};
    lanes rows[TILE][SEEN];
    for (int x = 0; x < SEEN; x++) {
      lanes column[SEEN], made[TILE];
      for (int y = 0; y < SEEN; y++) column[y] = loaded(points + (y * SEEN + x) * channels + channel);
      pixels(column, made);
      for (int y = 0; y < TILE; y++) rows[y][x] = made[y];
    }
    for (int y = 0; y < TILE && top + y < height; y++) {
      lanes made[TILE];
      pixels(rows[y], made);
      for (int x = 0; x < TILE && left + x < width; x++)
        stored(image + ((top + y) * width + left + x) * channels + channel, made[x] + added);
    }
  }
}

/* Rows of tiles `first` to `end` of all images, one after the other, from their pixels; around an image are 0. */
void simhpc_tiles(const float *images, float *points, long first, long end, long height, long width, long channels) {
  const long rows = tiles_along(height), columns = tiles_along(width);
#pragma omp parallel for schedule(static)
  for (long i = first; i < end; i++)
    for (long j = 0; j < columns; j++)
      tile_of(images + i / rows * height * width * channels, points + ((i - first) * columns + j) * POINTS * channels,
              height, width, channels, i % rows * TILE - 1, j * TILE - 1);
}

/* The pixels of these rows of tiles; `bias` is one number for each channel, or null. */
void simhpc_pixels(const float *points, const float *bias, float *images, long first, long end, long height,
                   long width, long channels) {
  const long rows = tiles_along(height), columns = tiles_along(width);
#pragma omp parallel for schedule(static)
  for (long i = first; i < end; i++)
    for (long j = 0; j < columns; j++)
      pixels_of(points + ((i - first) * columns + j) * POINTS * channels, bias,
                images + i / rows * height * width * channels, height, width, channels, i % rows * TILE, j * TILE);
}
