// conv_bn_act and conv_transpose_bn_act: convolution + batch normalisation + activation as one node.
//
// Saved for backward: the input, the convolution's output and the statistics. The normalised maps, the mask and the
// activation's input are recomputed, so a layer keeps one map of its output size less than PyTorch's three modules.
#include <ATen/SavedTensorHooks.h>
#include <ATen/ops/empty.h>
#include <ATen/record_function.h>
#include <torch/library.h>

#include "../checks.h"
#include "autocast.h"
#include "autograd.h"
#include "bn_act.h"
#include "convolution.h"
#include "device.h"
#include "double_backward.h"
#include "map_pool.h"

namespace dcgan_fast {
namespace {

constexpr int64_t kNone[] = {0, 0};

const char* name(bool transposed) { return transposed ? "conv_transpose_bn_act" : "conv_bn_act"; }

Tensor nothing(const Tensor& like) { return at::empty({0}, like.options()); }

// Returns output, the convolution's output (empty unless `save`), mean and rstd (empty unless `save` or `training`).
std::tuple<Tensor, Tensor, Tensor, Tensor> conv_bn_act_forward(
    const Tensor& input, const Tensor& weight, const Tensor& bn_weight, const Tensor& bn_bias,
    const OptionalTensor& running_mean, const OptionalTensor& running_var, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef output_padding, bool transposed, std::string_view activation,
    double negative_slope, bool training, double momentum, double eps, int64_t stat_groups, bool save) {
  const Convolution convolution{name(transposed), transposed, stride, padding, output_padding};
  const BnActOptions options{convolution.op, parse_activation(convolution.op, activation), negative_slope, training,
                             momentum, eps, stat_groups};
  const BnTensors bn{bn_weight, bn_bias, running_mean, running_var};
  convolution.check(input, weight);
  check_bn(options, input, input.size(0), convolution.out_channels(weight), bn);
  if (!training && !save) {
    ConvFinish finish;
    finish.bn = &bn;
    finish.eps = eps;
    finish.activation = options.activation;
    finish.negative_slope = negative_slope;
    const Tensor fused = convolution.fused(input, weight, finish);
    if (fused.defined()) return {fused, nothing(fused), nothing(fused), nothing(fused)};
  }
  MapStatistics statistics{stat_groups};
  ConvFinish gather;
  if (training) gather.statistics = &statistics;
  const Tensor fused = convolution.fused(input, weight, gather, /*gradient_next=*/save && weight.requires_grad());
  const Tensor maps = fused.defined() ? fused : dense_maps(convolution.reference(input, weight, {}));
  Tensor output = save ? empty_maps_like(maps) : maps;  // nothing to keep: normalise in place
  auto [mean, rstd] = bn_act_run(options, maps, bn, output, training && fused.defined() ? &statistics : nullptr);
  if (save) return {output, maps, mean, rstd};
  if (training) return {output, nothing(maps), mean, rstd};
  return {output, nothing(maps), nothing(maps), nothing(maps)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> run_backward(
    const Tensor& grad, const Tensor& input, const Tensor& weight, const Tensor& conv_output, const Tensor& bn_weight,
    const Tensor& bn_bias, const Tensor& mean, const Tensor& rstd, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef output_padding, bool transposed, std::string_view activation, double negative_slope, bool training,
    int64_t stat_groups, std::array<bool, 4> output_mask, bool in_place, const Tensor& tile_sums, BatchNormBelow* below) {
  const Convolution convolution{name(transposed), transposed, stride, padding, output_padding};
  const BnActOptions options{convolution.op, parse_activation(convolution.op, activation), negative_slope, training, 0,
                             0, stat_groups};
  auto [grad_conv, grad_bn_weight, grad_bn_bias] =
      bn_act_run_backward(options, grad, conv_output, bn_weight, bn_bias, mean, rstd,
                          {output_mask[0] || output_mask[1], output_mask[2], output_mask[3]}, in_place, tile_sums);
  auto [grad_input, grad_weight, no_bias] =
      convolution.backward(grad_conv, input, weight, {output_mask[0], output_mask[1], false}, below);
  return {grad_input, grad_weight, grad_bn_weight, grad_bn_bias};
}

template <bool in_place>
std::tuple<Tensor, Tensor, Tensor, Tensor> conv_bn_act_backward(
    const Tensor& grad, const Tensor& input, const Tensor& weight, const Tensor& conv_output, const Tensor& bn_weight,
    const Tensor& bn_bias, const Tensor& mean, const Tensor& rstd, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef output_padding, bool transposed, std::string_view activation, double negative_slope, bool training,
    int64_t stat_groups, std::array<bool, 4> output_mask) {
  return run_backward(grad, input, weight, conv_output, bn_weight, bn_bias, mean, rstd, stride, padding, output_padding,
                      transposed, activation, negative_slope, training, stat_groups, output_mask, in_place, {}, nullptr);
}

class ConvBnActNode : public torch::autograd::Function<ConvBnActNode> {
 public:
  // The output, and the convolution's, which nobody gets: as a result of the node it can have a gradient where the first
  // gradients are differentiated, and that joins the one that comes through batch norm before the convolution's backward.
  static variable_list forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight, const Tensor& bn_weight,
                        const Tensor& bn_bias, const OptionalTensor& running_mean, const OptionalTensor& running_var,
                        at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef output_padding,
                        bool transposed, std::string_view activation, double negative_slope, bool training,
                        double momentum, double eps, int64_t stat_groups) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    static const auto op = find_op<decltype(conv_bn_act_forward)>("dcgan_fast::conv_bn_act_forward");
    auto [output, conv_output, mean, rstd] =
        op.call(input, weight, bn_weight, bn_bias, running_mean, running_var, stride, padding, output_padding,
                transposed, activation, negative_slope, training, momentum, eps, stat_groups, /*save=*/true);
    ctx->save_for_backward({input, weight, bn_weight, bn_bias, conv_output, mean, rstd});
    auto& data = ctx->saved_data;
    data["stride"] = stride;
    data["padding"] = padding;
    data["output_padding"] = output_padding;
    data["transposed"] = transposed;
    data["activation"] = std::string(activation);
    data["negative_slope"] = negative_slope;
    data["training"] = training;
    data["eps"] = eps;
    data["stat_groups"] = stat_groups;
    // hooks may give each saved tensor back once only, and that is for this node's own backward
    data["saved_as_is"] = !at::SavedTensorDefaultHooks::get_hooks().has_value();
    ctx->set_materialize_grads(false);
    return {output, conv_output};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &input = saved[0], &weight = saved[1], &bn_weight = saved[2], &bn_bias = saved[3],
                 &conv_output = saved[4], &mean = saved[5], &rstd = saved[6];
    auto& data = ctx->saved_data;
    const auto stride = data["stride"].toIntVector(), padding = data["padding"].toIntVector(),
               output_padding = data["output_padding"].toIntVector();
    const bool transposed = data["transposed"].toBool(), training = data["training"].toBool();
    const std::string activation = data["activation"].toStringRef();
    const double negative_slope = data["negative_slope"].toDouble();
    const int64_t stat_groups = data["stat_groups"].toInt();
    variable_list result(16);
    if (!grads[0].defined() && !grads[1].defined()) return result;
    if (at::GradMode::is_enabled() || grads[1].defined()) {
      const Convolution convolution{name(transposed), transposed, stride, padding, output_padding};
      const BnActOptions options{convolution.op, parse_activation(convolution.op, activation), negative_slope,
                                 training, 0, data["eps"].toDouble(), stat_groups};
      Tensor grad_conv = grads[1];
      if (grads[0].defined()) {
        auto [through_bn, grad_bn_weight, grad_bn_bias] =
            bn_act_grad(options, grads[0], conv_output, bn_weight, bn_bias, mean, rstd);
        grad_conv = grad_conv.defined() ? grad_conv + through_bn : through_bn;
        if (ctx->needs_input_grad(2)) result[2] = grad_bn_weight;
        if (ctx->needs_input_grad(3)) result[3] = grad_bn_bias;
      }
      if (ctx->needs_input_grad(0)) result[0] = input_grad(convolution, grad_conv, input, weight);
      if (ctx->needs_input_grad(1)) result[1] = weight_grad(convolution, grad_conv, input, weight);
      return result;
    }
    const std::array<bool, 4> mask = {ctx->needs_input_grad(0), ctx->needs_input_grad(1), ctx->needs_input_grad(2),
                                      ctx->needs_input_grad(3)};
    const bool overwrite = is_the_only_owner(grads[0]);
    auto below = mask[0] ? batch_norm_below(grads[0]) : std::nullopt;
    const Tensor tile_sums = take_gradient_sums(grads[0], conv_output);
    if (below || tile_sums.defined()) {
      RECORD_FUNCTION(tile_sums.defined() ? "dcgan_fast::conv_bn_act_backward (sums given)"
                                          : "dcgan_fast::conv_bn_act_backward",
                      std::vector<c10::IValue>());
      at::AutoDispatchBelowADInplaceOrView below_autograd;
      std::tie(result[0], result[1], result[2], result[3]) = run_backward(
          grads[0], input, weight, conv_output, bn_weight, bn_bias, mean, rstd, stride, padding, output_padding,
          transposed, activation, negative_slope, training, stat_groups, mask, overwrite, tile_sums, below ? &*below : nullptr);
      if (below) keep_gradient_sums(result[0], *below);
      return result;
    }
    using Backward = decltype(conv_bn_act_backward<false>);
    static const auto op = find_op<Backward>("dcgan_fast::conv_bn_act_backward"),
                      in_place = find_op<Backward>("dcgan_fast::conv_bn_act_backward_");
    std::tie(result[0], result[1], result[2], result[3]) =
        (overwrite ? in_place : op)
            .call(grads[0], input, weight, conv_output, bn_weight, bn_bias, mean, rstd, stride, padding, output_padding,
                  transposed, activation, negative_slope, training, stat_groups, mask);
    return result;
  }
};

Tensor run(const Tensor& input, const Tensor& weight, const Tensor& bn_weight, const Tensor& bn_bias,
           const OptionalTensor& running_mean, const OptionalTensor& running_var, at::IntArrayRef stride,
           at::IntArrayRef padding, at::IntArrayRef output_padding, bool transposed, std::string_view activation,
           double negative_slope, bool training, double momentum, double eps, int64_t stat_groups) {
  if (needs_autograd({input, weight, bn_weight, bn_bias})) {
    return ConvBnActNode::apply(input, weight, bn_weight, bn_bias, running_mean, running_var, stride, padding,
                                output_padding, transposed, activation, negative_slope, training, momentum, eps,
                                stat_groups)[0];
  }
  static const auto op = find_op<decltype(conv_bn_act_forward)>("dcgan_fast::conv_bn_act_forward");
  return std::get<0>(op.call(input, weight, bn_weight, bn_bias, running_mean, running_var, stride, padding,
                             output_padding, transposed, activation, negative_slope, training, momentum, eps,
                             stat_groups, /*save=*/false));
}

Tensor conv_bn_act(const Tensor& input, const Tensor& weight, const Tensor& bn_weight, const Tensor& bn_bias,
                   const OptionalTensor& running_mean, const OptionalTensor& running_var, at::IntArrayRef stride,
                   at::IntArrayRef padding, std::string_view activation, double negative_slope, bool training,
                   double momentum, double eps, int64_t stat_groups) {
  return run(input, weight, bn_weight, bn_bias, running_mean, running_var, stride, padding, kNone,
             /*transposed=*/false, activation, negative_slope, training, momentum, eps, stat_groups);
}

Tensor conv_transpose_bn_act(const Tensor& input, const Tensor& weight, const Tensor& bn_weight,
                             const Tensor& bn_bias, const OptionalTensor& running_mean,
                             const OptionalTensor& running_var, at::IntArrayRef stride, at::IntArrayRef padding,
                             at::IntArrayRef output_padding, std::string_view activation, double negative_slope,
                             bool training, double momentum, double eps, int64_t stat_groups) {
  return run(input, weight, bn_weight, bn_bias, running_mean, running_var, stride, padding, output_padding,
             /*transposed=*/true, activation, negative_slope, training, momentum, eps, stat_groups);
}

}  // namespace

std::optional<BatchNormBelow> batch_norm_below(const Tensor& grad) {
  if (kernels_of(grad) != Kernels::cuda || at::isTensorSubclassLike(grad)) return {};
  const auto node = torch::autograd::get_current_node();
  if (!node || node->num_outputs() == 0) return {};
  auto* below = dynamic_cast<torch::autograd::CppNode<ConvBnActNode>*>(node->next_edge(0).function.get());
  if (!below) return {};
  const auto& data = below->ctx_.saved_data;
  const auto activation = parse_activation("batch_norm_below", data.at("activation").toStringRef());
  const bool piecewise_linear = activation != Activation::tanh && activation != Activation::sigmoid;
  if (!data.at("saved_as_is").toBool() || !piecewise_linear) return {};
  try {
    const auto saved = below->ctx_.get_saved_variables();
    const Tensor& maps = saved[4];
    if (maps.scalar_type() != grad.scalar_type() || !maps.is_contiguous(at::MemoryFormat::ChannelsLast)) return {};
    return BatchNormBelow{maps,       saved[2],   saved[3], saved[5], saved[6],
                          activation, data.at("negative_slope").toDouble(), {}};
  } catch (const c10::Error&) {  // freed, or changed since: it is that node's to say so, should it run
    return {};
  }
}

TORCH_LIBRARY_IMPL(dcgan_fast, CompositeImplicitAutograd, m) {
  m.impl("conv_bn_act", conv_bn_act);
  m.impl("conv_transpose_bn_act", conv_transpose_bn_act);
}

TORCH_LIBRARY_IMPL(dcgan_fast, AutocastCPU, m) {
  m.impl("conv_bn_act", Autocast<c10::kCPU, conv_bn_act>::call);
  m.impl("conv_transpose_bn_act", Autocast<c10::kCPU, conv_transpose_bn_act>::call);
}

TORCH_LIBRARY_IMPL(dcgan_fast, AutocastCUDA, m) {
  m.impl("conv_bn_act", Autocast<c10::kCUDA, conv_bn_act>::call);
  m.impl("conv_transpose_bn_act", Autocast<c10::kCUDA, conv_transpose_bn_act>::call);
}

TORCH_LIBRARY_IMPL(dcgan_fast, CPU, m) {
  m.impl("conv_bn_act_forward", conv_bn_act_forward);
  m.impl("conv_bn_act_backward", conv_bn_act_backward<false>);
  m.impl("conv_bn_act_backward_", conv_bn_act_backward<true>);
}

#ifdef DCGAN_FAST_CUDA
TORCH_LIBRARY_IMPL(dcgan_fast, CUDA, m) {
  m.impl("conv_bn_act_forward", conv_bn_act_forward);
  m.impl("conv_bn_act_backward", conv_bn_act_backward<false>);
  m.impl("conv_bn_act_backward_", conv_bn_act_backward<true>);
}
#endif

}  // namespace dcgan_fast
