// pack_codes on CUDA tensors: the torch side of cuda/pack_codes.cu.
#pragma once

#include <ATen/core/Tensor.h>

namespace dcgan_fast {

// What cpu/pack_codes.h computes, and the place of the first NaN, row * bits + column: -1 where there is none. While a
// CUDA graph is captured nothing can be read back, and the place is always -1.
struct PackedOnCuda {
  at::Tensor codes;  // int64 [rows, ceil(bits / 64)]
  int64_t first_nan;
};

// float32, bfloat16 or float16, [rows, bits] of at least one bit.
PackedOnCuda pack_codes_cuda(const at::Tensor& activations, double threshold);

}  // namespace dcgan_fast
