// Activations to bits, 64 to a word, on CUDA: the launcher.
//
// As bn_act.h: no torch header, no allocation, no synchronisation, no state; results are a function of the arguments
// alone, bit for bit, whatever the device.
#pragma once

#include <cstdint>

#include "bn_act.h"

namespace dcgan_fast::cuda {

constexpr uint64_t kNoNan = ~uint64_t{0};

struct PackCodes {
  const void* activations;  // [rows, bits], dtype
  int64_t rows;             // may be 0
  int64_t bits;             // 1 to 2^31 - 64; any multiple of 64
  DType dtype;
  float threshold;      // a number that dtype has; may be infinite
  uint64_t* codes;      // [rows, ceil(bits / 64)], written: bit j % 64 of word j / 64 is activation j > threshold
  uint64_t* first_nan;  // [1], written: the place of the first NaN, row * bits + column, or kNoNan; its bit is 0
};

// Null, or a static string that says what is wrong (see bn_act.h).
const char* launch_pack_codes(const PackCodes& args, CUstream_st* stream);

}  // namespace dcgan_fast::cuda
