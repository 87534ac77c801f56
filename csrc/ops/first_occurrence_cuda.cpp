#include "first_occurrence_cuda.h"

#include "../cpu/code_hash.h"
#include "../cuda/capture.h"
#include "../cuda/first_occurrence.h"
#include "cuda_launch.h"

namespace dcgan_fast {
namespace {

using at::Tensor;

at::TensorOptions like(const Tensor& codes, at::ScalarType dtype) {
  return at::TensorOptions(codes.device()).dtype(dtype);
}

Tensor dense_codes(const char* op, const Tensor& codes) {
  DCGAN_CHECK(codes.size(0) <= cuda::kMostRows, op, "'codes' must have at most ", cuda::kMostRows, " rows on CUDA, got ",
              codes.size(0));
  return codes.contiguous();
}

// The table is freed on return, and its memory serves the tensors that are allocated afterwards.
void find(const char* op, const Tensor& codes, const Tensor& keep, const Tensor& links, const Tensor& groups) {
  const int64_t rows = codes.size(0);
  const cpu::HashSeed& seed = cpu::hash_seed();
  const Tensor table = cuda_workspace(cuda::first_occurrence_table_bytes(rows), codes);
  cuda::FirstOccurrence args{};
  args.codes = reinterpret_cast<const uint64_t*>(codes.const_data_ptr<int64_t>());
  args.rows = rows;
  args.words = codes.size(1);
  args.seed[0] = seed.first;
  args.seed[1] = seed.rest;
  args.keep = keep.mutable_data_ptr<bool>();
  args.table = table.mutable_data_ptr();
  args.links = links.defined() ? links.mutable_data_ptr() : nullptr;
  args.groups = groups.defined() ? groups.mutable_data_ptr<int64_t>() : nullptr;
  check_launch(op, cuda::launch_first_occurrence(args, current_stream(codes.device())));
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> first_occurrence_cuda(const Tensor& codes) {
  constexpr const char* kName = "first_occurrence";
  const c10::DeviceGuard on_device(codes.device());
  const auto stream = current_stream(codes.device());
  TORCH_CHECK(!cuda::is_capturing(stream), kName, "(): cannot be captured in a CUDA graph, for the length of 'counts' "
              "depends on the codes; first_of_each() can");
  const Tensor dense = dense_codes(kName, codes);
  const int64_t rows = dense.size(0);
  const auto integers = like(codes, at::kLong);
  const Tensor keep = at::empty({rows}, like(codes, at::kBool));
  if (rows == 0) return {keep, at::empty({0}, integers), at::empty({0}, integers)};
  const Tensor links = cuda_workspace(cuda::first_occurrence_link_bytes(rows), codes);
  const Tensor groups = at::empty({1}, integers);
  find(kName, dense, keep, links, groups);
  const Tensor group = at::empty({rows}, integers), counts = at::empty({groups.item<int64_t>()}, integers);
  check_launch(kName, cuda::launch_group_numbers({rows, links.mutable_data_ptr(), group.mutable_data_ptr<int64_t>(),
                                                  counts.mutable_data_ptr<int64_t>()}, stream));
  return {keep, group, counts};
}

Tensor first_of_each_cuda(const Tensor& codes) {
  constexpr const char* kName = "first_of_each";
  const c10::DeviceGuard on_device(codes.device());
  const Tensor dense = dense_codes(kName, codes), keep = at::empty({dense.size(0)}, like(dense, at::kBool));
  if (dense.size(0) > 0) find(kName, dense, keep, {}, {});
  return keep;
}

}  // namespace dcgan_fast
