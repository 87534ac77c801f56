// maxout_linear: a linear layer and the largest of each unit's pieces as one node.
//
// Backward needs the input, the weight and a byte for each output: which piece won. The pieces themselves are stored
// neither by float32's kernels nor for backward; of the other dtypes ATen multiplies (16-bit floats on the matrix unit,
// where there is one), into a matrix that lives as long as the call.
#include "../cpu/maxout_linear.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/max.h>
#include <ATen/ops/zeros.h>
#include <c10/util/accumulate.h>
#include <torch/library.h>

#include "../checks.h"
#include "../cpu/workspace.h"
#include "autocast.h"
#include "autograd.h"
#include "device.h"
#include "map_pool.h"
#ifdef DCGAN_FAST_CUDA
#include "maxout_linear_cuda.h"
#endif

namespace dcgan_fast {
namespace {

using OptionalTensor = std::optional<Tensor>;

constexpr const char* kName = "maxout_linear";
constexpr int64_t kMostPieces = 256;  // that a byte tells apart

void check(const Tensor& input, const Tensor& weight, const OptionalTensor& bias) {
  check_maps(kName, input);
  DCGAN_CHECK(input.dim() >= 1, kName, "'input' must be (..., in), got a scalar");
  const int64_t in = input.size(-1);
  DCGAN_CHECK(weight.dim() == 3 && weight.size(2) == in, kName, "'weight' must be (out, pieces, in) with in = ", in,
              ", got ", weight.sizes());
  DCGAN_CHECK(1 <= weight.size(1) && weight.size(1) <= kMostPieces, kName, "'weight' must have 1 to ", kMostPieces,
              " pieces, got ", weight.sizes());
  check_device(kName, "weight", weight, input);
  const auto dtype = input.scalar_type();
  TORCH_CHECK_TYPE(weight.scalar_type() == dtype, kName, "(): 'weight' must have input's dtype (", dtype, "), got ",
                   weight.scalar_type());
  TORCH_CHECK_TYPE(weight.layout() == at::kStrided, kName, "(): 'weight' must be a dense tensor, got ",
                   weight.layout());
  if (!bias) return;
  DCGAN_CHECK(bias->dim() == 2 && bias->sizes() == weight.sizes().slice(0, 2), kName,
              "'bias' must be (out, pieces) = ", weight.sizes().slice(0, 2), ", got ", bias->sizes());
  check_device(kName, "bias", *bias, input);
  const bool narrow = dtype == at::kBFloat16 || dtype == at::kHalf;
  TORCH_CHECK_TYPE(bias->scalar_type() == dtype || (narrow && bias->scalar_type() == at::kFloat), kName,
                   "(): 'bias' must have input's dtype (", dtype, ")", narrow ? " or Float" : "", ", got ",
                   bias->scalar_type());
}

std::vector<int64_t> output_sizes(const Tensor& input, const Tensor& weight) {
  auto sizes = input.sizes().vec();
  sizes.back() = weight.size(0);
  return sizes;
}

cpu::MaxoutShape shape_of(const Tensor& input, const Tensor& weight) {
  return {c10::multiply_integers(input.sizes().slice(0, input.dim() - 1)), weight.size(2), weight.size(0),
          weight.size(1)};
}

bool serves(const Tensor& input, const cpu::MaxoutShape& s) {  // the CPU's kernels do
  return kernels_of(input) == Kernels::cpu && input.scalar_type() == at::kFloat && s.rows > 0 && s.in > 0 && s.out > 0;
}

// All pieces, (..., out, pieces), in PyTorch's own operators.
Tensor pieces_reference(const Tensor& input, const Tensor& weight, const Tensor& bias) {
  const OptionalTensor flat = bias.defined() ? OptionalTensor(bias.to(input.scalar_type()).flatten()) : std::nullopt;
  return at::linear(input, weight.flatten(0, 1), flat).unflatten(-1, {weight.size(0), weight.size(1)});
}

std::tuple<Tensor, Tensor> maxout_linear_forward(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                                 bool save) {
  check(input, weight, bias);
  const auto bytes = input.options().dtype(at::kByte);
  const auto sizes = output_sizes(input, weight);
  const cpu::MaxoutShape s = shape_of(input, weight);
#ifdef DCGAN_FAST_CUDA
  const bool some = s.rows > 0 && s.in > 0 && s.out > 0;
  if (kernels_of(input) == Kernels::cuda && some && maxout_linear_cuda_serves(s.pieces)) {
    const OptionalTensor of_dtype = bias ? OptionalTensor(bias->to(input.scalar_type())) : std::nullopt;
    const auto [output, winner] = maxout_linear_cuda(input.reshape({s.rows, s.in}), weight, of_dtype);
    return {output.view(sizes), save ? winner.view(sizes) : at::empty({0}, bytes)};
  }
#endif
  if (!serves(input, s)) {
    const auto [output, index] = at::max(pieces_reference(input, weight, bias.value_or(Tensor())), -1);
    return {output, save ? index.to(at::kByte) : at::empty({0}, bytes)};
  }
  const Tensor x = input.contiguous(), w = weight.contiguous(), b = bias ? bias->contiguous() : Tensor();
  const Tensor output = empty_maps(sizes, input.options(), at::MemoryFormat::Contiguous);
  const Tensor winner = at::empty(save ? at::IntArrayRef(sizes) : at::IntArrayRef{0}, bytes);
  const cpu::WorkspaceScope scope;
  cpu::maxout_linear_kernels().forward(s, x.const_data_ptr<float>(), w.const_data_ptr<float>(),
                                       bias ? b.const_data_ptr<float>() : nullptr, output.mutable_data_ptr<float>(),
                                       save ? winner.mutable_data_ptr<uint8_t>() : nullptr);
  return {output, winner};
}

std::tuple<Tensor, Tensor, Tensor> backward_aten(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                 const Tensor& winner, std::array<bool, 3> mask) {
  const auto [rows, in, out, pieces] = shape_of(input, weight);
  Tensor of_pieces = at::zeros({rows, out, pieces}, grad.options());
  of_pieces.scatter_(-1, winner.reshape({rows, out, 1}).to(at::kLong), grad.reshape({rows, out, 1}));
  const Tensor flat = of_pieces.view({rows, out * pieces});
  return {mask[0] ? at::matmul(flat, weight.reshape({out * pieces, in})).view(input.sizes()) : Tensor(),
          mask[1] ? at::matmul(flat.t(), input.reshape({rows, in})).view(weight.sizes()) : Tensor(),
          mask[2] ? of_pieces.sum(0) : Tensor()};
}

std::tuple<Tensor, Tensor, Tensor> maxout_linear_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                          const Tensor& winner, std::array<bool, 3> mask) {
  const cpu::MaxoutShape s = shape_of(input, weight);
  if (!serves(input, s)) return backward_aten(grad, input, weight, winner, mask);
  const Tensor g = grad.contiguous(), w = winner.contiguous();
  const auto options = input.options();
  const auto make = [&](bool wanted, at::IntArrayRef sizes) {
    return wanted ? empty_maps(sizes, options, at::MemoryFormat::Contiguous) : Tensor();
  };
  const Tensor grad_input = make(mask[0], input.sizes()), grad_weight = make(mask[1], weight.sizes()),
               grad_bias = make(mask[2], weight.sizes().slice(0, 2));
  const cpu::WorkspaceScope scope;
  const auto& kernels = cpu::maxout_linear_kernels();
  if (mask[0]) {
    kernels.grad_input(s, g.const_data_ptr<float>(), w.const_data_ptr<uint8_t>(),
                       weight.contiguous().const_data_ptr<float>(), grad_input.mutable_data_ptr<float>());
  }
  if (mask[1] || mask[2]) {
    kernels.grad_weight(s, g.const_data_ptr<float>(), w.const_data_ptr<uint8_t>(),
                        input.contiguous().const_data_ptr<float>(),
                        mask[1] ? grad_weight.mutable_data_ptr<float>() : nullptr,
                        mask[2] ? grad_bias.mutable_data_ptr<float>() : nullptr);
  }
  return {grad_input, grad_weight, grad_bias};
}

class MaxoutLinearNode : public torch::autograd::Function<MaxoutLinearNode> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight, const OptionalTensor& bias) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    static const auto op = find_op<decltype(maxout_linear_forward)>("dcgan_fast::maxout_linear_forward");
    const auto [output, winner] = op.call(input, weight, bias, /*save=*/true);
    ctx->save_for_backward({input, weight, bias.value_or(Tensor()), winner});
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &input = saved[0], &weight = saved[1], &bias = saved[2], &winner = saved[3];
    variable_list result(3);
    if (at::GradMode::is_enabled()) {
      return differentiable_grad(ctx, {input, weight, bias}, grads[0], std::move(result), [](const variable_list& in) {
        return std::get<0>(at::max(pieces_reference(in[0], in[1], in[2]), -1));
      });
    }
    static const auto op = find_op<decltype(maxout_linear_backward)>("dcgan_fast::maxout_linear_backward");
    std::tie(result[0], result[1], result[2]) =
        op.call(grads[0], input, weight, winner,
                {ctx->needs_input_grad(0), ctx->needs_input_grad(1), bias.defined() && ctx->needs_input_grad(2)});
    return result;
  }
};

Tensor maxout_linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias) {
  if (needs_autograd({input, weight, bias.value_or(Tensor())})) return MaxoutLinearNode::apply(input, weight, bias);
  static const auto op = find_op<decltype(maxout_linear_forward)>("dcgan_fast::maxout_linear_forward");
  return std::get<0>(op.call(input, weight, bias, /*save=*/false));
}

}  // namespace

TORCH_LIBRARY_IMPL(dcgan_fast, CompositeImplicitAutograd, m) { m.impl("maxout_linear", maxout_linear); }

TORCH_LIBRARY_IMPL(dcgan_fast, AutocastCPU, m) { m.impl("maxout_linear", Autocast<c10::kCPU, maxout_linear>::call); }

TORCH_LIBRARY_IMPL(dcgan_fast, CPU, m) {
  m.impl("maxout_linear_forward", maxout_linear_forward);
  m.impl("maxout_linear_backward", maxout_linear_backward);
}

#ifdef DCGAN_FAST_CUDA
TORCH_LIBRARY_IMPL(dcgan_fast, AutocastCUDA, m) { m.impl("maxout_linear", Autocast<c10::kCUDA, maxout_linear>::call); }

TORCH_LIBRARY_IMPL(dcgan_fast, CUDA, m) {
  m.impl("maxout_linear_forward", maxout_linear_forward);
  m.impl("maxout_linear_backward", maxout_linear_backward);
}
#endif

}  // namespace dcgan_fast
