#include "maxout_linear_cuda.h"

#include "../cuda/maxout_linear.h"
#include "cuda_launch.h"
#include "cuda_switches.h"

namespace dcgan_fast {

bool maxout_linear_cuda_serves(int64_t pieces) { return cuda::kLeastPieces <= pieces && pieces <= cuda::kMostPieces; }

std::tuple<at::Tensor, at::Tensor> maxout_linear_cuda(const at::Tensor& input, const at::Tensor& weight,
                                                      const std::optional<at::Tensor>& bias) {
  constexpr const char* kName = "maxout_linear";
  const c10::DeviceGuard on_device(input.device());
  const at::Tensor x = input.contiguous(), w = weight.contiguous();
  const at::Tensor b = bias ? bias->contiguous() : at::Tensor();
  const at::Tensor output = at::empty({x.size(0), w.size(0)}, x.options());
  const at::Tensor winner = at::empty({x.size(0), w.size(0)}, x.options().dtype(at::kByte));
  cuda::MaxoutLinear args{};
  args.input = x.const_data_ptr();
  args.weight = w.const_data_ptr();
  args.bias = b.defined() ? b.const_data_ptr() : nullptr;
  args.rows = x.size(0);
  args.in = x.size(1);
  args.out = w.size(0);
  args.pieces = static_cast<int>(w.size(1));
  args.dtype = cuda_dtype(kName, x.scalar_type());
  args.precision = float32_precision();
  args.output = output.mutable_data_ptr();
  args.winner = winner.mutable_data_ptr<uint8_t>();
  check_launch(kName, cuda::launch_maxout_linear(args, current_stream(x.device())));
  return {output, winner};
}

}  // namespace dcgan_fast
