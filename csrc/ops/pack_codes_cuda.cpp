#include "pack_codes_cuda.h"

#include "../cuda/capture.h"
#include "../cuda/pack_codes.h"
#include "cuda_launch.h"

namespace dcgan_fast {
namespace {

// As a comparison of a tensor with a number rounds it.
float rounded(double threshold, at::ScalarType type) {
  switch (type) {
    case at::kBFloat16: return static_cast<c10::BFloat16>(threshold);
    case at::kHalf: return static_cast<c10::Half>(threshold);
    default: return static_cast<float>(threshold);
  }
}

}  // namespace

PackedOnCuda pack_codes_cuda(const at::Tensor& activations, double threshold) {
  constexpr const char* kName = "pack_codes";
  const c10::DeviceGuard on_device(activations.device());
  const auto stream = current_stream(activations.device());
  const at::Tensor dense = activations.contiguous();
  const int64_t rows = dense.size(0), bits = dense.size(1);
  const auto options = at::TensorOptions(activations.device()).dtype(at::kLong);
  const at::Tensor codes = at::empty({rows, (bits + 63) / 64}, options), first_nan = at::empty({1}, options);
  cuda::PackCodes args{};
  args.activations = dense.const_data_ptr();
  args.rows = rows;
  args.bits = bits;
  args.dtype = cuda_dtype(kName, activations.scalar_type());
  args.threshold = rounded(threshold, activations.scalar_type());
  args.codes = reinterpret_cast<uint64_t*>(codes.mutable_data_ptr<int64_t>());
  args.first_nan = reinterpret_cast<uint64_t*>(first_nan.mutable_data_ptr<int64_t>());
  check_launch(kName, cuda::launch_pack_codes(args, stream));
  static_assert(cuda::kNoNan == ~uint64_t{0});  // -1
  return {codes, cuda::is_capturing(stream) ? -1 : first_nan.item<int64_t>()};
}

}  // namespace dcgan_fast
