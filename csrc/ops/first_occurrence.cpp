// first_occurrence and first_of_each: which rows of codes are the first of their kind. Validate, allocate, launch.
#include "first_occurrence.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../cpu/first_occurrence.h"
#include "../cpu/workspace.h"
#include "codes.h"
#include "device.h"
#ifdef DCGAN_FAST_CUDA
#include "first_occurrence_cuda.h"
#endif

namespace dcgan_fast {

using at::Tensor;

namespace {

void run(const cpu::FirstOccurrence& args) {
  const cpu::WorkspaceScope scope;
  const auto& kernels = cpu::first_occurrence_kernels();
  const auto bytes = static_cast<int64_t>(kernels.scratch_bytes(args));
  const Tensor scratch = empty_result({bytes}, at::kByte);
  kernels.run(args, scratch.mutable_data_ptr());
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> first_occurrence(const Tensor& codes) {
  constexpr const char* kName = "first_occurrence";
  check_codes(kName, "codes", codes);
  check_rows(kName, "codes", codes.size(0));
#ifdef DCGAN_FAST_CUDA
  if (kernels_of(codes) == Kernels::cuda) return first_occurrence_cuda(codes);
#endif
  const Tensor dense = codes.contiguous();
  const int64_t rows = dense.size(0);
  const Tensor keep = empty_result({rows}, at::kBool), group = empty_result({rows}, at::kLong);
  Tensor counts = at::empty({0}, group.options());
  if (rows > 0) {
    run({cpu_codes(dense), keep.mutable_data_ptr<bool>(), group.mutable_data_ptr<int64_t>(), [&](int64_t groups) {
           counts = empty_result({groups}, at::kLong);
           return counts.mutable_data_ptr<int64_t>();
         }});
  }
  return {keep, group, counts};
}

Tensor first_of_each(const Tensor& codes) {
  constexpr const char* kName = "first_of_each";
  check_codes(kName, "codes", codes);
  check_rows(kName, "codes", codes.size(0));
#ifdef DCGAN_FAST_CUDA
  if (kernels_of(codes) == Kernels::cuda) return first_of_each_cuda(codes);
#endif
  const Tensor dense = codes.contiguous();
  const Tensor keep = empty_result({dense.size(0)}, at::kBool);
  if (dense.size(0) > 0) run({cpu_codes(dense), keep.mutable_data_ptr<bool>(), nullptr, nullptr});
  return keep;
}

TORCH_LIBRARY_IMPL(dcgan_fast, CPU, m) {
  m.impl("first_occurrence", first_occurrence);
  m.impl("first_of_each", first_of_each);
}

#ifdef DCGAN_FAST_CUDA
TORCH_LIBRARY_IMPL(dcgan_fast, CUDA, m) {
  m.impl("first_occurrence", first_occurrence);
  m.impl("first_of_each", first_of_each);
}
#endif

}  // namespace dcgan_fast
