#include "thin_conv.h"

#include "capability.h"
#include "switches.h"
#include "thin_kernels.h"
#include "tile_conv.h"

namespace dcgan_fast::cpu {

const ConvEngine& thin_engine() {
#ifdef DCGAN_FAST_X86
  if (switches().amx && tiles_pay(at::kFloat)) return AMX::thin_engine;
  if (switches().amx && tiles_pay(at::kBFloat16)) return AVX512_BF16::thin_engine;
  if (capability() == Capability::avx512) return AVX512::thin_engine;
  if (capability() == Capability::avx2) return AVX2::thin_engine;
#endif
  return DEFAULT::thin_engine;
}

bool thin_serves(const ConvShape& s, Direction) { return s.fine.channels <= 8 && s.kernel[1] * s.fine.channels <= 64; }

double thin_cost(const ConvShape&, Direction) { return 0; }

}  // namespace dcgan_fast::cpu
