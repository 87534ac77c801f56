// The activations and their derivatives, in float32, with PyTorch's choices at 0 and at NaN.
#pragma once

#include "device.cuh"

namespace dcgan_fast::cuda {

// Two kinds of kernels serve five activations. The piecewise linear ones differ by one select, which a
// memory-bound kernel does not feel; the smooth ones are long code, and stay out of its way.
__host__ __device__ constexpr bool is_smooth(Activation kind) { return kind == Activation::tanh || kind == Activation::sigmoid; }

template <bool kSmooth>
struct Activate;

// none, relu, leaky_relu: the identity above zero, a slope below, without branches.
template <>
struct Activate<false> {
  bool clip;    // relu: 0 below zero. As a slope of 0, -inf would turn NaN and -1 would turn -0.
  float slope;  // below zero; none is a slope of 1

  __device__ Activate(Activation kind, float negative_slope)
      : clip(kind == Activation::relu), slope(kind == Activation::leaky_relu ? negative_slope : 1.f) {}

  __device__ float operator()(float z) const {
    const float below = clip ? 0.f : z * slope;
    return z <= 0.f ? below : z;  // NaN passes through
  }

  // The gradient of z, given that of the activation's output. At NaN PyTorch's relu passes the
  // gradient on and its leaky_relu scales it.
  __device__ float backward(float z, float dy) const {
    const float below = clip ? 0.f : dy * slope;
    const bool passes = (z > 0.f) | (clip & (z != z));
    return passes ? dy : below;
  }
};

// tanh, sigmoid.
template <>
struct Activate<true> {
  bool is_tanh;

  __device__ Activate(Activation kind, float) : is_tanh(kind == Activation::tanh) {}

  __device__ float operator()(float z) const { return is_tanh ? tanhf(z) : 1.f / (1.f + expf(-z)); }

  __device__ float backward(float z, float dy) const {
    const float y = (*this)(z);
    return dy * (is_tanh ? 1.f - y * y : y * (1.f - y));
  }
};

}  // namespace dcgan_fast::cuda
