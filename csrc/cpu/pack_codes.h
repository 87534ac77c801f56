// Activations to bits: what the glue in ops/ hands to the kernels.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>

namespace dcgan_fast::cpu {

struct PackCodes {
  const void* activations;  // [rows, bits] of dtype
  int64_t rows, bits;
  at::ScalarType dtype;
  double threshold;  // rounded to dtype, as comparing a tensor with a number does in PyTorch
  uint64_t* codes;   // [rows, ceil(bits / 64)], written: bit j % 64 of word j / 64 is activation j > threshold
};

// Bytes moved per row, the floor: the activations read, and a 32nd of that written (float32).
struct PackCodesKernels {
  bool (*run)(const PackCodes&);  // whether there was no NaN
};

const PackCodesKernels& pack_codes_kernels();

}  // namespace dcgan_fast::cpu
