/* Random networks through the compiled blocks, for the sanitizers: `make sanitize`.

   Every buffer has exactly the size that gsnn/kernels/csrc/blocks.c may use, so that the address sanitizer sees
   each step outside. Every level of instructions gives what the plain code gives (in double precision, up to
   rounding), and three threads give what one gives, to the bit.

       fuzz_blocks ROUNDS SEED */

#include <pthread.h>
#include <stdio.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "../gsnn/kernels/csrc/blocks.c"

enum { MOST_BUFFERS = 2048 };
static uint64_t state_of_generator;
static void *buffers[MOST_BUFFERS];
static int n_buffers;

static uint64_t draw(void) {
    state_of_generator ^= state_of_generator << 13;
    state_of_generator ^= state_of_generator >> 7;
    state_of_generator ^= state_of_generator << 17;
    return state_of_generator;
}

static int64_t below(int64_t n) { return (int64_t)(draw() % (uint64_t)n); }
static double number(void) { return (double)below(2000001) / 1e6 - 1; }

static void *take(size_t size) {
    if (n_buffers == MOST_BUFFERS) abort();
    return buffers[n_buffers++] = malloc(size ? size : 1);
}

static void give_all_back(void) {
    while (n_buffers) free(buffers[--n_buffers]);
}

static int64_t *permutation(int64_t n) {
    int64_t *order = take(n * sizeof(int64_t));
    for (int64_t i = 0; i < n; i++) order[i] = i;
    for (int64_t i = n - 1; i > 0; i--) {
        const int64_t j = below(i + 1), kept = order[i];
        order[i] = order[j];
        order[j] = kept;
    }
    return order;
}

static void *numbers(int is_double, int64_t n) {
    void *values = take(n * (is_double ? 8 : 4));
    for (int64_t i = 0; i < n; i++)
        if (is_double) ((double *)values)[i] = number();
        else ((float *)values)[i] = (float)number();
    return values;
}

typedef struct {
    plan_t plan;
    int64_t n_rows, n_edges, n_in, n_out;
    const int64_t *row;
} network_t;

/* Any edges between any nodes; those into no node are read by outputs, those out of none are fed by inputs. */
static network_t random_network(void) {
    network_t net = {0};
    const int64_t N = 1 + below(9), E = 1 + below(30), pads = 1 + below(3);
    int64_t *from = take(E * 8), *to = take(E * 8);
    for (int64_t e = 0; e < E; e++) from[e] = below(N + 1) - 1, to[e] = below(N + 1) - 1;
    const int64_t *row = permutation(E + pads);
    int64_t *pad_row = take(pads * 8), *fed_row = take(E * 8), *fed_edge = take(E * 8), *unread = take(E * 8);
    for (int64_t i = 0; i < pads; i++) pad_row[i] = row[E + i];
    int64_t *in_ptr = take((N + 1) * 8), *out_ptr = take((N + 1) * 8), n_in = 0, n_out = 0;
    for (int64_t e = 0; e < E; e++) n_in += to[e] >= 0, n_out += from[e] >= 0;
    int64_t *in_row = take(n_in * 8), *out_row = take(n_out * 8), *out_edge = take(n_out * 8);
    plan_t *p = &net.plan;
    int64_t a = 0, b = 0;
    for (int64_t node = 0; node < N; node++) {
        in_ptr[node] = a, out_ptr[node] = b;
        for (int64_t e = 0; e < E; e++) {
            if (to[e] == node) in_row[a++] = row[e];
            if (from[e] == node) out_row[b] = row[e], out_edge[b++] = e;
        }
        if (a - in_ptr[node] > p->max_degree) p->max_degree = a - in_ptr[node];
        if (b - out_ptr[node] > p->max_degree) p->max_degree = b - out_ptr[node];
    }
    in_ptr[N] = a, out_ptr[N] = b;
    for (int64_t e = 0; e < E; e++) {
        if (from[e] < 0) fed_row[p->n_fed] = row[e], fed_edge[p->n_fed++] = e;
        if (to[e] < 0) unread[p->n_unread++] = row[e];
    }
    p->n_places = N, p->n_pad = pads;
    p->node = permutation(N), p->in_ptr = in_ptr, p->out_ptr = out_ptr;
    p->in_row = in_row, p->out_row = out_row, p->out_edge = out_edge;
    p->in_weight = permutation(n_in), p->out_weight = permutation(n_out);
    p->fed_row = fed_row, p->fed_edge = fed_edge, p->unread_row = unread, p->pad_row = pad_row;
    net.n_rows = E + pads, net.n_edges = E, net.n_in = n_in, net.n_out = n_out, net.row = row;
    return net;
}

/* A state or gradient: rows of padding and columns beyond the samples are 0. */
static void *rows_of(const network_t *net, const block_t *k) {
    void *values = numbers((int)k->is_double, net->n_rows * k->width);
    for (int64_t r = 0; r < net->n_rows; r++)
        for (int64_t b = 0; b < k->width; b++) {
            int padding = b >= k->samples;
            for (int64_t i = 0; i < net->plan.n_pad; i++) padding |= net->plan.pad_row[i] == r;
            if (!padding) continue;
            if (k->is_double) ((double *)values)[r * k->width + b] = 0;
            else ((float *)values)[r * k->width + b] = 0;
        }
    return values;
}

static block_t random_block(const network_t *net, const block_t *like) {
    block_t k = {0};
    const int64_t N = net->plan.n_places;
    if (like) {
        k.is_double = like->is_double, k.channels = like->channels, k.samples = like->samples;
        k.width = like->width, k.norm = like->norm, k.centre = like->centre;
        k.per_channel = like->per_channel;
    } else {
        k.is_double = below(2), k.channels = 1 + below(below(2) ? 4 : 35);
        k.samples = 1 + below(below(3) ? 40 : 300), k.width = (k.samples + 15) / 16 * 16;
        k.norm = below(4), k.centre = k.norm == PER_SAMPLE ? below(2) : 1;
        k.per_channel = k.norm == NONE && below(2);
    }
    const int d = (int)k.is_double;
    const int64_t C = k.channels;
    k.gate = below(3) ? 0.7 : 0;
    k.in_values = numbers(d, net->n_in * C), k.out_values = numbers(d, net->n_out * C);
    if (below(2)) k.in_bias = numbers(d, N * C), k.out_bias = numbers(d, net->n_edges);
    const int64_t scales = k.per_channel ? N * C : N;
    if (k.per_channel || below(2)) k.scale = numbers(d, scales), k.shift = numbers(d, scales);
    if (below(2)) {
        const int turned = (int)below(2);
        k.factor = numbers(d, N * C * k.samples);
        k.factor_node = turned ? 1 : C * k.samples, k.factor_channel = turned ? N : k.samples;
        k.factor_sample = turned ? N * C : 1;
    }
    return k;
}

typedef struct {
    int level, backward;
    const plan_t *plan;
    const block_t *blocks;
    int64_t n_blocks, *turns, share;
} work_t;

static void *work(void *given) {
    const work_t *w = given;
    return (void *)(intptr_t)gsnn_passes(w->level, w->backward, w->plan, w->blocks, w->n_blocks, w->turns, w->share);
}

static void passes(int level, int backward, const network_t *net, const block_t *blocks, int64_t n, int threads) {
    int64_t turns[2 * 4 + 1] = {0};
    work_t w = {level, backward, &net->plan, blocks, n, turns, threads > 1 ? 1 : net->plan.n_places};
    pthread_t others[8];
    for (int t = 1; t < threads; t++)
        if (pthread_create(others + t, NULL, work, &w)) abort();
    intptr_t failed = (intptr_t)work(&w);
    for (int t = 1; t < threads; t++) {
        void *its;
        pthread_join(others[t], &its);
        failed |= (intptr_t)its;
    }
    if (failed) abort();
}

static int n_wrong;

static void compare(const char *what, int is_double, const void *a, const void *b, int64_t n, int exact) {
    double largest = 1, off = 0;
    for (int64_t i = 0; i < n; i++) {
        const double x = is_double ? ((const double *)a)[i] : ((const float *)a)[i];
        const double y = is_double ? ((const double *)b)[i] : ((const float *)b)[i];
        if (fabs(x) > largest) largest = fabs(x);
        if (!(fabs(x - y) <= off)) off = fabs(x - y);
    }
    if (off > (exact ? 0 : 1e-4 * largest) || off != off)
        n_wrong++, fprintf(stderr, "%s differs by %g of %g\n", what, off, largest);
}

/* Results of one run: what each pass writes, in buffers of its own. */
typedef struct {
    void *result, *next, *in_values, *out_values, *in_bias, *out_bias, *dots, *before_grad;
} found_t;

/* Backward passes over the three parts of each block in turn, each beginning with what the one before gave. */
static void in_parts(int level, const network_t *net, block_t *back, int64_t n, int threads) {
    static const int64_t without[] = {WITHOUT_MIDDLE | WITHOUT_IN, WITHOUT_OUT | WITHOUT_IN, WITHOUT_OUT | WITHOUT_MIDDLE};
    for (int64_t i = 0; i < n; i++)
        for (int part = 0; part < 3; part++) {
            block_t k = back[i];
            k.without = without[part];
            if (part) {
                k.read_grad = part == 1 ? k.aside_grad : k.before_grad;
                k.read_node = k.channels * k.samples, k.read_channel = k.samples, k.read_sample = 1;
            }
            if (part != 0) k.aside_grad = NULL, k.out_values_grad = k.out_bias_grad = NULL;
            if (part != 1) k.before_grad = NULL, k.scale_grad = k.shift_grad = NULL;
            if (part != 2) k.next = NULL, k.in_values_grad = k.in_bias_grad = NULL, k.dots = NULL;
            passes(level, 1, net, &k, 1, threads);
        }
}

static found_t run(const network_t *net, const block_t *given, int64_t n, const void *grad, int level, int threads,
                   unsigned wanted) {
    block_t blocks[4], back[4];
    const int64_t C = given->channels, N = net->plan.n_places, size = net->n_rows * given->width;
    const int d = (int)given->is_double, item = d ? 8 : 4;
    found_t found = {0};
    for (int64_t k = 0; k < n; k++) {
        blocks[k] = given[k];
        if (k) blocks[k].state = blocks[k - 1].result;
        blocks[k].result = take(size * item);
        if (wanted & 1) blocks[k].aside = take(N * C * given->samples * item);
        if (wanted & 512) blocks[k].before = take(N * C * given->samples * item);
        if (given->norm == PER_NODE || given->norm == PER_CHANNEL) {
            const int64_t each = given->norm == PER_NODE ? 1 : C;
            blocks[k].stat_scale = take(N * each * item), blocks[k].stat_mean = take(N * each * item);
        }
    }
    passes(level, 0, net, blocks, n, threads);
    found.result = blocks[n - 1].result;
    for (int64_t k = 0; k < n; k++) {
        block_t *b = back + k;
        *b = blocks[n - 1 - k];
        b->result = b->before = b->aside = b->stat_scale = b->stat_mean = NULL;
        b->grad = k ? back[k - 1].next : grad;
        b->next = k < n - 1 || wanted & 2 ? take(size * item) : NULL;
        if (wanted & 4) b->in_values_grad = take(net->n_in * C * item);
        if (wanted & 8) b->out_values_grad = take(net->n_out * C * item);
        if (wanted & 16 && b->in_bias) b->in_bias_grad = take(N * C * item);
        if (wanted & 32 && b->out_bias) b->out_bias_grad = take(net->n_edges * item);
        const int64_t scales = given->per_channel ? N * C : N;
        if (wanted & 64 && b->scale) b->scale_grad = take(scales * item), b->shift_grad = take(scales * item);
        if (wanted & 1024) {
            b->aside_grad = take(N * C * given->samples * item);
            b->before_grad = take(N * C * given->samples * item);
        }
        if (wanted & 128) b->dots = take((N + 1) * 8);
        if (wanted & 256) {
            b->read_grad = given->out_values ? take(N * C * given->samples * item) : NULL;
            memset((void *)b->read_grad, 0, N * C * given->samples * item);
            b->read_node = C * given->samples, b->read_channel = given->samples, b->read_sample = 1;
        }
    }
    if (wanted & 2048 && wanted & 1024 && wanted & 2) in_parts(level, net, back, n, threads);
    else passes(level, 1, net, back, n, threads);
    const block_t *last = back + n - 1;
    found.before_grad = last->before_grad;
    found.next = last->next, found.in_values = last->in_values_grad, found.out_values = last->out_values_grad;
    found.in_bias = last->in_bias_grad, found.out_bias = last->out_bias_grad, found.dots = last->dots;
    return found;
}

static void compare_all(const network_t *net, const block_t *k, found_t a, found_t b, int exact) {
    const int d = (int)k->is_double;
    const int64_t C = k->channels, N = net->plan.n_places;
    for (int64_t e = 0; e < net->n_edges; e++) {
        const int64_t start = net->row[e] * k->width * (d ? 8 : 4);
        compare("the state", d, (char *)a.result + start, (char *)b.result + start, k->samples, exact);
        if (a.next) compare("its gradient", d, (char *)a.next + start, (char *)b.next + start, k->samples, exact);
    }
    if (a.in_values) compare("weights in", d, a.in_values, b.in_values, net->n_in * C, exact);
    if (a.out_values) compare("weights out", d, a.out_values, b.out_values, net->n_out * C, exact);
    if (a.in_bias) compare("bias in", d, a.in_bias, b.in_bias, N * C, exact);
    if (a.out_bias) compare("bias out", d, a.out_bias, b.out_bias, net->n_edges, exact);
    if (a.dots) compare("residual", 1, a.dots, b.dots, N + 1, exact);
    if (a.before_grad) compare("gradient inside", d, a.before_grad, b.before_grad, N * C * k->samples, exact);
}

static void one_round(void) {
    const network_t net = random_network();
    block_t blocks[4];
    const int64_t n = 1 + below(3);
    for (int64_t k = 0; k < n; k++) blocks[k] = random_block(&net, k ? blocks : NULL);
    blocks[0].state = rows_of(&net, blocks);
    const void *grad = rows_of(&net, blocks);
    const unsigned wanted = (unsigned)below(2048);
    const found_t plain = run(&net, blocks, n, grad, 0, 1, wanted);
    for (int level = 0; level <= gsnn_level(); level++) {
        const found_t alone = run(&net, blocks, n, grad, level, 1, wanted);
        /* In single precision a norm over values that hardly differ makes rounding as large as the values. */
        if (level == 0 || blocks->is_double) compare_all(&net, blocks, plain, alone, level == 0);
        compare_all(&net, blocks, alone, run(&net, blocks, n, grad, level, 3, wanted), 1);
        compare_all(&net, blocks, alone, run(&net, blocks, n, grad, level, 1, wanted | 2048), 1);
    }
    give_all_back();
}

/* Rows whose first value is more than 2^31 values from the beginning; only what is touched takes memory. */
static void far_rows(void) {
#if defined(__linux__)
    const int64_t width = 16, far = ((int64_t)1 << 31) / width + 5;
    const size_t size = (size_t)(far + 2) * width * sizeof(float);
    float *rows[2];
    for (int i = 0; i < 2; i++) {
        rows[i] = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (rows[i] == MAP_FAILED) {
            fprintf(stderr, "no address space for rows beyond 2^31: left out\n");
            return;
        }
    }
    const int64_t zero = 0, ptr[] = {0, 1}, in = far, out = far + 1;
    const float weight = 2, bias[] = {0, 0};
    const plan_t plan = {.n_places = 1, .max_degree = 1, .node = &zero, .in_ptr = ptr, .in_row = &in,
                         .in_weight = &zero, .out_ptr = ptr, .out_row = &out, .out_weight = &zero, .out_edge = ptr};
    block_t k = {.channels = 1, .samples = 16, .width = width, .norm = NONE, .centre = 1, .state = rows[0],
                 .in_values = &weight, .in_bias = bias, .out_values = &weight, .out_bias = bias, .result = rows[1]};
    for (int64_t b = 0; b < width; b++) rows[0][far * width + b] = (float)b;
    for (int level = 0; level <= gsnn_level(); level++) {
        int64_t turns[3] = {0};
        if (gsnn_passes(level, 0, &plan, &k, 1, turns, 1)) abort();
        for (int64_t b = 0; b < width; b++)
            if (rows[1][(far + 1) * width + b] != 4 * (float)b) n_wrong++;
    }
    for (int i = 0; i < 2; i++) munmap(rows[i], size);
#endif
}

int main(int argc, char **argv) {
    const long rounds = argc > 1 ? atol(argv[1]) : 100;
    const long seed = argc > 2 ? atol(argv[2]) : 0;
    for (long round = 0; round < rounds; round++) {
        state_of_generator = (uint64_t)(seed * 1000003 + round + 1) * 0x9E3779B97F4A7C15u;
        const int before = n_wrong;
        one_round();
        if (n_wrong > before) fprintf(stderr, "in round %ld of seed %ld\n", round, seed);
    }
    far_rows();
    printf("%ld networks, %d results that differ\n", rounds, n_wrong);
    return n_wrong != 0;
}
