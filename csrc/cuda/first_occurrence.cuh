// Which rows of codes are the first of their kind: the kernels. first_occurrence.h has the arguments.
//
// Open addressing. A slot is 8 bytes: 32 bits of the hash (the tag) above the number of a row, which stands for its code.
// A row looks at slots from the one that its hash names. It takes the first empty one by compare-and-swap; it stops at the
// first one that has its tag and whose row's code, read from `codes`, is equal to its own, and leaves the smaller of the
// two row numbers there by an atomic minimum. So
//   * no thread ever waits for another: codes are input, there is nothing to be published before it can be compared;
//   * a slot, once taken, stays with its kind, and its rows only become smaller: the last one is the first of its kind;
//   * whoever pushes a row out of a slot knows which. Of two rows that meet, the larger is linked to the smaller, so a row
//     gets at most one link, from one thread; a row without is the first of its kind.
// Links lead to ever smaller rows and end at the first one. The table is read no more.
//
// What it costs. For N rows of w words and D duplicates, in bytes; random accesses by sectors of 32:
//     clear     20 N                writes the table and the links
//     insert    8 w N + 32 N        reads codes, and a slot each at random
//               32 (N - D)          writes the slots that were empty
//               32 ceil(w / 4) D    reads the code of the row in a slot, at random
//               4 D                 writes links
//     count     5 N                 reads links, writes keep
//     number    8 N + 8 (N - D)     reads and writes links, writes counts
//     group     12 N                reads links, writes group
//               32 D + 64 D         reads the link of an earlier row, adds to a count, at random
// That is 133 bytes a row of 128 bits where all are distinct, and at most 225 where nearly all are duplicates: 3.1 and 5.2 ms
// for 100 million rows at the copy bandwidth of an H200, 32 and 19 Gkeys/s; keep alone 116 and at most 133 bytes. Random
// accesses reach only a part of that bandwidth: the goal is 3 to 5 Gkeys/s.
//
// A slot of 4 bytes (a row and no tag) would cost a read of another row's code, at random, for each occupied slot that is
// passed, one for every two rows; one of 32 (with the code in it) 64 bytes a row to clear, and needs its code published
// before others can compare it.
#pragma once

#include "first_occurrence.h"
#include "ptx.cuh"
#include "reduce.cuh"

namespace dcgan_fast::cuda {

using Slot = unsigned long long;  // CUDA's name for the 64 bits that atomics take
using Count = unsigned long long;

constexpr Slot kEmpty = ~Slot{0};            // no row has this number
constexpr uint32_t kFirst = ~uint32_t{0};    // the link of a row that has none
constexpr uint32_t kNumbered = 0x80000000u;  // with the number of a group, in the link of its first row
constexpr int kSlotsPerRow = 2;              // a table is at most half full: a slot and a half are looked at, on average

// ---------------------------------------------------------------- hashing

// As cpu/code_hash.h: words after the first are folded into it (by products of 128 bits, which a GPU need not avoid), and the
// result is mixed. The high bits choose a slot, the low ones are the tag.
__device__ inline uint64_t fold_word(uint64_t word, uint64_t key) {
  const uint64_t x = word ^ key;
  constexpr uint64_t kFactor = 0xD1B54A32D192ED03u;
  return x * kFactor ^ __umul64hi(x, kFactor);
}

__device__ inline uint64_t mix(uint64_t x) {
  x ^= x >> 32;
  x *= 0xFF51AFD7ED558CCDu;
  x ^= x >> 29;
  x *= 0xC4CEB9FE1A85EC53u;
  return x ^ x >> 32;
}

// A row's code: in registers where W words are known, else where it lies.
template <int W>
struct Code {
  Vec<uint64_t, W> words;

  __device__ Code(const FirstOccurrence& args, int64_t row) : words(load<W>(args.codes + row * W)) {}
  __device__ uint64_t word(int i) const { return words.at[i]; }
  __device__ int64_t count() const { return W; }
};

template <>
struct Code<0> {
  const uint64_t* words;
  int64_t size;

  __device__ Code(const FirstOccurrence& args, int64_t row) : words(args.codes + row * args.words), size(args.words) {}
  __device__ uint64_t word(int64_t i) const { return words[i]; }
  __device__ int64_t count() const { return size; }
};

template <int W>
__device__ inline uint64_t hash_code(const Code<W>& code, const FirstOccurrence& args) {
  uint64_t x = code.word(0) ^ args.seed[0];
  uint64_t key = args.seed[1];
  for (int64_t w = 1; w < code.count(); w++, key += 0x9E3779B97F4A7C15u) x ^= fold_word(code.word(w), key);
  return mix(x);
}

// To the end: where tags agree codes do too, as a rule, and a way out would split the access to a code of two words.
template <int W>
__device__ inline bool equal(const Code<W>& a, const Code<W>& b) {
  uint64_t difference = 0;
  for (int64_t w = 0; w < a.count(); w++) difference |= a.word(w) ^ b.word(w);
  return difference == 0;
}

// ---------------------------------------------------------------- the table

template <bool kGroups>
__device__ inline void link(const FirstOccurrence& args, uint32_t row, uint32_t earlier) {
  if constexpr (kGroups) {
    static_cast<uint32_t*>(args.links)[row] = earlier;
  } else {
    args.keep[row] = false;
  }
}

// A row a thread. Links, or `keep` without kGroups, are as of rows that are all the first of their kind. Hot codes need no
// care here: a slot is read before it is written, and what is there is the smaller row as a rule, for blocks start in order.
template <int W, bool kGroups>
__global__ void __launch_bounds__(kThreads) first_occurrence_insert(FirstOccurrence args) {
  const int64_t own = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (own >= args.rows) return;
  const auto row = static_cast<uint32_t>(own);
  const Code<W> code(args, own);
  const uint64_t hash = hash_code(code, args);
  const Slot mine = hash << 32 | row;
  Slot* const table = static_cast<Slot*>(args.table);
  const uint64_t slots = kSlotsPerRow * args.rows;
  for (uint64_t at = __umul64hi(hash, slots);; at = at + 1 == slots ? 0 : at + 1) {
    Slot seen = ptx::load_relaxed(table + at);
    if (seen == kEmpty) {
      seen = atomicCAS(table + at, kEmpty, mine);
      if (seen == kEmpty) return;
    }
    if (seen >> 32 != mine >> 32) continue;
    if (!equal(code, Code<W>(args, static_cast<uint32_t>(seen)))) continue;
    if (seen > mine) seen = atomicMin(table + at, mine);
    const auto other = static_cast<uint32_t>(seen);
    link<kGroups>(args, max(row, other), min(row, other));
    return;
  }
}

// ---------------------------------------------------------------- the numbers of groups

// A tile is the rows of a block. A warp has a run of them, 32 neighbours at a time.
constexpr int kRowsOfLane = 16;
constexpr int kRowsOfWarp = kRowsOfLane * kWarpSize;
constexpr int kTileRows = kRowsOfWarp * kWarps;

// For every 32 rows of the warp's run, which of them are the first of their kind.
struct Firsts {
  int64_t begin;  // of the run
  uint32_t lanes[kRowsOfLane];
  uint32_t count = 0;

  __device__ Firsts(const uint32_t* links, int64_t rows) {
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    begin = static_cast<int64_t>(blockIdx.x) * kTileRows + warp * kRowsOfWarp;
    bool first[kRowsOfLane];
#pragma unroll
    for (int i = 0; i < kRowsOfLane; i++) {
      const int64_t row = begin + i * kWarpSize + lane;
      first[i] = row < rows && links[row] == kFirst;
    }
#pragma unroll
    for (int i = 0; i < kRowsOfLane; i++) {
      lanes[i] = __ballot_sync(~0u, first[i]);
      count += __popc(lanes[i]);
    }
  }
};

// What the warps before this one have, and all of them. `scratch` has kWarps places.
__device__ inline uint32_t sum_before(uint32_t of_warp, uint32_t* scratch, uint32_t& total) {
  const int warp = threadIdx.x / kWarpSize;
  if (threadIdx.x % kWarpSize == 0) scratch[warp] = of_warp;
  __syncthreads();
  uint32_t before = 0;
  total = 0;
  for (int w = 0; w < kWarps; w++) {
    if (w == warp) before = total;
    total += scratch[w];
  }
  return before;
}

// `keep`, and how many rows of each tile are the first of their kind.
__global__ void __launch_bounds__(kThreads) first_occurrence_count(const uint32_t* links, bool* keep, int64_t rows,
                                                                   uint32_t* tiles) {
  const Firsts firsts(links, rows);
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int i = 0; i < kRowsOfLane; i++) {
    const int64_t row = firsts.begin + i * kWarpSize + lane;
    if (row < rows) keep[row] = firsts.lanes[i] >> lane & 1;
  }
  uint32_t total;
  sum_before(firsts.count, reinterpret_cast<uint32_t*>(shared_memory()), total);
  if (threadIdx.x == 0) tiles[blockIdx.x] = total;
}

// One block: each tile's count becomes the sum of those before it. A pass for each million rows, of a fraction of a
// microsecond: more blocks would need more kernels to save next to nothing.
__global__ void __launch_bounds__(kThreads) first_occurrence_scan(uint32_t* tiles, int64_t count, int64_t* groups) {
  uint32_t* const scratch = reinterpret_cast<uint32_t*>(shared_memory());
  const int lane = threadIdx.x % kWarpSize;
  uint32_t done = 0;
  for (int64_t first = 0; first < count; first += kThreads) {
    const int64_t tile = first + threadIdx.x;
    const uint32_t own = tile < count ? tiles[tile] : 0;
    uint32_t up_to = own;  // of the warp, this lane's included
    for (int distance = 1; distance < kWarpSize; distance *= 2) {
      const uint32_t from = __shfl_up_sync(~0u, up_to, distance);
      if (lane >= distance) up_to += from;
    }
    uint32_t total;
    const uint32_t before = sum_before(__shfl_sync(~0u, up_to, kWarpSize - 1), scratch, total);
    if (tile < count) tiles[tile] = done + before + up_to - own;
    done += total;
    __syncthreads();  // the next pass writes `scratch` again
  }
  if (threadIdx.x == 0) *groups = done;
}

// Rows that are the first of their kind get the next number, in order of rows, and count themselves.
__global__ void __launch_bounds__(kThreads) first_occurrence_number(uint32_t* links, const uint32_t* tiles, int64_t rows,
                                                                    int64_t* counts) {
  const Firsts firsts(links, rows);
  const int lane = threadIdx.x % kWarpSize;
  uint32_t total;
  uint32_t next = tiles[blockIdx.x] +
                  sum_before(firsts.count, reinterpret_cast<uint32_t*>(shared_memory()), total);
#pragma unroll
  for (int i = 0; i < kRowsOfLane; i++) {
    const uint32_t lanes = firsts.lanes[i];
    if (lanes >> lane & 1) {
      const uint32_t number = next + __popc(lanes & ((1u << lane) - 1));
      links[firsts.begin + i * kWarpSize + lane] = kNumbered | number;
      counts[number] = 1;
    }
    next += __popc(lanes);
  }
}

// Every row's number. Rows of a warp that are of one group are added to its count together: of hot codes there are as many
// additions as warps, not as rows.
//
// Links are followed to their end, one step as a rule. More where larger rows came before smaller ones: of those that run
// at the same time each becomes the smallest so far by chance, so the steps grow with the logarithm of their number.
__global__ void __launch_bounds__(kThreads) first_occurrence_group(const uint32_t* links, int64_t rows, int64_t* group,
                                                                   int64_t* counts) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const uint32_t lane = threadIdx.x % kWarpSize;
  uint32_t added = kNumbered | lane;  // like no other lane's: nothing is added
  if (row < rows) {
    uint32_t at = links[row];
    const bool repeated = !(at & kNumbered);
    while (!(at & kNumbered)) at = links[at];
    const uint32_t number = at & ~kNumbered;
    group[row] = number;
    if (repeated) added = number;
  }
  const uint32_t equals = __match_any_sync(~0u, added);
  if (!(added & kNumbered) && lane == __ffs(equals) - 1u) {
    atomicAdd(reinterpret_cast<Count*>(counts + added), static_cast<Count>(__popc(equals)));
  }
}

}  // namespace dcgan_fast::cuda
