// _svm_gram, _svm_descend_: dual coordinate descent for linear SVMs (dcgan_fast/features/descent.py). Validate, launch.
#include "../cpu/linear_svm.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "../cpu/tile_conv.h"
#include "../cpu/workspace.h"
#include "table_rows.h"

namespace dcgan_fast {
namespace {

using at::Tensor;

Tensor svm_gram(const Tensor& rows, const Tensor& order, double offset, bool whole) {
  const cpu::TableRows x = table_rows("_svm_gram", rows, order);
  const Tensor gram = at::empty({x.rows, x.rows}, rows.options().dtype(at::kFloat));
  const cpu::WorkspaceScope scope;
  cpu::linear_svm_kernels().gram(
      {x, static_cast<float>(offset), cpu::tiles_pay(at::kFloat), whole, gram.mutable_data_ptr<float>()});
  return gram;
}

Tensor svm_descend(const Tensor& gram, const Tensor& targets, int64_t columns, const Tensor& dual, const Tensor& scores,
                   double C, int64_t sweeps, double tolerance, int64_t seed) {
  constexpr const char* kName = "_svm_descend_";
  const int64_t rows = targets.numel(), width = dual.dim() == 2 ? dual.size(1) : 0;
  DCGAN_CHECK(width % 16 == 0 && 16 <= width && width <= cpu::kSvmPanel, kName,
              "'dual' must have 16, 32, 48 or 64 columns, got ", dual.sizes());
  DCGAN_CHECK(rows >= 1, kName, "'targets' must be of one row at least");
  check_table(kName, "targets", targets, at::kLong, {rows});
  check_table(kName, "gram", gram, at::kFloat, {rows, rows});
  check_table(kName, "dual", dual, at::kFloat, {rows, width});
  check_table(kName, "scores", scores, at::kFloat, {rows, width});
  DCGAN_CHECK(1 <= columns && columns <= width, kName, "'columns' must be from 1 to ", width, ", got ", columns);
  const Tensor delta = at::empty_like(scores);
  const cpu::WorkspaceScope scope;
  cpu::linear_svm_kernels().descend({gram.const_data_ptr<float>(), rows, targets.const_data_ptr<int64_t>(), columns,
                                     width, dual.mutable_data_ptr<float>(), scores.const_data_ptr<float>(),
                                     delta.mutable_data_ptr<float>(), static_cast<float>(C), sweeps,
                                     static_cast<float>(tolerance), static_cast<uint64_t>(seed)});
  return delta;
}

}  // namespace

TORCH_LIBRARY_IMPL(dcgan_fast, CPU, m) {
  m.impl("_svm_gram", svm_gram);
  m.impl("_svm_descend_", svm_descend);
}

}  // namespace dcgan_fast
