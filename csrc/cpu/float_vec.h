// Vectors of floats for loops that hold many in registers.
#pragma once

#ifndef CPU_CAPABILITY
#error "compile this file once per CPU capability: -DCPU_CAPABILITY=AVX512 and its -m flags"
#endif

#include <c10/util/Half.h>

#include <cstring>

#include "vec.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {

#if defined(CPU_CAPABILITY_AVX2) || defined(CPU_CAPABILITY_AVX512)
using V = at::vec::Vectorized<float>;
constexpr int kLanes = V::size();
VEC_INLINE V load(const float* p) { return V::loadu(p); }
VEC_INLINE void store(float* p, const V& v) { v.store(p); }
VEC_INLINE V broadcast(float x) { return V(x); }
VEC_INLINE V multiply_add(const V& a, const V& b, const V& c) { return at::vec::fmadd(a, b, c); }
#if defined(CPU_CAPABILITY_AVX512)
VEC_INLINE V load(const c10::Half* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
#else
VEC_INLINE V load(const c10::Half* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
#endif
#else
// 128 bits are everywhere; at::vec's generic vectors are arrays, which compilers keep in memory.
typedef float V __attribute__((vector_size(16)));
constexpr int kLanes = 4;
VEC_INLINE V load(const float* p) {
  V v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
VEC_INLINE V load(const c10::Half* p) { return V{p[0], p[1], p[2], p[3]}; }
VEC_INLINE void store(float* p, const V& v) { std::memcpy(p, &v, sizeof(v)); }
VEC_INLINE V broadcast(float x) { return V{x, x, x, x}; }
VEC_INLINE V multiply_add(const V& a, const V& b, const V& c) { return a * b + c; }
#endif

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
