// Vectors of at least 16 accumulators for any storage type, on at::vec.
//
// float32 is accumulated in float32, bfloat16 and float16 in float32, float64 in float64. One `Vec<T>`
// holds `lanes<T>` elements: a pair of registers, so that a 16-bit register converts to exactly one Vec.
#pragma once

#include <ATen/OpMathType.h>
#include <ATen/cpu/vec/vec.h>

#include <type_traits>

#ifndef CPU_CAPABILITY
#error "compile this file once per CPU capability: -DCPU_CAPABILITY=AVX512 and its -m flags"
#endif

namespace dcgan_fast::cpu::CPU_CAPABILITY {

template <typename T>
using Acc = at::opmath_type<T>;

template <typename T>
using Vec = at::vec::VectorizedN<Acc<T>, 2>;

template <typename T>
inline constexpr int lanes = Vec<T>::size();

template <typename T>
inline Vec<T> load_vec(const T* p) {
  if constexpr (std::is_same_v<T, Acc<T>>) {
    return Vec<T>::loadu(p);
  } else {
    return at::vec::convert<Acc<T>, 2, T, 1>(at::vec::VectorizedN<T, 1>::loadu(p));
  }
}

// The first `count` elements; the other lanes hold arbitrary finite numbers.
template <typename T>
inline Vec<T> load_vec(const T* p, int count) {
  if (count == lanes<T>) return load_vec(p);
  if constexpr (std::is_same_v<T, Acc<T>>) {
    return Vec<T>::loadu(p, count);
  } else {
    return at::vec::convert<Acc<T>, 2, T, 1>(at::vec::VectorizedN<T, 1>::loadu(p, count));
  }
}

template <typename T>
inline void store_vec(T* p, const Vec<T>& v, int count = lanes<T>) {
  if constexpr (std::is_same_v<T, Acc<T>>) {
    count == lanes<T> ? v.store(p) : v.store(p, count);
  } else {
    const auto narrow = at::vec::convert<T, 1, Acc<T>, 2>(v);
    count == lanes<T> ? narrow.store(p) : narrow.store(p, count);
  }
}

// In double: a lane's sum is small, and 32 of them added in float would lose digits of a mean near zero.
template <typename T>
inline double sum(const Vec<T>& v) {
  Acc<T> parts[lanes<T>];
  v.store(parts);
  double total = 0;
  for (const Acc<T> part : parts) total += part;
  return total;
}

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
