/* One residual block, node by node. Included once per element type and instruction set, with

     REAL, INT     the element type and the integer of its size
     LANES, HALF   elements of one vector, a power of two, and half of it
     TILE          rows of a register tile
     NAME(x)       x with a suffix of its own
     IF_POSITIVE, AT_LEAST, SQRT, TERMS, EXP_...   as blocks.c and level.h explain

   A function node's values, C x (samples), fit into the first-level cache, so that everything between
   reading its incoming edges and writing its outgoing ones happens there. The backward pass computes
   them again instead of keeping them: reading them back from memory would take longer.

   `width` is the number of samples of a state row, padded to a multiple of 16; padding columns of a
   gradient are zero. */

typedef REAL NAME(vec) __attribute__((vector_size(LANES * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
typedef INT NAME(ivec) __attribute__((vector_size(LANES * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
#define vec NAME(vec)
#define ivec NAME(ivec)
#define AT(p) (*(vec *)(p))
#define CAT(p) (*(const vec *)(p))

typedef struct {
    REAL *unit, *active, *read, *grad, *turned, *inverse;
    const REAL **x, **w, **g;
    REAL **to;
    REAL *bias;
    void *memory;
} NAME(scratch);

static inline REAL NAME(total)(vec v) {
    REAL s[LANES];
    AT(s) = v;
    UNROLL for (int half = LANES / 2; half > 0; half /= 2) UNROLL for (int i = 0; i < half; i++) s[i] += s[i + half];
    return s[0];
}

/* Sum over the first n elements of a row of a (and of a * b). */
static REAL NAME(row_sum)(const REAL *a, int64_t n) {
    vec s = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) s += CAT(a + i);
    REAL t = NAME(total)(s);
    for (; i < n; i++) t += a[i];
    return t;
}

static REAL NAME(row_dot)(const REAL *a, const REAL *b, int64_t n) {
    vec s = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) s += CAT(a + i) * CAT(b + i);
    REAL t = NAME(total)(s);
    for (; i < n; i++) t += a[i] * b[i];
    return t;
}

/* exp(x) - 1 for x <= 0: 2^k (expm1(r) + 1) - 1 with x = k log 2 + r, which is exact near 0 too. */
static inline vec NAME(expm1)(vec x) {
    const vec low = (vec){0} + EXP_LOW;
    x = AT_LEAST(low, x);
    vec shifted = x * (REAL)1.44269504088896340736 + EXP_MAGIC;
    vec k = shifted - EXP_MAGIC;
    vec r = x - k * EXP_LN2_HIGH - k * EXP_LN2_LOW;
    const int last = sizeof(TERMS) / sizeof(TERMS[0]) - 1;
    vec p = (vec){0} + TERMS[last];
    UNROLL for (int i = last - 1; i >= 0; i--) p = p * r + TERMS[i];
    p = p * r * r + r;
    vec power = (vec)(((ivec)shifted << EXP_BITS) + EXP_ONE);
    return power * p + (power - 1);
}

static inline vec NAME(elu)(vec z) {
    const vec zero = {0};
    return IF_POSITIVE(z, z, NAME(expm1)(IF_POSITIVE(z, zero, z)));
}

/* out[c] = bias[c] + sum over edges of w[e][c] x[e]; a register tile of rows x vectors. */
static inline __attribute__((always_inline)) void NAME(gather_tile)(
    const int rows, const int vectors, REAL *out, int64_t stride, const REAL *bias, const REAL *const *w,
    const REAL *const *x, int64_t n, int64_t c, int64_t b) {
    vec sum[TILE][4];
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < vectors; j++)
        sum[i][j] = (vec){0} + (bias ? bias[c + i] : 0);
    for (int64_t e = 0; e < n; e++) {
        const REAL *we = w[e] + c, *xe = x[e] + b;
        vec v[4];
        UNROLL for (int j = 0; j < vectors; j++) v[j] = CAT(xe + j * LANES);
        UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < vectors; j++)
            sum[i][j] += we[i] * v[j];
    }
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < vectors; j++)
        AT(out + (c + i) * stride + b + j * LANES) = sum[i][j];
}

static void NAME(gather)(REAL *out, const REAL *bias, const REAL *const *w, const REAL *const *x, int64_t n,
                         int64_t channels, int64_t width) {
    /* Few rows take more vectors, so that enough sums are under way to hide the latency of one. */
#define GATHER(rows, vectors)                                                                             \
    for (; c + rows <= channels; c += rows) {                                                             \
        int64_t b = 0;                                                                                    \
        for (; b + vectors * LANES <= width; b += vectors * LANES)                                        \
            NAME(gather_tile)(rows, vectors, out, width, bias, w, x, n, c, b);                            \
        for (; b < width; b += LANES) NAME(gather_tile)(rows, 1, out, width, bias, w, x, n, c, b);        \
    }
    int64_t c = 0;
    GATHER(TILE, 2)
    GATHER(2, 4)
    GATHER(1, 4)
#undef GATHER
}

/* out[e] = bias[e] + gate * base[e] + sum over channels of w[e][c] h[c]. */
static inline __attribute__((always_inline)) void NAME(spread_tile)(
    const int rows, const int vectors, REAL *const *out, const REAL *const *base, REAL gate, const REAL *bias,
    const REAL *const *w, const REAL *h, int64_t channels, int64_t stride, int64_t e, int64_t b) {
    vec sum[TILE][4];
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < vectors; j++)
        sum[i][j] = (vec){0} + (bias ? bias[e + i] : 0);
    if (gate != 0) UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < vectors; j++)
        sum[i][j] += gate * CAT(base[e + i] + b + j * LANES);
    for (int64_t c = 0; c < channels; c++) {
        vec v[4];
        UNROLL for (int j = 0; j < vectors; j++) v[j] = CAT(h + c * stride + b + j * LANES);
        UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < vectors; j++)
            sum[i][j] += w[e + i][c] * v[j];
    }
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < vectors; j++)
        AT(out[e + i] + b + j * LANES) = sum[i][j];
}

static void NAME(spread)(REAL *const *out, const REAL *const *base, REAL gate, const REAL *bias,
                         const REAL *const *w, const REAL *h, int64_t n, int64_t channels, int64_t width) {
    int64_t e = 0;
#define SPREAD(rows, vectors)                                                                             \
    for (; e + rows <= n; e += rows) {                                                                    \
        int64_t b = 0;                                                                                    \
        for (; b + vectors * LANES <= width; b += vectors * LANES)                                        \
            NAME(spread_tile)(rows, vectors, out, base, gate, bias, w, h, channels, width, e, b);         \
        for (; b < width; b += LANES)                                                                     \
            NAME(spread_tile)(rows, 1, out, base, gate, bias, w, h, channels, width, e, b);               \
    }
    SPREAD(TILE, 2)
    SPREAD(4, 2)
    SPREAD(2, 4)
    SPREAD(1, 4)
#undef SPREAD
}

/* The gradient of the weights needs channels innermost: turned[b][c] = rows[c][b]. Channels are padded
   to the vectors it is done with, whole or half ones. */
#define WIDE vec
#define WIDE_LANES LANES
#define NARROW(x) NAME(x)
#include "turned.h"
typedef REAL NAME(half) __attribute__((vector_size(HALF * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
#define WIDE NAME(half)
#define WIDE_LANES HALF
#define NARROW(x) NAME(x##_half)
#include "turned.h"

static void NAME(weight_grads)(REAL *const *out, const REAL *rows, const REAL *const *x, REAL *turned,
                               int64_t n, int64_t channels, int64_t width, int add) {
    if (channels <= HALF) {
        NAME(turn_half)(turned, rows, channels, width);
        NAME(outer_half)(out, turned, x, n, channels, width, add);
    } else {
        NAME(turn)(turned, rows, channels, width);
        NAME(outer)(out, turned, x, n, channels, width, add);
    }
}

/* What the next node will read and write lies anywhere; asking for it early hides the way to memory. The
   state lies on huge pages. Weights may not, and processors drop a prefetch whose page they would have to
   look up; a load, whose value nothing waits for, is not dropped. */
static inline void NAME(touch)(const void *row) {
#if defined(__SANITIZE_THREAD__) /* another thread may be writing there; what is read is thrown away */
    (void)row;
#else
    (void)*(const volatile char *)row;
#endif
}

static inline void NAME(fetch_row)(const REAL *row, int64_t width) {
    for (int64_t b = 0; b < width; b += 64 / (int64_t)sizeof(REAL)) __builtin_prefetch(row + b);
}

static inline void NAME(fetch_in)(const plan_t *plan, const block_t *k, int64_t place, int64_t b0, int64_t width) {
    if (place >= plan->n_places) return;
    if (k->in_bias) NAME(touch)((const REAL *)k->in_bias + plan->node[place] * k->channels);
    for (int64_t e = plan->in_ptr[place]; e < plan->in_ptr[place + 1]; e++) {
        const int64_t weight = plan->in_weight[e] * k->channels;
        NAME(fetch_row)((const REAL *)k->state + plan->in_row[e] * k->width + b0, width);
        NAME(touch)((const REAL *)k->in_values + weight);
        if (k->in_values_grad) NAME(touch)((const REAL *)k->in_values_grad + weight);
    }
}

static inline void NAME(fetch_out)(const plan_t *plan, const block_t *k, int64_t place, int64_t b0, int64_t width) {
    if (place >= plan->n_places) return;
    const REAL *rows = k->result ? k->state : k->grad;
    for (int64_t e = plan->out_ptr[place]; e < plan->out_ptr[place + 1]; e++) {
        const int64_t weight = plan->out_weight[e] * k->channels;
        NAME(touch)((const REAL *)k->out_values + weight);
        if (k->out_values_grad) NAME(touch)((const REAL *)k->out_values_grad + weight);
        if (k->out_bias) NAME(touch)((const REAL *)k->out_bias + plan->out_edge[e]);
        NAME(fetch_row)(rows + plan->out_row[e] * k->width + b0, width);
    }
}

/* The node's channels, without what pads them, to or from (N, C, samples). */
static void NAME(put)(void *all, const REAL *rows, const block_t *k, int64_t node, int64_t b0, int64_t width) {
    const int64_t count = k->samples - b0 < width ? k->samples - b0 : width;
    REAL *to = (REAL *)all + node * k->channels * k->samples + b0;
    for (int64_t c = 0; c < k->channels; c++) memcpy(to + c * k->samples, rows + c * width, count * sizeof(REAL));
}

/* unit = (z - m) s, active = elu(unit * weight + shift), read = active * factor. */
static void NAME(activate)(const plan_t *plan, const block_t *k, int64_t place, int64_t b0, int64_t width,
                           NAME(scratch) * s) {
    const int64_t node = plan->node[place], C = k->channels;
    const int64_t first = plan->in_ptr[place], n = plan->in_ptr[place + 1] - first;
    const REAL *state = k->state, *values = k->in_values;
    NAME(fetch_in)(plan, k, place + 1, b0, width);
    for (int64_t e = 0; e < n; e++) {
        s->x[e] = state + plan->in_row[first + e] * k->width + b0;
        s->w[e] = values + plan->in_weight[first + e] * C;
    }
    NAME(gather)(s->unit, k->in_bias ? (const REAL *)k->in_bias + node * C : 0, s->w, s->x, n, C, width);
    if (k->before) NAME(put)(k->before, s->unit, k, node, b0, width);
    const REAL eps = k->centre ? (REAL)1e-5 : (REAL)1e-6;
    const REAL weight = k->scale && !k->per_channel ? ((const REAL *)k->scale)[node] : 1;
    const REAL shift = k->shift && !k->per_channel ? ((const REAL *)k->shift)[node] : 0;
    if (k->norm == PER_SAMPLE) {
        for (int64_t b = 0; b < width; b += LANES) {
            vec mean = {0}, square = {0};
            if (k->centre) {
                for (int64_t c = 0; c < C; c++) mean += CAT(s->unit + c * width + b);
                mean *= 1 / (REAL)C;
            }
            for (int64_t c = 0; c < C; c++) {
                vec z = CAT(s->unit + c * width + b) - mean;
                AT(s->unit + c * width + b) = z;
                square += z * z;
            }
            REAL root[LANES];
            AT(root) = square * (1 / (REAL)C) + eps;
            for (int i = 0; i < LANES; i++) root[i] = SQRT(root[i]);
            const vec inverse = 1 / CAT(root);
            AT(s->inverse + b) = inverse;
            for (int64_t c = 0; c < C; c++) {
                vec unit = CAT(s->unit + c * width + b) * inverse;
                AT(s->unit + c * width + b) = unit;
                AT(s->active + c * width + b) = NAME(elu)(unit * weight + shift);
            }
        }
        return;
    }
    if (k->norm != NONE) { /* over the batch: all samples are here */
        const int64_t B = k->samples, groups = k->norm == PER_NODE ? 1 : C, size = C / groups;
        for (int64_t group = 0; group < groups; group++) {
            REAL *rows = s->unit + group * size * width, mean = 0, square = 0;
            for (int64_t c = 0; c < size; c++) mean += NAME(row_sum)(rows + c * width, B);
            mean /= (REAL)(size * B);
            for (int64_t i = 0; i < size * width; i += LANES) AT(rows + i) -= mean;
            for (int64_t c = 0; c < size; c++) square += NAME(row_dot)(rows + c * width, rows + c * width, B);
            REAL inverse = 1 / SQRT(square / (REAL)(size * B) + eps);
            for (int64_t i = 0; i < size * width; i += LANES) AT(rows + i) *= inverse;
            /* Padding is no part of the statistics: far from the mean it would grow from block to block. */
            for (int64_t c = 0; c < size; c++)
                for (int64_t b = B; b < width; b++) rows[c * width + b] = 0;
            s->inverse[group] = inverse;
            if (k->stat_scale) {
                ((REAL *)k->stat_scale)[place * groups + group] = inverse;
                ((REAL *)k->stat_mean)[place * groups + group] = mean;
            }
        }
    }
    if (k->per_channel) {
        const REAL *weights = (const REAL *)k->scale + node * C, *shifts = (const REAL *)k->shift + node * C;
        for (int64_t c = 0; c < C; c++)
            for (int64_t b = 0; b < width; b += LANES)
                AT(s->active + c * width + b) = NAME(elu)(CAT(s->unit + c * width + b) * weights[c] + shifts[c]);
        return;
    }
    for (int64_t i = 0; i < C * width; i += LANES)
        AT(s->active + i) = NAME(elu)(CAT(s->unit + i) * weight + shift);
}

/* rows *= factor, for the samples there are. */
static void NAME(scale_rows)(REAL *out, const REAL *rows, const block_t *k, int64_t place, int64_t b0,
                             int64_t width) {
    const REAL *factor = (const REAL *)k->factor + place * k->factor_node;
    const int64_t end = k->samples - b0 < width ? k->samples - b0 : width;
    for (int64_t c = 0; c < k->channels; c++) {
        const REAL *f = factor + c * k->factor_channel + b0 * k->factor_sample;
        const REAL *from = rows + c * width;
        REAL *to = out + c * width;
        if (k->factor_sample == 1)
            for (int64_t b = 0; b < end; b++) to[b] = from[b] * f[b];
        else
            for (int64_t b = 0; b < end; b++) to[b] = from[b] * f[b * k->factor_sample];
        for (int64_t b = end; b < width; b++) to[b] = 0;
    }
}

static int NAME(prepare)(NAME(scratch) * s, const plan_t *plan, const block_t *k, int64_t width) {
    const int64_t C = (k->channels + LANES - 1) / LANES * LANES, size = C * width, n = plan->max_degree + 1;
    char *memory = malloc((5 * size + width + C + n) * sizeof(REAL) + 4 * n * sizeof(void *));
    if (!memory) return 1;
    s->memory = memory;
    s->x = (const REAL **)memory;
    s->w = s->x + n;
    s->g = s->w + n;
    s->to = (REAL **)(s->g + n);
    s->unit = (REAL *)(s->to + n);
    s->active = s->unit + size;
    s->grad = s->active + size;
    s->read = s->grad + size;
    s->turned = s->read + size;
    s->inverse = s->turned + size;
    s->bias = s->inverse + width + C;
    memset(s->unit, 0, 5 * size * sizeof(REAL)); /* what only fills a vector shall be a number */
    return 0;
}

/* Samples are independent unless the norm is over the batch, so that a slice of them stays in cache. */
static int64_t NAME(slice)(const block_t *k) {
    return k->norm == PER_NODE || k->norm == PER_CHANNEL || k->width < SLICE ? k->width : SLICE;
}

static int64_t NAME(forward)(const plan_t *plan, const block_t *k, int64_t *taken, int64_t share) {
    NAME(scratch) s;
    const int64_t C = k->channels, slice = NAME(slice)(k);
    const REAL gate = (REAL)k->gate, *state = k->state, *values = k->out_values, *biases = k->out_bias;
    REAL *result = k->result;
    if (NAME(prepare)(&s, plan, k, slice)) return -1;
    FOR_EACH_SHARE(plan, place, taken, share) {
        for (int64_t b0 = 0; b0 < k->width; b0 += slice) {
            const int64_t width = k->width - b0 < slice ? k->width - b0 : slice;
            NAME(activate)(plan, k, place, b0, width, &s);
            const REAL *read = s.active;
            if (k->factor) {
                NAME(scale_rows)(s.read, s.active, k, place, b0, width);
                read = s.read;
            }
            if (k->aside) NAME(put)(k->aside, read, k, plan->node[place], b0, width);
            const int64_t first = plan->out_ptr[place], n = plan->out_ptr[place + 1] - first;
            NAME(fetch_out)(plan, k, place + 1, b0, width);
            for (int64_t e = 0; e < n; e++) {
                const int64_t row = plan->out_row[first + e];
                s.to[e] = result + row * k->width + b0;
                s.x[e] = state + row * k->width + b0;
                s.w[e] = values + plan->out_weight[first + e] * C;
                if (biases) s.bias[e] = biases[plan->out_edge[first + e]];
            }
            NAME(spread)(s.to, s.x, gate, biases ? s.bias : 0, s.w, read, n, C, width);
        }
    }
    free(s.memory);
    if (!first_here) return here;
    for (int64_t i = 0; i < plan->n_fed; i++) {
        const REAL bias = biases ? biases[plan->fed_edge[i]] : 0;
        const int64_t row = plan->fed_row[i] * k->width;
        for (int64_t b = 0; b < k->width; b++) result[row + b] = bias + (gate != 0 ? gate * state[row + b] : 0);
    }
    for (int64_t i = 0; i < plan->n_pad; i++)
        for (int64_t b = 0; b < k->width; b++) result[plan->pad_row[i] * k->width + b] = 0;
    return here;
}

/* The same where there is no norm but a scale and a shift, of the node or of each of its channels. */
static void NAME(map_grads)(const block_t *k, int64_t node, int64_t width, NAME(scratch) * s, int add) {
    const int64_t C = k->channels, n = k->per_channel ? C : 1, first = node * n;
    REAL *scale_grad = k->scale_grad, *shift_grad = k->shift_grad;
    for (int64_t c = 0; c < C; c++) {
        const int64_t at = first + (k->per_channel ? c : 0);
        const REAL weight = ((const REAL *)k->scale)[at];
        REAL *g = s->grad + c * width;
        if (scale_grad) {
            const int further = add || (c && !k->per_channel);
            scale_grad[at] = NAME(row_dot)(g, s->unit + c * width, width) + (further ? scale_grad[at] : 0);
            shift_grad[at] = NAME(row_sum)(g, width) + (further ? shift_grad[at] : 0);
        }
        for (int64_t b = 0; b < width; b += LANES) AT(g + b) *= weight;
    }
}

/* The gradient for z in place of that for elu(norm(z)), and those of the norm's scale and shift. */
static void NAME(norm_grads)(const block_t *k, int64_t node, int64_t width, NAME(scratch) * s, int add) {
    if (k->norm == NONE && k->scale) {
        NAME(map_grads)(k, node, width, s, add);
        return;
    }
    const int64_t C = k->channels;
    const REAL weight = k->scale ? ((const REAL *)k->scale)[node] : 1;
    vec with_unit = {0}, alone = {0};
    if (k->norm == PER_SAMPLE) {
        for (int64_t b = 0; b < width; b += LANES) {
            vec mean = {0}, product = {0};
            for (int64_t c = 0; c < C; c++) {
                vec g = CAT(s->grad + c * width + b);
                mean += g;
                product += g * CAT(s->unit + c * width + b);
            }
            alone += mean;
            with_unit += product;
            mean *= k->centre ? 1 / (REAL)C : 0;
            product /= (REAL)C;
            const vec scale = CAT(s->inverse + b) * weight;
            for (int64_t c = 0; c < C; c++) {
                vec g = CAT(s->grad + c * width + b);
                AT(s->grad + c * width + b) = (g - mean - CAT(s->unit + c * width + b) * product) * scale;
            }
        }
    } else if (k->norm != NONE) {
        const int64_t B = k->samples, groups = k->norm == PER_NODE ? 1 : C, size = C / groups;
        for (int64_t group = 0; group < groups; group++) {
            REAL *g = s->grad + group * size * width, mean = 0, product = 0;
            const REAL *u = s->unit + group * size * width;
            for (int64_t c = 0; c < size; c++) {
                mean += NAME(row_sum)(g + c * width, B);
                product += NAME(row_dot)(g + c * width, u + c * width, B);
            }
            alone[0] += mean;
            with_unit[0] += product;
            mean /= (REAL)(size * B);
            product /= (REAL)(size * B);
            const REAL scale = s->inverse[group] * weight;
            for (int64_t i = 0; i < size * width; i += LANES)
                AT(g + i) = (CAT(g + i) - mean - CAT(u + i) * product) * scale;
            for (int64_t c = 0; c < size; c++)
                for (int64_t b = B; b < width; b++) g[c * width + b] = 0;
        }
    }
    REAL *scale_grad = k->scale_grad, *shift_grad = k->shift_grad;
    if (scale_grad) {
        scale_grad[node] = NAME(total)(with_unit) + (add ? scale_grad[node] : 0);
        shift_grad[node] = NAME(total)(alone) + (add ? shift_grad[node] : 0);
    }
}

/* The gradient that comes from outside, added to the one there is or in its place. */
static void NAME(take_grad)(const block_t *k, int64_t node, int64_t b0, int64_t width, REAL *grad, int add) {
    const int64_t count = k->samples - b0 < width ? k->samples - b0 : width, step = k->read_sample;
    for (int64_t c = 0; c < k->channels; c++) {
        const REAL *more = (const REAL *)k->read_grad + node * k->read_node + c * k->read_channel + b0 * step;
        REAL *to = grad + c * width;
        if (!add) memset(to, 0, width * sizeof(REAL));
        if (step == 1)
            for (int64_t b = 0; b < count; b++) to[b] += more[b];
        else
            for (int64_t b = 0; b < count; b++) to[b] += more[b * step];
    }
}

/* From the gradients of the node's outgoing edges to that of what lin_out read. */
static void NAME(back_out)(const plan_t *plan, const block_t *k, int64_t place, int64_t b0, int64_t width,
                           const REAL *read, NAME(scratch) * s, int add) {
    const int64_t C = k->channels, first = plan->out_ptr[place], n = plan->out_ptr[place + 1] - first;
    const REAL *grad = k->grad;
    REAL *bias_grad = k->out_bias_grad;
    for (int64_t e = 0; e < n; e++) {
        s->g[e] = grad + plan->out_row[first + e] * k->width + b0;
        s->w[e] = (const REAL *)k->out_values + plan->out_weight[first + e] * C;
        s->to[e] = (REAL *)k->out_values_grad + plan->out_weight[first + e] * C;
        if (bias_grad) {
            REAL *target = bias_grad + plan->out_edge[first + e];
            *target = NAME(row_sum)(s->g[e], width) + (add ? *target : 0);
        }
    }
    if (k->out_values_grad) NAME(weight_grads)(s->to, read, s->g, s->turned, n, C, width, add);
    NAME(gather)(s->grad, 0, s->w, s->g, n, C, width);
}

/* From the gradient of lin_in's result to those of the node's incoming edges. Returns the sum of their products
   with the state, for the residual's weight. */
static double NAME(back_in)(const plan_t *plan, const block_t *k, int64_t place, int64_t b0, int64_t width,
                            NAME(scratch) * s, int add) {
    const int64_t C = k->channels, first = plan->in_ptr[place], n = plan->in_ptr[place + 1] - first;
    const REAL *grad = k->grad;
    double dot = 0;
    for (int64_t e = 0; e < n; e++) {
        const int64_t row = plan->in_row[first + e] * k->width + b0;
        s->g[e] = grad + row;
        s->x[e] = (const REAL *)k->state + row;
        s->w[e] = (const REAL *)k->in_values + plan->in_weight[first + e] * C;
        s->to[e] = (REAL *)k->in_values_grad + plan->in_weight[first + e] * C;
        if (k->dots) dot += NAME(row_dot)(s->g[e], s->x[e], width);
    }
    if (k->in_values_grad) NAME(weight_grads)(s->to, s->grad, s->x, s->turned, n, C, width, add);
    if (k->in_bias_grad)
        for (int64_t c = 0; c < C; c++) {
            REAL *target = (REAL *)k->in_bias_grad + plan->node[place] * C + c;
            *target = NAME(row_sum)(s->grad + c * width, width) + (add ? *target : 0);
        }
    if (k->next) {
        for (int64_t e = 0; e < n; e++) s->to[e] = (REAL *)k->next + plan->in_row[first + e] * k->width + b0;
        NAME(spread)(s->to, s->g, (REAL)k->gate, 0, s->w, s->grad, n, C, width);
    }
    return dot;
}

static int64_t NAME(backward)(const plan_t *plan, const block_t *k, int64_t *taken, int64_t share) {
    NAME(scratch) s;
    const int64_t C = k->channels, slice = NAME(slice)(k);
    const int has_out = !(k->without & WITHOUT_OUT), has_middle = !(k->without & WITHOUT_MIDDLE);
    const int has_in = !(k->without & WITHOUT_IN);
    const REAL gate = (REAL)k->gate, *grad = k->grad;
    REAL *next = k->next, *bias_grad = k->out_bias_grad;
    double *dots = k->dots;
    if (NAME(prepare)(&s, plan, k, slice)) return -1;
    FOR_EACH_SHARE(plan, place, taken, share) {
        const int64_t node = plan->node[place];
        double dot = 0;
        for (int64_t b0 = 0; b0 < k->width; b0 += slice) {
            const int64_t width = k->width - b0 < slice ? k->width - b0 : slice, size = C * width;
            const int add = b0 > 0;
            REAL *read = s.active;
            if (has_out || has_middle) {
                NAME(activate)(plan, k, place, b0, width, &s);
                if (k->factor) NAME(scale_rows)(read = s.read, s.active, k, place, b0, width);
            }
            if (has_out) {
                NAME(fetch_out)(plan, k, place + 1, b0, width);
                for (int64_t e = plan->in_ptr[place]; has_in && e < plan->in_ptr[place + 1]; e++)
                    NAME(fetch_row)(grad + plan->in_row[e] * k->width + b0, width);
                NAME(back_out)(plan, k, place, b0, width, read, &s, add);
            }
            if (k->read_grad) NAME(take_grad)(k, node, b0, width, s.grad, has_out);
            else if (!has_out) memset(s.grad, 0, size * sizeof(REAL));
            if (k->aside_grad) NAME(put)(k->aside_grad, s.grad, k, node, b0, width);
            if (has_middle) {
                if (k->factor) NAME(scale_rows)(s.grad, s.grad, k, place, b0, width);
                for (int64_t i = 0; i < size; i += LANES) {
                    const vec a = CAT(s.active + i), g = CAT(s.grad + i);
                    AT(s.grad + i) = IF_POSITIVE(a, g, g * a + g);
                }
                NAME(norm_grads)(k, node, width, &s, add);
                if (k->before_grad) NAME(put)(k->before_grad, s.grad, k, node, b0, width);
            }
            if (has_in) dot += NAME(back_in)(plan, k, place, b0, width, &s, add);
        }
        if (dots) dots[place] = dot;
    }
    free(s.memory);
    if (!first_here) return here;
    double dot = 0;
    for (int64_t i = 0; i < plan->n_unread; i++) {
        const int64_t row = plan->unread_row[i] * k->width;
        if (dots) dot += NAME(row_dot)(grad + row, (const REAL *)k->state + row, k->width);
        if (next)
            for (int64_t b = 0; b < k->width; b++) next[row + b] = gate != 0 ? gate * grad[row + b] : 0;
    }
    if (dots) dots[plan->n_places] = dot;
    for (int64_t i = 0; i < plan->n_fed; i++)
        if (bias_grad) bias_grad[plan->fed_edge[i]] = NAME(row_sum)(grad + plan->fed_row[i] * k->width, k->width);
    if (next)
        for (int64_t i = 0; i < plan->n_pad; i++)
            for (int64_t b = 0; b < k->width; b++) next[plan->pad_row[i] * k->width + b] = 0;
    return here;
}

#undef vec
#undef ivec
#undef AT
#undef CAT
