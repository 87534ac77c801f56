// Linear L2-SVMs by dual coordinate descent: what the glue in ops/ hands to the kernels.
//
// Each column is a problem of its own: min over w of (|w|^2 + b^2) / 2 + C * sum over rows of max(0, 1 - y (w x + b
// s))^2, y = 1 for the rows whose target is the column and -1 for the others; s is the scaling of the intercept. Its
// dual has a variable per row, at least 0. A block of rows is solved by itself, on its Gram matrix, with all else held;
// then w follows.
//
// An epoch costs 4 * rows * features * width FLOPs, `width` the columns in whole vectors, at the rate of gemm.h; it
// reads the rows twice, the second time a block's size after the first. Larger blocks take fewer epochs, but their Gram
// matrices cost rows * block * features FLOPs in all, and rows * block floats.
#pragma once

#include <cstdint>

namespace dcgan_fast::cpu {

constexpr int64_t kSvmPanel = 64;  // rows that are solved together; the most that `width` may be

// Blocks and their panels are of rows in an order drawn at random: neighbours are often of one class, and blocks of one
// class take many times as many epochs.
struct SvmRows {
  const void* data;  // [rows, features], float32, or float16 where `half`
  bool half;
  int64_t rows, features, blocks;
  const int64_t* order;  // [rows]

  int64_t in_block(int64_t q) const { return (rows - q + blocks - 1) / blocks; }
  int64_t block() const {
    return (in_block(0) + kSvmPanel - 1) / kSvmPanel * kSvmPanel;
  }  // rows that there is room for
  int64_t row(int64_t q, int64_t i) const { return order[q + i * blocks]; }  // the i-th of block q
};

struct SvmGrams {
  SvmRows x;
  float offset;  // added to every product: the intercept's scaling, squared
  bool tiles;    // whether to multiply on the matrix unit
  float* grams;  // [blocks, block, block], written where there are rows
};

struct SvmProblem {
  SvmRows x;
  const int64_t* targets;  // [rows]: the column for which a row is positive; none below 0
  int64_t columns, width;  // width: a multiple of 16, at most 64; lanes from `columns` on stay 0
  float* weights;          // [features, width]
  float* intercept;        // [width]: weights of a feature that is `scaling` everywhere
  float scaling;
  double* losses;  // [width], sum over rows of the squared hinge; written
};

struct SvmEpoch {
  SvmProblem problem;  // losses: of each block as it was met
  const float* grams;
  const int64_t* order;  // [blocks], of the blocks
  float* dual;           // [rows, width]
  float C;
  int64_t sweeps;  // over a block, at most: fewer where one meets no violation above `tolerance`
  float tolerance;
  uint64_t seed;
};

struct LinearSvmKernels {
  void (*grams)(const SvmGrams&);
  void (*epoch)(const SvmEpoch&);
  void (*losses)(const SvmProblem&);
};

const LinearSvmKernels& linear_svm_kernels();

}  // namespace dcgan_fast::cpu
