#include "capability.h"

#include <ATen/Version.h>

#include <string>

#include "bn_act.h"

namespace dcgan_fast::cpu {

#define DECLARE_KERNELS(NAMESPACE)    \
  namespace NAMESPACE {               \
  extern const BnActKernels bn_act;   \
  }

DECLARE_KERNELS(DEFAULT)
#ifdef DCGAN_FAST_X86
DECLARE_KERNELS(AVX2)
DECLARE_KERNELS(AVX512)
#endif

#undef DECLARE_KERNELS

Capability capability() {
  static const Capability chosen = [] {
#ifdef DCGAN_FAST_X86
    const std::string torch_runs = at::get_cpu_capability();
    if (torch_runs == "AVX512") return Capability::avx512;
    if (torch_runs == "AVX2") return Capability::avx2;
#endif
    return Capability::generic;
  }();
  return chosen;
}

const char* capability_name() {
  switch (capability()) {
    case Capability::avx512: return "AVX512";
    case Capability::avx2: return "AVX2";
    default: return "DEFAULT";
  }
}

const BnActKernels& bn_act_kernels() {
#ifdef DCGAN_FAST_X86
  if (capability() == Capability::avx512) return AVX512::bn_act;
  if (capability() == Capability::avx2) return AVX2::bn_act;
#endif
  return DEFAULT::bn_act;
}

}  // namespace dcgan_fast::cpu
