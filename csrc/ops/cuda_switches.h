// How the CUDA kernels multiply float32, and which of them may serve: read at every call, so that a change counts from the next one.
#pragma once

#include <atomic>

#include "../cuda/precision.h"

namespace dcgan_fast {

struct CudaSwitches {
  enum Tf32 { follow_torch = -1, no = 0, yes = 1 };
  std::atomic<int> allow_tf32{follow_torch};      // follow_torch: torch.backends.cudnn.conv.fp32_precision
  std::atomic<bool> strict_on_tensor_cores{true};  // where tf32 is not allowed: three tf32 products for one, or float32's own
  std::atomic<bool> copy_engine{false};            // fills tiles where it can: off until hardware has confirmed it
};

CudaSwitches& cuda_switches();
bool tf32_allowed();  // by the switch or by torch, as of now
cuda::Precision float32_precision();

}  // namespace dcgan_fast
