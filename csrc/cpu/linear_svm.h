// Linear L2-SVMs by dual coordinate descent on a Gram matrix: what the glue in ops/ hands to the kernels.
//
// Each column is a problem of its own: min over w of (|w|^2 + b^2) / 2 + C * sum over rows of max(0, 1 - y (w x + b
// s))^2, y = 1 for the rows whose target is the column and -1 for the others; s is the scaling of the intercept. Its
// dual has a variable per row, at least 0.
#pragma once

#include <cstdint>

#include "row_products.h"

namespace dcgan_fast::cpu {

constexpr int64_t kSvmPanel = 64;  // rows that are solved together; the most that `width` may be

struct SvmGram {
  TableRows x;
  float offset;  // added to every product: the intercept's scaling, squared
  bool tiles;    // whether to multiply on the matrix unit, in bfloat16
  bool whole;    // and then in two parts, to 2^-17, or as it rounds, three times as fast
  float* gram;   // [rows, rows], written
};

struct SvmDescent {
  const float* gram;  // [rows, rows]
  int64_t rows;
  const int64_t* targets;  // [rows]: the column for which a row is positive; none below 0
  int64_t columns, width;  // width: a multiple of 16, at most 64; lanes from `columns` on stay 0
  float* dual;             // [rows, width]
  const float* scores;     // [rows, width]: of the dual variables as they are
  float* delta;            // [rows, width], written: by how much y * dual has changed
  float C;
  int64_t sweeps;  // at most: fewer where one meets no violation above `tolerance`
  float tolerance;
  uint64_t seed;
};

struct LinearSvmKernels {
  void (*gram)(const SvmGram&);
  void (*descend)(const SvmDescent&);
};

const LinearSvmKernels& linear_svm_kernels();

}  // namespace dcgan_fast::cpu
