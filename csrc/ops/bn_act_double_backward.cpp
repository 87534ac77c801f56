// The gradients of batch norm + activation as a node, and bn_act_double_backward, which differentiates it.
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include "../checks.h"
#include "../cpu/bn_act.h"
#include "autograd.h"
#include "device.h"
#include "double_backward.h"

namespace dcgan_fast {
namespace {

constexpr const char* kName = "bn_act";

bool of_straight_pieces(Activation a) { return a != Activation::tanh && a != Activation::sigmoid; }

using Three = std::tuple<Tensor, Tensor, Tensor>;

// What the loss's gradients of (grad_input, grad_weight, grad_bias) make of grad, input and weight. Each of the first
// may be undefined: 0. See cpu/bn_act_double_backward.cpp for the mathematics.
Three run_cpu(const BnActOptions& o, const Tensor& v, const Tensor& p, const Tensor& q, const Tensor& grad,
              const Tensor& input, const Tensor& weight, const Tensor& bias, const Tensor& mean, const Tensor& rstd) {
  const auto maps = maps_of(input, o.groups());
  const auto acc = [&](const Tensor& t) { return t.defined() ? t.to(mean.scalar_type()).contiguous() : t; };
  const Tensor p_acc = acc(p), q_acc = acc(q), weight_acc = acc(weight), bias_acc = acc(bias);
  const auto data = [](const Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; };
  Tensor to_grad = at::empty_like(input), to_input = at::empty_like(input), to_weight = at::empty_like(mean);
  cpu::bn_act_double_backward_kernels().run(
      maps, {data(v), data(p_acc), data(q_acc), data(grad), data(input), data(weight_acc), data(bias_acc), data(mean),
             data(rstd), to_grad.mutable_data_ptr(), to_input.mutable_data_ptr(), to_weight.mutable_data_ptr(),
             o.training, o.activation, o.negative_slope});
  return {to_grad, to_input, to_weight.sum(0).to(weight.scalar_type())};
}

// The same in ATen's operators, for what no kernel serves.
Three run_aten(const BnActOptions& o, const Tensor& v_maps, const Tensor& p, const Tensor& q, const Tensor& grad,
               const Tensor& input, const Tensor& weight, const Tensor& bias, const Tensor& mean, const Tensor& rstd) {
  const auto wide = [&](const Tensor& maps) { return by_groups(maps, o.groups()).to(mean.scalar_type()); };
  const auto sums = [](const Tensor& t) { return t.sum({1, 3}, /*keepdim=*/true); };
  const auto given = [&](const Tensor& t) {
    return t.defined() ? per_channel(t.to(mean.scalar_type())) : per_channel(at::zeros_like(mean[0]));
  };
  const Tensor r = per_channel(rstd), s = r * per_channel(weight.to(mean.scalar_type())), v = wide(v_maps);
  const Tensor normal = (wide(input) - per_channel(mean)) * r;
  const Tensor z = normal * per_channel(weight.to(mean.scalar_type())) + per_channel(bias.to(mean.scalar_type()));
  const auto through = [&](const Tensor& g) {
    return activation_backward_reference(o.activation, o.negative_slope, g, z);
  };
  const Tensor dz = through(wide(grad));
  Tensor u = s * v + given(p) * normal + given(q), h = given(p) * dz, to_weight = sums(v * dz) * r, to_input;
  if (o.training) {
    const auto n = static_cast<double>(z.size(1) * z.size(3));
    const Tensor v_sum = sums(v), v_normal = sums(v * normal), dz_sum = sums(dz), dz_normal = sums(dz * normal);
    u = u - s / n * (v_sum + normal * v_normal);
    h = h - s / n * (v * dz_normal + dz * v_normal);
    to_weight = to_weight - r / n * (v_sum * dz_sum + v_normal * dz_normal);
    const Tensor through_r = to_weight * per_channel(weight.to(mean.scalar_type()));  // the loss's gradient of log r
    to_input = r * (h - sums(h) / n - normal * (sums(h * normal) + through_r) / n);
  } else {
    to_input = r * h;
  }
  const auto as_input = [&](const Tensor& t) { return at::empty_like(input).copy_(t.reshape(input.sizes())); };
  return {as_input(through(u)), as_input(to_input), to_weight.sum({0, 1, 3}).to(weight.scalar_type())};
}

Three bn_act_double_backward(const OptionalTensor& of_grad_input, const OptionalTensor& of_grad_weight,
                             const OptionalTensor& of_grad_bias, const Tensor& grad, const Tensor& input,
                             const Tensor& weight, const Tensor& bias, const Tensor& mean, const Tensor& rstd,
                             std::string_view activation, double negative_slope, bool training, int64_t stat_groups) {
  const BnActOptions options{kName, parse_activation(kName, activation), negative_slope, training, 0, 0, stat_groups};
  const Tensor maps = dense_maps(input);
  if (maps.numel() == 0) return {at::zeros_like(maps), at::zeros_like(maps), at::zeros_like(weight)};
  const auto like_input = [&](const Tensor& t) {
    return t.strides() == maps.strides() && t.scalar_type() == maps.scalar_type() ? t : at::empty_like(maps).copy_(t);
  };
  const Tensor v = of_grad_input ? like_input(*of_grad_input) : at::zeros_like(maps);
  const auto run = kernels_of(maps) == Kernels::cpu ? run_cpu : run_aten;
  return run(options, v, of_grad_weight.value_or(Tensor()), of_grad_bias.value_or(Tensor()), like_input(grad), maps,
             weight, bias, mean, rstd);
}

class BnActGradNode : public torch::autograd::Function<BnActGradNode> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& grad, const Tensor& input, const Tensor& weight,
                               const Tensor& bias, const Tensor& mean, const Tensor& rstd, std::string_view activation,
                               double negative_slope, bool training, double eps, int64_t stat_groups) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    using Backward = Three(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                           std::string_view, double, bool, int64_t, std::array<bool, 3>);
    static const auto op = find_op<Backward>("dcgan_fast::bn_act_backward");
    auto [of_input, of_weight, of_bias] = op.call(grad, input, weight, bias, mean, rstd, activation, negative_slope,
                                                  training, stat_groups, {true, true, true});
    ctx->save_for_backward({grad, input, weight, bias, mean, rstd});
    ctx->saved_data["activation"] = std::string(activation);
    ctx->saved_data["negative_slope"] = negative_slope;
    ctx->saved_data["training"] = training;
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["stat_groups"] = stat_groups;
    ctx->set_materialize_grads(false);
    return {of_input, of_weight, of_bias};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &grad = saved[0], &input = saved[1], &weight = saved[2], &bias = saved[3], &mean = saved[4],
                 &rstd = saved[5];
    const std::string activation = ctx->saved_data["activation"].toStringRef();
    const double negative_slope = ctx->saved_data["negative_slope"].toDouble();
    const bool training = ctx->saved_data["training"].toBool();
    const int64_t stat_groups = ctx->saved_data["stat_groups"].toInt();
    const BnActOptions options{kName, parse_activation(kName, activation), negative_slope, training,
                               0,     ctx->saved_data["eps"].toDouble(),   stat_groups};
    variable_list result(11);
    if (!grads[0].defined() && !grads[1].defined() && !grads[2].defined()) return result;
    if (!at::GradMode::is_enabled() && of_straight_pieces(options.activation)) {
      static const auto op = find_op<decltype(bn_act_double_backward)>("dcgan_fast::bn_act_double_backward");
      const auto given = [](const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; };
      std::tie(result[0], result[1], result[2]) =
          op.call(given(grads[0]), given(grads[1]), given(grads[2]), grad, input, weight, bias, mean, rstd, activation,
                  negative_slope, training, stat_groups);
      return result;
    }
    return by_reference(ctx, options, saved, grads, std::move(result));
  }

 private:
  // A third derivative, or a second of a smooth activation: the reference's gradients, differentiated.
  static variable_list by_reference(AutogradContext* ctx, const BnActOptions& options, const variable_list& saved,
                                    const variable_list& grads, variable_list result) {
    const bool create_graph = at::GradMode::is_enabled();
    at::AutoGradMode recording(true);
    variable_list leaves, wanted, values, of_values;
    for (size_t i = 0; i < 4; ++i) {  // grad, input, weight, bias
      leaves.push_back(saved[i].requires_grad() ? saved[i].view_as(saved[i]) : saved[i].detach().requires_grad_());
      if (ctx->needs_input_grad(i)) wanted.push_back(leaves[i]);
    }
    const auto first = torch::autograd::grad(
        {bn_act_reference(options, leaves[1], leaves[2], leaves[3], saved[4], saved[5])},
        {leaves.begin() + 1, leaves.end()}, {leaves[0]}, /*retain_graph=*/true, /*create_graph=*/true);
    for (size_t i = 0; i < 3; ++i) {
      if (!grads[i].defined()) continue;
      values.push_back(first[i]);
      of_values.push_back(grads[i]);
    }
    const auto second = torch::autograd::grad(values, wanted, of_values, /*retain_graph=*/true, create_graph,
                                              /*allow_unused=*/true);
    for (size_t i = 0, k = 0; i < 4; ++i) {
      if (ctx->needs_input_grad(i)) result[i] = second[k++];
    }
    return result;
  }
};

}  // namespace

Three bn_act_grad(const BnActOptions& o, const Tensor& grad, const Tensor& input, const Tensor& weight,
                  const Tensor& bias, const Tensor& mean, const Tensor& rstd) {
  const auto grads = BnActGradNode::apply(grad, input, weight, bias, mean, rstd, name_of(o.activation),
                                          o.negative_slope, o.training, o.eps, o.stat_groups);
  return {grads[0], grads[1], grads[2]};
}

TORCH_LIBRARY_IMPL(dcgan_fast, CPU, m) { m.impl("bn_act_double_backward", bn_act_double_backward); }

#ifdef DCGAN_FAST_CUDA
TORCH_LIBRARY_IMPL(dcgan_fast, CUDA, m) { m.impl("bn_act_double_backward", bn_act_double_backward); }
#endif

}  // namespace dcgan_fast
