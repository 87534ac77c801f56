// Densities of Gaussian Parzen windows: what the glue in ops/ hands to the kernel.
#pragma once

#include <cstdint>

namespace dcgan_fast::cpu {

// For each row x of `data` and each sigma: log of the sum over the samples y of exp(-|x - y|^2 / (2 sigma^2)).
//
// FLOPs: 2 * rows * count * features, whatever the number of sigmas, at the rate of gemm.h; bytes hardly matter. A sigma costs
// an exponential per pair, some 14 instructions beside features / 16 of the product with 16 lanes; pairs whose term would
// change nothing (kNothing) cost none. Scratch: kPackedBytes of samples, kBlockRows rows a thread, a number a row and sigma.
struct ParzenWindows {
  const float* samples;  // [count, features]
  int64_t count;
  const float* data;     // [rows, features]
  int64_t rows, features;
  const float* centre;   // [features], taken off both: |x - y|^2 is |x|^2 - 2xy + |y|^2, and small parts cancel better
  const double* inverse_variance;  // [sigmas], 1 / sigma^2
  int64_t sigmas;
  double* log_sums;      // [sigmas, rows], written
};

enum class ParzenInput { fine, bad_samples, bad_data };  // bad: not finite, or too far from the centre to be squared

struct ParzenKernels {
  ParzenInput (*log_sums)(const ParzenWindows&);
};

const ParzenKernels& parzen_kernels();

}  // namespace dcgan_fast::cpu
