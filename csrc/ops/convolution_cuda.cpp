#include "convolution_cuda.h"

#include "../cuda/capability.h"
#include "../cuda/conv.h"
#include "cuda_launch.h"
#include "cuda_switches.h"

namespace dcgan_fast {
namespace {

constexpr auto kLast = at::MemoryFormat::ChannelsLast;

// Dense, and where 16-byte accesses may begin: a slice of a batch may lie anywhere.
Tensor for_kernels(const Tensor& maps) {
  const Tensor dense = maps.contiguous(kLast);
  return reinterpret_cast<uintptr_t>(dense.const_data_ptr()) % 16 ? dense.clone(kLast) : dense;
}

cuda::ConvShape shape_of(const Convolution& c, const Tensor& weight, at::IntArrayRef fine, at::IntArrayRef coarse) {
  const auto stride = c.strides_between(weight, fine, coarse);
  return {coarse[0],
          {fine[2], fine[3], fine[1]},
          {coarse[2], coarse[3], coarse[1]},
          {weight.size(2), weight.size(3)},
          {stride[0], stride[1]},
          {c.padding[0], c.padding[1]},
          cuda_dtype(c.op, weight.scalar_type()),
          float32_precision(),
          cuda::has_warpgroups(),
          cuda_switches().copy_engine && cuda::has_boxes()};
}

}  // namespace

const char* conv_cuda_refusal(const Convolution& c, const Tensor& weight, at::IntArrayRef fine, at::IntArrayRef coarse) {
  return cuda::conv_refusal(shape_of(c, weight, fine, coarse));
}

const char* conv_cuda_name(at::ScalarType type) {
  if (type != at::kFloat) return "tensor cores";
  switch (float32_precision()) {
    case cuda::Precision::kTf32: return "tensor cores, tf32";
    case cuda::Precision::kTf32x3: return "tensor cores, 3 x tf32";
    default: return "float32 multiply-add";
  }
}

Tensor conv_cuda(const Convolution& c, bool up, const Tensor& in, const Tensor& weight, at::IntArrayRef sizes,
                 const ConvFinish& finish) {
  const c10::DeviceGuard on_device(in.device());
  const Tensor input = for_kernels(in), dense_weight = for_kernels(weight);
  const Tensor output = at::empty(sizes, in.options(), kLast);
  const auto shape = up ? shape_of(c, weight, sizes, in.sizes()) : shape_of(c, weight, in.sizes(), sizes);
  const auto direction = up ? cuda::Direction::kUp : cuda::Direction::kDown;
  cuda::ConvForward args{};
  args.shape = shape;
  args.direction = direction;
  args.input = input.const_data_ptr();
  args.weight = dense_weight.const_data_ptr();
  args.output = output.mutable_data_ptr();
  args.stat_groups = finish.statistics ? finish.statistics->groups : finish.below ? finish.below->mean.size(0) : 1;
  const Tensor workspace = cuda_workspace(cuda::conv_workspace_bytes(shape, direction, args.stat_groups), in);
  args.workspace = workspace.mutable_data_ptr();
  args.activation = finish.activation;
  args.negative_slope = static_cast<float>(finish.negative_slope);
  args.param_dtype = cuda::DType::kFloat32;
  Tensor mean, var, bn_weight, bias;  // alive until the launch
  if (finish.bn) {
    const auto type = finish.bn->weight.scalar_type();
    mean = cuda_parameter(*finish.bn->running_mean, type);
    var = cuda_parameter(*finish.bn->running_var, type);
    bn_weight = cuda_parameter(finish.bn->weight, type);
    bias = cuda_parameter(finish.bn->bias, type);
    args.mean = mean.const_data_ptr();
    args.var = var.const_data_ptr();
    args.bn_weight = bn_weight.const_data_ptr();
    args.bias = bias.const_data_ptr();
    args.param_dtype = cuda_dtype(c.op, type);
    args.eps = finish.eps;
  } else if (finish.bias) {
    bias = finish.bias->contiguous();
    args.bias = bias.const_data_ptr();
    args.param_dtype = cuda_dtype(c.op, bias.scalar_type());
  }
  const auto floats = in.options().dtype(at::kFloat);
  const bool sums = finish.below && cuda::conv_sums_pay(shape, direction);
  const int64_t tiles = finish.statistics || sums ? cuda::conv_tiles(shape, direction, args.stat_groups) : 0;
  if (finish.statistics && tiles) {
    finish.statistics->tile_moments = at::empty({args.stat_groups, tiles, sizes[1], 2}, floats);
    finish.statistics->tile_counts = at::empty({args.stat_groups, tiles}, floats);
    args.tile_moments = finish.statistics->tile_moments.mutable_data_ptr();
    args.tile_counts = finish.statistics->tile_counts.mutable_data_ptr<float>();
  }
  if (sums && tiles) {
    BatchNormBelow& below = *finish.below;
    const auto type = below.weight.scalar_type();
    bn_weight = cuda_parameter(below.weight, type);
    bias = cuda_parameter(below.bias, type);
    below.tile_sums = at::empty({args.stat_groups, tiles, sizes[1], 2}, floats);
    args.sums = {below.input.const_data_ptr(), below.mean.const_data_ptr<float>(), below.rstd.const_data_ptr<float>(),
                 bn_weight.const_data_ptr(),   bias.const_data_ptr(),              cuda_dtype(c.op, type),
                 below.activation,             static_cast<float>(below.negative_slope),
                 below.tile_sums.mutable_data_ptr()};
  }
  check_launch(c.op, cuda::launch_conv(args, current_stream(in.device())));
  return output;
}

Tensor conv_weight_grad_cuda(const Convolution& c, const Tensor& weight, const Tensor& fine, const Tensor& coarse) {
  const c10::DeviceGuard on_device(weight.device());
  const Tensor fine_maps = for_kernels(fine), coarse_maps = for_kernels(coarse);
  const Tensor grad = at::empty(weight.sizes(), weight.options(), kLast);
  const auto shape = shape_of(c, weight, fine.sizes(), coarse.sizes());
  const Tensor workspace = cuda_workspace(cuda::conv_weight_grad_workspace_bytes(shape), weight);
  check_launch(c.op, cuda::launch_conv_weight_grad({shape, fine_maps.const_data_ptr(), coarse_maps.const_data_ptr(),
                                                    grad.mutable_data_ptr(), workspace.mutable_data_ptr()},
                                                   current_stream(weight.device())));
  return grad;
}

}  // namespace dcgan_fast
