// bn_act: batch normalisation + activation. Validate, allocate, fill params, launch; the autograd node; the CPU and
// CUDA keys.
#include "bn_act.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/leaky_relu_backward.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/sigmoid_backward.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/tanh_backward.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/ops/var_mean.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <cmath>

#include "../checks.h"
#include "../cpu/bn_act.h"
#include "autograd.h"
#include "device.h"
#include "double_backward.h"
#include "map_pool.h"
#ifdef DCGAN_FAST_CUDA
#include "bn_act_cuda.h"
#endif

namespace dcgan_fast {

// ---------------------------------------------------------------- what the fused ops share

void check_bn(const BnActOptions& o, const Tensor& input, int64_t batch, int64_t channels, const BnTensors& bn) {
  check_channel_vector(o.op, "bn_weight", bn.weight, input, channels);
  check_channel_vector(o.op, "bn_bias", bn.bias, input, channels);
  DCGAN_CHECK(bn.running_mean.has_value() == bn.running_var.has_value(), o.op,
              "'running_mean' and 'running_var' must be given together, got one of them");
  if (bn.running_mean) {
    check_channel_vector(o.op, "running_mean", *bn.running_mean, input, channels);
    check_channel_vector(o.op, "running_var", *bn.running_var, input, channels);
  }
  DCGAN_CHECK(o.training || bn.running_mean, o.op,
              "'running_mean' and 'running_var' must be given when training=False, got None");
  DCGAN_CHECK(o.eps >= 0, o.op, "'eps' must be at least 0, got ", o.eps);
  check_groups(o.op, batch, o.stat_groups);
}

void check_groups(const char* op, int64_t batch, int64_t stat_groups) {
  DCGAN_CHECK(stat_groups >= 1, op, "'stat_groups' must be at least 1, got ", stat_groups);
  DCGAN_CHECK(batch % stat_groups == 0, op, "'stat_groups' must divide the batch of ", batch, ", got ", stat_groups);
}

Tensor dense_maps(const Tensor& input) { return input.contiguous(input.suggest_memory_format()); }

Tensor laid_out_like(const Tensor& input, const Tensor& grad) {
  return grad.strides() == input.strides() ? grad : at::empty_like(input).copy_(grad);
}

cpu::Maps maps_of(const Tensor& input, int64_t groups) {
  const int64_t n = input.size(0), c = input.size(1), spatial = n * c == 0 ? 0 : input.numel() / (n * c);
  // With one pixel or one channel both formats are the same bytes; rows of channels are the faster reading of the first.
  const bool channels_last = spatial == 1 || !input.is_contiguous();
  return {n, c, spatial, groups, channels_last, input.scalar_type()};
}

Tensor by_groups(const Tensor& maps, int64_t groups) {
  return maps.reshape({groups, maps.size(0) / groups, maps.size(1), -1});
}

Tensor per_channel(const Tensor& values) { return values.view({-1, 1, values.size(-1), 1}); }

void update_running(const Tensor& running, const Tensor& batch, double momentum, double correction) {
  const Tensor r = running.to(batch.scalar_type()).contiguous();
  AT_DISPATCH_FLOATING_TYPES(batch.scalar_type(), "update_running", [&] {
    auto* p = r.mutable_data_ptr<scalar_t>();
    const auto* b = batch.const_data_ptr<scalar_t>();
    const int64_t channels = r.numel();
    const auto keep = static_cast<scalar_t>(1 - momentum), take = static_cast<scalar_t>(momentum),
               unbias = static_cast<scalar_t>(correction);
    for (int64_t i = 0; i < batch.numel(); ++i) p[i % channels] = keep * p[i % channels] + take * (unbias * b[i]);
  });
  if (!r.is_same(running)) running.copy_(r);
  if (!running.is_inference()) running.unsafeGetTensorImpl()->bump_version();
}

Tensor accumulators(const Tensor& vector, at::ScalarType acc) { return vector.to(acc).contiguous(); }

namespace {

std::tuple<Tensor, Tensor> bn_act_run_cpu(const BnActOptions& o, const Tensor& input, const BnTensors& bn,
                                          Tensor& output, const cpu::BlockMoments* moments) {
  const auto maps = maps_of(input, o.groups());
  const auto acc = at::toOpMathType(input.scalar_type());
  const Tensor weight = accumulators(bn.weight, acc), bias = accumulators(bn.bias, acc);
  const Tensor rstd = at::empty({maps.groups, maps.channels}, weight.options());
  // saved for backward, so a copy: the running statistics go on changing
  const Tensor mean = o.training ? at::empty_like(rstd) : bn.running_mean->to(acc, false, /*copy=*/true).view_as(rstd);
  const Tensor var = o.training ? at::empty_like(rstd) : accumulators(*bn.running_var, acc);
  if (moments) moments->merge(mean.mutable_data_ptr<float>(), var.mutable_data_ptr<float>());
  cpu::bn_act_kernels().forward(
      maps, {input.const_data_ptr(), output.mutable_data_ptr(), weight.const_data_ptr(), bias.const_data_ptr(),
             mean.mutable_data_ptr(), var.mutable_data_ptr(), rstd.mutable_data_ptr(), o.training, o.training && !moments,
             o.eps, o.activation, o.negative_slope});
  if (o.training && bn.running_mean) {
    const auto n = static_cast<double>(maps.group_size());
    update_running(*bn.running_mean, mean, o.momentum, 1);
    update_running(*bn.running_var, var, o.momentum, n / (n - 1));
  }
  return {mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> bn_act_run_backward_cpu(const BnActOptions& o, const Tensor& grad,
                                                           const Tensor& input, const Tensor& bn_weight,
                                                           const Tensor& bn_bias, const Tensor& mean,
                                                           const Tensor& rstd, std::array<bool, 3> mask,
                                                           bool overwrite_grad) {
  const auto maps = maps_of(input, o.groups());
  const Tensor weight = accumulators(bn_weight, mean.scalar_type()), bias = accumulators(bn_bias, mean.scalar_type());
  const Tensor grad_input = !mask[0] ? Tensor() : overwrite_grad ? grad : empty_maps_like(input);
  const Tensor grad_weight = at::empty_like(mean), grad_bias = at::empty_like(mean);
  cpu::bn_act_kernels().backward(
      maps, {grad.const_data_ptr(), input.const_data_ptr(), mask[0] ? grad_input.mutable_data_ptr() : nullptr,
             weight.const_data_ptr(), bias.const_data_ptr(), mean.const_data_ptr(), rstd.const_data_ptr(),
             grad_weight.mutable_data_ptr(), grad_bias.mutable_data_ptr(), /*averages=*/false, o.training, o.activation,
             o.negative_slope});
  const auto over_groups = [&](const Tensor& shares, const Tensor& like) {
    return (maps.groups == 1 ? shares.squeeze(0) : shares.sum(0)).to(like.scalar_type());
  };
  return {grad_input, mask[1] ? over_groups(grad_weight, bn_weight) : Tensor(),
          mask[2] ? over_groups(grad_bias, bn_bias) : Tensor()};
}

// ATen's operators, for what no kernel serves: float64 on a GPU.
std::tuple<Tensor, Tensor> bn_act_run_aten(const BnActOptions& o, const Tensor& input, const BnTensors& bn,
                                           Tensor& output) {
  const Tensor maps = by_groups(input, o.groups());
  Tensor mean, var;
  if (o.training) {
    std::tie(var, mean) = at::var_mean(maps, at::IntArrayRef({1, 3}), /*unbiased=*/false);
    const double n = static_cast<double>(maps.size(1)) * static_cast<double>(maps.size(3));
    for (int64_t g = 0; bn.running_mean && g < o.groups(); ++g) {
      bn.running_mean->lerp_(mean[g].to(bn.running_mean->scalar_type()), o.momentum);
      bn.running_var->lerp_((var[g] * (n / (n - 1))).to(bn.running_var->scalar_type()), o.momentum);
    }
  } else {
    mean = bn.running_mean->to(input.scalar_type(), false, /*copy=*/true).unsqueeze(0);
    var = bn.running_var->to(input.scalar_type()).unsqueeze(0);
  }
  Tensor rstd = (var + o.eps).rsqrt();
  if (o.training && o.eps == 0) rstd.masked_fill_(var == 0, 0);  // of a constant channel, as PyTorch has it
  const Tensor z = (maps - per_channel(mean)) * per_channel(rstd * bn.weight) + per_channel(bn.bias);
  output.copy_(activation_reference(o.activation, o.negative_slope, z).view(input.sizes()));
  return {mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> bn_act_run_backward_aten(const BnActOptions& o, const Tensor& grad,
                                                            const Tensor& input, const Tensor& weight,
                                                            const Tensor& bias, const Tensor& mean, const Tensor& rstd,
                                                            std::array<bool, 3> mask) {
  const Tensor normalised = (by_groups(input, o.groups()) - per_channel(mean)) * per_channel(rstd);
  const Tensor z = normalised * per_channel(weight) + per_channel(bias), dy = by_groups(grad, o.groups());
  const Tensor dz = activation_backward_reference(o.activation, o.negative_slope, dy, z);
  const Tensor of_weight = (dz * normalised).sum({1, 3}), of_bias = dz.sum({1, 3});
  Tensor grad_input;
  if (mask[0]) {
    Tensor centred = dz;
    if (o.training) {
      const auto n = static_cast<double>(z.size(1) * z.size(3));
      centred = dz - (per_channel(of_bias) + normalised * per_channel(of_weight)) / n;
    }
    grad_input = at::empty_like(input).copy_((centred * per_channel(rstd * weight)).view(input.sizes()));
  }
  return {grad_input, mask[1] ? of_weight.sum(0).to(weight.scalar_type()) : Tensor(),
          mask[2] ? of_bias.sum(0).to(bias.scalar_type()) : Tensor()};
}

}  // namespace

std::tuple<Tensor, Tensor> bn_act_run(const BnActOptions& o, const Tensor& input, const BnTensors& bn,
                                      Tensor& output, const MapStatistics* gathered) {
  if (input.numel() == 0) {  // nothing to normalise, nothing learnt: as torch.nn.functional.batch_norm
    const auto options = input.options().dtype(at::toOpMathType(input.scalar_type()));
    const Tensor zeros = at::zeros({o.groups(), input.size(1)}, options);
    return {zeros, zeros.clone()};
  }
  DCGAN_CHECK(!o.training || input.numel() / input.size(1) / o.stat_groups > 1, o.op,
              "expected more than 1 value per channel", o.stat_groups > 1 ? " and group" : "",
              " when training, got maps of ", input.sizes());
  switch (kernels_of(input)) {
    case Kernels::cpu: return bn_act_run_cpu(o, input, bn, output, gathered ? &gathered->blocks : nullptr);
#ifdef DCGAN_FAST_CUDA
    case Kernels::cuda: return bn_act_run_cuda(o, input, bn, output, gathered);
#endif
    default: return bn_act_run_aten(o, input, bn, output);
  }
}

std::tuple<Tensor, Tensor> bn_fold(double eps, const BnTensors& bn) {
  // loops, not ATen's operators: of one image these would take as long as the convolution
  const auto floats = [](const Tensor& t) { return t.to(at::kFloat).contiguous(); };
  const Tensor weight = floats(bn.weight), bias = floats(bn.bias), mean = floats(*bn.running_mean),
               var = floats(*bn.running_var);
  const Tensor scale = at::empty_like(weight), shift = at::empty_like(weight);
  const float *w = weight.const_data_ptr<float>(), *b = bias.const_data_ptr<float>(),
              *m = mean.const_data_ptr<float>(), *v = var.const_data_ptr<float>();
  float *of_scale = scale.mutable_data_ptr<float>(), *of_shift = shift.mutable_data_ptr<float>();
  for (int64_t c = 0; c < weight.numel(); ++c) {
    of_scale[c] = w[c] / std::sqrt(v[c] + static_cast<float>(eps));
    of_shift[c] = b[c] - m[c] * of_scale[c];
  }
  return {scale, shift};
}

std::tuple<Tensor, Tensor, Tensor> bn_act_run_backward(const BnActOptions& o, const Tensor& grad, const Tensor& input,
                                                       const Tensor& weight, const Tensor& bias, const Tensor& mean,
                                                       const Tensor& rstd, std::array<bool, 3> mask, bool overwrite_grad,
                                                       [[maybe_unused]] const Tensor& tile_sums) {
  if (input.numel() == 0) {
    return {mask[0] ? at::empty_like(input) : Tensor(), mask[1] ? at::zeros_like(weight) : Tensor(),
            mask[2] ? at::zeros_like(bias) : Tensor()};
  }
  const Tensor dense_grad = laid_out_like(input, grad);
  const bool in_place = overwrite_grad || !dense_grad.is_same(grad);
  switch (kernels_of(input)) {
    case Kernels::cpu: return bn_act_run_backward_cpu(o, dense_grad, input, weight, bias, mean, rstd, mask, in_place);
#ifdef DCGAN_FAST_CUDA
    case Kernels::cuda:
      return bn_act_run_backward_cuda(o, dense_grad, input, weight, bias, mean, rstd, mask, in_place, tile_sums);
#endif
    default: return bn_act_run_backward_aten(o, dense_grad, input, weight, bias, mean, rstd, mask);
  }
}

Tensor activation_reference(Activation activation, double negative_slope, const Tensor& input) {
  switch (activation) {
    case Activation::relu: return at::relu(input);
    case Activation::leaky_relu: return at::leaky_relu(input, negative_slope);
    case Activation::tanh: return at::tanh(input);
    case Activation::sigmoid: return at::sigmoid(input);
    default: return input;
  }
}

Tensor activation_backward_reference(Activation activation, double negative_slope, const Tensor& grad, const Tensor& input) {
  switch (activation) {
    case Activation::relu: return at::threshold_backward(grad, input, 0);
    case Activation::leaky_relu: return at::leaky_relu_backward(grad, input, negative_slope, /*self_is_result=*/false);
    case Activation::tanh: return at::tanh_backward(grad, input.tanh());
    case Activation::sigmoid: return at::sigmoid_backward(grad, input.sigmoid());
    default: return grad;
  }
}

Tensor bn_act_reference(const BnActOptions& o, const Tensor& input, const Tensor& weight, const Tensor& bias,
                        const Tensor& mean, const Tensor& rstd) {
  const auto acc = mean.scalar_type();
  const Tensor maps = by_groups(input, o.groups()).to(acc);
  Tensor m = mean, r = rstd;
  if (o.training) {
    const auto [var, computed] = at::var_mean(maps, at::IntArrayRef({1, 3}), /*unbiased=*/false);
    m = computed;
    r = (var + o.eps).rsqrt();
  }
  const Tensor z = (maps - per_channel(m)) * per_channel(r * weight.to(acc)) + per_channel(bias.to(acc).unsqueeze(0));
  return activation_reference(o.activation, o.negative_slope, z).reshape(input.sizes()).to(input.scalar_type());
}

// ---------------------------------------------------------------- the op

namespace {

constexpr const char* kName = "bn_act";

std::tuple<Tensor, Tensor, Tensor> bn_act_forward(const Tensor& input, const Tensor& weight, const Tensor& bias,
                                                  const OptionalTensor& running_mean,
                                                  const OptionalTensor& running_var, std::string_view activation,
                                                  double negative_slope, bool training, double momentum, double eps,
                                                  int64_t stat_groups) {
  check_maps(kName, input);
  DCGAN_CHECK(input.dim() >= 2, kName, "'input' must be (N, C, ...), got ", input.sizes());
  const BnActOptions options{kName,    parse_activation(kName, activation), negative_slope, training, momentum, eps,
                             stat_groups};
  const BnTensors bn{weight, bias, running_mean, running_var};
  check_bn(options, input, input.size(0), input.size(1), bn);
  const Tensor maps = dense_maps(input);
  Tensor output = empty_maps_like(maps);
  auto [mean, rstd] = bn_act_run(options, maps, bn, output);
  return {output, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> bn_act_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                   const Tensor& bias, const Tensor& mean, const Tensor& rstd,
                                                   std::string_view activation, double negative_slope, bool training,
                                                   int64_t stat_groups, std::array<bool, 3> output_mask) {
  const BnActOptions options{kName, parse_activation(kName, activation), negative_slope, training, 0, 0, stat_groups};
  return bn_act_run_backward(options, grad, dense_maps(input), weight, bias, mean, rstd, output_mask);
}

class BnActNode : public torch::autograd::Function<BnActNode> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight, const Tensor& bias,
                        const OptionalTensor& running_mean, const OptionalTensor& running_var,
                        std::string_view activation, double negative_slope, bool training, double momentum,
                        double eps, int64_t stat_groups) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    static const auto op = find_op<decltype(bn_act_forward)>("dcgan_fast::bn_act_forward");
    auto [output, mean, rstd] = op.call(input, weight, bias, running_mean, running_var, activation, negative_slope,
                                        training, momentum, eps, stat_groups);
    ctx->save_for_backward({input, weight, bias, mean, rstd});
    ctx->saved_data["activation"] = std::string(activation);
    ctx->saved_data["negative_slope"] = negative_slope;
    ctx->saved_data["training"] = training;
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["stat_groups"] = stat_groups;
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &input = saved[0], &weight = saved[1], &bias = saved[2], &mean = saved[3], &rstd = saved[4];
    const std::string activation = ctx->saved_data["activation"].toStringRef();
    const double negative_slope = ctx->saved_data["negative_slope"].toDouble();
    const bool training = ctx->saved_data["training"].toBool();
    const int64_t stat_groups = ctx->saved_data["stat_groups"].toInt();
    variable_list result(11);
    if (at::GradMode::is_enabled()) {
      const BnActOptions options{kName, parse_activation(kName, activation), negative_slope, training, 0,
                                 ctx->saved_data["eps"].toDouble(), stat_groups};
      const auto all = bn_act_grad(options, grads[0], input, weight, bias, mean, rstd);
      if (ctx->needs_input_grad(0)) result[0] = std::get<0>(all);
      if (ctx->needs_input_grad(1)) result[1] = std::get<1>(all);
      if (ctx->needs_input_grad(2)) result[2] = std::get<2>(all);
      return result;
    }
    static const auto op = find_op<decltype(bn_act_backward)>("dcgan_fast::bn_act_backward");
    std::tie(result[0], result[1], result[2]) =
        op.call(grads[0], input, weight, bias, mean, rstd, activation, negative_slope, training, stat_groups,
                {ctx->needs_input_grad(0), ctx->needs_input_grad(1), ctx->needs_input_grad(2)});
    return result;
  }
};

Tensor bn_act(const Tensor& input, const Tensor& weight, const Tensor& bias, const OptionalTensor& running_mean,
              const OptionalTensor& running_var, std::string_view activation, double negative_slope, bool training,
              double momentum, double eps, int64_t stat_groups) {
  if (needs_autograd({input, weight, bias})) {
    return BnActNode::apply(input, weight, bias, running_mean, running_var, activation, negative_slope, training,
                            momentum, eps, stat_groups);
  }
  static const auto op = find_op<decltype(bn_act_forward)>("dcgan_fast::bn_act_forward");
  return std::get<0>(op.call(input, weight, bias, running_mean, running_var, activation, negative_slope, training,
                             momentum, eps, stat_groups));
}

}  // namespace

TORCH_LIBRARY_IMPL(dcgan_fast, CompositeImplicitAutograd, m) { m.impl("bn_act", bn_act); }

TORCH_LIBRARY_IMPL(dcgan_fast, CPU, m) {
  m.impl("bn_act_forward", bn_act_forward);
  m.impl("bn_act_backward", bn_act_backward);
}

#ifdef DCGAN_FAST_CUDA
TORCH_LIBRARY_IMPL(dcgan_fast, CUDA, m) {
  m.impl("bn_act_forward", bn_act_forward);
  m.impl("bn_act_backward", bn_act_backward);
}
#endif

}  // namespace dcgan_fast
