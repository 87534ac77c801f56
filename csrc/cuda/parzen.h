// Densities of Gaussian Parzen windows on CUDA: the launcher.
//
// As bn_act.h: no torch header, no allocation, no synchronisation, no state; results are a function of the arguments
// alone, bit for bit, whatever the device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "precision.h"

struct CUstream_st;  // what a cudaStream_t points to

namespace dcgan_fast::cuda {

constexpr int64_t kMostSigmas = 32;  // of one call: each row of a block keeps a sum for each in shared memory
constexpr uint64_t kAllFinite = ~uint64_t{0};

struct ParzenWindows {
  const float* samples;  // [count, features], at least one
  int64_t count;
  const float* data;     // [rows, features]; may be none
  int64_t rows;
  int64_t features;      // at least 1
  const float* centre;   // [features], taken off both
  int64_t sigmas;        // 1 to kMostSigmas
  float inverse_variance[kMostSigmas];  // 1 / sigma^2; by value, as the next: a CUDA graph captures no copy from the host
  double offset[kMostSigmas];           // taken off the logarithms
  Precision precision;   // of products; kTf32: distances are those between the rounded rows
  void* workspace;       // parzen_workspace_bytes() bytes, 16-byte aligned
  double* log_sums;      // [sigmas, rows], written: log of the sum over the samples of exp(-|x - y|^2 / (2 sigma^2)), less
                         // the offset
  uint64_t* bad_row;     // [1], written: the first row that is not finite or too far from the centre to be squared, samples
                         // counted before data; kAllFinite if there is none
};

// Copies of samples and data less the centre, and of each row what some blocks know of it.
size_t parzen_workspace_bytes(int64_t count, int64_t rows, int64_t features, int64_t sigmas);

// Null, or a static string that says what is wrong (see bn_act.h).
const char* launch_parzen(const ParzenWindows& args, CUstream_st* stream);

}  // namespace dcgan_fast::cuda
