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

// On one core of a Sapphire Rapids: products at 180 GFLOP/s, 1.5 ns for each float that is transformed, and the packed weights
// read once a block at 10 GB/s.
double winograd_seconds(const ConvShape& s, Direction d) {
  const winograd::Work work = winograd::work_of(s, d);
  const double seconds = 2 * work.multiplications / 180e9 + 1.5e-9 * work.transformed + work.weights * 4 / 10e9;
  return seconds / at::get_num_threads() + 20e-6;
}

}  // namespace dcgan_fast::cpu
