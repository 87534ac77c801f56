// Products of a table's rows with a few vectors at once, and sums of its rows: all that the fit of a linear model asks
// of its data.
//
// 2 * rows * features * vectors FLOPs each. The table is read once, also by `curvature`, which does both: what its
// second half reads is in L2 from the first.
#pragma once

#include <cstdint>

namespace dcgan_fast::cpu {

struct TableRows {
  const void* data;  // [*, features], float32, or float16 where `half`
  bool half;
  int64_t rows, features;
  const int64_t* order;  // [rows]: which of the table's are taken; null: the first

  int64_t row(int64_t i) const { return order ? order[i] : i; }
};

struct RowProducts {
  TableRows x;
  int64_t columns;
  const float* vectors;  // [columns, features]
  float* products;       // [rows, columns], written
};

struct RowSums {
  TableRows x;
  int64_t columns;
  const float* weights;  // [rows, columns]
  float* sums;           // [columns, features], written: each row times its weights
};

// sums = (weights * (x vectors^T + offset))^T x
struct RowCurvature {
  TableRows x;
  int64_t columns;
  const float* vectors;  // [columns, features]
  const float* offset;   // [columns]
  const float* weights;  // [rows, columns]
  float* products;       // [rows, columns], written: x vectors^T + offset
  float* sums;           // [columns, features], written
};

struct RowProductsKernels {
  void (*products)(const RowProducts&);
  void (*sums)(const RowSums&);
  void (*curvature)(const RowCurvature&);
};

const RowProductsKernels& row_products_kernels();

}  // namespace dcgan_fast::cpu
