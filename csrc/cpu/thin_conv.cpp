#include "thin_conv.h"

#include <ATen/Parallel.h>

#include "capability.h"
#include "thin_kernels.h"
#include "tile_conv.h"

namespace dcgan_fast::cpu {

std::vector<const ConvEngine*> thin_engines() {
#ifdef DCGAN_FAST_X86
  std::vector<const ConvEngine*> found;
  if (tiles_pay(at::kFloat)) {
    found.push_back(&AMX::thin_engine);
  } else if (tiles_pay(at::kBFloat16)) {
    found.push_back(&AVX512_BF16::thin_engine);
  }
  if (capability() == Capability::avx512) {
    found.push_back(&AVX512::thin_engine);
  } else {
    found.push_back(capability() == Capability::avx2 ? &AVX2::thin_engine : &DEFAULT::thin_engine);
  }
  return found;
#else
  return {&DEFAULT::thin_engine};
#endif
}

bool thin_serves(const ConvShape& s, Direction d) {
  // up() reads as many columns as a stride has values; beyond those of the kernel there are none
  if (d == Direction::up && s.stride[1] > s.kernel[1]) return false;
  return s.fine.channels <= 8 && s.kernel[1] * s.fine.channels <= 64;
}

// The multiplications at the rate of one core of a Sapphire Rapids (64 coarse channels by 4 x 4 x 3: 130 GFLOP/s, of 16-bit
// tiles 500), and one pass over both maps.
double thin_seconds(const ConvShape& s, Direction) {
  const bool wide = s.dtype == at::kFloat || !tiles_pay(at::kBFloat16);
  const auto coarse = static_cast<double>(s.batch * s.coarse.height * s.coarse.width * s.coarse.channels),
             fine = static_cast<double>(s.batch * s.fine.height * s.fine.width * s.fine.channels);
  const double flops = 2 * coarse * static_cast<double>(s.kernel[0] * s.kernel[1] * s.fine.channels);
  const double bytes = (coarse + fine) * (s.dtype == at::kFloat ? 4 : 2);
  return (flops / (wide ? 130e9 : 500e9) + bytes / 10e9) / at::get_num_threads() + 10e-6;
}

}  // namespace dcgan_fast::cpu
