// plane_bias_act: a bias for each pattern of rows and columns + activation. Validate, allocate, launch; the autograd
// node.
//
// What a convolution adds for planes of constants that were concatenated to its input (dcgan_fast/labels.py). It is a
// pass of its own over the convolution's output, in place: 2 reads or writes of an element, which lies in L3 mostly,
// where the convolution multiplies it 1,600 times and more, so no engine needs to know of it. Backward takes the
// activation's derivative from the result, as conv_act's does; without an activation it keeps no map and only sums the
// gradient up.
#include "../cpu/plane_bias_act.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/index_add.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "../checks.h"
#include "autograd.h"
#include "bn_act.h"
#include "device.h"
#include "double_backward.h"
#include "map_pool.h"
#ifdef DCGAN_FAST_CUDA
#include "plane_bias_act_cuda.h"
#endif

namespace dcgan_fast {
namespace {

constexpr const char* kName = "plane_bias_act";

void check_patterns(const char* name, const Tensor& of_pixels, const Tensor& input, int64_t pixels, int64_t patterns) {
  TORCH_CHECK_TYPE(of_pixels.scalar_type() == at::kLong, kName, "(): '", name, "' must be int64, got ",
                   of_pixels.scalar_type());
  DCGAN_CHECK(of_pixels.dim() == 1 && of_pixels.size(0) == pixels, kName, "'", name, "' must be (", pixels, ",), got ",
              of_pixels.sizes());
  check_device(kName, name, of_pixels, input);
  if (!of_pixels.is_cpu()) return;  // a look would wait: the kernels make NaN of such pixels, ATen an assertion
  const Tensor dense = of_pixels.contiguous();
  for (int64_t i = 0; i < pixels; ++i) {
    const int64_t pattern = dense.const_data_ptr<int64_t>()[i];
    DCGAN_CHECK(pattern >= 0 && pattern < patterns, kName, "'", name, "' must be from 0 to ", patterns - 1,
                ", as 'bias' has so many patterns, got ", pattern);
  }
}

void check(const Tensor& input, const Tensor& bias, const Tensor& rows, const Tensor& columns) {
  check_maps(kName, input);
  DCGAN_CHECK(input.dim() == 4, kName, "'input' must be (N, C, H, W), got ", input.sizes());
  DCGAN_CHECK(bias.dim() == 4 && bias.size(0) == input.size(0) && bias.size(1) == input.size(1) && bias.size(2) >= 1 &&
                  bias.size(3) >= 1,
              kName, "'bias' must be (N, C, row patterns, column patterns) with (N, C) = (", input.size(0), ", ",
              input.size(1), "), got ", bias.sizes());
  check_device(kName, "bias", bias, input);
  const bool narrow = input.scalar_type() == at::kBFloat16 || input.scalar_type() == at::kHalf;
  TORCH_CHECK_TYPE(bias.scalar_type() == input.scalar_type() || (narrow && bias.scalar_type() == at::kFloat), kName,
                   "(): 'bias' must have input's dtype (", input.scalar_type(), ")", narrow ? " or Float" : "",
                   ", got ", bias.scalar_type());
  check_patterns("rows", rows, input, input.size(2), bias.size(2));
  check_patterns("columns", columns, input, input.size(3), bias.size(3));
}

at::ScalarType accumulator(const Tensor& maps) { return maps.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

cpu::PlaneMaps maps_of(const Tensor& maps, const Tensor& rows, const Tensor& columns, int64_t row_patterns,
                       int64_t column_patterns) {
  return {maps.size(0),
          maps.size(1),
          maps.size(2),
          maps.size(3),
          row_patterns,
          column_patterns,
          rows.const_data_ptr<int64_t>(),
          columns.const_data_ptr<int64_t>(),
          !maps.is_contiguous(),
          maps.scalar_type()};
}

at::MemoryFormat format_of(const Tensor& dense) {
  return dense.is_contiguous() ? at::MemoryFormat::Contiguous : at::MemoryFormat::ChannelsLast;
}

Tensor spread(const Tensor& bias, const Tensor& rows, const Tensor& columns) {
  return bias.index_select(2, rows).index_select(3, columns);
}

#ifdef DCGAN_FAST_CUDA
bool cuda_serves(const Tensor& maps, int64_t row_patterns, int64_t column_patterns) {
  return kernels_of(maps) == Kernels::cuda && plane_bias_act_cuda_serves(maps, row_patterns, column_patterns);
}
#endif

// output = activation(input + biases); `input` dense, `output` of its strides or input itself.
void run(const Tensor& input, const Tensor& bias, const Tensor& rows, const Tensor& columns, Activation activation,
         double negative_slope, const Tensor& output) {
  if (input.numel() == 0) return;
#ifdef DCGAN_FAST_CUDA
  if (cuda_serves(input, bias.size(2), bias.size(3))) {
    const Tensor biases = bias.to(at::kFloat);
    return plane_bias_act_cuda_forward(input, biases, rows, columns, activation, negative_slope, output);
  }
#endif
  if (kernels_of(input) != Kernels::cpu) {
    const Tensor z = (input + spread(bias, rows, columns)).to(input.scalar_type());
    output.copy_(activation_reference(activation, negative_slope, z));
    return;
  }
  const Tensor biases = bias.to(accumulator(input)).contiguous(format_of(input));
  const Tensor r = rows.contiguous(), c = columns.contiguous();
  cpu::plane_bias_act_kernels().forward(
      maps_of(input, r, c, bias.size(2), bias.size(3)),
      {input.const_data_ptr(), output.mutable_data_ptr(), biases.const_data_ptr(), activation, negative_slope});
}

// The sums of `grad` over the pixels of each pattern.
Tensor sum_up(const Tensor& grad, const Tensor& rows, const Tensor& columns, int64_t row_patterns,
              int64_t column_patterns) {
  const Tensor wide = grad.to(accumulator(grad));
  const auto n = wide.size(0), c = wide.size(1), w = wide.size(3);
  const Tensor of_rows = at::zeros({n, c, row_patterns, w}, wide.options()).index_add(2, rows, wide);
  return at::zeros({n, c, row_patterns, column_patterns}, wide.options()).index_add(3, columns, of_rows);
}

// ---------------------------------------------------------------- the registered halves

Tensor plane_bias_act_forward(const Tensor& input, const Tensor& bias, const Tensor& rows, const Tensor& columns,
                              std::string_view activation, double negative_slope) {
  const Activation parsed = parse_activation(kName, activation);
  check(input, bias, rows, columns);
  const Tensor maps = dense_maps(input), output = empty_maps_like(maps);
  run(maps, bias, rows, columns, parsed, negative_slope, output);
  return output;
}

void plane_bias_act_forward_(const Tensor& input, const Tensor& bias, const Tensor& rows, const Tensor& columns,
                             std::string_view activation, double negative_slope) {
  const Activation parsed = parse_activation(kName, activation);
  check(input, bias, rows, columns);
  const Tensor maps = dense_maps(input);
  run(maps, bias, rows, columns, parsed, negative_slope, maps);
  if (!maps.is_same(input)) input.copy_(maps);
  if (!input.is_inference()) input.unsafeGetTensorImpl()->bump_version();
}

// grad_bias is of the accumulator's dtype. The gradient of input may take the place of grad.
std::tuple<Tensor, Tensor> run_backward(const Tensor& grad, const Tensor& output, const Tensor& rows,
                                        const Tensor& columns, int64_t row_patterns, int64_t column_patterns,
                                        std::string_view activation, double negative_slope, std::array<bool, 2> mask,
                                        bool in_place) {
  const Activation parsed = parse_activation(kName, activation);
  const Tensor result = dense_maps(output);
  const Tensor dense = grad.strides() == result.strides() ? grad : at::empty_like(result).copy_(grad);
  in_place = in_place || !dense.is_same(grad);
  const auto options = result.options().dtype(accumulator(result));
  const int64_t sizes[] = {result.size(0), result.size(1), row_patterns, column_patterns};
#ifdef DCGAN_FAST_CUDA
  if (cuda_serves(result, row_patterns, column_patterns) && result.numel() > 0) {
    const Tensor grad_input = !mask[0] ? Tensor() : in_place ? dense : at::empty_like(result);
    const Tensor grad_bias = mask[1] ? at::empty(sizes, options, format_of(result)) : Tensor();
    plane_bias_act_cuda_backward(dense, result, rows, columns, row_patterns, column_patterns, parsed, negative_slope,
                                 grad_input, grad_bias);
    return {grad_input, grad_bias};
  }
#endif
  if (kernels_of(result) != Kernels::cpu || result.numel() == 0) {
    const Tensor of_input = activation_grad(parsed, negative_slope, dense, result);
    const Tensor of_bias = mask[1] ? sum_up(of_input, rows, columns, row_patterns, column_patterns) : Tensor();
    return {mask[0] ? of_input.is_same(dense) ? of_input.clone() : of_input : Tensor(), of_bias};
  }
  const Tensor grad_input = !mask[0] ? Tensor() : in_place ? dense : empty_maps_like(result);
  const Tensor grad_bias = mask[1] ? at::empty(sizes, options, format_of(result)) : Tensor();
  const Tensor r = rows.contiguous(), c = columns.contiguous();
  cpu::plane_bias_act_kernels().backward(
      maps_of(result, r, c, row_patterns, column_patterns),
      {dense.const_data_ptr(), result.const_data_ptr(), mask[0] ? grad_input.mutable_data_ptr() : nullptr,
       mask[1] ? grad_bias.mutable_data_ptr() : nullptr, parsed, negative_slope});
  return {grad_input, grad_bias};
}

std::tuple<Tensor, Tensor> plane_bias_act_backward(const Tensor& grad, const Tensor& output, const Tensor& rows,
                                                   const Tensor& columns, int64_t row_patterns, int64_t column_patterns,
                                                   std::string_view activation, double negative_slope,
                                                   std::array<bool, 2> output_mask) {
  return run_backward(grad, output, rows, columns, row_patterns, column_patterns, activation, negative_slope,
                      output_mask, /*in_place=*/false);
}

// The gradient of input in place of `grad`; returns that of bias.
Tensor plane_bias_act_backward_(const Tensor& grad, const Tensor& output, const Tensor& rows, const Tensor& columns,
                                int64_t row_patterns, int64_t column_patterns, std::string_view activation,
                                double negative_slope) {
  const auto [of_input, of_bias] = run_backward(grad, output, rows, columns, row_patterns, column_patterns, activation,
                                                negative_slope, {true, true}, /*in_place=*/true);
  if (!of_input.is_same(grad)) grad.copy_(of_input);
  return of_bias;
}

// ---------------------------------------------------------------- the op

class PlaneBiasActNode : public torch::autograd::Function<PlaneBiasActNode> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& bias, const Tensor& rows,
                        const Tensor& columns, std::string_view activation, double negative_slope, bool in_place) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    static const auto op = find_op<decltype(plane_bias_act_forward)>("dcgan_fast::plane_bias_act_forward");
    static const auto op_ = find_op<decltype(plane_bias_act_forward_)>("dcgan_fast::plane_bias_act_forward_");
    Tensor output = input;
    if (in_place) {
      op_.call(input, bias, rows, columns, activation, negative_slope);
      ctx->mark_dirty({input});
    } else {
      output = op.call(input, bias, rows, columns, activation, negative_slope);
    }
    // without an activation the result is not needed, and whoever gets it may overwrite it
    ctx->save_for_backward({activation == "none" ? Tensor() : output, rows, columns});
    auto& data = ctx->saved_data;
    // not size(): of a tensor whose batch is a symbol it would settle that too
    data["row_patterns"] = bias.sym_size(2).guard_int(__FILE__, __LINE__);
    data["column_patterns"] = bias.sym_size(3).guard_int(__FILE__, __LINE__);
    data["dtype"] = bias.scalar_type();
    data["activation"] = std::string(activation);
    data["negative_slope"] = negative_slope;
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &rows = saved[1], &columns = saved[2], &grad = grads[0];
    auto& data = ctx->saved_data;
    const int64_t row_patterns = data["row_patterns"].toInt(), column_patterns = data["column_patterns"].toInt();
    const auto dtype = data["dtype"].toScalarType();
    const std::string activation = data["activation"].toStringRef();
    const double negative_slope = data["negative_slope"].toDouble();
    const std::array<bool, 2> mask = {ctx->needs_input_grad(0), ctx->needs_input_grad(1)};
    variable_list result(7);
    if (at::GradMode::is_enabled()) {  // to be differentiated again, through the result where there is an activation
      const Tensor of_input = activation_grad(parse_activation(kName, activation), negative_slope, grad, saved[0]);
      if (mask[0]) result[0] = of_input;
      if (mask[1]) result[1] = sum_up(of_input, rows, columns, row_patterns, column_patterns).to(dtype);
      return result;
    }
    static const auto op = find_op<decltype(plane_bias_act_backward)>("dcgan_fast::plane_bias_act_backward");
    static const auto op_ = find_op<decltype(plane_bias_act_backward_)>("dcgan_fast::plane_bias_act_backward_");
    if (activation == "none") {  // the gradient of input is that of the result
      if (mask[0]) result[0] = grad;
      if (mask[1]) {
        result[1] = std::get<1>(op.call(grad, grad, rows, columns, row_patterns, column_patterns, activation,
                                        negative_slope, {false, true}));
      }
    } else if (mask[0] && mask[1] && is_the_only_owner(grad)) {
      result[1] = op_.call(grad, saved[0], rows, columns, row_patterns, column_patterns, activation, negative_slope);
      result[0] = grad;
    } else {
      std::tie(result[0], result[1]) =
          op.call(grad, saved[0], rows, columns, row_patterns, column_patterns, activation, negative_slope, mask);
    }
    if (mask[1]) result[1] = result[1].to(dtype);
    return result;
  }
};

Tensor plane_bias_act(const Tensor& input, const Tensor& bias, const Tensor& rows, const Tensor& columns,
                      std::string_view activation, double negative_slope) {
  if (!needs_autograd({input, bias})) {
    static const auto op = find_op<decltype(plane_bias_act_forward)>("dcgan_fast::plane_bias_act_forward");
    return op.call(input, bias, rows, columns, activation, negative_slope);
  }
  if (activation == "leaky_relu" && negative_slope < 0) {
    // the sign of the result no longer tells the sign of the activation's input: keep that too
    return at::leaky_relu(PlaneBiasActNode::apply(input, bias, rows, columns, "none", 0.0, false), negative_slope);
  }
  return PlaneBiasActNode::apply(input, bias, rows, columns, activation, negative_slope, false);
}

Tensor plane_bias_act_(const Tensor& input, const Tensor& bias, const Tensor& rows, const Tensor& columns,
                       std::string_view activation, double negative_slope) {
  if (!needs_autograd({input, bias})) {
    static const auto op = find_op<decltype(plane_bias_act_forward_)>("dcgan_fast::plane_bias_act_forward_");
    op.call(input, bias, rows, columns, activation, negative_slope);
    return input;
  }
  DCGAN_CHECK(activation != "leaky_relu" || negative_slope >= 0, kName,
              "in place 'negative_slope' must be at least 0 (its derivative is taken from the result), got ",
              negative_slope);
  return PlaneBiasActNode::apply(input, bias, rows, columns, activation, negative_slope, true);
}

}  // namespace

TORCH_LIBRARY_IMPL(dcgan_fast, CompositeImplicitAutograd, m) {
  m.impl("plane_bias_act", plane_bias_act);
  m.impl("plane_bias_act_", plane_bias_act_);
}

TORCH_LIBRARY_IMPL(dcgan_fast, CPU, m) {
  m.impl("plane_bias_act_forward", plane_bias_act_forward);
  m.impl("plane_bias_act_forward_", plane_bias_act_forward_);
  m.impl("plane_bias_act_backward", plane_bias_act_backward);
  m.impl("plane_bias_act_backward_", plane_bias_act_backward_);
}

#ifdef DCGAN_FAST_CUDA
TORCH_LIBRARY_IMPL(dcgan_fast, CUDA, m) {
  m.impl("plane_bias_act_forward", plane_bias_act_forward);
  m.impl("plane_bias_act_forward_", plane_bias_act_forward_);
  m.impl("plane_bias_act_backward", plane_bias_act_backward);
  m.impl("plane_bias_act_backward_", plane_bias_act_backward_);
}
#endif

}  // namespace dcgan_fast
