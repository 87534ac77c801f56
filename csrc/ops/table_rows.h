// What the ops on a table's rows share: the table as it comes from Python, and what belongs to it.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "../checks.h"
#include "../cpu/row_products.h"

namespace dcgan_fast {

inline void check_table(const char* op, const char* name, const at::Tensor& tensor, at::ScalarType dtype,
                        at::IntArrayRef sizes) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == dtype && tensor.is_cpu(), op, "(): '", name, "' must be ", dtype,
                   " on the CPU, got ", tensor.scalar_type(), " on ", tensor.device());
  DCGAN_CHECK(tensor.sizes() == sizes && tensor.is_contiguous(), op, "'", name, "' must be ", sizes,
              ", contiguous, got ", tensor.sizes());
}

inline cpu::TableRows table_rows(const char* op, const at::Tensor& rows, const std::optional<at::Tensor>& order) {
  const bool half = rows.scalar_type() == at::kHalf;
  TORCH_CHECK_TYPE((half || rows.scalar_type() == at::kFloat) && rows.is_cpu(), op,
                   "(): 'rows' must be float32 or float16 on the CPU, got ", rows.scalar_type(), " on ", rows.device());
  DCGAN_CHECK(rows.dim() == 2 && rows.size(0) >= 1 && rows.size(1) >= 1 && rows.is_contiguous(), op,
              "'rows' must be (rows, features), at least one of each, contiguous, got ", rows.sizes());
  cpu::TableRows x{rows.const_data_ptr(), half, rows.size(0), rows.size(1), nullptr};
  if (!order) return x;
  check_table(op, "order", *order, at::kLong, {order->numel()});
  DCGAN_CHECK(order->numel() >= 1, op, "'order' must name a row at least");
  x.order = order->const_data_ptr<int64_t>();
  for (int64_t i = 0; i < order->numel(); ++i) {
    DCGAN_CHECK(0 <= x.order[i] && x.order[i] < x.rows, op, "'order' must be of rows 0 to ", x.rows - 1, ", got ",
                x.order[i]);
  }
  x.rows = order->numel();
  return x;
}

}  // namespace dcgan_fast
