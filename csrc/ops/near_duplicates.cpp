// near_duplicates: pairs of rows whose codes differ in few bits, by multi-index hashing (Norouzi, Punjani, Fleet 2012).
//
// Equal codes are looked at once. Only bits that vary are shared out to the parts, one by one in turn: the unused bits of the
// last word and those that the data never sets would make a part that tells nothing apart.
#include "../cpu/near_duplicates.h"

#include <ATen/Parallel.h>
#include <ATen/ops/bitwise_and.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/nonzero.h>
#include <torch/library.h>

#include <algorithm>
#include <numeric>
#include <tuple>
#include <vector>

#include "codes.h"
#include "first_occurrence.h"

namespace dcgan_fast {
namespace {

using at::Tensor;

constexpr const char* kName = "near_duplicates";
constexpr uint64_t kMostPairs = 1'000'000'000;

// Rows group after group, and where each group begins.
struct Grouped {
  std::vector<uint32_t> rows;
  std::vector<int64_t> begin;  // [groups + 1]

  Grouped(const Tensor& group, const Tensor& counts) : rows(group.numel()), begin(counts.numel() + 1) {
    const int64_t *of = group.const_data_ptr<int64_t>(), *count = counts.const_data_ptr<int64_t>();
    std::partial_sum(count, count + counts.numel(), begin.begin() + 1);
    std::vector<int64_t> next(begin.begin(), begin.end() - 1);
    for (int64_t i = 0; i < group.numel(); ++i) rows[next[of[i]]++] = static_cast<uint32_t>(i);
  }
  int64_t size(int64_t group) const { return begin[group + 1] - begin[group]; }
};

// The bits of each part, [parts, words].
std::vector<uint64_t> share_out(const cpu::Codes& codes, int64_t parts) {
  std::vector<uint64_t> varying(codes.words), bits(parts * codes.words);
  for (int64_t i = 1; i < codes.rows; ++i) {
    for (int64_t w = 0; w < codes.words; ++w) varying[w] |= codes.row(i)[w] ^ codes.row(0)[w];
  }
  int64_t part = 0;
  for (int64_t bit = 0; bit < 64 * codes.words; ++bit) {
    const uint64_t mask = varying[bit / 64] & uint64_t{1} << bit % 64;
    if (mask == 0) continue;
    bits[part * codes.words + bit / 64] |= mask;
    part = (part + 1) % parts;
  }
  return bits;
}

// Pairs of different codes, by number.
std::vector<uint64_t> pairs_of_codes(const Tensor& different, int64_t radius) {
  std::vector<uint64_t> found;
  if (radius == 0 || different.size(0) < 2) return found;
  const cpu::Codes codes = cpu_codes(different);
  std::vector<uint64_t> bits = share_out(codes, radius + 1);
  for (int64_t part = 0; part <= radius; ++part) {
    const Tensor mask = at::empty({codes.words}, different.options());
    std::copy_n(reinterpret_cast<const int64_t*>(bits.data()) + part * codes.words, codes.words,
                mask.mutable_data_ptr<int64_t>());
    const auto [keep, bucket, counts] = first_occurrence(at::bitwise_and(different, mask));
    const Grouped buckets(bucket, counts);
    std::vector<uint64_t> sorted(codes.rows * codes.words);
    std::vector<uint32_t> end(codes.rows);
    for (int64_t b = 0; b < counts.numel(); ++b) {
      for (int64_t i = buckets.begin[b]; i < buckets.begin[b + 1]; ++i) {
        std::copy_n(codes.row(buckets.rows[i]), codes.words, sorted.data() + i * codes.words);
        end[i] = static_cast<uint32_t>(buckets.begin[b + 1]);
      }
    }
    const auto pairs = cpu::near_duplicates_kernels().find({{sorted.data(), codes.rows, codes.words}, buckets.rows.data(),
                                                            end.data(), bits.data(), part, static_cast<int>(radius)});
    found.insert(found.end(), pairs.begin(), pairs.end());
  }
  return found;
}

// Pairs of rows, (i, j) as i << 32 | j, in order.
std::vector<uint64_t> pairs_of_rows(const std::vector<uint64_t>& pairs, const Grouped& rows) {
  uint64_t count = 0;
  const auto groups = static_cast<int64_t>(rows.begin.size()) - 1;
  for (int64_t g = 0; g < groups; ++g) count += static_cast<uint64_t>(rows.size(g)) * (rows.size(g) - 1) / 2;
  for (const uint64_t pair : pairs) {
    count += static_cast<uint64_t>(rows.size(pair >> 32)) * rows.size(pair & 0xFFFFFFFF);
    if (count > kMostPairs) break;
  }
  DCGAN_CHECK(count <= kMostPairs, kName, "more than ", kMostPairs,
              " pairs: leave out equal codes first (first_of_each), or take a smaller 'radius'");
  std::vector<uint64_t> found;
  found.reserve(count);
  const auto add = [&](uint64_t a, uint64_t b) { found.push_back(std::min(a, b) << 32 | std::max(a, b)); };
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t i = rows.begin[g]; i < rows.begin[g + 1]; ++i) {
      for (int64_t j = i + 1; j < rows.begin[g + 1]; ++j) add(rows.rows[i], rows.rows[j]);
    }
  }
  for (const uint64_t pair : pairs) {
    const int64_t a = pair >> 32, b = pair & 0xFFFFFFFF;
    for (int64_t i = rows.begin[a]; i < rows.begin[a + 1]; ++i) {
      for (int64_t j = rows.begin[b]; j < rows.begin[b + 1]; ++j) add(rows.rows[i], rows.rows[j]);
    }
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::tuple<Tensor, Tensor> near_duplicates(const Tensor& codes, int64_t radius) {
  check_codes(kName, "codes", codes);
  check_rows(kName, "codes", codes.size(0));
  DCGAN_CHECK(0 <= radius && radius <= 3, kName, "'radius' must be 0, 1, 2 or 3, got ", radius);
  const Tensor dense = codes.contiguous();
  const auto [keep, group, counts] = first_occurrence(dense);
  const Tensor different = at::index_select(dense, 0, at::nonzero(keep).squeeze(1));
  const auto found = pairs_of_rows(pairs_of_codes(different, radius), Grouped(group, counts));

  const auto rows = static_cast<int64_t>(found.size());
  const Tensor pairs = empty_result({rows, 2}, at::kLong), distances = empty_result({rows}, at::kLong);
  int64_t *const pair = pairs.mutable_data_ptr<int64_t>(), *const distance = distances.mutable_data_ptr<int64_t>();
  const cpu::Codes all = cpu_codes(dense);
  at::parallel_for(0, rows, 1 << 14, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const auto i = static_cast<int64_t>(found[p] >> 32), j = static_cast<int64_t>(found[p] & 0xFFFFFFFF);
      pair[2 * p] = i;
      pair[2 * p + 1] = j;
      distance[p] = cpu::near_duplicates_kernels().distance(all.row(i), all.row(j), all.words);
    }
  });
  return {pairs, distances};
}

}  // namespace

TORCH_LIBRARY_IMPL(dcgan_fast, CPU, m) { m.impl("near_duplicates", near_duplicates); }

}  // namespace dcgan_fast
