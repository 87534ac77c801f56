// conv_act and conv_transpose_act: convolution (+ bias) + activation as one node.
//
// The activation runs in place on the convolution's output, and backward takes its derivative from the result, so one
// map is kept where PyTorch's leaky_relu keeps two.
#include <ATen/ops/empty_like.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/leaky_relu_backward.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/sigmoid_backward.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/tanh_backward.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/record_function.h>
#include <torch/library.h>

#include "../checks.h"
#include "autocast.h"
#include "autograd.h"
#include "bn_act.h"
#include "convolution.h"
#include "double_backward.h"

namespace dcgan_fast {
namespace {

constexpr int64_t kNone[] = {0, 0};

const char* name(bool transposed) { return transposed ? "conv_transpose_act" : "conv_act"; }

void activate_(Activation activation, double negative_slope, Tensor& maps) {
  switch (activation) {
    case Activation::relu: at::relu_(maps); break;
    case Activation::leaky_relu: at::leaky_relu_(maps, negative_slope); break;
    case Activation::tanh: at::tanh_(maps); break;
    case Activation::sigmoid: at::sigmoid_(maps); break;
    case Activation::none: break;
  }
}

// In place of `grad` or not.
Tensor activate_backward(Activation activation, double negative_slope, const Tensor& grad, const Tensor& output,
                         bool in_place) {
  if (activation == Activation::none) return grad;
  Tensor out = in_place ? grad : at::empty_like(output);
  switch (activation) {
    case Activation::relu: return at::threshold_backward_out(out, grad, output, 0);
    case Activation::leaky_relu:
      return at::leaky_relu_backward_out(out, grad, output, negative_slope, /*self_is_result=*/true);
    case Activation::tanh: return at::tanh_backward_out(out, grad, output);
    default: return at::sigmoid_backward_out(out, grad, output);
  }
}

// A bias as the convolution takes it: a float32 one of narrow maps is rounded to their type, as autocast does.
OptionalTensor of_maps(const Tensor& bias, const Tensor& maps) {
  return bias.defined() ? OptionalTensor(bias.to(maps.scalar_type())) : std::nullopt;
}

Tensor conv_act_forward(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, at::IntArrayRef stride,
                        at::IntArrayRef padding, at::IntArrayRef output_padding, bool transposed,
                        std::string_view activation, double negative_slope) {
  const Convolution convolution{name(transposed), transposed, stride, padding, output_padding};
  const Activation parsed = parse_activation(convolution.op, activation);
  convolution.check(input, weight);
  if (bias) {
    const int64_t channels = convolution.out_channels(weight);
    check_channel_vector(convolution.op, "bias", *bias, input, channels);
  }
  ConvFinish finish;
  finish.bias = bias;
  finish.activation = parsed;
  finish.negative_slope = negative_slope;
  const Tensor fused = convolution.fused(input, weight, finish);
  if (fused.defined()) return fused;
  Tensor output = convolution.reference(input, weight, of_maps(bias.value_or(Tensor()), input));
  activate_(parsed, negative_slope, output);
  return output;
}

std::tuple<Tensor, Tensor, Tensor> run_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                const Tensor& output, at::IntArrayRef stride, at::IntArrayRef padding,
                                                at::IntArrayRef output_padding, bool transposed,
                                                std::string_view activation, double negative_slope,
                                                std::array<bool, 3> output_mask, bool in_place, BatchNormBelow* below) {
  const Convolution convolution{name(transposed), transposed, stride, padding, output_padding};
  const Activation parsed = parse_activation(convolution.op, activation);
  return convolution.backward(activate_backward(parsed, negative_slope, grad, output, in_place), input, weight,
                              output_mask, below);
}

template <bool in_place>
std::tuple<Tensor, Tensor, Tensor> conv_act_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                     const Tensor& output, at::IntArrayRef stride,
                                                     at::IntArrayRef padding, at::IntArrayRef output_padding,
                                                     bool transposed, std::string_view activation,
                                                     double negative_slope, std::array<bool, 3> output_mask) {
  return run_backward(grad, input, weight, output, stride, padding, output_padding, transposed, activation,
                      negative_slope, output_mask, in_place, nullptr);
}

class ConvActNode : public torch::autograd::Function<ConvActNode> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                        at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef output_padding,
                        bool transposed, std::string_view activation, double negative_slope) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    static const auto op = find_op<decltype(conv_act_forward)>("dcgan_fast::conv_act_forward");
    const Tensor output = op.call(input, weight, bias, stride, padding, output_padding, transposed, activation,
                                  negative_slope);
    // without an activation the result is not needed, and whoever gets it may overwrite it
    ctx->save_for_backward({input, weight, bias.value_or(Tensor()), activation == "none" ? Tensor() : output});
    auto& data = ctx->saved_data;
    data["stride"] = stride;
    data["padding"] = padding;
    data["output_padding"] = output_padding;
    data["transposed"] = transposed;
    data["activation"] = std::string(activation);
    data["negative_slope"] = negative_slope;
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &input = saved[0], &weight = saved[1], &bias = saved[2], &output = saved[3];
    auto& data = ctx->saved_data;
    const auto stride = data["stride"].toIntVector(), padding = data["padding"].toIntVector(),
               output_padding = data["output_padding"].toIntVector();
    const bool transposed = data["transposed"].toBool();
    const std::string activation = data["activation"].toStringRef();
    const double negative_slope = data["negative_slope"].toDouble();
    variable_list result(9);
    if (at::GradMode::is_enabled()) {
      const Convolution convolution{name(transposed), transposed, stride, padding, output_padding};
      const Tensor dz = activation_grad(parse_activation(convolution.op, activation), negative_slope, grads[0], output);
      if (ctx->needs_input_grad(0)) result[0] = input_grad(convolution, dz, input, weight);
      if (ctx->needs_input_grad(1)) result[1] = weight_grad(convolution, dz, input, weight);
      if (bias.defined() && ctx->needs_input_grad(2)) result[2] = dz.sum({0, 2, 3}, /*keepdim=*/false, bias.scalar_type());
      return result;
    }
    const std::array<bool, 3> mask = {ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                                      bias.defined() && ctx->needs_input_grad(2)};
    const Tensor& kept = output.defined() ? output : grads[0];
    const bool overwrite = is_the_only_owner(grads[0]);
    if (auto below = mask[0] ? batch_norm_below(grads[0]) : std::nullopt) {
      RECORD_FUNCTION("dcgan_fast::conv_act_backward", std::vector<c10::IValue>());
      at::AutoDispatchBelowADInplaceOrView below_autograd;
      std::tie(result[0], result[1], result[2]) =
          run_backward(grads[0], input, weight, kept, stride, padding, output_padding, transposed, activation,
                       negative_slope, mask, overwrite, &*below);
      keep_gradient_sums(result[0], *below);
      return result;
    }
    using Backward = decltype(conv_act_backward<false>);
    static const auto op = find_op<Backward>("dcgan_fast::conv_act_backward"),
                      in_place = find_op<Backward>("dcgan_fast::conv_act_backward_");
    std::tie(result[0], result[1], result[2]) =
        (overwrite ? in_place : op).call(grads[0], input, weight, kept, stride, padding, output_padding, transposed,
                                         activation, negative_slope, mask);
    return result;
  }
};

Tensor run(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, at::IntArrayRef stride,
           at::IntArrayRef padding, at::IntArrayRef output_padding, bool transposed, std::string_view activation,
           double negative_slope) {
  if (!needs_autograd({input, weight, bias.value_or(Tensor())})) {
    static const auto op = find_op<decltype(conv_act_forward)>("dcgan_fast::conv_act_forward");
    return op.call(input, weight, bias, stride, padding, output_padding, transposed, activation, negative_slope);
  }
  if (activation == "leaky_relu" && negative_slope < 0) {
    // the sign of the result no longer tells the sign of the activation's input: keep that too
    return at::leaky_relu(run(input, weight, bias, stride, padding, output_padding, transposed, "none", 0),
                          negative_slope);
  }
  return ConvActNode::apply(input, weight, bias, stride, padding, output_padding, transposed, activation,
                            negative_slope);
}

Tensor conv_act(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, at::IntArrayRef stride,
                at::IntArrayRef padding, std::string_view activation, double negative_slope) {
  return run(input, weight, bias, stride, padding, kNone, /*transposed=*/false, activation, negative_slope);
}

Tensor conv_transpose_act(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                          at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef output_padding,
                          std::string_view activation, double negative_slope) {
  return run(input, weight, bias, stride, padding, output_padding, /*transposed=*/true, activation, negative_slope);
}

}  // namespace

TORCH_LIBRARY_IMPL(dcgan_fast, CompositeImplicitAutograd, m) {
  m.impl("conv_act", conv_act);
  m.impl("conv_transpose_act", conv_transpose_act);
}

TORCH_LIBRARY_IMPL(dcgan_fast, AutocastCPU, m) {
  m.impl("conv_act", Autocast<c10::kCPU, conv_act>::call);
  m.impl("conv_transpose_act", Autocast<c10::kCPU, conv_transpose_act>::call);
}

TORCH_LIBRARY_IMPL(dcgan_fast, AutocastCUDA, m) {
  m.impl("conv_act", Autocast<c10::kCUDA, conv_act>::call);
  m.impl("conv_transpose_act", Autocast<c10::kCUDA, conv_transpose_act>::call);
}

TORCH_LIBRARY_IMPL(dcgan_fast, CPU, m) {
  m.impl("conv_act_forward", conv_act_forward);
  m.impl("conv_act_backward", conv_act_backward<false>);
  m.impl("conv_act_backward_", conv_act_backward<true>);
}

#ifdef DCGAN_FAST_CUDA
TORCH_LIBRARY_IMPL(dcgan_fast, CUDA, m) {
  m.impl("conv_act_forward", conv_act_forward);
  m.impl("conv_act_backward", conv_act_backward<false>);
  m.impl("conv_act_backward_", conv_act_backward<true>);
}
#endif

}  // namespace dcgan_fast
