// Batch normalisation + activation on the CPU: what the glue in ops/ hands to the kernels.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "../activation.h"

namespace dcgan_fast::cpu {

// A batch of feature maps, dense in one of the two memory formats, cut along the batch in `groups` equal
// runs of samples that are normalised apart (stat_groups).
struct Maps {
  int64_t batch;       // N
  int64_t channels;    // C
  int64_t spatial;     // H * W, or 1
  int64_t groups;      // divides N
  bool channels_last;  // [N, spatial, C] when true, [N, C, spatial] when false
  at::ScalarType dtype;

  int64_t group_size() const { return batch / groups * spatial; }  // values per channel and group
};

// z = (x - mean) * scale + bias, then the activation. Accumulator type: float, or double for float64 maps.
struct Normalize {
  const void* mean;   // [groups, C]
  const void* scale;  // [groups, C]: weight * rstd
  const void* bias;   // [C]
  Activation activation;
  double negative_slope;
};

// One table per CPU capability; `bn_act_kernels()` picks the best that this machine runs.
//
// Bytes moved per element of e bytes (the floor on large maps): statistics reads e, forward reads e and writes e,
// reduce_grad reads 2e, backward reads 2e and writes e. Results do not depend on the number of threads.
struct BnActKernels {
  // mean and biased variance per group and channel: `mean`, `var` are [groups, C]
  void (*statistics)(const Maps&, const void* input, void* mean, void* var);
  // output = activation(z); output may be input
  void (*forward)(const Maps&, const Normalize&, const void* input, void* output);
  // with dz = grad * activation'(z): sum(dz) and sum(dz * (x - mean)), both [groups, C]
  void (*reduce_grad)(const Maps&, const Normalize&, const void* grad, const void* input, void* sum_dz,
                      void* sum_dz_x);
  // grad_input = scale * dz + slope_x * (x - mean) + offset; slope_x, offset are [groups, C].
  // grad_input may be grad
  void (*backward)(const Maps&, const Normalize&, const void* slope_x, const void* offset, const void* grad,
                   const void* input, void* grad_input);
};

const BnActKernels& bn_act_kernels();

}  // namespace dcgan_fast::cpu
