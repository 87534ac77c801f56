// _row_products, _row_sums, _row_curvature: what the fit of a linear model asks of its data
// (dcgan_fast/features/newton.py). Validate, launch.
#include "../cpu/row_products.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>

#include "../cpu/workspace.h"
#include "table_rows.h"

namespace dcgan_fast {
namespace {

using at::Tensor;

int64_t columns_of(const char* op, const char* name, const Tensor& tensor, int64_t dim) {
  DCGAN_CHECK(tensor.dim() == 2 && tensor.size(dim) >= 1, op, "'", name,
              "' must have two dimensions and a column at "
              "least, got ",
              tensor.sizes());
  return tensor.size(dim);
}

Tensor row_products(const Tensor& rows, const std::optional<Tensor>& order, const Tensor& vectors) {
  constexpr const char* kName = "_row_products";
  const cpu::TableRows x = table_rows(kName, rows, order);
  const int64_t columns = columns_of(kName, "vectors", vectors, 0);
  check_table(kName, "vectors", vectors, at::kFloat, {columns, x.features});
  const Tensor products = at::empty({x.rows, columns}, vectors.options());
  const cpu::WorkspaceScope scope;
  cpu::row_products_kernels().products(
      {x, columns, vectors.const_data_ptr<float>(), products.mutable_data_ptr<float>()});
  return products;
}

Tensor row_sums(const Tensor& rows, const std::optional<Tensor>& order, const Tensor& weights) {
  constexpr const char* kName = "_row_sums";
  const cpu::TableRows x = table_rows(kName, rows, order);
  const int64_t columns = columns_of(kName, "weights", weights, 1);
  check_table(kName, "weights", weights, at::kFloat, {x.rows, columns});
  const Tensor sums = at::empty({columns, x.features}, weights.options());
  const cpu::WorkspaceScope scope;
  cpu::row_products_kernels().sums({x, columns, weights.const_data_ptr<float>(), sums.mutable_data_ptr<float>()});
  return sums;
}

std::tuple<Tensor, Tensor> row_curvature(const Tensor& rows, const Tensor& vectors, const Tensor& offset,
                                         const Tensor& weights) {
  constexpr const char* kName = "_row_curvature";
  const cpu::TableRows x = table_rows(kName, rows, std::nullopt);
  const int64_t columns = columns_of(kName, "vectors", vectors, 0);
  check_table(kName, "vectors", vectors, at::kFloat, {columns, x.features});
  check_table(kName, "offset", offset, at::kFloat, {columns});
  check_table(kName, "weights", weights, at::kFloat, {x.rows, columns});
  const Tensor products = at::empty({x.rows, columns}, vectors.options());
  const Tensor sums = at::empty({columns, x.features}, vectors.options());
  const cpu::WorkspaceScope scope;
  cpu::row_products_kernels().curvature({x, columns, vectors.const_data_ptr<float>(), offset.const_data_ptr<float>(),
                                         weights.const_data_ptr<float>(), products.mutable_data_ptr<float>(),
                                         sums.mutable_data_ptr<float>()});
  return {products, sums};
}

}  // namespace

TORCH_LIBRARY_IMPL(dcgan_fast, CPU, m) {
  m.impl("_row_products", row_products);
  m.impl("_row_sums", row_sums);
  m.impl("_row_curvature", row_curvature);
}

}  // namespace dcgan_fast
