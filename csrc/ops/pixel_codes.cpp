// pixel_codes: bytes through a linear layer to bits. Validate, allocate, launch.
#include "../cpu/pixel_codes.h"

#include <ATen/ops/aminmax.h>
#include <torch/library.h>

#include <cmath>

#include "../cpu/workspace.h"
#include "codes.h"

namespace dcgan_fast {
namespace {

using at::Tensor;

constexpr const char* kName = "pixel_codes";

void check(const Tensor& pixels, const Tensor& weight, const Tensor& bias, double threshold) {
  const auto dtype = weight.scalar_type();
  TORCH_CHECK_TYPE(pixels.scalar_type() == at::kByte, kName, "(): 'pixels' must be uint8, got ", pixels.scalar_type());
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kBFloat16, kName,
                   "(): 'weight' must be float32 or bfloat16, got ", dtype);
  TORCH_CHECK_TYPE(bias.scalar_type() == at::kFloat, kName, "(): 'bias' must be float32, got ", bias.scalar_type());
  DCGAN_CHECK(pixels.dim() == 2 && pixels.size(1) >= 1, kName,
              "'pixels' must be (N, features) with at least one feature, got ", pixels.sizes());
  DCGAN_CHECK(weight.dim() == 2 && weight.size(0) >= 1 && weight.size(1) == pixels.size(1), kName,
              "'weight' must be (bits, features) with at least one bit and ", pixels.size(1), " features, got ",
              weight.sizes());
  DCGAN_CHECK(bias.dim() == 1 && bias.size(0) == weight.size(0), kName, "'bias' must be (bits,) with ", weight.size(0),
              " bits, got ", bias.sizes());
  for (const Tensor& t : {weight, bias}) {  // isfinite().all() takes fifteen times as long, as long as 300 images do
    const auto [least, most] = at::aminmax(t);
    DCGAN_CHECK(std::isfinite(least.item<float>()) && std::isfinite(most.item<float>()), kName,
                "'weight' and 'bias' must be finite");
  }
  DCGAN_CHECK(!std::isnan(threshold), kName, "'threshold' must be a number, got nan");
}

Tensor pixel_codes(const Tensor& pixels, const Tensor& weight, const Tensor& bias, double threshold) {
  check(pixels, weight, bias, threshold);
  const Tensor rows = pixels.contiguous(), factors = weight.contiguous(), added = bias.contiguous();
  const int64_t bits = weight.size(0);
  const Tensor codes = empty_result({rows.size(0), (bits + 63) / 64}, at::kLong);
  if (codes.numel() == 0) return codes;
  const cpu::WorkspaceScope scope;
  cpu::pixel_codes_kernels(weight.scalar_type())
      .run({rows.const_data_ptr<uint8_t>(), rows.size(0), rows.size(1), bits, factors.const_data_ptr(),
            factors.scalar_type(), added.const_data_ptr<float>(), static_cast<float>(threshold),
            reinterpret_cast<uint64_t*>(codes.mutable_data_ptr<int64_t>())});
  return codes;
}

}  // namespace

TORCH_LIBRARY_IMPL(dcgan_fast, CPU, m) { m.impl("pixel_codes", pixel_codes); }

}  // namespace dcgan_fast
