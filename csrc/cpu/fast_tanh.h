// tanh of vectors of floats, at less than a third of the cost of at::vec's own (which calls Sleef).
#pragma once

#include <ATen/cpu/vec/vec.h>

namespace dcgan_fast::cpu::CPU_CAPABILITY {

// Within 1.3 units in the last place; NaN stays NaN, zeros keep their signs.
inline __attribute__((always_inline)) at::vec::Vectorized<float> fast_tanh(const at::vec::Vectorized<float>& x) {
  using V = at::vec::Vectorized<float>;
  using at::vec::fmadd;
  // Below 0.9 x + x^3 * p(x^2), minimax to 1.6e-8 of tanh.
  const V t = x * x;
  V p = fmadd(V(0.0013039016934624278f), t, V(-0.006859914225863292f));
  p = fmadd(p, t, V(0.020903997076931108f));
  p = fmadd(p, t, V(-0.05372143590128485f));
  p = fmadd(p, t, V(0.13330358972893178f));
  p = fmadd(p, t, V(-0.33333212118194155f));
  const V near_zero = fmadd(x * t, p, x);
  // Else 1 - 2 / (1 + 2^(n + f)) with n + f = 2 |x| / ln 2, n rounded to an integer by adding 1.5 * 2^23, whose low bits
  // then are n; 2^f minimax on [-0.5, 0.5] to 7e-8. From 9.02 on tanh rounds to 1.
  const V size = x.abs(), clamped = at::vec::clamp_max(size, V(9.02f)), to_base_2(2.8853900817779268f), shift(12582912.0f);
  const V shifted = fmadd(clamped, to_base_2, shift), f = at::vec::fmsub(clamped, to_base_2, shifted - shift);
  V q = fmadd(V(0.0013276381485580315f), f, V(0.009675540609316278f));
  q = fmadd(q, f, V(0.055507135534447666f));
  q = fmadd(q, f, V(0.24022119741892267f));
  q = fmadd(q, f, V(0.6931469668933882f));
  q = fmadd(q, f, V(1.0000000716491144f));
  const auto exponent = at::vec::cast<int32_t>(shifted) << at::vec::Vectorized<int32_t>(23);
  const V power = at::vec::cast<float>(at::vec::cast<int32_t>(q) + exponent), one(1.0f);
  const V far = (one - V(2.0f) / (one + power)) | (x & V(-0.0f));
  return V::blendv(far, near_zero, size < V(0.9f));
}

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
