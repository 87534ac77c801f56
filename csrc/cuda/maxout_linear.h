// Maxout units on CUDA, max over pieces of a linear map: the launcher.
//
// As bn_act.h: no torch header, no allocation, no synchronisation, no state; results are a function of the arguments
// alone, bit for bit, whatever the device.
#pragma once

#include <cstdint>

#include "bn_act.h"
#include "precision.h"

namespace dcgan_fast::cuda {

constexpr int kLeastPieces = 2, kMostPieces = 5;  // of one launch; others are PyTorch's

struct MaxoutLinear {
  const void* input;   // [rows, in], dtype
  const void* weight;  // [out, pieces, in], dtype
  const void* bias;    // [out, pieces], dtype; null: none
  int64_t rows;        // may be 0
  int64_t in;          // at least 1
  int64_t out;         // at least 1
  int pieces;          // kLeastPieces to kMostPieces
  DType dtype;
  Precision precision;  // of float32; kFma, of which there is no kernel, counts as kTf32x3: both have float32's accuracy
  void* output;        // [rows, out], dtype, written: the largest piece; NaN where one is
  uint8_t* winner;     // [rows, out], written: which piece it is, of equals the first, of NaNs the first; null: not wanted
};

// Null, or a static string that says what is wrong (see bn_act.h).
const char* launch_maxout_linear(const MaxoutLinear& args, CUstream_st* stream);

}  // namespace dcgan_fast::cuda
