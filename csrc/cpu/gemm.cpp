// Compiled once per CPU capability (see capability.h). A block of c is held in registers over the loop on k.
#include "gemm.h"

#include <algorithm>
#include <type_traits>

#include "float_vec.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {
namespace {

// Rows of b that stay in L1 (with 64 columns 32 KB) while all rows of a pass by.
constexpr int64_t kDepth = 128;

// The block of c: `vectors` registers wide, as many rows high as leave registers for a row of b and an element of a.
#if defined(CPU_CAPABILITY_AVX512) || defined(__aarch64__)
constexpr int kVectors = 4;
constexpr int rows_of(int vectors) { return vectors == 4 ? 6 : vectors == 3 ? 8 : 12; }
#else
constexpr int kVectors = 2;
constexpr int rows_of(int) { return 6; }
#endif
constexpr int64_t kColumns = kVectors * kLanes;
static_assert(kGemmPanel % kColumns == 0);

// What to fetch, spread evenly over the blocks and their iterations of the loop on k. With more rows than blocks the last
// rows are left out.
struct Fetches {
  const char *at, *row;  // of the next block, in iteration l at + l * step; where its row begins
  int64_t step;          // bytes
  int64_t blocks_of_row, left, pitch;

  // `otherwise`: a line that is there, fetched where nothing is asked for: a fetch of nowhere walks the page tables.
  Fetches(const Ahead& ahead, const void* otherwise, int64_t blocks, int64_t k)
      : at(static_cast<const char*>(ahead.bytes > 0 ? ahead.at : otherwise)), row(at),
        blocks_of_row(std::max<int64_t>(1, blocks / std::max<int64_t>(1, ahead.rows))), left(blocks_of_row), pitch(ahead.pitch) {
    step = (ahead.bytes + blocks_of_row * k - 1) / (blocks_of_row * k);
  }

  void next_block(int64_t k) {
    at += k * step;
    if (--left > 0) return;
    left = blocks_of_row;
    at = row += pitch;
  }
};

// The inner loop; a_row or a_column is 1 (the one that TransposedA says), the other `stride`.
template <int R, int N, bool TransposedA>
VEC_INLINE void block(int64_t k, const float* a, int64_t stride, const float* b, int64_t b_row, float* c,
                      bool accumulate, const char* fetched, int64_t step) {
  V sums[R][N];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) sums[i][j] = broadcast(0.0f);
  }
  for (int64_t l = 0; l < k; ++l) {
    V row[N];
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) row[j] = load(b + l * b_row + j * kLanes);
    __builtin_prefetch(fetched + l * step, 0, 2);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const V element = broadcast(TransposedA ? a[l * stride + i] : a[i * stride + l]);
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) sums[i][j] = multiply_add(element, row[j], sums[i][j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) {
      float* const at = c + i * kGemmPanel + j * kLanes;
      store(at, accumulate ? load(at) + sums[i][j] : sums[i][j]);  // added last: short sums, and so less rounding
    }
  }
}

template <bool TransposedA, int N>
void all_rows(const GemmPanel& p, const float* a, int64_t k, const float* b, float* c, bool accumulate, Fetches& fetches) {
  const int64_t stride = TransposedA ? p.a_column : p.a_row, next = TransposedA ? 1 : p.a_row;
  int64_t i = 0;
  const auto take = [&]<int R>(std::integral_constant<int, R>) {
    for (; i + R <= p.m; i += R) {
      block<R, N, TransposedA>(k, a + i * next, stride, b, p.n, c + i * kGemmPanel, accumulate, fetches.at, fetches.step);
      fetches.next_block(k);
    }
  };
  take(std::integral_constant<int, rows_of(N)>());
  take(std::integral_constant<int, 4>());
  take(std::integral_constant<int, 2>());
  take(std::integral_constant<int, 1>());
}

template <bool TransposedA>
void multiply(const GemmPanel& p) {
  if (p.m == 0 || p.k == 0) return;  // k: of a sum that is added to
  const int64_t parts = (p.k + kDepth - 1) / kDepth;
  const int64_t blocks = (p.m + rows_of(kVectors) - 1) / rows_of(kVectors) * ((p.n + kColumns - 1) / kColumns);
  Fetches fetches(p.ahead, p.c, blocks * parts, p.k / parts);
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t begin = p.k * part / parts, k = p.k * (part + 1) / parts - begin;
    const float *a = p.a + begin * p.a_column, *b = p.b + begin * p.n;
    const bool accumulate = p.accumulate || part > 0;
    int64_t j = 0;
    const auto take = [&]<int N>(std::integral_constant<int, N>) {
      for (; j + N * kLanes <= p.n; j += N * kLanes) {
        all_rows<TransposedA, N>(p, a, k, b + j, p.c + j, accumulate, fetches);
      }
    };
    take(std::integral_constant<int, kVectors>());
    if constexpr (kColumns > kGemmWidth) {
      take(std::integral_constant<int, 3>());
      take(std::integral_constant<int, 2>());
      take(std::integral_constant<int, 1>());
    }
  }
}

}  // namespace

void gemm(const GemmPanel& p) { p.a_column == 1 ? multiply<false>(p) : multiply<true>(p); }

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
