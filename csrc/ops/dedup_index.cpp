// What dcgan_fast.dedup.DedupIndex is made of. Its state is tensors: a table of slots, the codes seen, and their number.
#include <torch/library.h>

#include <bit>

#include "../cpu/dedup_index.h"
#include "codes.h"
#include "first_occurrence.h"

namespace dcgan_fast {
namespace {

using at::Tensor;

cpu::DedupIndex state(const char* op, const Tensor& table, const Tensor& seen, int64_t count) {
  check_codes(op, "seen", seen);
  const auto slots = static_cast<uint64_t>(table.numel());
  DCGAN_CHECK(table.scalar_type() == at::kInt && table.is_contiguous() && std::has_single_bit(slots) &&
                  slots <= uint64_t{1} << 32,
              op, "'table' must be a power of two of int32, 2^32 at most, got ", table.sizes());
  DCGAN_CHECK(seen.is_contiguous() && 0 <= count && count <= seen.size(0) && 2 * count <= table.numel(), op,
              "'count' must be at most the codes there is room for, got ", count);
  return {reinterpret_cast<uint32_t*>(table.mutable_data_ptr<int>()), table.numel(),
          reinterpret_cast<uint64_t*>(seen.mutable_data_ptr<int64_t>()), count, seen.size(1)};
}

void fill(Tensor table, const Tensor& seen, const Tensor& count) {
  const auto index = state("_dedup_index_fill_", table, seen, count.item<int64_t>());
  table.zero_();
  cpu::dedup_index_fill(index);
}

Tensor add(Tensor table, Tensor seen, Tensor count, const Tensor& codes) {
  constexpr const char* kName = "_dedup_index_add_";
  check_codes(kName, "codes", codes);
  const int64_t before = count.item<int64_t>();
  const auto index = state(kName, table, seen, before);
  const int64_t most = before + codes.size(0);
  DCGAN_CHECK(codes.size(1) == index.words, kName, "'codes' must have ", index.words, " words, got ", codes.size(1));
  DCGAN_CHECK(most <= seen.size(0) && 2 * most <= table.numel(), kName, "no room for ", codes.size(0), " codes more");
  const Tensor dense = codes.contiguous(), keep = first_of_each(dense);
  count.fill_(cpu::dedup_index_add(index, cpu_codes(dense), keep.mutable_data_ptr<bool>()));
  return keep;
}

}  // namespace

TORCH_LIBRARY_IMPL(dcgan_fast, CPU, m) {
  m.impl("_dedup_index_fill_", fill);
  m.impl("_dedup_index_add_", add);
}

}  // namespace dcgan_fast
