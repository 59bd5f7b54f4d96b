/* Both element types of one instruction set. */

#define REAL float
#define INT int32_t
#define LANES FLOAT_LANES
#define HALF FLOAT_HALF
#define NAME(x) LEVEL_NAME(x##_f_, LEVEL)
#define LEVEL_NAME(x, level) JOIN(x, level)
#define SQRT sqrtf
#define IF_POSITIVE IF_POSITIVE_f
#define AT_LEAST AT_LEAST_f
#define TERMS TERMS_f
#define EXP_LOW -87.0f
#define EXP_MAGIC 12582912.0f /* 1.5 * 2^23: adding it rounds to an integer */
#define EXP_LN2_HIGH 0.693359375f
#define EXP_LN2_LOW -2.12194440e-4f
#define EXP_BITS 23
#define EXP_ONE 0x3f800000
#include "blocks.h"
#undef REAL
#undef INT
#undef LANES
#undef HALF
#undef NAME
#undef SQRT
#undef IF_POSITIVE
#undef AT_LEAST
#undef TERMS
#undef EXP_LOW
#undef EXP_MAGIC
#undef EXP_LN2_HIGH
#undef EXP_LN2_LOW
#undef EXP_BITS
#undef EXP_ONE

#define REAL double
#define INT int64_t
#define LANES DOUBLE_LANES
#define HALF DOUBLE_HALF
#define NAME(x) LEVEL_NAME(x##_d_, LEVEL)
#define SQRT sqrt
#define IF_POSITIVE IF_POSITIVE_d
#define AT_LEAST AT_LEAST_d
#define TERMS TERMS_d
#define EXP_LOW -708.0
#define EXP_MAGIC 6755399441055744.0 /* 1.5 * 2^52 */
#define EXP_LN2_HIGH 0.693147180369123816490
#define EXP_LN2_LOW 1.90821492927058770002e-10
#define EXP_BITS 52
#define EXP_ONE 0x3ff0000000000000
#include "blocks.h"
#undef REAL
#undef INT
#undef LANES
#undef HALF
#undef NAME
#undef LEVEL_NAME
#undef SQRT
#undef IF_POSITIVE
#undef AT_LEAST
#undef TERMS
#undef EXP_LOW
#undef EXP_MAGIC
#undef EXP_LN2_HIGH
#undef EXP_LN2_LOW
#undef EXP_BITS
#undef EXP_ONE
#undef LEVEL
#undef FLOAT_LANES
#undef FLOAT_HALF
#undef DOUBLE_LANES
#undef DOUBLE_HALF
#undef TILE
#undef IF_POSITIVE_f
#undef IF_POSITIVE_d
#undef AT_LEAST_f
#undef AT_LEAST_d
