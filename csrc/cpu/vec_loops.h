// Loops over vectors of elements, and sums that keep their digits.
#pragma once

#include "vec.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {

// Calls f(i, count) for the vectors of [0, n), with All{} but for the last, which may be First{rest}.
template <typename T, typename F>
VEC_INLINE void for_vectors(int64_t n, F&& f) {
  int64_t i = 0;
  for (; i + lanes<T> <= n; i += lanes<T>) f(i, All{});
  if (i < n) f(i, First{static_cast<int>(n - i)});
}

// sum += value with the rounding error carried in `error` (Kahan): a chunk's sums are then as good as float64's.
template <typename T, typename Count>
VEC_INLINE void add_compensated(Acc<T>* sum, Acc<T>* error, const Vec<T>& value, Count count) {
  const Vec<T> s = load_acc<T>(sum, count);
  const Vec<T> y = value - load_acc<T>(error, count);
  const Vec<T> t = s + y;
  store_acc<T>(error, (t - s) - y, count);
  store_acc<T>(sum, t, count);
}

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
