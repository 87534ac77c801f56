// Bytes through a linear layer to bits: what the glue in ops/ hands to the kernels.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>

namespace dcgan_fast::cpu {

struct PixelCodes {
  const uint8_t* pixels;  // [rows, features]
  int64_t rows, features, bits;
  const void* weight;    // [bits, features] of dtype
  at::ScalarType dtype;  // float or bfloat16, whose products are summed in float
  const float* bias;     // [bits]
  float threshold;
  uint64_t* codes;  // [rows, ceil(bits / 64)], written: bit j % 64 of word j / 64 is sum_f pixels[f] weight[j, f] +
                    // bias[j] > threshold
};

// 2 * features * bits FLOPs a row are what it costs. Pixels become floats (bfloat16 holds them exactly too) in the
// caches, a part of the features at a time, and activations never leave them: in memory they took as long as the
// product.
struct PixelCodesKernels {
  void (*run)(const PixelCodes&);
};

// Of weights of `dtype`. Where no unit multiplies bfloat16, floats do.
const PixelCodesKernels& pixel_codes_kernels(c10::ScalarType dtype);

}  // namespace dcgan_fast::cpu
