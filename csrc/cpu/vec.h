// Pairs of at::vec vectors of accumulators, for any storage type.
//
// float32 is accumulated in float32, bfloat16 and float16 in float32, float64 in float64. A `Vec<T>` holds `lanes<T>`
// elements in two registers, so that a 16-bit register converts to exactly one Vec. (at::vec::VectorizedN would be the
// same thing, but GCC keeps its array in memory and calls its partial stores out of line.)
#pragma once

#include <ATen/OpMathType.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <type_traits>

#ifndef CPU_CAPABILITY
#error "compile this file once per CPU capability: -DCPU_CAPABILITY=AVX512 and its -m flags"
#endif

#include "fast_tanh.h"

#define VEC_INLINE inline __attribute__((always_inline))

namespace dcgan_fast::cpu::CPU_CAPABILITY {

template <typename T>
using Acc = at::opmath_type<T>;

template <typename T>
struct Vec {
  using A = Acc<T>;
  using Half = at::vec::Vectorized<A>;
  Half lo, hi;

  Vec() = default;
  VEC_INLINE explicit Vec(A value) : lo(value), hi(value) {}
  VEC_INLINE Vec(Half l, Half h) : lo(l), hi(h) {}

  friend VEC_INLINE Vec operator+(const Vec& a, const Vec& b) { return {a.lo + b.lo, a.hi + b.hi}; }
  friend VEC_INLINE Vec operator-(const Vec& a, const Vec& b) { return {a.lo - b.lo, a.hi - b.hi}; }
  friend VEC_INLINE Vec operator*(const Vec& a, const Vec& b) { return {a.lo * b.lo, a.hi * b.hi}; }
  friend VEC_INLINE Vec operator/(const Vec& a, const Vec& b) { return {a.lo / b.lo, a.hi / b.hi}; }
};

template <typename T>
inline constexpr int lanes = 2 * at::vec::Vectorized<Acc<T>>::size();

// How many elements a load or store touches: all lanes, or the first `n`.
struct All {};
struct First {
  int n;
};

// a * b + c
template <typename T>
VEC_INLINE Vec<T> fmadd(const Vec<T>& a, const Vec<T>& b, const Vec<T>& c) {
  return {at::vec::fmadd(a.lo, b.lo, c.lo), at::vec::fmadd(a.hi, b.hi, c.hi)};
}

// max(v, 0); keeps NaN, as torch.relu does
template <typename T>
VEC_INLINE Vec<T> clamp_negative(const Vec<T>& v) {
  const typename Vec<T>::Half zero(Acc<T>(0));
  return {at::vec::clamp_min(v.lo, zero), at::vec::clamp_min(v.hi, zero)};
}

// NaN where one is
template <typename T>
VEC_INLINE Vec<T> maximum(const Vec<T>& a, const Vec<T>& b) {
  return {at::vec::maximum(a.lo, b.lo), at::vec::maximum(a.hi, b.hi)};
}

// positive where v > 0, other elsewhere (NaN included)
template <typename T>
VEC_INLINE Vec<T> where_positive(const Vec<T>& v, const Vec<T>& positive, const Vec<T>& other) {
  using H = typename Vec<T>::Half;
  const H zero(Acc<T>(0));
  return {H::blendv(other.lo, positive.lo, v.lo > zero), H::blendv(other.hi, positive.hi, v.hi > zero)};
}

// 0 where v <= 0, other elsewhere (NaN included)
template <typename T>
VEC_INLINE Vec<T> zero_where_not_positive(const Vec<T>& v, const Vec<T>& other) {
  using H = typename Vec<T>::Half;
  const H zero(Acc<T>(0));
  return {H::blendv(other.lo, zero, v.lo <= zero), H::blendv(other.hi, zero, v.hi <= zero)};
}

template <typename T>
VEC_INLINE Vec<T> tanh(const Vec<T>& v) {
  if constexpr (std::is_same_v<Acc<T>, float>) {
    return {fast_tanh(v.lo), fast_tanh(v.hi)};
  } else {
    return {v.lo.tanh(), v.hi.tanh()};
  }
}

template <typename T>
VEC_INLINE Vec<T> sigmoid(const Vec<T>& v) {
  const Vec<T> one(Acc<T>(1));
  return one / (one + Vec<T>{v.lo.neg().exp(), v.hi.neg().exp()});
}

// ---------------------------------------------------------------- memory; `acc` in the name: an array of accumulators

template <typename T>
VEC_INLINE Vec<T> load_acc(const Acc<T>* p, All = {}) {
  using H = typename Vec<T>::Half;
  return {H::loadu(p), H::loadu(p + H::size())};
}

// The other lanes hold zeros. By at::vec's partial loads and stores: one masked instruction where there are masks,
// which a buffer filled element by element takes five times as long as.
template <typename T>
VEC_INLINE Vec<T> load_acc(const Acc<T>* p, First first) {
  using H = typename Vec<T>::Half;
  const int of_lo = std::min<int>(first.n, H::size());
  return {H::loadu(p, of_lo), H::loadu(p + of_lo, first.n - of_lo)};
}

template <typename T>
VEC_INLINE void store_acc(Acc<T>* p, const Vec<T>& v, All = {}) {
  v.lo.store(p);
  v.hi.store(p + Vec<T>::Half::size());
}

template <typename T>
VEC_INLINE void store_acc(Acc<T>* p, const Vec<T>& v, First first) {
  const int of_lo = std::min<int>(first.n, Vec<T>::Half::size());
  v.lo.store(p, of_lo);
  v.hi.store(p + of_lo, first.n - of_lo);
}

template <typename T>
VEC_INLINE Vec<T> widen(const at::vec::Vectorized<T>& v) {
  const auto wide = at::vec::convert<Acc<T>, 2, T, 1>(at::vec::VectorizedN<T, 1>(v));
  return {wide[0], wide[1]};
}

template <typename T>
VEC_INLINE Vec<T> load_vec(const T* p, All = {}) {
  if constexpr (std::is_same_v<T, Acc<T>>) {
    return load_acc<T>(p);
  } else {
    return widen<T>(at::vec::Vectorized<T>::loadu(p));
  }
}

template <typename T>
VEC_INLINE Vec<T> load_vec(const T* p, First first) {
  if constexpr (std::is_same_v<T, Acc<T>>) {
    return load_acc<T>(p, first);
  } else {
    return widen<T>(at::vec::Vectorized<T>::loadu(p, first.n));
  }
}

// Rounded to the storage type; not for types that are their own accumulators.
template <typename T, typename U>
VEC_INLINE at::vec::Vectorized<T> narrow(const Vec<U>& v) {
#ifdef __AVX512BF16__
  if constexpr (std::is_same_v<T, c10::BFloat16>) return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(v.hi, v.lo));
#endif
  return at::vec::convert<T, 1, Acc<T>, 2>(at::vec::VectorizedN<Acc<T>, 2>(v.lo, v.hi));
}

// The values as they come back from memory of type T.
template <typename T, typename U>
VEC_INLINE Vec<U> rounded(const Vec<U>& v) {
  if constexpr (std::is_same_v<T, Acc<U>>) {
    return v;
  } else {
    const Vec<T> wide = widen<T>(narrow<T>(v));
    return {wide.lo, wide.hi};
  }
}

template <typename T>
VEC_INLINE void store_vec(T* p, const Vec<T>& v, All = {}) {
  if constexpr (std::is_same_v<T, Acc<T>>) {
    store_acc<T>(p, v);
  } else {
    narrow<T>(v).store(p);
  }
}

template <typename T>
VEC_INLINE void store_vec(T* p, const Vec<T>& v, First first) {
  if constexpr (std::is_same_v<T, Acc<T>>) {
    store_acc<T>(p, v, first);
  } else {
    narrow<T>(v).store(p, first.n);
  }
}

// In double: a lane's sum is small, and 32 of them added in float would lose digits of a mean near zero.
template <typename T>
inline double sum(const Vec<T>& v) {
  alignas(64) Acc<T> parts[lanes<T>];
  store_acc(parts, v);
  double total = 0;
  for (const Acc<T> part : parts) total += part;
  return total;
}

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
