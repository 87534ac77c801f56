// _pool_features_: maps pooled into rows of features. Validate, launch.
#include "../cpu/pool_features.h"

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include "../checks.h"
#include "../cpu/workspace.h"

namespace dcgan_fast {
namespace {

using at::Tensor;

constexpr const char* kName = "_pool_features_";

void pool_features(const Tensor& maps, int64_t size, const Tensor& features, int64_t column) {
  const auto dtype = maps.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf, kName,
                   "(): 'maps' must be float32, bfloat16 or float16, got ", dtype);
  DCGAN_CHECK(maps.dim() == 4 && maps.size(1) >= 1 && maps.size(2) >= 1 && maps.size(3) >= 1, kName,
              "'maps' must be (N, C, H, W), none of C, H, W 0, got ", maps.sizes());
  DCGAN_CHECK(size >= 1, kName, "'size' must be at least 1, got ", size);
  const bool half = features.scalar_type() == at::kHalf;
  TORCH_CHECK_TYPE(half || features.scalar_type() == at::kFloat, kName,
                   "(): 'features' must be float32 or float16, got ", features.scalar_type());
  const int64_t count = maps.size(1) * size * size;
  DCGAN_CHECK(features.dim() == 2 && features.size(0) == maps.size(0) && features.stride(1) == 1, kName,
              "'features' must be (N, width) with N = ", maps.size(0), " and rows without gaps, got ",
              features.sizes());
  DCGAN_CHECK(0 <= column && column + count <= features.size(1), kName, "'column' must leave room for ", count,
              " features of ", features.size(1), ", got ", column);
  if (maps.size(0) == 0) return;
  const Tensor dense = maps.contiguous(at::MemoryFormat::ChannelsLast);
  char* const first = static_cast<char*>(features.mutable_data_ptr()) + column * features.element_size();
  const cpu::WorkspaceScope scope;
  cpu::pool_features_kernels().run({dense.const_data_ptr(), dtype, dense.size(0), dense.size(1), dense.size(2),
                                    dense.size(3), size, first, half, features.stride(0)});
}

}  // namespace

TORCH_LIBRARY_IMPL(dcgan_fast, CPU, m) { m.impl("_pool_features_", pool_features); }

}  // namespace dcgan_fast
