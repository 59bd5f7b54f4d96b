/* Residual blocks on the CPU: dispatch over element types and instruction sets.

   Called through ctypes, so that neither Python's headers nor PyTorch's are needed to build it. Every
   field of the two structures has 8 bytes; `gsnn/kernels/compiled.py` fills them in this order. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if UINTPTR_MAX != UINT64_MAX
#error "pointers of 64 bits expected"
#endif

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#else
#define PAUSE()
#endif
#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#define YIELD()
#else
#include <sched.h>
#define YIELD() sched_yield()
#define EXPORT __attribute__((visibility("default")))
#endif

enum { NONE, PER_SAMPLE, PER_NODE, PER_CHANNEL };
enum { WITHOUT_OUT = 1, WITHOUT_MIDDLE = 2, WITHOUT_IN = 4 };
enum { SLICE = 128, PATIENCE = 50000 };

typedef struct {
    int64_t n_places, max_degree;
    const int64_t *node, *in_ptr, *in_row, *in_weight, *out_ptr, *out_row, *out_weight, *out_edge;
    int64_t n_fed;
    const int64_t *fed_row, *fed_edge;
    int64_t n_unread;
    const int64_t *unread_row;
    int64_t n_pad;
    const int64_t *pad_row;
} plan_t;

typedef struct {
    int64_t is_double, channels, samples, width, norm, centre;
    int64_t per_channel; /* scale and shift are those of channels, not of nodes; without a norm only */
    double gate; /* relu of the residual weight; 0 where there is no residual */
    const void *state, *in_values, *in_bias, *scale, *shift, *out_values, *out_bias, *factor;
    int64_t factor_node, factor_channel, factor_sample;
    /* forward; before and aside are (N, C, samples), nodes in the given order: lin_in's result, and what
       lin_out reads */
    void *result, *before, *aside, *stat_scale, *stat_mean;
    /* backward; without some of its parts it begins with read_grad, or ends with before_grad or aside_grad */
    int64_t without;
    const void *grad, *read_grad;
    int64_t read_node, read_channel, read_sample;
    void *before_grad, *aside_grad; /* the full gradients at what the forward pass calls before and aside */
    void *next, *in_values_grad, *in_bias_grad, *scale_grad, *shift_grad, *out_values_grad, *out_bias_grad;
    double *dots;
} block_t;

#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#define TARGET_BEGIN(features) PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define TARGET_END PRAGMA(clang attribute pop)
#else
#define UNROLL _Pragma("GCC unroll 16")
#define TARGET_BEGIN(features) PRAGMA(GCC push_options) PRAGMA(GCC target(features))
#define TARGET_END PRAGMA(GCC pop_options)
#endif
#define PRAGMA(text) _Pragma(#text)

/* Lanes of two vectors of n that an interleaving takes. */
#define LOW_2 0, 2
#define HIGH_2 1, 3
#define LOW_4 0, 4, 1, 5
#define HIGH_4 2, 6, 3, 7
#define LOW_8 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH_8 4, 12, 5, 13, 6, 14, 7, 15
#define LOW_16 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH_16 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
/* `share` places at a time until none is left; `here` counts them, and `first_here` says whether the first
   ones were among them. */
#define FOR_EACH_SHARE(plan, place, taken, share)                                                         \
    int first_here = 0;                                                                                   \
    int64_t here = 0;                                                                                     \
    for (int64_t from; (from = __atomic_fetch_add(taken, share, __ATOMIC_RELAXED)) < plan->n_places &&    \
                       (first_here |= from == 0, 1);)                                                     \
        for (int64_t place = from; place < plan->n_places && place < from + share; place++, here++)
#define JOIN(a, b) a##b
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (NARROW(mask)){__VA_ARGS__})
#endif
#define LANES_OF(side, n) JOIN(side, n)

/* 1/2!, 1/3!, ...: |r| <= log(2) / 2 leaves an error below that of the type. */
static const float TERMS_f[] = {1.f / 2, 1.f / 6, 1.f / 24, 1.f / 120, 1.f / 720, 1.f / 5040};
static const double TERMS_d[] = {
    1. / 2,     1. / 6,       1. / 24,       1. / 120,        1. / 720,         1. / 5040,
    1. / 40320, 1. / 362880., 1. / 3628800., 1. / 39916800.0, 1. / 479001600.0, 1. / 6227020800.0};

/* IF_POSITIVE(x, yes, no): yes where x > 0, else no. AT_LEAST(low, x): the larger; NaN where x is. */
#if defined(__x86_64__)
#define LEVEL avx512
#define ABOVE(type, x) _mm512_cmp_##type##_mask((x), _mm512_setzero_##type(), _CMP_GT_OQ)
#define IF_POSITIVE_f(x, yes, no) _mm512_mask_blend_ps(ABOVE(ps, x), (no), (yes))
#define IF_POSITIVE_d(x, yes, no) _mm512_mask_blend_pd(ABOVE(pd, x), (no), (yes))
#define AT_LEAST_f _mm512_max_ps
#define AT_LEAST_d _mm512_max_pd
TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#define FLOAT_LANES 16
#define FLOAT_HALF 8
#define DOUBLE_LANES 8
#define DOUBLE_HALF 4
#define TILE 8
#include "level.h"
TARGET_END

#undef ABOVE
#define LEVEL avx2
#define ABOVE(type, x) _mm256_cmp_##type((x), _mm256_setzero_##type(), _CMP_GT_OQ)
#define IF_POSITIVE_f(x, yes, no) _mm256_blendv_ps((no), (yes), ABOVE(ps, x))
#define IF_POSITIVE_d(x, yes, no) _mm256_blendv_pd((no), (yes), ABOVE(pd, x))
#define AT_LEAST_f _mm256_max_ps
#define AT_LEAST_d _mm256_max_pd
TARGET_BEGIN("avx2,fma")
#define FLOAT_LANES 8
#define FLOAT_HALF 4
#define DOUBLE_LANES 4
#define DOUBLE_HALF 2
#define TILE 4
#include "level.h"
TARGET_END
#endif

#define LEVEL plain
#define CHOOSE(mask, yes, no) ((vec)(((mask) & (ivec)(yes)) | (~(mask) & (ivec)(no))))
#define IF_POSITIVE_f(x, yes, no) CHOOSE((x) > (vec){0}, yes, no)
#define IF_POSITIVE_d IF_POSITIVE_f
#define AT_LEAST_f(low, x) CHOOSE((x) < (low), low, x)
#define AT_LEAST_d AT_LEAST_f
#define FLOAT_LANES 4
#define FLOAT_HALF 2
#define DOUBLE_LANES 4
#define DOUBLE_HALF 2
#define TILE 4
#include "level.h"

/* Raised with every change of the structures, so that an old build is not called with new ones. */
EXPORT int gsnn_version(void) { return 5; }

/* What this machine runs: 2 for AVX-512, 1 for AVX2, 0 for anything else. */
EXPORT int gsnn_level(void) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

typedef int64_t (*pass_t)(const plan_t *, const block_t *, int64_t *, int64_t);

static const pass_t PASSES[][2][2] = {
    {{forward_f_plain, backward_f_plain}, {forward_d_plain, backward_d_plain}},
#if defined(__x86_64__)
    {{forward_f_avx2, backward_f_avx2}, {forward_d_avx2, backward_d_avx2}},
    {{forward_f_avx512, backward_f_avx512}, {forward_d_avx512, backward_d_avx512}},
#endif
};

/* Forward (0) or backward (1) passes over the nodes, one block after the other, with the code for `level`.
   Threads that call it with the same `turns`, 2 n_blocks + 1 zeros, share the nodes of each block out
   between them; nobody waits for a thread, only for nodes to be done. Returns 0, or 1 without memory. */
EXPORT int gsnn_passes(int level, int backward, const plan_t *plan, const block_t *blocks, int64_t n_blocks,
                       int64_t *turns, int64_t share) {
    int64_t *failed = turns + 2 * n_blocks;
    for (int64_t k = 0; k < n_blocks; k++) {
        int64_t *taken = turns + 2 * k, *done = taken + 1;
        const int64_t here = PASSES[level][blocks[k].is_double][backward](plan, blocks + k, taken, share);
        if (here < 0) __atomic_store_n(failed, 1, __ATOMIC_RELEASE);
        else __atomic_fetch_add(done, here, __ATOMIC_RELEASE);
        for (int64_t spins = 0; __atomic_load_n(done, __ATOMIC_ACQUIRE) < plan->n_places; spins++) {
            if (__atomic_load_n(failed, __ATOMIC_ACQUIRE)) return 1;
            if (spins < PATIENCE) PAUSE();
            else YIELD();
        }
    }
    return 0;
}
