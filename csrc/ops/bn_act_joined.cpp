// Batch normalisation by the joined statistics of several processes: bn_act, conv_bn_act and conv_transpose_bn_act with a
// process_group, cut where processes exchange numbers. dcgan_fast/synchronised.py exchanges them.
//
//   forward   (conv_)bn_act_moments     count, mean and squared deviations of this process's maps  -> all gather
//             bn_act_joined_forward     Chan's rule over the processes in order of rank, normalise, activate
//   backward  bn_act_joined_sums        the parameters' gradients of this process's maps           -> all reduce
//             bn_act_joined_backward    the maps' gradient; the convolution's is conv_act_backward without an activation
//
// The passes over the maps are those of one process: the convolution gathers the statistics as it stores, so forward reads
// and writes the maps once more, backward reads twice and writes once. What travels is in double: at 24 bytes a channel a
// message takes as long as an empty one. On the CPU; elsewhere dcgan_fast.reference serves.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include "../checks.h"
#include "../cpu/bn_act.h"
#include "../cpu/moments.h"
#include "bn_act.h"
#include "convolution.h"
#include "map_pool.h"

namespace dcgan_fast {
namespace {

constexpr const char* kName = "bn_act";

// [groups, 3, C]: how many values, their mean, the sum of squared deviations from it; zeros of an empty batch.
Tensor as_moments(const Tensor& mean, const Tensor& var, int64_t count) {
  const Tensor moments = at::empty({mean.size(0), 3, mean.size(1)}, mean.options().dtype(at::kDouble));
  moments.select(1, 0).fill_(count);
  moments.select(1, 1).copy_(mean);
  moments.select(1, 2).copy_(var).mul_(count);
  return moments;
}

Tensor moments_of(const Tensor& maps, int64_t groups, const cpu::BlockMoments* gathered) {
  const auto shape = maps_of(maps, groups);
  const auto options = maps.options().dtype(at::toOpMathType(maps.scalar_type()));
  if (maps.numel() == 0) return at::zeros({groups, 3, shape.channels}, options.dtype(at::kDouble));
  const Tensor mean = at::empty({groups, shape.channels}, options), var = at::empty_like(mean);
  if (gathered) {
    gathered->merge(mean.mutable_data_ptr<float>(), var.mutable_data_ptr<float>());
  } else {
    cpu::BnActForward args{};
    args.input = maps.const_data_ptr();
    args.mean = mean.mutable_data_ptr();
    args.var = var.mutable_data_ptr();
    args.training = args.measure = true;
    cpu::bn_act_kernels().forward(shape, args);
  }
  return as_moments(mean, var, shape.group_size());
}

Tensor bn_act_moments(const Tensor& input, int64_t stat_groups) {
  check_maps(kName, input);
  DCGAN_CHECK(input.dim() >= 2, kName, "'input' must be (N, C, ...), got ", input.sizes());
  check_groups(kName, input.size(0), stat_groups);
  return moments_of(dense_maps(input), stat_groups, nullptr);
}

std::tuple<Tensor, Tensor> conv_bn_act_moments(const Tensor& input, const Tensor& weight, at::IntArrayRef stride,
                                               at::IntArrayRef padding, at::IntArrayRef output_padding, bool transposed,
                                               int64_t stat_groups) {
  const Convolution convolution{transposed ? "conv_transpose_bn_act" : "conv_bn_act", transposed, stride, padding,
                                output_padding};
  convolution.check(input, weight);
  check_groups(convolution.op, input.size(0), stat_groups);
  MapStatistics statistics{stat_groups};
  ConvFinish gather;
  gather.statistics = &statistics;
  const Tensor fused = convolution.fused(input, weight, gather, /*gradient_next=*/weight.requires_grad());
  const Tensor maps = fused.defined() ? fused : dense_maps(convolution.reference(input, weight, {}));
  return {maps, moments_of(maps, stat_groups, statistics.blocks.count.empty() ? nullptr : &statistics.blocks)};
}

// Moments [processes, groups, 3, C] -> mean and biased variance, [groups, C] of `options`; the count of a group.
std::tuple<Tensor, Tensor, double> join(const Tensor& moments, const at::TensorOptions& options) {
  const int64_t processes = moments.size(0), groups = moments.size(1), channels = moments.size(3);
  const Tensor mean = at::empty({groups, channels}, options), var = at::empty_like(mean), dense = moments.contiguous();
  const auto* from = dense.const_data_ptr<double>();
  double count = 0;
  AT_DISPATCH_FLOATING_TYPES(mean.scalar_type(), "join", [&] {
    auto *of_mean = mean.mutable_data_ptr<scalar_t>(), *of_var = var.mutable_data_ptr<scalar_t>();
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t c = 0; c < channels; ++c) {
        cpu::Moments joined;
        for (int64_t p = 0; p < processes; ++p) {
          const double* part = from + (p * groups + g) * 3 * channels + c;
          if (part[0] > 0) joined.add(part[0], part[channels], 0, part[2 * channels]);
        }
        of_mean[g * channels + c] = static_cast<scalar_t>(joined.mean);
        of_var[g * channels + c] = static_cast<scalar_t>(joined.n > 0 ? joined.m2 / joined.n : 0);
        count = joined.n;
      }
    }
  });
  return {mean, var, count};
}

std::tuple<Tensor, Tensor, Tensor> bn_act_joined_forward(const Tensor& input, const Tensor& weight, const Tensor& bias,
                                                         const OptionalTensor& running_mean,
                                                         const OptionalTensor& running_var, const Tensor& moments,
                                                         std::string_view activation, double negative_slope,
                                                         double momentum, double eps) {
  check_maps(kName, input);
  const int64_t groups = moments.size(1);
  const BnActOptions o{kName, parse_activation(kName, activation), negative_slope, /*training=*/true, momentum, eps,
                       groups};
  const BnTensors bn{weight, bias, running_mean, running_var};
  check_bn(o, input, input.size(0), input.size(1), bn);
  const auto acc = at::toOpMathType(input.scalar_type());
  const auto [mean, var, count] = join(moments, input.options().dtype(acc));
  DCGAN_CHECK(count == 0 || count > 1, kName, "expected more than 1 value per channel", groups > 1 ? " and group" : "",
              " when training, got ", count, " in all processes together");
  const Tensor maps = dense_maps(input), output = empty_maps_like(maps), rstd = at::zeros_like(mean);
  const Tensor w = accumulators(weight, acc), b = accumulators(bias, acc);
  if (maps.numel() > 0) {
    cpu::bn_act_kernels().forward(
        maps_of(maps, groups),
        {maps.const_data_ptr(), output.mutable_data_ptr(), w.const_data_ptr(), b.const_data_ptr(),
         mean.mutable_data_ptr(), var.mutable_data_ptr(), rstd.mutable_data_ptr(), /*training=*/true,
         /*measure=*/false, eps, o.activation, negative_slope});
  }
  if (running_mean && count > 0) {
    update_running(*running_mean, mean, momentum, 1);
    update_running(*running_var, var, momentum, count / (count - 1));
  }
  return {output, mean, rstd};
}

// A call of the backward kernels: [2, groups, C] of bn_weight and bn_bias, written or, as averages, read.
void run_backward(const Tensor& grad, const Tensor& maps, const Tensor& weight, const Tensor& bias, const Tensor& mean,
                  const Tensor& rstd, const Tensor& gradients, void* grad_input, std::string_view activation,
                  double negative_slope) {
  const auto acc = mean.scalar_type();
  const Tensor w = accumulators(weight, acc), b = accumulators(bias, acc), of_weight = gradients[0], of_bias = gradients[1];
  cpu::bn_act_kernels().backward(
      maps_of(maps, mean.size(0)),
      {grad.const_data_ptr(), maps.const_data_ptr(), grad_input, w.const_data_ptr(), b.const_data_ptr(),
       mean.const_data_ptr(), rstd.const_data_ptr(), of_weight.mutable_data_ptr(), of_bias.mutable_data_ptr(),
       /*averages=*/grad_input != nullptr, /*training=*/true, parse_activation(kName, activation), negative_slope});
}

Tensor bn_act_joined_sums(const Tensor& grad, const Tensor& input, const Tensor& weight, const Tensor& bias,
                          const Tensor& mean, const Tensor& rstd, std::string_view activation, double negative_slope) {
  const Tensor maps = dense_maps(input), sums = at::empty({2, mean.size(0), mean.size(1)}, mean.options());
  if (maps.numel() == 0) return sums.zero_();
  run_backward(laid_out_like(maps, grad), maps, weight, bias, mean, rstd, sums, nullptr, activation, negative_slope);
  return sums;
}

Tensor bn_act_joined_backward(const Tensor& grad, const Tensor& input, const Tensor& weight, const Tensor& bias,
                              const Tensor& mean, const Tensor& rstd, const Tensor& averages,
                              std::string_view activation, double negative_slope) {
  const Tensor maps = dense_maps(input), grad_input = empty_maps_like(maps);
  if (maps.numel() == 0) return grad_input;
  run_backward(laid_out_like(maps, grad), maps, weight, bias, mean, rstd, averages.to(mean.scalar_type()).contiguous(),
               grad_input.mutable_data_ptr(), activation, negative_slope);
  return grad_input;
}

}  // namespace

TORCH_LIBRARY_IMPL(dcgan_fast, CPU, m) {
  m.impl("bn_act_moments", bn_act_moments);
  m.impl("conv_bn_act_moments", conv_bn_act_moments);
  m.impl("bn_act_joined_forward", bn_act_joined_forward);
  m.impl("bn_act_joined_sums", bn_act_joined_sums);
  m.impl("bn_act_joined_backward", bn_act_joined_backward);
}

}  // namespace dcgan_fast
