/* Transposition and the products that need it, with vectors WIDE of WIDE_LANES elements. */

typedef INT NARROW(mask) __attribute__((vector_size(WIDE_LANES * sizeof(REAL))));

static inline void NARROW(turn_block)(REAL *out, int64_t out_stride, const REAL *in, int64_t in_stride) {
    WIDE a[WIDE_LANES], b[WIDE_LANES];
    UNROLL for (int i = 0; i < WIDE_LANES; i++) a[i] = *(const WIDE *)(in + i * in_stride);
    /* Interleaving row i with row i + half, once per bit of the lane number, transposes the block. */
    UNROLL for (int step = 1; step < WIDE_LANES; step *= 2) {
        UNROLL for (int i = 0; i < WIDE_LANES / 2; i++) {
            b[2 * i] = SHUFFLE(a[i], a[i + WIDE_LANES / 2], LANES_OF(LOW_, WIDE_LANES));
            b[2 * i + 1] = SHUFFLE(a[i], a[i + WIDE_LANES / 2], LANES_OF(HIGH_, WIDE_LANES));
        }
        UNROLL for (int i = 0; i < WIDE_LANES; i++) a[i] = b[i];
    }
    UNROLL for (int i = 0; i < WIDE_LANES; i++) *(WIDE *)(out + i * out_stride) = a[i];
}

static void NARROW(turn)(REAL *turned, const REAL *rows, int64_t channels, int64_t width) {
    const int64_t padded = (channels + WIDE_LANES - 1) / WIDE_LANES * WIDE_LANES;
    for (int64_t c = 0; c < padded; c += WIDE_LANES)
        for (int64_t b = 0; b < width; b += WIDE_LANES)
            NARROW(turn_block)(turned + b * padded + c, padded, rows + c * width + b, width);
}

/* out[e][c] (+)= sum over samples of x[e][b] turned[b][c]. */
static inline __attribute__((always_inline)) void NARROW(outer_tile)(
    const int rows, const int chains, REAL *const *out, const REAL *turned, const REAL *const *x, int64_t e, int64_t c,
    int64_t channels, int64_t padded, int64_t width, int add) {
    WIDE part[TILE][4], sum[TILE];
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < chains; j++) part[i][j] = (WIDE){0};
    for (int64_t b = 0; b < width; b += chains)
        UNROLL for (int j = 0; j < chains; j++) {
            const WIDE t = *(const WIDE *)(turned + (b + j) * padded + c);
            UNROLL for (int i = 0; i < rows; i++) part[i][j] += x[e + i][b + j] * t;
        }
    UNROLL for (int i = 0; i < rows; i++) {
        sum[i] = part[i][0];
        UNROLL for (int j = 1; j < chains; j++) sum[i] += part[i][j];
    }
    for (int i = 0; i < rows; i++) {
        REAL *target = out[e + i] + c;
        if (c + WIDE_LANES <= channels) {
            if (add) sum[i] += *(WIDE *)target;
            *(WIDE *)target = sum[i];
        } else
            for (int64_t j = 0; j < channels - c; j++) target[j] = sum[i][j] + (add ? target[j] : 0);
    }
}

static void NARROW(outer)(REAL *const *out, const REAL *turned, const REAL *const *x, int64_t n,
                          int64_t channels, int64_t width, int add) {
    const int64_t padded = (channels + WIDE_LANES - 1) / WIDE_LANES * WIDE_LANES;
    for (int64_t c = 0; c < padded; c += WIDE_LANES) {
        int64_t e = 0;
#define OUTER(rows, chains)                                                                               \
    for (; e + rows <= n; e += rows)                                                                      \
        NARROW(outer_tile)(rows, chains, out, turned, x, e, c, channels, padded, width, add);
        OUTER(TILE, 1)
        OUTER(4, 2)
        OUTER(2, 4)
        OUTER(1, 4)
#undef OUTER
    }
}

#undef WIDE
#undef WIDE_LANES
#undef NARROW
