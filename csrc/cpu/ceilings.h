// What this machine can do at best, measured now: the yardsticks that the benchmarks hold every figure against.
//
// Each measurement keeps at::get_num_threads() threads busy for `seconds` with operands that stay in the nearest caches,
// so that nothing but the arithmetic limits it, and returns GFLOP/s of all of them together. On a machine that is shared
// the result is what the neighbours left: take the best of several.
#pragma once

#include <c10/core/ScalarType.h>

#include <optional>

namespace dcgan_fast::cpu {

// Chains of fused multiply-adds in registers, in vectors as wide as this capability's: the peak of float32 arithmetic.
double measure_fma(double seconds);

// Products of bfloat16 tiles in the registers of the matrix unit: the peak of the machine. Empty where it has none.
std::optional<double> measure_tiles(double seconds);

// Products of matrix tiles by at::native::cpublas::brgemm in `dtype` (float or bfloat16, summed in float), best of a few
// sizes that share `seconds`. Empty where this machine or this torch has no brgemm.
std::optional<double> measure_brgemm(c10::ScalarType dtype, double seconds);

}  // namespace dcgan_fast::cpu
