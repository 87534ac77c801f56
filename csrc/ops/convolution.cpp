#include "convolution.h"

#include <ATen/ops/add.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <utility>

#include "../checks.h"
#include "../cpu/conv_plan.h"
#include "../cpu/engine_race.h"
#include "../cpu/workspace.h"
#include "device.h"
#include "map_pool.h"
#include "packed_weights.h"
#ifdef DCGAN_FAST_CUDA
#include "convolution_cuda.h"
#endif

namespace dcgan_fast {

namespace {

constexpr int64_t kUndilated[] = {1, 1};
// Of a padding, and of a stride that sets pixels apart: no product or sum that makes an extent of them overflows.
constexpr int64_t kLongest = int64_t{1} << 31;

int64_t output_extent(const Convolution& c, const Tensor& input, const Tensor& weight, int64_t axis) {
  const int64_t in = input.size(2 + axis), kernel = weight.size(2 + axis);
  if (c.transposed) return (in - 1) * c.stride[axis] - 2 * c.padding[axis] + kernel + c.output_padding[axis];
  return in + 2 * c.padding[axis] < kernel ? 0 : (in + 2 * c.padding[axis] - kernel) / c.stride[axis] + 1;
}

}  // namespace

std::array<int64_t, 4> Convolution::output_sizes(const Tensor& input, const Tensor& weight) const {
  return {input.size(0), out_channels(weight), output_extent(*this, input, weight, 0), output_extent(*this, input, weight, 1)};
}

void Convolution::check(const Tensor& input, const Tensor& weight) const {
  check_maps(op, input);
  DCGAN_CHECK(input.dim() == 4, op, "'input' must be (N, C, H, W), got ", input.sizes());
  const int64_t in = input.size(1);
  DCGAN_CHECK(weight.dim() == 4 && weight.size(transposed ? 0 : 1) == in, op, "'weight' must be ",
              transposed ? "(in, out, kH, kW)" : "(out, in, kH, kW)", " with in = ", in, ", got ", weight.sizes());
  DCGAN_CHECK(weight.numel() > 0, op, "'weight' must have no empty dimension, got ", weight.sizes());
  check_device(op, "weight", weight, input);
  TORCH_CHECK_TYPE(weight.scalar_type() == input.scalar_type(), op, "(): 'weight' must have input's dtype (",
                   input.scalar_type(), "), got ", weight.scalar_type());
  for (const auto& [setting, values] : {std::pair("stride", stride), {"padding", padding}, {"output_padding", output_padding}}) {
    DCGAN_CHECK(values.size() == 2, op, "'", setting, "' must be one number or (vertical, horizontal), got ", values);
  }
  for (int64_t axis = 0; axis < 2; ++axis) {
    DCGAN_CHECK(stride[axis] >= 1 && (!transposed || stride[axis] <= kLongest), op, "'stride' must be at least 1",
                transposed ? " and at most 2^31" : "", ", got ", stride);
    DCGAN_CHECK(padding[axis] >= 0 && padding[axis] <= kLongest, op, "'padding' must be from 0 to 2^31, got ", padding);
    DCGAN_CHECK(output_padding[axis] >= 0 && (output_padding[axis] == 0 || output_padding[axis] < stride[axis]), op,
                "'output_padding' must be at least 0 and smaller than 'stride' (", stride, "), got ", output_padding);
    DCGAN_CHECK(output_extent(*this, input, weight, axis) >= 1, op, "maps of ", input.sizes().slice(2),
                " are too small for a kernel of ", weight.sizes().slice(2), " with padding ", padding);
  }
}

std::array<int64_t, 2> Convolution::strides_between(const Tensor& weight, at::IntArrayRef fine, at::IntArrayRef coarse) const {
  std::array<int64_t, 2> strides;
  for (int64_t axis = 0; axis < 2; ++axis) {
    const int64_t over = fine[2 + axis] + 2 * padding[axis] + weight.size(2 + axis);
    strides[axis] = coarse[2 + axis] == 1 ? std::min(stride[axis], over) : stride[axis];
  }
  return strides;
}

// ---------------------------------------------------------------- our engines

namespace {

// ATen's rule: either operand's memory format decides for the result.
at::MemoryFormat result_format(const Tensor& input, const Tensor& weight) {
  const bool last = input.suggest_memory_format() == at::MemoryFormat::ChannelsLast ||
                    weight.suggest_memory_format() == at::MemoryFormat::ChannelsLast;
  return last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

// `maps`, made here, in `format`. Of one channel, or of one pixel, both formats are the same bytes, and contiguous() leaves
// the strides as they are; but these are what everybody after us, and the shapes that torch.compile works out, go by.
Tensor laid_out(const Tensor& maps, at::MemoryFormat format) {
  const Tensor result = maps.contiguous(format);
  if (result.is_same(maps)) result.unsafeGetTensorImpl()->empty_tensor_restride(format);
  return result;
}

Tensor channels_last(const Tensor& maps) { return maps.contiguous(at::MemoryFormat::ChannelsLast); }

cpu::ConvShape shape_of(const Convolution& c, const Tensor& weight, at::IntArrayRef fine, at::IntArrayRef coarse) {
  const auto stride = c.strides_between(weight, fine, coarse);
  return {coarse[0],
          {fine[2], fine[3], fine[1]},
          {coarse[2], coarse[3], coarse[1]},
          {weight.size(2), weight.size(3)},
          {stride[0], stride[1]},
          {c.padding[0], c.padding[1]},
          weight.scalar_type()};
}

bool on_our_cpu(const Tensor& input, const Tensor& weight) {
  return kernels_of(input) == Kernels::cpu && input.numel() > 0 && weight.scalar_type() == input.scalar_type();
}

#ifdef DCGAN_FAST_CUDA
bool on_our_cuda(const Convolution& c, const Tensor& input, const Tensor& weight) {
  if (kernels_of(input) != Kernels::cuda || input.numel() == 0 || weight.scalar_type() != input.scalar_type()) return false;
  const auto output = c.output_sizes(input, weight);
  const at::IntArrayRef fine = c.transposed ? at::IntArrayRef(output) : input.sizes(),
                        coarse = c.transposed ? input.sizes() : at::IntArrayRef(output);
  return !conv_cuda_refusal(c, weight, fine, coarse);
}
#endif

// A finish as the CPU's engines take it, and the tensors behind it.
struct CpuEpilogue {
  cpu::Epilogue of_engine;
  Tensor scale, bias;

  explicit CpuEpilogue(const ConvFinish& finish) {
    if (finish.bn) {
      std::tie(scale, bias) = bn_fold(finish.eps, *finish.bn);
      of_engine.scale = scale.const_data_ptr<float>();
    } else if (finish.bias) {
      bias = finish.bias->to(at::kFloat).contiguous();
    }
    of_engine.bias = bias.defined() ? bias.const_data_ptr<float>() : nullptr;
    of_engine.activation = finish.activation;
    of_engine.negative_slope = static_cast<float>(finish.negative_slope);
    if (finish.statistics) {
      finish.statistics->blocks.groups = finish.statistics->groups;
      of_engine.moments = &finish.statistics->blocks;
    }
  }
};

// in -> out by the plain convolution (down) or the transposed one (up); both are channels_last.
void run_engine(const cpu::ConvEngine& engine, cpu::Direction direction, const cpu::ConvShape& shape, const Tensor& weight,
                const Tensor& in, const Tensor& out, const cpu::Epilogue& epilogue, bool keep_packed) {
  const cpu::WorkspaceScope scope;
  const cpu::EngineTimer timer(engine, shape, direction);
  const auto packed = packed_weight(weight, shape, direction, engine, keep_packed);
  (direction == cpu::Direction::down ? engine.down : engine.up)(shape, in.const_data_ptr(), packed.get(),
                                                               out.mutable_data_ptr(), epilogue);
}

Tensor weight_gradient(const cpu::ConvEngine& engine, const cpu::ConvShape& shape, const Tensor& weight, const Tensor& fine,
                       const Tensor& coarse) {
  const cpu::WorkspaceScope scope;
  const Tensor grad = empty_maps(weight.sizes(), weight.options(), at::MemoryFormat::ChannelsLast);
  const cpu::EngineTimer timer(engine, shape, cpu::Direction::weight_grad);
  engine.weight_grad(shape, fine.const_data_ptr(), coarse.const_data_ptr(),
                     {grad.mutable_data_ptr(), {grad.stride(0), grad.stride(1), grad.stride(2), grad.stride(3)}});
  return grad;
}

}  // namespace

Tensor Convolution::fused(const Tensor& input, const Tensor& weight, const ConvFinish& finish,
                          bool gradient_next) const {
  const auto sizes = output_sizes(input, weight);
#ifdef DCGAN_FAST_CUDA
  if (on_our_cuda(*this, input, weight)) {
    return laid_out(conv_cuda(*this, transposed, input, weight, sizes, finish), result_format(input, weight));
  }
#endif
  if (!on_our_cpu(input, weight)) return {};
  const auto shape = transposed ? shape_of(*this, weight, sizes, input.sizes()) : shape_of(*this, weight, input.sizes(), sizes);
  const auto direction = transposed ? cpu::Direction::up : cpu::Direction::down;
  const cpu::ConvEngine* engine = cpu::choose_engine(shape, direction);
  if (!engine) return {};
  CpuEpilogue epilogue(finish);
  const Tensor out = empty_maps(sizes, input.options(), at::MemoryFormat::ChannelsLast);
  if (finish.pool) {
    finish.pool->maps = out.const_data_ptr();
    epilogue.of_engine.pool = finish.pool;
  }
  run_engine(*engine, direction, shape, weight, channels_last(input), out, epilogue.of_engine, !gradient_next);
  return laid_out(out, result_format(input, weight));
}

// ---------------------------------------------------------------- one product

namespace {

// A kernel that is as large as the fine map, whose one coarse pixel it makes: the first layer of a generator, the last of a
// discriminator. That is a product of matrices, [images, coarse channels] by [coarse channels, values of a fine map], which
// PyTorch's convolution takes ten times as long for (it reorders the weight at each call: 2.5 ms of 32 images of 100 to
// 512 channels against 0.2). Of floats: a processor without instructions for 16 bits has no fast product of them either.
class OneProduct {
 public:
  static bool is(const Convolution& c, const Tensor& input, const Tensor& weight) {
    if (!input.is_cpu() || input.numel() == 0) return false;
    if (input.scalar_type() != at::kFloat && input.scalar_type() != at::kDouble) return false;
    const auto output = c.output_sizes(input, weight);
    const at::IntArrayRef fine = c.transposed ? at::IntArrayRef(output) : input.sizes(),
                          coarse = c.transposed ? input.sizes() : at::IntArrayRef(output);
    return c.padding == at::IntArrayRef{0, 0} && coarse.slice(2) == at::IntArrayRef{1, 1} &&
           fine.slice(2) == weight.sizes().slice(2);
  }

  explicit OneProduct(const Tensor& weight) : weight_(weight), matrix_(rows(weight)) {}

  Tensor up(const Tensor& coarse) const { return maps(coarse.flatten(1).matmul(matrix_)); }
  Tensor down(const Tensor& fine) const { return rows(fine).matmul(matrix_.t()).unsqueeze(-1).unsqueeze(-1); }
  Tensor weight_grad(const Tensor& fine, const Tensor& coarse) const { return maps(coarse.flatten(1).t().matmul(rows(fine))); }

 private:
  bool last() const { return weight_.is_contiguous(at::MemoryFormat::ChannelsLast); }

  // Fine maps as rows, in the order in which the weight lies in memory.
  Tensor rows(const Tensor& maps) const { return last() ? maps.permute({0, 2, 3, 1}).flatten(1) : maps.flatten(1); }

  Tensor maps(const Tensor& rows) const {
    const int64_t channels = weight_.size(1), height = weight_.size(2), width = weight_.size(3);
    if (!last()) return rows.view({-1, channels, height, width});
    return rows.view({-1, height, width, channels}).permute({0, 3, 1, 2});
  }

  const Tensor weight_, matrix_;
};

}  // namespace

Tensor Convolution::reference(const Tensor& input, const Tensor& weight, const OptionalTensor& bias) const {
  if (OneProduct::is(*this, input, weight)) {
    const OneProduct product(weight);
    const Tensor output = transposed ? product.up(input) : product.down(input);
    return laid_out(bias && bias->defined() ? at::add(output, bias->view({-1, 1, 1})) : output, result_format(input, weight));
  }
  return at::convolution(input, weight, bias, stride, padding, kUndilated, transposed, output_padding, /*groups=*/1);
}

std::tuple<Tensor, Tensor, Tensor> Convolution::backward(const Tensor& grad, const Tensor& input,
                                                         const Tensor& weight, std::array<bool, 3> mask,
                                                         [[maybe_unused]] BatchNormBelow* below) const {
  std::tuple<Tensor, Tensor, Tensor> result;
  auto& [grad_input, grad_weight, grad_bias] = result;
  const bool trains = mask[1] && weight.is_cpu();
#ifdef DCGAN_FAST_CUDA
  if (on_our_cuda(*this, input, weight) && grad.scalar_type() == input.scalar_type()) {
    const auto format = result_format(input, weight);
    const Tensor dense_grad = channels_last(grad), &fine = transposed ? dense_grad : input,
                 &coarse = transposed ? input : dense_grad;
    ConvFinish sum_up;
    sum_up.below = below;
    if (mask[0]) grad_input = laid_out(conv_cuda(*this, !transposed, dense_grad, weight, input.sizes(), sum_up), format);
    if (mask[1]) grad_weight = laid_out(conv_weight_grad_cuda(*this, weight, fine, coarse), format);
    if (mask[2]) grad_bias = grad.sum({0, 2, 3});
    mask = {};
  }
#endif
  if (on_our_cpu(input, weight) && grad.scalar_type() == input.scalar_type()) {
    const Tensor &fine = transposed ? grad : input, &coarse = transposed ? input : grad;
    const auto shape = shape_of(*this, weight, fine.sizes(), coarse.sizes());
    const auto format = result_format(input, weight);
    const auto opposite = transposed ? cpu::Direction::down : cpu::Direction::up;
    const auto* data = mask[0] ? cpu::choose_engine(shape, opposite) : nullptr;
    const auto* of_weight = mask[1] ? cpu::choose_engine(shape, cpu::Direction::weight_grad) : nullptr;
    const Tensor dense_grad = data || of_weight ? channels_last(grad) : grad;
    if (data) {
      const Tensor out = empty_maps(input.sizes(), input.options(), at::MemoryFormat::ChannelsLast);
      run_engine(*data, opposite, shape, weight, dense_grad, out, {}, !trains);
      grad_input = laid_out(out, format);
      mask[0] = false;
    }
    if (of_weight) {
      const Tensor dense_input = channels_last(input);
      grad_weight = laid_out(weight_gradient(*of_weight, shape, weight, transposed ? dense_grad : dense_input,
                                             transposed ? dense_input : dense_grad),
                             format);
      mask[1] = false;
    }
    if ((data || of_weight) && mask[2]) {
      grad_bias = grad.sum({0, 2, 3});
      mask[2] = false;
    }
  }
  if ((mask[0] || mask[1]) && OneProduct::is(*this, input, weight)) {
    const OneProduct product(weight);
    const Tensor &fine = transposed ? grad : input, &coarse = transposed ? input : grad;
    const auto format = result_format(input, weight);
    if (mask[0]) grad_input = laid_out(transposed ? product.down(grad) : product.up(grad), format);
    if (mask[1]) grad_weight = laid_out(product.weight_grad(fine, coarse), format);
    if (mask[2]) grad_bias = grad.sum({0, 2, 3});
    mask = {};
  }
  if (mask[0] || mask[1] || mask[2]) {
    const int64_t bias_sizes[] = {out_channels(weight)};
    auto [of_input, of_weight, of_bias] = at::convolution_backward(
        grad, input, weight, bias_sizes, stride, padding, kUndilated, transposed, output_padding, /*groups=*/1, mask);
    if (mask[0]) grad_input = of_input;
    if (mask[1]) grad_weight = of_weight;
    if (mask[2]) grad_bias = of_bias;
  }
  if (trains) forget_packed_weight(weight);  // an optimiser comes next, and torch's fused Adam bumps no version
  return result;
}

std::vector<std::string> convolution_engines(const Tensor& input, const Tensor& weight, at::IntArrayRef stride,
                                             at::IntArrayRef padding, at::IntArrayRef output_padding, bool transposed) {
  const Convolution c{"convolution_engines", transposed, stride, padding, output_padding};
  c.check(input, weight);
#ifdef DCGAN_FAST_CUDA
  if (on_our_cuda(c, input, weight)) return std::vector<std::string>(3, conv_cuda_name(input.scalar_type()));
#endif
  if (!on_our_cpu(input, weight)) return {"ATen", "ATen", "ATen"};
  const auto sizes = c.output_sizes(input, weight);
  const auto shape = transposed ? shape_of(c, weight, sizes, input.sizes()) : shape_of(c, weight, input.sizes(), sizes);
  const auto forward = transposed ? cpu::Direction::up : cpu::Direction::down,
             backward = transposed ? cpu::Direction::down : cpu::Direction::up;
  return {cpu::engine_name(shape, forward), cpu::engine_name(shape, backward),
          cpu::engine_name(shape, cpu::Direction::weight_grad)};
}

}  // namespace dcgan_fast
