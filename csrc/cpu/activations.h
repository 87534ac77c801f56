// Activations and their derivatives on vectors.
#pragma once

#include <type_traits>

#include "../activation.h"
#include "vec.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {

template <Activation A>
using Act = std::integral_constant<Activation, A>;

template <typename T, Activation A>
VEC_INLINE Vec<T> activate(Act<A>, const Vec<T>& z, [[maybe_unused]] const Vec<T>& slope) {
  if constexpr (A == Activation::relu) return clamp_negative(z);
  if constexpr (A == Activation::leaky_relu) return where_positive(z, z, z * slope);
  if constexpr (A == Activation::tanh) return tanh(z);
  if constexpr (A == Activation::sigmoid) return sigmoid(z);
  return z;
}

// For loops whose body is large beside this branch.
template <typename T>
VEC_INLINE Vec<T> activate(Activation a, const Vec<T>& z, const Vec<T>& slope) {
  switch (a) {
    case Activation::relu: return activate(Act<Activation::relu>(), z, slope);
    case Activation::leaky_relu: return activate(Act<Activation::leaky_relu>(), z, slope);
    case Activation::tanh: return activate(Act<Activation::tanh>(), z, slope);
    case Activation::sigmoid: return activate(Act<Activation::sigmoid>(), z, slope);
    case Activation::none: break;
  }
  return z;
}

// grad * activation'(z)
template <typename T, Activation A>
VEC_INLINE Vec<T> activate_grad(Act<A>, const Vec<T>& grad, const Vec<T>& z, [[maybe_unused]] const Vec<T>& slope) {
  const Vec<T> one(Acc<T>(1));
  if constexpr (A == Activation::relu) return zero_where_not_positive(z, grad);
  if constexpr (A == Activation::leaky_relu) return where_positive(z, grad, grad * slope);
  if constexpr (A == Activation::tanh) {
    const Vec<T> y = tanh(z);
    return grad * (one - y * y);
  }
  if constexpr (A == Activation::sigmoid) {
    const Vec<T> y = sigmoid(z);
    return grad * y * (one - y);
  }
  return grad;
}

// Calls f(Act<a>()).
template <typename F>
void dispatch_activation(Activation a, F&& f) {
  switch (a) {
    case Activation::relu: return f(Act<Activation::relu>());
    case Activation::leaky_relu: return f(Act<Activation::leaky_relu>());
    case Activation::tanh: return f(Act<Activation::tanh>());
    case Activation::sigmoid: return f(Act<Activation::sigmoid>());
    case Activation::none: return f(Act<Activation::none>());
  }
}

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
