// A convolution's two gradients as nodes. The gradient of either is made of convolutions and of these two again.
#include <ATen/ops/leaky_relu_backward.h>
#include <ATen/ops/sigmoid_backward.h>
#include <ATen/ops/tanh_backward.h>
#include <ATen/ops/threshold_backward.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include "autograd.h"
#include "double_backward.h"

namespace dcgan_fast {
namespace {

// The convolution itself, as an op that records its gradient, in the dtype that its operands have.
Tensor convolve(const Convolution& c, const Tensor& input, const Tensor& weight) {
  c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  using Ints = at::IntArrayRef;
  using Plain = Tensor(const Tensor&, const Tensor&, const OptionalTensor&, Ints, Ints, std::string_view, double);
  using Transposed =
      Tensor(const Tensor&, const Tensor&, const OptionalTensor&, Ints, Ints, Ints, std::string_view, double);
  static const auto plain = find_op<Plain>("dcgan_fast::conv_act");
  static const auto transposed = find_op<Transposed>("dcgan_fast::conv_transpose_act");
  return c.transposed ? transposed.call(input, weight, {}, c.stride, c.padding, c.output_padding, "none", 0)
                      : plain.call(input, weight, {}, c.stride, c.padding, "none", 0);
}

using Grads = std::tuple<Tensor, Tensor, Tensor>;

Grads backward_op(const Convolution& c, const Tensor& grad, const Tensor& input, const Tensor& weight,
                  std::array<bool, 3> mask) {
  using Ints = at::IntArrayRef;
  using Backward = Grads(const Tensor&, const Tensor&, const Tensor&, const Tensor&, Ints, Ints, Ints, bool,
                         std::string_view, double, std::array<bool, 3>);
  static const auto op = find_op<Backward>("dcgan_fast::conv_act_backward");
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  return op.call(grad, input, weight, /*output=*/grad, c.stride, c.padding, c.output_padding, c.transposed, "none", 0,
                 mask);
}

// What both nodes keep: the three tensors and the convolution.
struct Kept {
  variable_list tensors;
  std::vector<int64_t> stride, padding, output_padding;
  bool transposed;

  static void keep(AutogradContext* ctx, const Convolution& c, const Tensor& grad, const Tensor& input,
                   const Tensor& weight) {
    ctx->save_for_backward({grad, input, weight});
    ctx->saved_data["stride"] = c.stride;
    ctx->saved_data["padding"] = c.padding;
    ctx->saved_data["output_padding"] = c.output_padding;
    ctx->saved_data["transposed"] = c.transposed;
  }
  explicit Kept(AutogradContext* ctx)
      : tensors(ctx->get_saved_variables()),
        stride(ctx->saved_data["stride"].toIntVector()),
        padding(ctx->saved_data["padding"].toIntVector()),
        output_padding(ctx->saved_data["output_padding"].toIntVector()),
        transposed(ctx->saved_data["transposed"].toBool()) {}

  Convolution convolution() const {
    return {transposed ? "conv_transpose_act" : "conv_act", transposed, stride, padding, output_padding};
  }
};

class InputGradNode : public torch::autograd::Function<InputGradNode> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& grad, const Tensor& input, const Tensor& weight,
                        const Convolution& convolution) {
    // of the input only its shape and layout matter; no other map of them is at hand
    Kept::keep(ctx, convolution, grad, input.detach(), weight);
    return std::get<0>(backward_op(convolution, grad, input, weight, {true, false, false}));
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const Kept kept(ctx);
    const Tensor &grad = kept.tensors[0], &weight = kept.tensors[2], &of_input = grads[0];
    variable_list result(4);
    if (ctx->needs_input_grad(0)) result[0] = convolve(kept.convolution(), of_input, weight);
    if (ctx->needs_input_grad(2)) result[2] = weight_grad(kept.convolution(), grad, of_input, weight);
    return result;
  }
};

class WeightGradNode : public torch::autograd::Function<WeightGradNode> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& grad, const Tensor& input, const Tensor& weight,
                        const Convolution& convolution) {
    Kept::keep(ctx, convolution, grad, input, weight.detach());
    return std::get<1>(backward_op(convolution, grad, input, weight, {false, true, false}));
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const Kept kept(ctx);
    const Tensor &grad = kept.tensors[0], &input = kept.tensors[1], &of_weight = grads[0];
    variable_list result(4);
    if (ctx->needs_input_grad(0)) result[0] = convolve(kept.convolution(), input, of_weight);
    if (ctx->needs_input_grad(1)) result[1] = input_grad(kept.convolution(), grad, input, of_weight);
    return result;
  }
};

}  // namespace

Tensor input_grad(const Convolution& c, const Tensor& grad, const Tensor& input, const Tensor& weight) {
  return InputGradNode::apply(grad, input, weight, c);
}

Tensor weight_grad(const Convolution& c, const Tensor& grad, const Tensor& input, const Tensor& weight) {
  return WeightGradNode::apply(grad, input, weight, c);
}

Tensor activation_grad(Activation activation, double negative_slope, const Tensor& grad, const Tensor& output) {
  switch (activation) {
    case Activation::relu:
      return at::threshold_backward(grad, output.detach(), 0);
    case Activation::leaky_relu:
      return at::leaky_relu_backward(grad, output.detach(), negative_slope, /*self_is_result=*/true);
    case Activation::tanh:
      return at::tanh_backward(grad, output);
    case Activation::sigmoid:
      return at::sigmoid_backward(grad, output);
    default:
      return grad;
  }
}

}  // namespace dcgan_fast
