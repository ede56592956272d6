/* Two convolutions, each followed by 2 x 2 max pooling and ReLU, and weighted sums of images, with gradients; on one thread.

Compiled by kernels.py for one shape of images and filters. A general library computes in blocks of 8 or 16 channels, mostly
padding for images of three channels and layers of six filters. Here the lanes of a vector are full:

    layer 1: a lane is a pooled column of the image     layer 2: a lane is a filter

Pooling takes the largest of four sums. All four stay in registers, so maps before pooling never reach memory. One byte per
pooled value stores which of the four positions won, or -1 if ReLU set it to zero. Only winners have a gradient: for each, the
backward pass adds a window of the input to the filter's gradient, and the filter to a window of the input's gradient.

    table     [U][H][W][C]         pixels, uint8, or scaled images; image i of a call is row rows[i]
    pixels    [H0][W0][C]          a scaled image with its border of PAD zeros: a row of a window is contiguous (backward)
    planes    [C][H0][2][HALF]     the same, even and odd columns apart: the input of neighbouring lanes is contiguous
    map1      [M1H][M1W][F1]       pooled output of layer 1 with the border of layer 2; won1 [F1][P1H][P1W]
    features  [F2][P2H][P2W]       pooled output of layer 2; won2 likewise
    w1, w2    [F][K][K][channels]  filters, and their gradients
    rows      [F][K][V * L]        the same, with zeros after each row of a filter up to V vectors of L lanes
    blocks    [F2 / n][K][K][F1][n]  filters of layer 2, n = B2 * L next to each other as in the lanes

H0, W0: image with border; P1H, P2H, ...: pooled size; M1H, M1W: the same with the next border; HALF: columns of one parity,
rounded up so that vectors can be read; U: images in the table. Layer 1 sums channels, then rows, then columns; layer 2 rows,
columns, channels. The order of the terms of a gradient depends on the width of vectors. */
#include <stdint.h>
#include <string.h>
#define INLINE static inline __attribute__((always_inline))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define CEIL(a, b) (((a) + (b) - 1) / (b))
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 64")
#endif
/* Keeps a compiler from moving all loads of an unrolled loop to its beginning: there are not enough registers. */
#define IN_ORDER __asm__ volatile("" ::: "memory")

typedef REAL real; /* float or double */
typedef LANE lane; /* an integer of the same size */
#if WIDTH == 64 || defined(__aarch64__)
#define SUMS 24 /* registers for sums, of 32; the others hold inputs and filters */
#else
#define SUMS 12 /* the same, of 16 */
#endif
enum {
    L = WIDTH / sizeof(real), H0 = H + 2 * PAD, W0 = W + 2 * PAD, IMAGE = H * W * C,
    P1H = (H0 - K + 1) / 2, P1W = (W0 - K + 1) / 2, M1H = P1H + 2 * PAD, M1W = P1W + 2 * PAD,
    P2H = (M1H - K + 1) / 2, P2W = (M1W - K + 1) / 2,
    PIXELS = H0 * W0 * C, MAP1 = M1H * M1W * F1, WON1 = F1 * P1H * P1W, FEATURES = F2 * P2H * P2W,
    /* Layer 1: LC lanes (chosen by kernels.py, fewer for small images), B1 filters at a time. */
    LC = COLUMNS, JC = CEIL(P1W, LC), HALF = JC * LC + K / 2 + 1, B1 = MIN(F1, SUMS / 4),
    /* Layer 2: B2 vectors of filters and J2 pooled columns at a time. */
    B2 = MIN(CEIL(F2, L), 2), F2P = CEIL(F2, B2 * L) * B2 * L, J2 = MIN(P2W, SUMS / (4 * B2)),
    V1 = CEIL(K * C, L), V2 = CEIL(K * F1, L), SLACK = L /* a padded row can end after its map */, PARTS = 16
};
_Static_assert(2 * PAD < K, "the lists are as long as the first pooled map");
typedef real vec __attribute__((vector_size(WIDTH), aligned(sizeof(real)), may_alias));
typedef lane veci __attribute__((vector_size(WIDTH)));
typedef real col __attribute__((vector_size(LC * sizeof(real)), aligned(sizeof(real)), may_alias));
typedef lane coli __attribute__((vector_size(LC * sizeof(real))));
typedef int8_t col8 __attribute__((vector_size(LC)));

typedef struct {
    const void *table;
    const int64_t *rows;         /* NULL: row i is image i */
    const real *factor, *offset; /* [C]: pixels are scaled to pixel * factor - offset; NULL: the table is of scaled images */
} images;

/* Memory of one call. */
typedef struct {
    real factor[W * C], offset[W * C];
    real pixels[PIXELS + SLACK], planes[C][H0][2][HALF], map1[MAP1 + SLACK], dpixels[PIXELS + SLACK], dmap1[MAP1 + SLACK];
    real blocks[F2P * K * K * F1], bias2[F2P];
    real rows1[F1][K * V1 * L], rows2[F2][K * V2 * L], drows1[F1][K * V1 * L], drows2[F2][K * V2 * L];
    real g[P1H * P1W + PARTS];
    int at[P1H * P1W];
    int8_t won1[WON1], won2[FEATURES];
} space;

size_t space_bytes(void) { return sizeof(space); }
static void prepare(space *s, const images *in) {
    memset(s, 0, sizeof(space)); /* the borders stay zero */
    for (int t = 0; in->factor && t < W * C; t++) s->factor[t] = in->factor[t % C], s->offset[t] = in->offset[t % C];
}

static void read_pixels(space *s, const images *in, int64_t i) {
    const int64_t start = (in->rows ? in->rows[i] : i) * IMAGE;
    for (int y = 0; y < H; y++) {
        real *restrict to = s->pixels + ((y + PAD) * W0 + PAD) * C;
        if (in->factor) {
            const uint8_t *restrict from = (const uint8_t *)in->table + start + y * W * C;
            for (int t = 0; t < W * C; t++) to[t] = from[t] * s->factor[t] - s->offset[t];
        } else
            memcpy(to, (const real *)in->table + start + y * W * C, W * C * sizeof(real));
    }
}

static void pixels_to_planes(space *s) {
    for (int y = 0; y < H0; y++)
        for (int c = 0; c < C; c++)
            for (int odd = 0; odd < 2; odd++) {
                const real *restrict from = s->pixels + (y * W0 + odd) * C + c;
                real *restrict to = s->planes[c][y][odd];
                for (int x = 0; x < (W0 + 1 - odd) / 2; x++) to[x] = from[2 * x * C];
            }
}

/* ---- forward pass */

/* Replaces m and its position q by x if x is larger or not a number; the first of equal values wins, as in torch. Comparisons
   give masks, with all bits of a lane set where they are true. */
#define MAXIMUM(m, q, x, position, floats, ints) do { \
    const ints larger = ((x) > (m)) | ((x) != (x)); \
    m = (floats)(((ints)(x) & larger) | ((ints)(m) & ~larger)); \
    q = ((position) & larger) | (q & ~larger); } while (0)
/* Sets m to zero and q to -1 where m is not positive; values that are not numbers stay. */
#define RELU(m, q, floats, ints) do { \
    const ints off = (m) <= 0; \
    m = (floats)((ints)(m) & ~off); \
    q |= off; } while (0)

static void layer1(const space *s, const real *w, const real *bias, real *map, int8_t *won) {
    for (int i = 0; i < P1H; i++) {
        real pooled[F1][JC * LC];
        for (int j = 0; j < JC; j++)
            for (int f = 0; f < F1; f += B1) {
                const int f0 = MIN(f, F1 - B1); /* the last filters overlap with those before */
                col sum[B1][2][2];
                UNROLL for (int b = 0; b < B1; b++)
                    UNROLL for (int p = 0; p < 4; p++) sum[b][p >> 1][p & 1] = bias[f0 + b] - (col){0};
                for (int c = 0; c < C; c++)
                    for (int y = 0; y < K; y++)
                        UNROLL for (int x = 0; x < K; x++) {
                            IN_ORDER;
                            real wx[B1];
                            UNROLL for (int b = 0; b < B1; b++) wx[b] = w[(((f0 + b) * K + y) * K + x) * C + c];
                            UNROLL for (int p = 0; p < 4; p++) {
                                const int at = x + (p & 1);
                                const real *from = &s->planes[c][2 * i + y + (p >> 1)][at & 1][j * LC + (at >> 1)];
                                const col v = *(const col *)from;
                                UNROLL for (int b = 0; b < B1; b++) sum[b][p >> 1][p & 1] += v * wx[b];
                            }
                        }
                UNROLL for (int b = 0; b < B1; b++) {
                    col m = sum[b][0][0];
                    coli q = {0};
                    MAXIMUM(m, q, sum[b][0][1], 1, col, coli);
                    MAXIMUM(m, q, sum[b][1][0], 2, col, coli);
                    MAXIMUM(m, q, sum[b][1][1], 3, col, coli);
                    RELU(m, q, col, coli);
                    *(col *)&pooled[f0 + b][j * LC] = m;
                    const col8 narrow = __builtin_convertvector(q, col8);
                    memcpy(won + ((f0 + b) * P1H + i) * P1W + j * LC, &narrow, MIN(LC, P1W - j * LC));
                }
            }
        real *to = map + ((i + PAD) * M1W + PAD) * F1;
        for (int j = 0; j < P1W; j++)
            for (int f = 0; f < F1; f++) to[j * F1 + f] = pooled[f][j];
    }
}

static void layer2(const space *s, const real *map, real *features, int8_t *won) {
    for (int i = 0; i < P2H; i++)
        for (int f0 = 0; f0 < F2P; f0 += B2 * L)
            for (int j = 0; j < P2W; j += J2) {
                const int j0 = MIN(j, P2W - J2); /* the last columns overlap with those before */
                const real *w = s->blocks + f0 * K * K * F1;
                vec sum[2][2 * J2][B2];
                UNROLL for (int r = 0; r < 2; r++)
                    UNROLL for (int p = 0; p < 2 * J2; p++)
                        UNROLL for (int b = 0; b < B2; b++) sum[r][p][b] = *(const vec *)(s->bias2 + f0 + b * L);
                for (int y = 0; y < K; y++)
                    for (int x = 0; x < K; x++)
                        UNROLL for (int c = 0; c < F1; c++, w += B2 * L) {
                            IN_ORDER;
                            vec wc[B2];
                            UNROLL for (int b = 0; b < B2; b++) wc[b] = *(const vec *)(w + b * L);
                            UNROLL for (int r = 0; r < 2; r++) {
                                const real *from = map + ((2 * i + r + y) * M1W + 2 * j0 + x) * F1 + c;
                                UNROLL for (int p = 0; p < 2 * J2; p++)
                                    UNROLL for (int b = 0; b < B2; b++) sum[r][p][b] += wc[b] * from[p * F1];
                            }
                        }
                UNROLL for (int p = 0; p < J2; p++)
                    UNROLL for (int b = 0; b < B2; b++) {
                        vec m = sum[0][2 * p][b];
                        veci q = {0};
                        MAXIMUM(m, q, sum[0][2 * p + 1][b], 1, vec, veci);
                        MAXIMUM(m, q, sum[1][2 * p][b], 2, vec, veci);
                        MAXIMUM(m, q, sum[1][2 * p + 1][b], 3, vec, veci);
                        RELU(m, q, vec, veci);
                        for (int l = 0; l < MIN(L, F2 - f0 - b * L); l++) {
                            const int to = ((f0 + b * L + l) * P2H + i) * P2W + j0 + p;
                            features[to] = m[l];
                            won[to] = (int8_t)q[l];
                        }
                    }
            }
}

/* Computes the features of n images. map1, won1 and won2 are kept for a backward pass, or NULL. */
void convolve(space *s, const images *in, int64_t n, const real *w1, const real *b1, const real *w2, const real *b2,
              real *features, real *map1, int8_t *won1, int8_t *won2) {
    prepare(s, in);
    memcpy(s->bias2, b2, F2 * sizeof(real));
    for (int f = 0; f < F2; f++)
        for (int t = 0; t < K * K * F1; t++)
            s->blocks[(f / (B2 * L) * K * K * F1 + t) * B2 * L + f % (B2 * L)] = w2[f * K * K * F1 + t];
    for (int64_t i = 0; i < n; i++) {
        real *map = map1 ? map1 + i * MAP1 : s->map1;
        read_pixels(s, in, i);
        pixels_to_planes(s);
        if (PAD && map1) memset(map, 0, MAP1 * sizeof(real));
        layer1(s, w1, b1, map, won1 ? won1 + i * WON1 : s->won1);
        layer2(s, map, features + i * FEATURES, won2 ? won2 + i * FEATURES : s->won2);
    }
}

/* ---- backward pass */

/* Stores for each winner of a filter where its window begins in the layer's input (at) and its gradient (g); adds the
   gradients to that of the bias. Returns the number of winners.
   `line` and `step` are the distances of rows and columns in the layer's input, `g_line` and `g_step` in g. */
INLINE int list_winners(space *s, const int8_t *won, int height, int width, int line, int step, const real *g, int g_line,
                        int g_step, real *db) {
    const int moves[4] = {0, step, line, line + step};
    int n = 0;
    for (int i = 0; i < height; i++)
        for (int j = 0; j < width; j++) {
            /* Without a branch, which would be mispredicted half of the time. */
            const int q = won[i * width + j];
            s->at[n] = 2 * (i * line + j * step) + moves[q & 3];
            s->g[n] = g[i * g_line + j * g_step];
            n += q >= 0;
        }
    real sums[PARTS] = {0}; /* one sum would wait for each addition */
    memset(s->g + n, 0, sizeof sums);
    for (int k = 0; db && k < n; k += PARTS)
        for (int l = 0; l < PARTS; l++) sums[l] += s->g[k + l];
    for (int l = 0; db && l < PARTS; l++) *db += sums[l];
    return n;
}

/* Adds the gradients of a filter (dw) and of its layer's input (din) at n windows; each can be NULL. A filter has K rows of
   `vectors` vectors; as many vectors as there are registers for their sums are computed in one pass over the windows. */
INLINE void spread(const space *s, int n, int line, int vectors, const real *restrict in, real *restrict dw,
                   const real *restrict w, real *restrict din) {
    const int block = SUMS / (dw && din ? 2 : 1), all = K * vectors;
    UNROLL for (int u0 = 0; u0 < all; u0 += block) {
        vec sum[SUMS];
        if (dw) UNROLL for (int u = 0; u < block; u++) if (u0 + u < all) sum[u] = *(const vec *)(dw + (u0 + u) * L);
        for (int i = 0; i < n; i++) {
            /* Neighbouring windows overlap, and one right after the other would wait for its store: alternate between halves. */
            const int k = din ? (i & 1) * ((n + 1) / 2) + i / 2 : i;
            UNROLL for (int u = 0; u < block; u++)
                if (u0 + u < all) {
                    const int to = s->at[k] + (u0 + u) / vectors * line + (u0 + u) % vectors * L;
                    if (dw) sum[u] += *(const vec *)(in + to) * s->g[k];
                    if (din) *(vec *)(din + to) += *(const vec *)(w + (u0 + u) * L) * s->g[k];
                }
        }
        if (dw) UNROLL for (int u = 0; u < block; u++) if (u0 + u < all) *(vec *)(dw + (u0 + u) * L) = sum[u];
    }
}

INLINE void both_layers(space *s, const images *in, int64_t n, const real *g, const real *map1, const int8_t *won1,
                        const int8_t *won2, real *db1, real *db2, real *dx, int weights, int inputs) {
    for (int64_t i = 0; i < n; i++) {
        memset(s->dmap1, 0, sizeof s->dmap1);
        for (int f = 0; f < F2; f++) {
            const int64_t at = i * FEATURES + f * P2H * P2W;
            const int m = list_winners(s, won2 + at, P2H, P2W, M1W * F1, F1, g + at, P2W, 1, weights ? db2 + f : NULL);
            spread(s, m, M1W * F1, V2, map1 + i * MAP1, weights ? s->drows2[f] : NULL, s->rows2[f], s->dmap1);
        }
        if (weights) read_pixels(s, in, i);
        if (inputs) memset(s->dpixels, 0, sizeof s->dpixels);
        for (int f = 0; f < F1; f++) {
            const int m = list_winners(s, won1 + i * WON1 + f * P1H * P1W, P1H, P1W, W0 * C, C,
                                       s->dmap1 + (PAD * M1W + PAD) * F1 + f, M1W * F1, F1, weights ? db1 + f : NULL);
            spread(s, m, W0 * C, V1, s->pixels, weights ? s->drows1[f] : NULL, s->rows1[f], inputs ? s->dpixels : NULL);
        }
        for (int y = 0; inputs && y < H; y++)
            memcpy(dx + i * IMAGE + y * W * C, s->dpixels + ((y + PAD) * W0 + PAD) * C, W * C * sizeof(real));
    }
}

static void copy_rows(int n, int length, real *to, int to_line, const real *from, int from_line) {
    for (int r = 0; r < n; r++) memcpy(to + r * to_line, from + r * from_line, length * sizeof(real));
}

/* Computes gradients from g, the features' gradient: of the weights, summed over n images, into dw1 to db2 (db1 and db2 hold
   zeros before), and of scaled images into dx. Either dw1 to db2 or dx can be NULL. SLACK values after map1 are read, too. */
void convolve_backward(space *s, const images *in, int64_t n, const real *w1, const real *w2, const real *g, const real *map1,
                       const int8_t *won1, const int8_t *won2, real *dw1, real *db1, real *dw2, real *db2, real *dx) {
    prepare(s, in);
    copy_rows(F1 * K, K * C, s->rows1[0], V1 * L, w1, K * C);
    copy_rows(F2 * K, K * F1, s->rows2[0], V2 * L, w2, K * F1);
    if (dw1 && dx) both_layers(s, in, n, g, map1, won1, won2, db1, db2, dx, 1, 1);
    else if (dw1) both_layers(s, in, n, g, map1, won1, won2, db1, db2, NULL, 1, 0);
    else both_layers(s, in, n, g, map1, won1, won2, NULL, NULL, dx, 0, 1);
    if (!dw1) return;
    copy_rows(F1 * K, K * C, dw1, K * C, s->drows1[0], V1 * L);
    copy_rows(F2 * K, K * F1, dw2, K * F1, s->drows2[0], V2 * L);
}

/* ---- aggregates: weighted sums of `patches` images each, from pixels */

void aggregate(space *s, const images *in, int64_t n, int64_t patches, const real *alpha, real *aggregates) {
    prepare(s, in);
    for (int64_t i = 0; i < n; i++) {
        real *restrict sum = aggregates + i * IMAGE;
        real alphas = 0;
        memset(sum, 0, IMAGE * sizeof(real));
        for (int64_t p = i * patches; p < (i + 1) * patches; p++) {
            const uint8_t *restrict image = (const uint8_t *)in->table + in->rows[p] * IMAGE;
            for (int t = 0; t < IMAGE; t++) sum[t] += alpha[p] * image[t];
            alphas += alpha[p];
        }
        for (int y = 0; y < H; y++)
            for (int t = 0; t < W * C; t++) sum[y * W * C + t] = sum[y * W * C + t] * s->factor[t] - alphas * s->offset[t];
    }
}

/* Computes the gradient of attention weights from g, the aggregates' gradient: the products of g with scaled patches. */
void aggregate_backward(space *s, const images *in, int64_t n, int64_t patches, const real *g, real *dalpha) {
    prepare(s, in);
    for (int64_t i = 0; i < n; i++) {
        real constants[W * C], constant = 0;
        memset(constants, 0, sizeof constants);
        for (int y = 0; y < H; y++)
            for (int t = 0; t < W * C; t++) {
                s->dpixels[y * W * C + t] = g[i * IMAGE + y * W * C + t] * s->factor[t];
                constants[t] += g[i * IMAGE + y * W * C + t] * s->offset[t];
            }
        for (int t = 0; t < W * C; t++) constant += constants[t];
        for (int64_t p = i * patches; p < (i + 1) * patches; p++) {
            const uint8_t *restrict image = (const uint8_t *)in->table + in->rows[p] * IMAGE;
            real *restrict values = s->pixels, total = -constant;
            for (int t = 0; t < IMAGE; t++) values[t] = image[t];
            vec sums[4] = {{0}};
            int t = 0;
            for (; t + 4 * (int)L <= IMAGE; t += 4 * L)
                UNROLL for (int k = 0; k < 4; k++)
                    sums[k] += *(const vec *)(values + t + k * L) * *(const vec *)(s->dpixels + t + k * L);
            const vec sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
            for (int l = 0; l < (int)L; l++) total += sum[l];
            for (; t < IMAGE; t++) total += values[t] * s->dpixels[t];
            dalpha[p] = total;
        }
    }
}
