// Batch normalisation + activation as every fused op uses it: options, checks, and the two calls into the kernels.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

#include "../activation.h"
#include "../cpu/bn_act.h"
#include "../cpu/conv.h"

namespace dcgan_fast {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

struct BnActOptions {
  const char* op;  // the public op, for error messages
  Activation activation;
  double negative_slope;
  bool training;
  double momentum;
  double eps;
  int64_t stat_groups;

  // Rows of the saved statistics: running statistics serve all groups alike.
  int64_t groups() const { return training ? stat_groups : 1; }
};

struct BnTensors {
  const Tensor& weight;                // [C]
  const Tensor& bias;                  // [C]
  const OptionalTensor& running_mean;  // [C] or none
  const OptionalTensor& running_var;   // [C] or none
};

// Raises unless `batch` maps of `channels` channels can be normalised so; `input` gives dtype and device.
void check_bn(const BnActOptions&, const Tensor& input, int64_t batch, int64_t channels, const BnTensors&);

// Raises unless a batch can be cut into so many equal parts.
void check_groups(const char* op, int64_t batch, int64_t stat_groups);

// `input` with one of the two memory formats that the kernels read, without a copy where it has one.
Tensor dense_maps(const Tensor& input);

// Dense maps as the CPU's kernels take them; as [G, N / G, C, pixels]; and values [G, C] beside these.
cpu::Maps maps_of(const Tensor& input, int64_t groups);
Tensor by_groups(const Tensor& maps, int64_t groups);
Tensor per_channel(const Tensor& values);

// The kernels walk both in one order: a gradient of other strides (an expanded scalar, say) is laid out like input.
Tensor laid_out_like(const Tensor& input, const Tensor& grad);

// A [C] vector in the type that the CPU's kernels compute in.
Tensor accumulators(const Tensor& vector, at::ScalarType acc);

// mean [g, C] or biased variance [g, C] of training -> running statistics, group after group, as `groups` calls of
// torch.nn.functional.batch_norm would leave them. On the CPU.
void update_running(const Tensor& running, const Tensor& batch, double momentum, double correction);

// Statistics of a convolution's output, gathered by tiles in the kernel that stored it.
struct MapStatistics {
  int64_t groups = 1;                            // in: equal runs of images with statistics of their own
  cpu::BlockMoments blocks;                      // out: of a CPU kernel
  Tensor tile_moments, tile_counts;              // out: of a CUDA kernel, as cuda/conv.h says; undefined: not gathered
};

// output = activation(batch_norm(input)), `input` dense, `output` of its strides or input itself. Updates the running
// statistics in training. Returns mean and rstd, [groups, C] in the accumulator's dtype. `gathered`: the statistics of
// `input`, where they have been gathered already.
std::tuple<Tensor, Tensor> bn_act_run(const BnActOptions&, const Tensor& input, const BnTensors&, Tensor& output,
                                      const MapStatistics* gathered = nullptr);

// Batch norm by running statistics as an affine map of each channel, on the CPU: scale and shift, [C] float32.
std::tuple<Tensor, Tensor> bn_fold(double eps, const BnTensors&);

// Gradients of input, weight and bias; those not in `mask` are undefined. That of input may take the place of `grad` where
// the caller allows it. `tile_sums`: those of `grad`, where they have been gathered already (gradient_sums.h).
std::tuple<Tensor, Tensor, Tensor> bn_act_run_backward(const BnActOptions&, const Tensor& grad, const Tensor& input,
                                                       const Tensor& weight, const Tensor& bias, const Tensor& mean,
                                                       const Tensor& rstd, std::array<bool, 3> mask,
                                                       bool overwrite_grad = false, const Tensor& tile_sums = {});

// The same mathematics in ATen's simplest calls, differentiable to any order (at::batch_norm is to the second alone: its
// double backward takes the statistics for constants). `mean` and `rstd` are the saved statistics; in training they are
// computed anew, so that the gradient flows through them.
Tensor bn_act_reference(const BnActOptions&, const Tensor& input, const Tensor& weight, const Tensor& bias,
                        const Tensor& mean, const Tensor& rstd);
Tensor activation_reference(Activation, double negative_slope, const Tensor& input);
Tensor activation_backward_reference(Activation, double negative_slope, const Tensor& grad, const Tensor& input);

}  // namespace dcgan_fast
