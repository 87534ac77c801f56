// parzen_log_likelihood: log-densities of Gaussian Parzen windows. Validate, centre, launch, normalise.
#include "../cpu/parzen.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/log.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/pow.h>
#include <torch/library.h>

#include <cmath>
#include <numbers>

#include "../checks.h"
#include "../cpu/workspace.h"
#include "device.h"
#ifdef DCGAN_FAST_CUDA
#include "parzen_cuda.h"
#endif

namespace dcgan_fast {
namespace {

using at::Tensor;

constexpr const char* kName = "parzen_log_likelihood";
constexpr double kLeast = 1e-18, kMost = 1e18;  // of sigma: beyond, 1 / sigma^2 is no normal float32

void check_rows(const char* name, const Tensor& rows) {
  TORCH_CHECK_TYPE(rows.scalar_type() == at::kFloat, kName, "(): '", name, "' must be float32, got ", rows.scalar_type());
  TORCH_CHECK_TYPE(rows.layout() == at::kStrided, kName, "(): '", name, "' must be a dense tensor, got ", rows.layout());
  DCGAN_CHECK(rows.dim() == 2, kName, "'", name, "' must be (rows, features), got ", rows.sizes());
}

void check(const Tensor& samples, const Tensor& data, const Tensor& sigma) {
  check_rows("samples", samples);
  check_rows("data", data);
  DCGAN_CHECK(samples.size(0) >= 1 && samples.size(1) >= 1, kName, "'samples' must have rows and features, got ",
              samples.sizes());
  DCGAN_CHECK(data.size(1) == samples.size(1), kName, "'data' must have as many features as 'samples', ", samples.size(1),
              ", got ", data.size(1));
  TORCH_CHECK_TYPE(data.device() == samples.device(), kName, "(): 'data' must be on the device of 'samples', ",
                   samples.device(), ", got ", data.device());
  TORCH_CHECK_TYPE(sigma.scalar_type() == at::kDouble && sigma.is_cpu(), kName, "(): 'sigma' must be float64 on the CPU, got ",
                   sigma.scalar_type(), " on ", sigma.device());
  DCGAN_CHECK(sigma.dim() == 1, kName, "'sigma' must be (sigmas,), got ", sigma.sizes());
  const double* const values = sigma.const_data_ptr<double>();
  for (int64_t s = 0; s < sigma.numel(); ++s) {
    DCGAN_CHECK(values[s] > 0, kName, "'sigma' must be above 0, got ", values[s]);
    DCGAN_CHECK(kLeast <= values[s] && values[s] <= kMost, kName, "'sigma' must lie between ", kLeast, " and ", kMost,
                ", got ", values[s]);
  }
}

void refuse(bool samples) {
  DCGAN_CHECK(false, kName, "'", samples ? "samples" : "data",
              "' must be finite, and squares of distances within float32's range");
}

// log(1 / samples * sum) less the logarithm of the windows' integral is the likelihood: `offset` is taken off the sum's.
Tensor on_cpu(const Tensor& samples, const Tensor& data, const Tensor& inverse_variance, const Tensor& offset) {
  const Tensor y = samples.contiguous(), x = data.contiguous(), centre = at::mean(y, 0);
  const Tensor log_sums = at::empty({offset.numel(), x.size(0)}, offset.options());
  const cpu::WorkspaceScope scope;
  const auto found = cpu::parzen_kernels().log_sums(
      {y.const_data_ptr<float>(), y.size(0), x.const_data_ptr<float>(), x.size(0), x.size(1), centre.const_data_ptr<float>(),
       inverse_variance.const_data_ptr<double>(), offset.numel(), log_sums.mutable_data_ptr<double>()});
  if (found != cpu::ParzenInput::fine) refuse(found == cpu::ParzenInput::bad_samples);
  return log_sums - offset.unsqueeze(1);
}

Tensor parzen_log_likelihood(const Tensor& samples, const Tensor& data, const Tensor& sigma) {
  const Tensor widths = sigma.contiguous();
  check(samples, data, widths);
  const auto features = static_cast<double>(data.size(1));
  const double of_all = std::log(static_cast<double>(samples.size(0))) + features * std::log(2 * std::numbers::pi) / 2;
  const Tensor offset = at::log(widths) * features + of_all, inverse_variance = at::pow(widths, -2);
#ifdef DCGAN_FAST_CUDA
  if (kernels_of(samples) == Kernels::cuda) {
    const auto [log_likelihood, bad_row] = parzen_cuda(samples, data, inverse_variance, offset);
    if (bad_row >= 0) refuse(bad_row < samples.size(0));
    return log_likelihood;
  }
#endif
  return on_cpu(samples, data, inverse_variance, offset);
}

}  // namespace

TORCH_LIBRARY_IMPL(dcgan_fast, CPU, m) { m.impl("parzen_log_likelihood", parzen_log_likelihood); }

#ifdef DCGAN_FAST_CUDA
TORCH_LIBRARY_IMPL(dcgan_fast, CUDA, m) { m.impl("parzen_log_likelihood", parzen_log_likelihood); }
#endif

}  // namespace dcgan_fast
