// How float32 is multiplied. The other types have no choice: products of bfloat16 and float16 are exact in float.
#pragma once

#include <cstdint>

namespace dcgan_fast::cuda {

enum class Precision : int32_t {
  kTf32,    // operands rounded to 11 bits
  kTf32x3,  // each operand as two tf32: float32's accuracy on tensor cores
  kFma,     // float32's own multiply-add, without tensor cores
};

}  // namespace dcgan_fast::cuda
