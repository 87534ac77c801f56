// The codes seen so far, and which of a batch are new. Tables are far larger than the caches: rows are taken some at a time,
// and what all of them will touch is fetched before the first is looked at.
#include "dedup_index.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <vector>

namespace dcgan_fast::cpu {
namespace {

constexpr int64_t kTogether = 32;    // rows whose cache misses overlap
constexpr int64_t kChunk = 1 << 14;  // rows of a task

uint32_t mask_of(const DedupIndex& index) { return static_cast<uint32_t>(index.slots - 1); }
uint32_t tag_of(uint64_t hash, uint32_t mask) { return static_cast<uint32_t>(hash >> 16) & ~mask; }

template <typename F>
void for_chunks(int64_t rows, F&& f) {  // f(chunk, begin, end)
  const int64_t chunks = (rows + kChunk - 1) / kChunk;
  at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t chunk = first; chunk < last; ++chunk) f(chunk, chunk * kChunk, std::min(rows, (chunk + 1) * kChunk));
  });
}

// Codes that are known to be new: no comparison. Threads take slots by compare-and-swap; which of two codes gets the nearer
// slot does not matter to any answer.
void insert(const DedupIndex& index, int64_t begin, int64_t end) {
  const uint32_t mask = mask_of(index);
  const HashSeed seed = hash_seed();
  uint64_t hash[kTogether];
  for (int64_t i = begin; i < end; i += kTogether) {
    const int64_t rows = std::min(kTogether, end - i);
    for (int64_t j = 0; j < rows; ++j) {
      hash[j] = hash_code(index.codes + (i + j) * index.words, index.words, seed);
      __builtin_prefetch(index.table + (hash[j] & mask), 1);
    }
    for (int64_t j = 0; j < rows; ++j) {
      const uint32_t entry = tag_of(hash[j], mask) | static_cast<uint32_t>(i + j + 1);
      for (auto at = static_cast<uint32_t>(hash[j]) & mask;; at = (at + 1) & mask) {
        std::atomic_ref<uint32_t> slot(index.table[at]);
        uint32_t free = 0;
        if (slot.load(std::memory_order_relaxed) == 0 &&
            slot.compare_exchange_strong(free, entry, std::memory_order_relaxed)) {
          break;
        }
      }
    }
  }
}

bool is_seen(const DedupIndex& index, const uint64_t* code, uint64_t hash) {
  const uint32_t mask = mask_of(index), wanted = tag_of(hash, mask);
  for (auto at = static_cast<uint32_t>(hash) & mask;; at = (at + 1) & mask) {
    const uint32_t slot = index.table[at];
    if (slot == 0) return false;
    if ((slot & ~mask) != wanted) continue;
    const uint64_t* const other = index.codes + ((slot & mask) - 1) * index.words;
    if (std::equal(code, code + index.words, other)) return true;
  }
}

// Clears `keep` where a code is seen; returns how many are left.
int64_t drop_seen(const DedupIndex& index, const Codes& batch, bool* keep, int64_t begin, int64_t end) {
  const uint32_t mask = mask_of(index);
  const HashSeed seed = hash_seed();
  int64_t row[kTogether], kept = 0;
  uint64_t hash[kTogether];
  for (int64_t i = begin; i < end;) {
    int64_t rows = 0;
    for (; i < end && rows < kTogether; ++i) {
      row[rows] = i;
      rows += keep[i];
    }
    for (int64_t j = 0; j < rows; ++j) {
      hash[j] = hash_code(batch.row(row[j]), batch.words, seed);
      __builtin_prefetch(index.table + (hash[j] & mask));
    }
    for (int64_t j = 0; j < rows; ++j) {  // most often the code, if it is there, is in its first slot
      const uint32_t slot = index.table[hash[j] & mask];
      if (slot && (slot & ~mask) == tag_of(hash[j], mask)) {
        __builtin_prefetch(index.codes + ((slot & mask) - 1) * index.words);
      }
    }
    for (int64_t j = 0; j < rows; ++j) {
      keep[row[j]] = !is_seen(index, batch.row(row[j]), hash[j]);
      kept += keep[row[j]];
    }
  }
  return kept;
}

}  // namespace

void dedup_index_fill(const DedupIndex& index) {
  for_chunks(index.count, [&](int64_t, int64_t begin, int64_t end) { insert(index, begin, end); });
}

int64_t dedup_index_add(const DedupIndex& index, const Codes& batch, bool* keep) {
  std::vector<int64_t> number((batch.rows + kChunk - 1) / kChunk + 1, index.count);  // of the first new code of a chunk
  for_chunks(batch.rows, [&](int64_t chunk, int64_t begin, int64_t end) {
    number[chunk + 1] = drop_seen(index, batch, keep, begin, end);
  });
  for (size_t chunk = 1; chunk < number.size(); ++chunk) number[chunk] += number[chunk - 1];
  for_chunks(batch.rows, [&](int64_t chunk, int64_t begin, int64_t end) {
    uint64_t* to = index.codes + number[chunk] * index.words;
    for (int64_t i = begin; i < end; ++i) {
      if (keep[i]) to = std::copy_n(batch.row(i), index.words, to);
    }
    insert(index, number[chunk], number[chunk + 1]);
  });
  return number.back();
}

}  // namespace dcgan_fast::cpu
