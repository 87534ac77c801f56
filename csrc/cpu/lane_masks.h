// Comparisons of vectors as bits: at::vec's give vectors, and to make bits of those takes longer than reading the
// operands.
#pragma once

#include "vec.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {

// Bit i: is lane i of a larger than that of b? Is it NaN in one of the two?
#if defined(CPU_CAPABILITY_AVX512)
using Floats = at::vec::Vectorized<float>;
using Doubles = at::vec::Vectorized<double>;
VEC_INLINE uint64_t larger(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
VEC_INLINE uint64_t larger(Doubles a, Doubles b) { return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ); }
VEC_INLINE uint64_t unordered(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q); }
VEC_INLINE uint64_t unordered(Doubles a, Doubles b) { return _mm512_cmp_pd_mask(a, b, _CMP_UNORD_Q); }
#elif defined(CPU_CAPABILITY_AVX2)
using Floats = at::vec::Vectorized<float>;
using Doubles = at::vec::Vectorized<double>;
VEC_INLINE uint64_t larger(Floats a, Floats b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)); }
VEC_INLINE uint64_t larger(Doubles a, Doubles b) { return _mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_GT_OQ)); }
VEC_INLINE uint64_t unordered(Floats a, Floats b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_UNORD_Q)); }
VEC_INLINE uint64_t unordered(Doubles a, Doubles b) { return _mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_UNORD_Q)); }
#else
template <typename V>
VEC_INLINE uint64_t bits_of(const V& truth) {
  return ~static_cast<uint64_t>(truth.zero_mask()) & ((uint64_t{1} << V::size()) - 1);
}
template <typename V>
VEC_INLINE uint64_t larger(const V& a, const V& b) {
  return bits_of(a > b);
}
template <typename V>
VEC_INLINE uint64_t unordered(const V& a, const V& b) {
  return bits_of((a != a) | (b != b));
}
#endif

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
