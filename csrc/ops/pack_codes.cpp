// pack_codes: activations to bits. Validate, allocate, launch.
#include <ATen/ops/isnan.h>
#include <ATen/ops/nonzero.h>
#include <torch/library.h>

#include <cmath>

#include "../cpu/pack_codes.h"
#include "codes.h"
#include "device.h"
#ifdef DCGAN_FAST_CUDA
#include "pack_codes_cuda.h"
#endif

namespace dcgan_fast {
namespace {

using at::Tensor;

constexpr const char* kName = "pack_codes";

void refuse_nan(int64_t row, int64_t column) {
  DCGAN_CHECK(false, kName, "'activations' must not hold NaN, got one in row ", row, ", column ", column);
}

Tensor pack_codes(const Tensor& activations, double threshold) {
  const auto dtype = activations.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf || dtype == at::kDouble, kName,
                   "(): 'activations' must be float32, bfloat16, float16 or float64, got ", dtype);
  TORCH_CHECK_TYPE(activations.layout() == at::kStrided, kName, "(): 'activations' must be a dense tensor, got ",
                   activations.layout());
  DCGAN_CHECK(activations.dim() == 2 && activations.size(1) >= 1, kName,
              "'activations' must be (N, bits) with at least one bit, got ", activations.sizes());
  DCGAN_CHECK(!std::isnan(threshold), kName, "'threshold' must be a number, got nan");
#ifdef DCGAN_FAST_CUDA
  if (kernels_of(activations) == Kernels::cuda) {
    const auto [codes, first_nan] = pack_codes_cuda(activations, threshold);
    if (first_nan >= 0) refuse_nan(first_nan / activations.size(1), first_nan % activations.size(1));
    return codes;
  }
  TORCH_CHECK_NOT_IMPLEMENTED(activations.is_cpu(), kName, "(): no CUDA kernel serves ", dtype);
#endif
  const Tensor dense = activations.contiguous();
  const int64_t rows = dense.size(0), bits = dense.size(1);
  const Tensor codes = empty_result({rows, (bits + 63) / 64}, at::kLong);
  const bool numbers = cpu::pack_codes_kernels().run({dense.const_data_ptr(), rows, bits, dtype, threshold,
                                                      reinterpret_cast<uint64_t*>(codes.mutable_data_ptr<int64_t>())});
  if (!numbers) {
    const Tensor where = at::nonzero(at::isnan(dense))[0];
    refuse_nan(where[0].item<int64_t>(), where[1].item<int64_t>());
  }
  return codes;
}

}  // namespace

TORCH_LIBRARY_IMPL(dcgan_fast, CPU, m) { m.impl("pack_codes", pack_codes); }

#ifdef DCGAN_FAST_CUDA
TORCH_LIBRARY_IMPL(dcgan_fast, CUDA, m) { m.impl("pack_codes", pack_codes); }
#endif

}  // namespace dcgan_fast
