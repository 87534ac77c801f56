// _svm_grams, _svm_epoch_, _svm_losses: the parts of a linear SVM's fit (dcgan_fast/features/svm.py). Validate, launch.
#include "../cpu/linear_svm.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../checks.h"
#include "../cpu/tile_conv.h"
#include "../cpu/workspace.h"

namespace dcgan_fast {
namespace {

using at::Tensor;

void check(const char* op, const char* name, const Tensor& tensor, at::ScalarType dtype, at::IntArrayRef sizes) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == dtype && tensor.is_cpu(), op, "(): '", name, "' must be ", dtype,
                   " on the CPU, got ", tensor.scalar_type(), " on ", tensor.device());
  DCGAN_CHECK(tensor.sizes() == sizes && tensor.is_contiguous(), op, "'", name, "' must be ", sizes,
              ", contiguous, got ", tensor.sizes());
}

cpu::SvmRows rows_of(const char* op, const Tensor& rows, const Tensor& order, int64_t blocks) {
  const bool half = rows.scalar_type() == at::kHalf;
  TORCH_CHECK_TYPE(half || rows.scalar_type() == at::kFloat, op, "(): 'rows' must be float32 or float16, got ",
                   rows.scalar_type());
  DCGAN_CHECK(rows.dim() == 2 && rows.size(0) >= 1 && rows.size(1) >= 1 && rows.is_contiguous(), op,
              "'rows' must be (rows, features), at least one of each, contiguous, got ", rows.sizes());
  DCGAN_CHECK(1 <= blocks && blocks <= rows.size(0), op, "'blocks' must be from 1 to the number of rows, ",
              rows.size(0), ", got ", blocks);
  check(op, "order", order, at::kLong, {rows.size(0)});
  const int64_t* const at = order.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < rows.size(0); ++i) {
    DCGAN_CHECK(0 <= at[i] && at[i] < rows.size(0), op, "'order' must be of rows 0 to ", rows.size(0) - 1, ", got ",
                at[i]);
  }
  return {rows.const_data_ptr(), half, rows.size(0), rows.size(1), blocks, at};
}

cpu::SvmProblem problem(const char* op, const Tensor& rows, const Tensor& order, int64_t blocks, const Tensor& targets,
                        int64_t columns, const Tensor& weights, const Tensor& intercept, double scaling,
                        const Tensor& losses) {
  const cpu::SvmRows x = rows_of(op, rows, order, blocks);
  const int64_t width = losses.numel();
  DCGAN_CHECK(width % 16 == 0 && 16 <= width && width <= cpu::kSvmPanel, op,
              "'intercept' must have 16, 32, 48 or 64 columns, got ", width);
  DCGAN_CHECK(1 <= columns && columns <= width, op, "'columns' must be from 1 to ", width, ", got ", columns);
  check(op, "targets", targets, at::kLong, {x.rows});
  check(op, "weights", weights, at::kFloat, {x.features, width});
  check(op, "intercept", intercept, at::kFloat, {width});
  return {x,
          targets.const_data_ptr<int64_t>(),
          columns,
          width,
          weights.mutable_data_ptr<float>(),
          intercept.mutable_data_ptr<float>(),
          static_cast<float>(scaling),
          losses.mutable_data_ptr<double>()};
}

Tensor svm_grams(const Tensor& rows, const Tensor& order, int64_t blocks, double scaling) {
  const cpu::SvmRows x = rows_of("_svm_grams", rows, order, blocks);
  const int64_t block = x.block();
  const Tensor grams = at::empty({blocks, block, block}, rows.options().dtype(at::kFloat));
  const cpu::WorkspaceScope scope;
  cpu::linear_svm_kernels().grams(
      {x, static_cast<float>(scaling * scaling), cpu::tiles_pay(at::kFloat), grams.mutable_data_ptr<float>()});
  return grams;
}

Tensor svm_epoch(const Tensor& rows, const Tensor& order, const Tensor& targets, int64_t columns, const Tensor& grams,
                 const Tensor& blocks, const Tensor& dual, const Tensor& weights, const Tensor& intercept,
                 double scaling, double C, int64_t sweeps, double tolerance, int64_t seed) {
  constexpr const char* kName = "_svm_epoch_";
  const Tensor losses = at::empty({intercept.numel()}, intercept.options().dtype(at::kDouble));
  const cpu::SvmProblem p =
      problem(kName, rows, order, grams.size(0), targets, columns, weights, intercept, scaling, losses);
  const int64_t block = p.x.block();
  check(kName, "grams", grams, at::kFloat, {p.x.blocks, block, block});
  check(kName, "blocks", blocks, at::kLong, {p.x.blocks});
  check(kName, "dual", dual, at::kFloat, {p.x.rows, p.width});
  for (int64_t b = 0; b < p.x.blocks; ++b) {
    const int64_t q = blocks.const_data_ptr<int64_t>()[b];
    DCGAN_CHECK(0 <= q && q < p.x.blocks, kName, "'blocks' must be from 0 to ", p.x.blocks - 1, ", got ", q);
  }
  const cpu::WorkspaceScope scope;
  cpu::linear_svm_kernels().epoch({p, grams.const_data_ptr<float>(), blocks.const_data_ptr<int64_t>(),
                                   dual.mutable_data_ptr<float>(), static_cast<float>(C), sweeps,
                                   static_cast<float>(tolerance), static_cast<uint64_t>(seed)});
  return losses;
}

Tensor svm_losses(const Tensor& rows, const Tensor& order, const Tensor& targets, int64_t columns,
                  const Tensor& weights, const Tensor& intercept, double scaling, int64_t blocks) {
  const Tensor losses = at::empty({intercept.numel()}, intercept.options().dtype(at::kDouble));
  const cpu::WorkspaceScope scope;
  cpu::linear_svm_kernels().losses(
      problem("_svm_losses", rows, order, blocks, targets, columns, weights, intercept, scaling, losses));
  return losses;
}

}  // namespace

TORCH_LIBRARY_IMPL(dcgan_fast, CPU, m) {
  m.impl("_svm_grams", svm_grams);
  m.impl("_svm_epoch_", svm_epoch);
  m.impl("_svm_losses", svm_losses);
}

}  // namespace dcgan_fast
