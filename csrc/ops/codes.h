// What the dedup ops share: codes as they come from Python, and memory for what they return.
#pragma once

#include <ATen/core/Tensor.h>

#include "../checks.h"
#include "../cpu/code_hash.h"
#include "map_pool.h"

namespace dcgan_fast {

inline void check_codes(const char* op, const char* name, const at::Tensor& codes) {
  TORCH_CHECK_TYPE(codes.scalar_type() == at::kLong, op, "(): '", name, "' must be int64, got ", codes.scalar_type());
  TORCH_CHECK_TYPE(codes.layout() == at::kStrided, op, "(): '", name, "' must be a dense tensor, got ", codes.layout());
  DCGAN_CHECK(codes.dim() == 2 && codes.size(1) >= 1, op, "'", name, "' must be (N, words) with at least one word, got ",
              codes.sizes());
}

// Row numbers are kept in 32 bits; the last of them are nobody's (cpu/first_occurrence.cpp: a few hundred for each thread).
inline void check_rows(const char* op, const char* name, int64_t rows) {
  constexpr int64_t kMost = (int64_t{1} << 32) - (1 << 20);
  DCGAN_CHECK(rows <= kMost, op, "'", name, "' must have at most ", kMost, " rows, got ", rows);
}

inline cpu::Codes cpu_codes(const at::Tensor& contiguous) {
  return {reinterpret_cast<const uint64_t*>(contiguous.const_data_ptr<int64_t>()), contiguous.size(0), contiguous.size(1)};
}

// From the pool: results are as large as maps, and fresh pages would cost as much time as the work.
inline at::Tensor empty_result(at::IntArrayRef sizes, at::ScalarType dtype) {
  return empty_maps(sizes, at::TensorOptions().dtype(dtype), at::MemoryFormat::Contiguous);
}

}  // namespace dcgan_fast
