#include "winograd.h"

#include <ATen/Parallel.h>

#include "capability.h"
#include "winograd_kernels.h"
#include "winograd_plan.h"

namespace dcgan_fast::cpu {

const ConvEngine& winograd_engine() {
#ifdef DCGAN_FAST_X86
  if (capability() == Capability::avx512) return AVX512::winograd_engine;
  if (capability() == Capability::avx2) return AVX2::winograd_engine;
#endif
  return DEFAULT::winograd_engine;
}

bool winograd_serves(const ConvShape& s, Direction) {
  for (int axis = 0; axis < 2; ++axis) {
    if (s.kernel[axis] < s.stride[axis] || s.kernel[axis] > 3 * s.stride[axis]) return false;
  }
  return true;
}

// On a core with AVX512 (an Emerald Rapids, its neighbours quiet; layers of 12 to 1024 channels, 14% off in the root mean
// square): products at 160 GFLOP/s; 10 ns and 0.15 ns a float for each run of channels that is transformed; the packed
// weights read once a block at 30 GB/s. A weight's gradient as its plan says.
double winograd_seconds(const ConvShape& s, Direction d) {
  const int64_t threads = at::get_num_threads();
  constexpr double kCall = 20e-6;
  if (d == Direction::weight_grad) return winograd::make_gradient_plan(s, threads).seconds + kCall;
  const winograd::Work work = winograd::work_of(s, d);
  const double seconds =
      2 * work.multiplications / 160e9 + 10e-9 * work.runs + 0.15e-9 * work.transformed + work.weights * 4 / 30e9;
  return seconds / static_cast<double>(threads) + kCall;
}

}  // namespace dcgan_fast::cpu
