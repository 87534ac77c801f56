#include "capability.h"

#include <ATen/Version.h>
#include <ATen/cpu/Utils.h>

#ifdef DCGAN_FAST_X86
#include <cpuid.h>
#endif

#include <string>

#include "bn_act.h"
#include "first_occurrence.h"
#include "linear_svm.h"
#include "maxout_linear.h"
#include "near_duplicates.h"
#include "pack_codes.h"
#include "parzen.h"
#include "pixel_codes.h"
#include "plane_bias_act.h"
#include "pool_features.h"
#include "row_products.h"
#include "tile_conv.h"

namespace dcgan_fast::cpu {

#define DECLARE_KERNELS(NAMESPACE)                                \
  namespace NAMESPACE {                                           \
  extern const BnActKernels bn_act;                               \
  extern const BnActDoubleBackwardKernels bn_act_double_backward; \
  extern const FirstOccurrenceKernels first_occurrence;           \
  extern const LinearSvmKernels linear_svm;                       \
  extern const MaxoutKernels maxout_linear;                       \
  extern const NearDuplicatesKernels near_duplicates;             \
  extern const PackCodesKernels pack_codes;                       \
  extern const ParzenKernels parzen;                              \
  extern const PixelCodesKernels pixel_codes;                     \
  extern const PlaneBiasActKernels plane_bias_act;                \
  extern const PoolFeaturesKernels pool_features;                 \
  extern const RowProductsKernels row_products;                   \
  }

DECLARE_KERNELS(DEFAULT)
#ifdef DCGAN_FAST_X86
DECLARE_KERNELS(AVX2)
DECLARE_KERNELS(AVX512)
#endif

#undef DECLARE_KERNELS

namespace DEFAULT {
extern const ConvEngine tiles;
}
namespace DEFAULT_FP16 {
extern const ConvEngine tiles;
}
#ifdef DCGAN_FAST_X86
namespace AVX512_BF16 {
extern const ConvEngine tiles;
extern const PixelCodesKernels pixel_codes;
}
namespace AMX {
extern const ConvEngine tiles;
extern const PixelCodesKernels pixel_codes;
}
namespace AMX_FP16 {
extern const ConvEngine tiles;
}
#endif

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

#ifdef DCGAN_FAST_X86
#define BEST_OF_EACH(KERNELS)                             \
  capability() == Capability::avx512 ? AVX512::KERNELS : \
  capability() == Capability::avx2   ? AVX2::KERNELS : DEFAULT::KERNELS
#else
#define BEST_OF_EACH(KERNELS) DEFAULT::KERNELS
#endif

const BnActKernels& bn_act_kernels() { return BEST_OF_EACH(bn_act); }
const BnActDoubleBackwardKernels& bn_act_double_backward_kernels() { return BEST_OF_EACH(bn_act_double_backward); }
const FirstOccurrenceKernels& first_occurrence_kernels() { return BEST_OF_EACH(first_occurrence); }
const LinearSvmKernels& linear_svm_kernels() { return BEST_OF_EACH(linear_svm); }
const MaxoutKernels& maxout_linear_kernels() { return BEST_OF_EACH(maxout_linear); }
const NearDuplicatesKernels& near_duplicates_kernels() { return BEST_OF_EACH(near_duplicates); }
const PackCodesKernels& pack_codes_kernels() { return BEST_OF_EACH(pack_codes); }
const ParzenKernels& parzen_kernels() { return BEST_OF_EACH(parzen); }
const PlaneBiasActKernels& plane_bias_act_kernels() { return BEST_OF_EACH(plane_bias_act); }
const PoolFeaturesKernels& pool_features_kernels() { return BEST_OF_EACH(pool_features); }
const RowProductsKernels& row_products_kernels() { return BEST_OF_EACH(row_products); }

namespace {

// What multiplies tiles of 16-bit floats here: nothing better than floats (generic), vdpbf16ps, or the matrix unit, that of
// the Granite Rapids (amx_fp16) those of halves too.
enum class TileUnit { generic, avx512_bf16, amx, amx_fp16 };

TileUnit tile_unit() {
#ifdef DCGAN_FAST_X86
  static const TileUnit unit = [] {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    const bool leaf = __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0;
    const bool vdpbf16ps = leaf && (eax & 1u << 5) != 0, tdpfp16ps = leaf && (eax & 1u << 21) != 0;
    if (capability() != Capability::avx512 || !vdpbf16ps) return TileUnit::generic;
    const bool tdpbf16ps = __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & 1u << 22) != 0;
    // the system grants the tile registers to a process that asks
    if (!tdpbf16ps || !at::cpu::init_amx()) return TileUnit::avx512_bf16;
    return tdpfp16ps ? TileUnit::amx_fp16 : TileUnit::amx;
  }();
  return unit;
#else
  return TileUnit::generic;
#endif
}

}  // namespace

bool tiles_pay(at::ScalarType dtype) {
  // without the matrix unit three or six products of parts cost more than one of floats
  return tile_unit() >= TileUnit::amx || (tile_unit() == TileUnit::avx512_bf16 && dtype == at::kBFloat16);
}

const PixelCodesKernels& pixel_codes_kernels(at::ScalarType dtype) {
#ifdef DCGAN_FAST_X86
  if (dtype == at::kBFloat16 && tile_unit() >= TileUnit::amx) return AMX::pixel_codes;
  if (dtype == at::kBFloat16 && tile_unit() == TileUnit::avx512_bf16) return AVX512_BF16::pixel_codes;
#endif
  return BEST_OF_EACH(pixel_codes);
}

std::vector<TileEngine> tile_engines() {
  std::vector<TileEngine> found;
#ifdef DCGAN_FAST_X86
  if (tile_unit() == TileUnit::amx_fp16) found.push_back({&AMX_FP16::tiles, true, true});
  if (tile_unit() >= TileUnit::amx) found.push_back({&AMX::tiles, true, false});
  if (tile_unit() != TileUnit::generic) found.push_back({&AVX512_BF16::tiles, tile_unit() == TileUnit::avx512_bf16, false});
#endif
  found.push_back({&DEFAULT::tiles, false, false});
  found.push_back({&DEFAULT_FP16::tiles, false, true});
  return found;
}

#undef BEST_OF_EACH

}  // namespace dcgan_fast::cpu
