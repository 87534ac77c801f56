#include "bn_act_cuda.h"

#include <ATen/ops/empty_like.h>

#include "cuda_launch.h"

namespace dcgan_fast {
namespace {

cuda::BnActShape shape_of(const BnActOptions& o, const Tensor& input, const Tensor& weight) {
  const int64_t n = input.size(0), c = input.size(1), spatial = input.numel() / (n * c);
  return {n, c, spatial, o.groups(), spatial == 1 || !input.is_contiguous(), cuda_dtype(o.op, input.scalar_type()),
          cuda_dtype(o.op, weight.scalar_type())};
}

}  // namespace

std::tuple<Tensor, Tensor> bn_act_run_cuda(const BnActOptions& o, const Tensor& input, const BnTensors& bn,
                                           Tensor& output, const MapStatistics* statistics) {
  const c10::DeviceGuard on_device(input.device());
  const auto shape = shape_of(o, input, bn.weight);
  const Tensor weight = bn.weight.contiguous(), bias = cuda_parameter(bn.bias, weight.scalar_type());
  Tensor running_mean, running_var;
  if (bn.running_mean) {
    running_mean = cuda_parameter(*bn.running_mean, weight.scalar_type());
    running_var = cuda_parameter(*bn.running_var, weight.scalar_type());
  }
  const Tensor mean = at::empty({shape.stat_groups, shape.channels},
                                at::TensorOptions(input.device()).dtype(at::kFloat));
  const Tensor rstd = at::empty_like(mean);
  const Tensor workspace = cuda_workspace(cuda::bn_act_workspace_bytes(shape), input);
  cuda::BnActForward args{};
  args.shape = shape;
  args.x = input.const_data_ptr();
  args.y = output.mutable_data_ptr();
  args.weight = weight.const_data_ptr();
  args.bias = bias.const_data_ptr();
  args.running_mean = bn.running_mean ? running_mean.mutable_data_ptr() : nullptr;
  args.running_var = bn.running_var ? running_var.mutable_data_ptr() : nullptr;
  args.mean = mean.mutable_data_ptr<float>();
  args.rstd = rstd.mutable_data_ptr<float>();
  args.workspace = workspace.mutable_data_ptr();
  if (statistics && statistics->tile_moments.defined()) {
    args.tile_moments = statistics->tile_moments.const_data_ptr();
    args.tile_counts = statistics->tile_counts.const_data_ptr<float>();
    args.tiles = statistics->tile_counts.size(1);
  }
  args.training = o.training;
  args.momentum = o.momentum;
  args.eps = o.eps;
  args.activation = o.activation;
  args.negative_slope = static_cast<float>(o.negative_slope);
  check_launch(o.op, cuda::launch_bn_act_forward(args, current_stream(input.device())));
  if (o.training && bn.running_mean) {
    for (const auto& [kept, updated] : {std::pair(*bn.running_mean, running_mean), {*bn.running_var, running_var}}) {
      if (!kept.is_same(updated)) kept.copy_(updated);
      if (!kept.is_inference()) kept.unsafeGetTensorImpl()->bump_version();
    }
  }
  return {mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> bn_act_run_backward_cuda(const BnActOptions& o, const Tensor& grad,
                                                            const Tensor& input, const Tensor& weight,
                                                            const Tensor& bias, const Tensor& mean, const Tensor& rstd,
                                                            std::array<bool, 3> mask, bool overwrite_grad,
                                                            const Tensor& tile_sums) {
  const c10::DeviceGuard on_device(input.device());
  const auto shape = shape_of(o, input, weight);
  const Tensor w = weight.contiguous(), b = cuda_parameter(bias, w.scalar_type());
  const Tensor grad_input = !mask[0] ? Tensor() : overwrite_grad ? grad : at::empty_like(input);
  const Tensor grad_weight = mask[1] ? at::empty_like(w) : Tensor();
  const Tensor grad_bias = mask[2] ? at::empty_like(b) : Tensor();
  const Tensor workspace = cuda_workspace(cuda::bn_act_workspace_bytes(shape), input);
  const auto out = [](const Tensor& t) { return t.defined() ? t.mutable_data_ptr() : nullptr; };
  cuda::BnActBackward args{};
  args.shape = shape;
  args.dy = grad.const_data_ptr();
  args.x = input.const_data_ptr();
  args.weight = w.const_data_ptr();
  args.bias = b.const_data_ptr();
  args.mean = mean.const_data_ptr<float>();
  args.rstd = rstd.const_data_ptr<float>();
  args.dx = out(grad_input);
  args.dweight = out(grad_weight);
  args.dbias = out(grad_bias);
  if (tile_sums.defined()) {
    args.tile_sums = tile_sums.const_data_ptr();
    args.tiles = tile_sums.size(1);
  }
  args.workspace = workspace.mutable_data_ptr();
  args.training = o.training;
  args.activation = o.activation;
  args.negative_slope = static_cast<float>(o.negative_slope);
  check_launch(o.op, cuda::launch_bn_act_backward(args, current_stream(input.device())));
  return {grad_input, grad_weight, mask[2] ? grad_bias.to(bias.scalar_type()) : grad_bias};
}

}  // namespace dcgan_fast
