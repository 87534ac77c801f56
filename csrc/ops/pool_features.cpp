// _pool_features_ and _conv_pool_features_: maps pooled into rows of features, and a convolution that pools its own output.
// Validate, launch.
#include "../cpu/pool_features.h"

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include "../checks.h"
#include "../cpu/workspace.h"
#include "bn_act.h"
#include "convolution.h"

namespace dcgan_fast {
namespace {

// Checked features of `images` maps of so many channels; the maps themselves are for the caller to fill in.
cpu::PoolFeatures features_of(const char* op, at::ScalarType dtype, int64_t images, int64_t channels, int64_t height,
                              int64_t width, int64_t size, const Tensor& features, int64_t column) {
  DCGAN_CHECK(size >= 1, op, "'size' must be at least 1, got ", size);
  const bool half = features.scalar_type() == at::kHalf;
  TORCH_CHECK_TYPE(half || features.scalar_type() == at::kFloat, op,
                   "(): 'features' must be float32 or float16, got ", features.scalar_type());
  const int64_t count = channels * size * size;
  DCGAN_CHECK(features.dim() == 2 && features.size(0) == images && features.stride(1) == 1, op,
              "'features' must be (N, width) with N = ", images, " and rows without gaps, got ", features.sizes());
  DCGAN_CHECK(0 <= column && column + count <= features.size(1), op, "'column' must leave room for ", count,
              " features of ", features.size(1), ", got ", column);
  char* const first = static_cast<char*>(features.mutable_data_ptr()) + column * features.element_size();
  return {nullptr, dtype, images, channels, height, width, size, first, half, features.stride(0)};
}

void check_dtype(const char* op, const char* name, const Tensor& maps) {
  const auto dtype = maps.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf, op, "(): '", name,
                   "' must be float32, bfloat16 or float16, got ", dtype);
}

void run(const char* op, const Tensor& maps, int64_t size, const Tensor& features, int64_t column) {
  check_dtype(op, "maps", maps);
  DCGAN_CHECK(maps.dim() == 4 && maps.size(1) >= 1 && maps.size(2) >= 1 && maps.size(3) >= 1, op,
              "'maps' must be (N, C, H, W), none of C, H, W 0, got ", maps.sizes());
  auto pool = features_of(op, maps.scalar_type(), maps.size(0), maps.size(1), maps.size(2), maps.size(3), size, features, column);
  if (maps.size(0) == 0) return;
  const Tensor dense = maps.contiguous(at::MemoryFormat::ChannelsLast);
  pool.maps = dense.const_data_ptr();
  const cpu::WorkspaceScope scope;
  cpu::pool_features_kernels().all(pool);
}

void pool_features(const Tensor& maps, int64_t size, const Tensor& features, int64_t column) {
  run("_pool_features_", maps, size, features, column);
}

// activation(bn(convolution + bias)), and its maxima in `features`. `bn`: empty, or weight, bias, running mean and variance.
Tensor conv_pool_features(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, at::TensorList bn,
                          at::IntArrayRef stride, at::IntArrayRef padding, std::string_view activation,
                          double negative_slope, double eps, int64_t size, const Tensor& features, int64_t column) {
  constexpr const char* op = "_conv_pool_features_";
  constexpr int64_t kNone[] = {0, 0};
  check_dtype(op, "input", input);
  const Convolution convolution{op, /*transposed=*/false, stride, padding, kNone};
  convolution.check(input, weight);
  const int64_t channels = convolution.out_channels(weight);
  DCGAN_CHECK(bn.empty() || (bn.size() == 4 && !bias), op, "'bn' must be empty, or four tensors in place of a 'bias', got ",
              bn.size());
  ConvFinish finish;
  finish.activation = parse_activation(op, activation);
  finish.negative_slope = negative_slope;
  finish.eps = eps;
  if (bias) check_channel_vector(op, "bias", *bias, input, channels);
  finish.bias = bias;
  const BnActOptions options{op, finish.activation, negative_slope, /*training=*/false, 0, eps, 1};
  OptionalTensor mean, var;
  std::optional<BnTensors> normalise;
  if (!bn.empty()) {
    mean = bn[2], var = bn[3];
    normalise.emplace(BnTensors{bn[0], bn[1], mean, var});
    check_bn(options, input, input.size(0), channels, *normalise);
    finish.bn = &*normalise;
  }
  const auto sizes = convolution.output_sizes(input, weight);
  auto pool = features_of(op, input.scalar_type(), sizes[0], sizes[1], sizes[2], sizes[3], size, features, column);
  finish.pool = &pool;
  const Tensor fused = convolution.fused(input, weight, finish);
  if (fused.defined()) return fused;
  Tensor maps = dense_maps(convolution.reference(input, weight, bias ? OptionalTensor(bias->to(input.scalar_type())) : bias));
  if (finish.bn) {
    bn_act_run(options, maps, *finish.bn, maps);
  } else {
    maps = activation_reference(finish.activation, negative_slope, maps);
  }
  run(op, maps, size, features, column);
  return maps;
}

}  // namespace

TORCH_LIBRARY_IMPL(dcgan_fast, CPU, m) {
  m.impl("_pool_features_", pool_features);
  m.impl("_conv_pool_features_", conv_pool_features);
}

}  // namespace dcgan_fast
