/* Residual blocks on the CPU: dispatch over element types and instruction sets.

   Called through ctypes, so that neither Python's headers nor PyTorch's are needed to build it. Every
   field of the two structures has 8 bytes; `gsnn/functional/native.py` fills them in this order. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if UINTPTR_MAX != UINT64_MAX
#error "pointers of 64 bits expected"
#endif

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

enum { NONE, PER_SAMPLE, PER_NODE, PER_CHANNEL };
enum { SLICE = 128 };

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
    double gate; /* relu of the residual weight; 0 where there is no residual */
    const void *state, *in_values, *in_bias, *scale, *shift, *out_values, *out_bias, *factor;
    int64_t factor_node, factor_channel, factor_sample;
    /* forward */
    void *result, *aside, *stat_scale, *stat_mean;
    /* backward */
    const void *grad, *read_grad;
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
/* `share` places at a time until none is left; `first_here` says whether the first ones were among them. */
#define FOR_EACH_SHARE(plan, place, taken, share)                                                         \
    int first_here = 0;                                                                                   \
    for (int64_t from; (from = __atomic_fetch_add(taken, share, __ATOMIC_RELAXED)) < plan->n_places &&    \
                       (first_here |= from == 0, 1);)                                                     \
        for (int64_t place = from; place < plan->n_places && place < from + share; place++)
#define JOIN(a, b) a##b
#define LANES_OF(side, n) JOIN(side, n)

/* 1/2!, 1/3!, ...: |r| <= log(2) / 2 leaves an error below that of the type. */
static const float TERMS_f[] = {1.f / 2, 1.f / 6, 1.f / 24, 1.f / 120, 1.f / 720, 1.f / 5040};
static const double TERMS_d[] = {
    1. / 2,     1. / 6,       1. / 24,       1. / 120,        1. / 720,         1. / 5040,
    1. / 40320, 1. / 362880., 1. / 3628800., 1. / 39916800.0, 1. / 479001600.0, 1. / 6227020800.0};

#if defined(__x86_64__)
#define LEVEL avx512
TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#define FLOAT_LANES 16
#define FLOAT_HALF 8
#define DOUBLE_LANES 8
#define DOUBLE_HALF 4
#define TILE 8
#include "level.h"
TARGET_END

#define LEVEL avx2
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
#define FLOAT_LANES 4
#define FLOAT_HALF 2
#define DOUBLE_LANES 4
#define DOUBLE_HALF 2
#define TILE 4
#include "level.h"

/* Raised with every change of the structures, so that an old build is not called with new ones. */
EXPORT int gsnn_version(void) { return 1; }

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

typedef int (*pass_t)(const plan_t *, const block_t *, int64_t *, int64_t);

static const pass_t PASSES[][2][2] = {
    {{forward_f_plain, backward_f_plain}, {forward_d_plain, backward_d_plain}},
#if defined(__x86_64__)
    {{forward_f_avx2, backward_f_avx2}, {forward_d_avx2, backward_d_avx2}},
    {{forward_f_avx512, backward_f_avx512}, {forward_d_avx512, backward_d_avx512}},
#endif
};

/* One pass over the nodes, forward (0) or backward (1), with the code for `level`. Threads that call it
   with the same `taken`, 0 at first, share the nodes out between them. Returns 0, or 1 without memory. */
EXPORT int gsnn_pass(int level, int backward, const plan_t *plan, const block_t *block, int64_t *taken, int64_t share) {
    return PASSES[level][block->is_double][backward](plan, block, taken, share);
}
