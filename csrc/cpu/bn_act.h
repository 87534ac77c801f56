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

// Vectors are of the accumulator's type: float, or double for float64 maps.
struct BnActForward {
  const void* input;
  void* output;        // may be input; null: only mean and var are wanted
  const void* weight;  // [C]
  const void* bias;    // [C]
  void* mean;          // [groups, C]: written where `measure`, else read
  void* var;           // [groups, C], biased: as mean
  void* rstd;          // [groups, C], written: 1 / sqrt(var + eps); in training 0 where both are 0
  bool training;       // are mean and var those of the maps?
  bool measure;        // and still to be measured?
  double eps;
  Activation activation;
  double negative_slope;
};

struct BnActBackward {
  const void* grad;   // of the output
  const void* input;  // the forward's: mask and normalised maps are recomputed from it
  void* grad_input;   // may be grad; null: not wanted
  const void* weight;  // [C]
  const void* bias;    // [C]
  const void* mean;    // [groups, C], as the forward left it
  const void* rstd;    // [groups, C], as the forward left it
  void* grad_weight;  // [groups, C], written: the groups' shares; read where `averages`
  void* grad_bias;    // [groups, C], as grad_weight
  bool averages;      // are these given, over all values that mean and rstd are of (other processes' too)?
  bool training;      // did mean and rstd depend on the input?
  Activation activation;
  double negative_slope;
};

// The gradients' own gradients, for activations of straight pieces (whose second derivative is 0).
struct BnActDoubleBackward {
  const void* of_grad_input;   // the loss's gradient of what backward gave for the input
  const void* of_grad_weight;  // [C], likewise; null: 0
  const void* of_grad_bias;    // [C], likewise; null: 0
  const void* grad;            // of the output, as backward had it
  const void* input;           // the forward's
  const void* weight;          // [C]
  const void* bias;            // [C]
  const void* mean;            // [groups, C], as the forward left it
  const void* rstd;            // [groups, C], as the forward left it
  void* to_grad;               // written: the loss's gradient of `grad`
  void* to_input;              // written: of the input, the statistics being functions of it in training
  void* to_weight;             // [groups, C], written: the groups' shares
  bool training;               // did mean and rstd depend on the input?
  Activation activation;
  double negative_slope;
};

// One table per CPU capability; `bn_act_kernels()` picks the best that this machine runs.
//
// Bytes moved per element of e bytes, the floor on maps larger than the caches: forward 3e (statistics read, apply reads
// and writes), backward 5e (the sums read both tensors, apply reads both and writes), double backward 8e (three tensors
// read twice, two written). Results do not depend on the number of threads.
struct BnActKernels {
  void (*forward)(const Maps&, const BnActForward&);
  void (*backward)(const Maps&, const BnActBackward&);
};

const BnActKernels& bn_act_kernels();

struct BnActDoubleBackwardKernels {
  void (*run)(const Maps&, const BnActDoubleBackward&);
};

const BnActDoubleBackwardKernels& bn_act_double_backward_kernels();

}  // namespace dcgan_fast::cpu
