// Pairs of codes that differ in few bits. Compiled once per CPU capability (see capability.h): those of today count bits with
// an instruction.
#include "near_duplicates.h"

#include <algorithm>
#include <bit>
#include <mutex>

#include "tasks.h"

#ifndef CPU_CAPABILITY
#error "compile this file once per CPU capability: -DCPU_CAPABILITY=AVX512 and its -m flags"
#endif

namespace dcgan_fast::cpu::CPU_CAPABILITY {
namespace {

// Rows of a task, compared with the rows after them by tiles that stay in L1.
constexpr int64_t kRows = 256, kTile = 512;

template <int fixed>
int distance(const uint64_t* a, const uint64_t* b, int64_t words) {
  int bits = 0;
  for (int64_t w = 0; w < (fixed ? fixed : words); ++w) bits += std::popcount(a[w] ^ b[w]);
  return bits;
}

bool agree_earlier(const NearDuplicates& args, const uint64_t* a, const uint64_t* b) {
  const int64_t words = args.codes.words;
  for (int64_t part = 0; part < args.parts; ++part) {
    uint64_t difference = 0;
    for (int64_t w = 0; w < words; ++w) difference |= (a[w] ^ b[w]) & args.earlier[part * words + w];
    if (difference == 0) return true;
  }
  return false;
}

template <int words>
void compare(const NearDuplicates& args, int64_t begin, int64_t end, std::vector<uint64_t>& pairs) {
  const Codes& codes = args.codes;
  const int64_t last = args.bucket_end[end - 1];
  for (int64_t tile = begin; tile < last; tile += kTile) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t tile_end = std::min<int64_t>(tile + kTile, args.bucket_end[i]);
      for (int64_t j = std::max(tile, i + 1); j < tile_end; ++j) {
        if (distance<words>(codes.row(i), codes.row(j), codes.words) > args.radius) continue;
        if (agree_earlier(args, codes.row(i), codes.row(j))) continue;
        const auto [low, high] = std::minmax(args.number[i], args.number[j]);
        pairs.push_back(uint64_t{low} << 32 | high);
      }
    }
  }
}

std::vector<uint64_t> find(const NearDuplicates& args) {
  std::vector<uint64_t> found;
  std::mutex mutex;
  const int64_t rows = args.codes.rows;
  for_tasks((rows + kRows - 1) / kRows, [&](auto take) {
    std::vector<uint64_t> pairs;
    for (int64_t task; take(task);) {
      const int64_t begin = task * kRows, end = std::min(begin + kRows, rows);
      switch (args.codes.words) {
        case 1: compare<1>(args, begin, end, pairs); break;
        case 2: compare<2>(args, begin, end, pairs); break;
        default: compare<0>(args, begin, end, pairs);
      }
    }
    const std::lock_guard lock(mutex);
    found.insert(found.end(), pairs.begin(), pairs.end());
  });
  return found;
}

}  // namespace

extern const NearDuplicatesKernels near_duplicates{find, distance<0>};

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
