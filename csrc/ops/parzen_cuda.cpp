#include "parzen_cuda.h"

#include <ATen/ops/mean.h>

#include <algorithm>

#include "../cuda/capture.h"
#include "../cuda/parzen.h"
#include "cuda_launch.h"
#include "cuda_switches.h"

namespace dcgan_fast {

ParzenOnCuda parzen_cuda(const at::Tensor& samples, const at::Tensor& data, const at::Tensor& inverse_variance,
                         const at::Tensor& offset) {
  constexpr const char* kName = "parzen_log_likelihood";
  const c10::DeviceGuard on_device(samples.device());
  const auto stream = current_stream(samples.device());
  const at::Tensor y = samples.contiguous(), x = data.contiguous();
  const at::Tensor centre = at::mean(y, 0);
  const int64_t sigmas = inverse_variance.numel();
  const auto options = at::TensorOptions(samples.device());
  const at::Tensor log_sums = at::empty({sigmas, x.size(0)}, options.dtype(at::kDouble));
  const at::Tensor bad_row = at::empty({1}, options.dtype(at::kLong));
  cuda::ParzenWindows args{};
  args.samples = y.const_data_ptr<float>();
  args.count = y.size(0);
  args.data = x.const_data_ptr<float>();
  args.rows = x.size(0);
  args.features = y.size(1);
  args.centre = centre.const_data_ptr<float>();
  args.precision = float32_precision();
  args.bad_row = reinterpret_cast<uint64_t*>(bad_row.mutable_data_ptr<int64_t>());
  if (sigmas == 0) return {log_sums, -1};
  for (int64_t first = 0; first < sigmas; first += cuda::kMostSigmas) {  // sums for more take more shared memory
    args.sigmas = std::min(cuda::kMostSigmas, sigmas - first);
    const at::Tensor workspace =
        cuda_workspace(cuda::parzen_workspace_bytes(args.count, args.rows, args.features, args.sigmas), y);
    args.workspace = workspace.mutable_data_ptr();
    for (int64_t s = 0; s < args.sigmas; ++s) {
      args.inverse_variance[s] = static_cast<float>(inverse_variance.const_data_ptr<double>()[first + s]);
      args.offset[s] = offset.const_data_ptr<double>()[first + s];
    }
    args.log_sums = log_sums.mutable_data_ptr<double>() + first * args.rows;
    check_launch(kName, cuda::launch_parzen(args, stream));
  }
  static_assert(cuda::kAllFinite == ~uint64_t{0});  // -1
  return {log_sums, cuda::is_capturing(stream) ? -1 : bad_row.item<int64_t>()};
}

}  // namespace dcgan_fast
