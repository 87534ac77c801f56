// The transforms of winograd_plan.h that taps and products go through, on any type with +, - and *.
#pragma once

#include <type_traits>

#include "vec.h"
#include "winograd_plan.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {

// Each works in place on elements `stride` apart; `taps` is 1, 2 or 3.

struct TapTransform {  // taps to taps + 1
  template <int taps, typename V>
  static VEC_INLINE void apply(V* g, int stride) {
    V &g0 = g[0], &g1 = g[stride];
    if constexpr (taps == 1) {
      g1 = g0;
    } else if constexpr (taps == 2) {
      g[2 * stride] = g1;
      g1 = g0 + g1;
    } else {
      V &g2 = g[2 * stride], &g3 = g[3 * stride];
      const V half(0.5f), even = (g0 + g2) * half, odd = g1 * half;
      g3 = g2;
      g1 = even + odd;
      g2 = even - odd;
    }
  }
};

struct OutputTransform {  // taps + 1 to 2
  template <int taps, typename V>
  static VEC_INLINE void apply(V* m, int stride) {
    V &m0 = m[0], &m1 = m[stride];
    if constexpr (taps == 2) {
      m0 = m0 + m1;
      m1 = m1 + m[2 * stride];
    } else if constexpr (taps == 3) {
      const V &m2 = m[2 * stride], &m3 = m[3 * stride];
      m0 = m0 + (m1 + m2);
      m1 = (m1 - m2) + m3;
    }
  }
};

struct WeightGradientTransform {  // taps + 1 to taps
  template <int taps, typename V>
  static VEC_INLINE void apply(V* m, int stride) {
    V &m0 = m[0], &m1 = m[stride];
    if constexpr (taps == 1) {
      m0 = m0 + m1;
    } else if constexpr (taps == 2) {
      m0 = m0 + m1;
      m1 = m1 + m[2 * stride];
    } else {
      V &m2 = m[2 * stride], &m3 = m[3 * stride];
      const V half(0.5f), even = (m1 + m2) * half;
      m0 = m0 + even;
      m1 = (m1 - m2) * half;
      m2 = even + m3;
    }
  }
};

// A transform on the array [taps_y + 1][taps_x + 1]: down the first `columns` columns, then along the first `rows` rows.
template <typename Transform, int taps_y, int taps_x, int columns, int rows, typename V>
VEC_INLINE void transform_2d(V (&a)[taps_y + 1][taps_x + 1]) {
#pragma GCC unroll 4
  for (int x = 0; x < columns; ++x) Transform::template apply<taps_y>(&a[0][x], taps_x + 1);
#pragma GCC unroll 4
  for (int y = 0; y < rows; ++y) Transform::template apply<taps_x>(&a[y][0], 1);
}

// Calls f(taps_y, taps_x) with each a std::integral_constant.
template <typename F>
void dispatch_taps(const winograd::Term& term, F&& f) {
  using One = std::integral_constant<int, 1>;
  using Two = std::integral_constant<int, 2>;
  using Three = std::integral_constant<int, 3>;
  const int x_taps = term.phase[1].taps;
  const auto with_y = [&](auto y) { x_taps == 1 ? f(y, One()) : x_taps == 2 ? f(y, Two()) : f(y, Three()); };
  const int y_taps = term.phase[0].taps;
  y_taps == 1 ? with_y(One()) : y_taps == 2 ? with_y(Two()) : with_y(Three());
}

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
