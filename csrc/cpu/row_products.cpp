// Compiled once per CPU capability (see capability.h). Threads share the rows out, each with sums of its own.
//
// Both halves hold a block of sums in registers, two vectors of x by up to twelve columns: features lie along the
// lanes, so that rows are read as they lie, halves become floats once for all columns of a block, and any number of
// columns costs no more than itself. (A matrix product with columns along the lanes, gemm.h's, wants rows copied to
// tiles first and computes 16 columns for 10: it took three times as long.)
#include "row_products.h"

#include <ATen/Parallel.h>
#include <ATen/cpu/vec/functional.h>

#include <algorithm>
#include <memory>
#include <type_traits>

#include "float_vec.h"
#include "integers.h"
#include "workspace.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {
namespace {

#if defined(CPU_CAPABILITY_AVX512) || defined(__aarch64__)
constexpr int kMostColumns = 12;  // of a block
#else
constexpr int kMostColumns = 5;
#endif
constexpr int64_t kTileRows = 32;  // that a chunk of the vectors meets while it stays in L1: up to 24 KB
constexpr int64_t kChunk = 512;
constexpr int64_t kAhead = 2 * kLanes;

// Calls take(std::integral_constant<int, K>, k) for the blocks of columns k to k + K.
template <int K = kMostColumns, typename Take>
void block_of(int64_t columns, int64_t k, const Take& take) {
  if constexpr (K > 1) {
    if (columns < K) return block_of<K - 1>(columns, k, take);
  }
  take(std::integral_constant<int, K>(), k);
}

template <typename Take>
void blocks_of(int64_t columns, const Take& take) {
  const int64_t blocks = ceil_div(columns, kMostColumns);
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t k = columns * b / blocks;
    block_of(columns * (b + 1) / blocks - k, k, take);
  }
}

template <typename T>
const T* row_of(const TableRows& x, int64_t i) {
  return static_cast<const T*>(x.data) + x.row(i) * x.features;
}

// Features in whole vectors; the few that are left are taken one by one.
int64_t whole(int64_t features) { return features / kLanes * kLanes; }

// ------------------------------------------------------------------------------------------------------------ products

// The vectors as they are read: of each block of columns [features / kLanes, K, kLanes], where whole.
class Packed {
 public:
  Packed(const float* vectors, int64_t features, int64_t columns)
      : size_(whole(features)), values_(new float[size_ * columns]) {
    blocks_of(columns, [&]<int K>(std::integral_constant<int, K>, int64_t k) {
      float* to = values_.get() + k * size_;
      for (int64_t f = 0; f < size_; f += kLanes) {
        for (int j = 0; j < K; ++j, to += kLanes) store(to, load(vectors + (k + j) * features + f));
      }
    });
  }

  const float* of(int64_t k) const { return values_.get() + k * size_; }

 private:
  int64_t size_;
  std::unique_ptr<float[]> values_;
};

// sums [R][K] of a chunk's products, lane by lane, onto those in memory
template <int R, int K, typename T>
VEC_INLINE void multiply_chunk(const T* const* rows, const float* vectors, int64_t size, float* lanes, bool first) {
  V sums[R][K];
#pragma GCC unroll 2
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 12
    for (int k = 0; k < K; ++k) sums[r][k] = first ? broadcast(0.0f) : load(lanes + (r * K + k) * kLanes);
  }
  for (int64_t f = 0; f < size; f += kLanes) {
    V x[R];
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
      __builtin_prefetch(rows[r] + f + kChunk, 0, 2);
      x[r] = load(rows[r] + f);
    }
#pragma GCC unroll 12
    for (int k = 0; k < K; ++k) {
      const V v = load(vectors + f * K + k * kLanes);
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) sums[r][k] = multiply_add(x[r], v, sums[r][k]);
    }
  }
#pragma GCC unroll 2
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 12
    for (int k = 0; k < K; ++k) store(lanes + (r * K + k) * kLanes, sums[r][k]);
  }
}

float sum_of_lanes(const float* lanes) {
  using Lanes = at::vec::Vectorized<float>;
  static_assert(Lanes::size() % kLanes == 0);
  float sum = 0;
  if constexpr (Lanes::size() == kLanes) {
    sum = at::vec::vec_reduce_all<float>([](const Lanes& a, const Lanes& b) { return a + b; }, Lanes::loadu(lanes));
  } else {
    for (int i = 0; i < kLanes; ++i) sum += lanes[i];
  }
  return sum;
}

// products [rows, columns] of rows first to first + rows, kTileRows at most
template <typename T>
void multiply_rows(const TableRows& x, int64_t first, int64_t rows, int64_t columns, const float* vectors,
                   const Packed& packed, float* products) {
  const int64_t inner = whole(x.features);
  blocks_of(columns, [&]<int K>(std::integral_constant<int, K>, int64_t k) {
    alignas(64) float lanes[kTileRows * K * kLanes] = {};
    const float *const of_block = packed.of(k), *const tails = vectors + k * x.features;
    for (int64_t begin = 0; begin < inner; begin += kChunk) {
      const int64_t size = std::min(kChunk, inner - begin);
      int64_t r = 0;
      for (; r + 2 <= rows; r += 2) {
        const T* const both[2] = {row_of<T>(x, first + r) + begin, row_of<T>(x, first + r + 1) + begin};
        multiply_chunk<2, K>(both, of_block + begin * K, size, lanes + r * K * kLanes, begin == 0);
      }
      if (r < rows) {
        const T* const last[1] = {row_of<T>(x, first + r) + begin};
        multiply_chunk<1, K>(last, of_block + begin * K, size, lanes + r * K * kLanes, begin == 0);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      const T* const row = row_of<T>(x, first + r);
      for (int j = 0; j < K; ++j) {
        float sum = sum_of_lanes(lanes + (r * K + j) * kLanes);
        for (int64_t f = inner; f < x.features; ++f) sum += static_cast<float>(row[f]) * tails[j * x.features + f];
        products[r * columns + k + j] = sum;
      }
    }
  });
}

// ---------------------------------------------------------------------------------------------------------------- sums

// F vectors of features, K columns; `stride`: between the sums; weights [rows, columns].
template <int F, int K, typename T>
VEC_INLINE void add_features(const T* const* rows, int64_t count, int64_t begin, const float* weights, int64_t columns,
                             float* total, int64_t stride) {
  V sums[F][K];
#pragma GCC unroll 12
  for (int k = 0; k < K; ++k) {
#pragma GCC unroll 2
    for (int f = 0; f < F; ++f) sums[f][k] = load(total + k * stride + f * kLanes);
  }
  for (int64_t r = 0; r < count; ++r) {
    V x[F];
#pragma GCC unroll 2
    for (int f = 0; f < F; ++f) x[f] = load(rows[r] + begin + f * kLanes);
    __builtin_prefetch(rows[r] + begin + kAhead);
#pragma GCC unroll 12
    for (int k = 0; k < K; ++k) {
      const V weight = broadcast(weights[r * columns + k]);
#pragma GCC unroll 2
      for (int f = 0; f < F; ++f) sums[f][k] = multiply_add(x[f], weight, sums[f][k]);
    }
  }
#pragma GCC unroll 12
  for (int k = 0; k < K; ++k) {
#pragma GCC unroll 2
    for (int f = 0; f < F; ++f) store(total + k * stride + f * kLanes, sums[f][k]);
  }
}

// sums [columns, features] += the rows times their weights [rows, columns]
template <typename T>
void add_rows(const TableRows& x, int64_t first, int64_t rows, int64_t columns, const float* weights, float* sums) {
  const T* at[kTileRows];
  for (int64_t r = 0; r < rows; ++r) at[r] = row_of<T>(x, first + r);
  const int64_t inner = whole(x.features), stride = x.features;
  blocks_of(columns, [&]<int K>(std::integral_constant<int, K>, int64_t k) {
    float* const total = sums + k * stride;
    int64_t f = 0;
    for (; f + 2 * kLanes <= inner; f += 2 * kLanes) {
      add_features<2, K>(at, rows, f, weights + k, columns, total + f, stride);
    }
    if (f < inner) add_features<1, K>(at, rows, f, weights + k, columns, total + f, stride);
    for (f = inner; f < x.features; ++f) {
      for (int64_t r = 0; r < rows; ++r) {
        for (int j = 0; j < K; ++j)
          total[j * stride + f] += static_cast<float>(at[r][f]) * weights[r * columns + k + j];
      }
    }
  });
}

// ------------------------------------------------------------------------------------------------------------- threads

// Products that a thread should have at least: waking one takes as long as some of them.
constexpr int64_t kGrain = 1 << 20;

int64_t threads_for(const TableRows& x, int64_t columns) {
  const int64_t most = std::min<int64_t>(ceil_div(x.rows, kTileRows), at::get_num_threads());
  return std::clamp<int64_t>(x.rows * x.features * columns / kGrain, 1, most);
}

// Calls visit(thread, first, rows) for all tiles: the same tiles to the same threads, whoever runs them.
template <typename Visit>
void tiles_of(const TableRows& x, int64_t threads, const Visit& visit) {
  const int64_t tiles = ceil_div(x.rows, kTileRows);
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t tile = tiles * t / threads; tile < tiles * (t + 1) / threads; ++tile) {
        visit(t, tile * kTileRows, std::min(kTileRows, x.rows - tile * kTileRows));
      }
    }
  });
}

// Each thread's sums, and their sum.
class Sums {
 public:
  Sums(int64_t size, int64_t threads, float* total)
      : size_(size), threads_(threads), total_(total), others_(new float[size * (threads - 1)]) {
    std::fill_n(total, size, 0.0f);
    std::fill_n(others_.get(), size * (threads - 1), 0.0f);
  }

  float* of(int64_t thread) { return thread == 0 ? total_ : others_.get() + (thread - 1) * size_; }

  void add_up() {
    at::parallel_for(0, size_, 1 << 14, [&](int64_t begin, int64_t end) {
      for (int64_t t = 1; t < threads_; ++t) {
        const float* const part = of(t);
        for (int64_t i = begin; i < end; ++i) total_[i] += part[i];
      }
    });
  }

 private:
  int64_t size_, threads_;
  float* total_;
  std::unique_ptr<float[]> others_;
};

template <typename T>
void products_of(const RowProducts& p) {
  const Packed packed(p.vectors, p.x.features, p.columns);
  tiles_of(p.x, threads_for(p.x, p.columns), [&](int64_t, int64_t first, int64_t rows) {
    multiply_rows<T>(p.x, first, rows, p.columns, p.vectors, packed, p.products + first * p.columns);
  });
}

template <typename T>
void sums_of(const RowSums& p) {
  const int64_t threads = threads_for(p.x, p.columns);
  Sums parts(p.x.features * p.columns, threads, p.sums);
  tiles_of(p.x, threads, [&](int64_t thread, int64_t first, int64_t rows) {
    add_rows<T>(p.x, first, rows, p.columns, p.weights + first * p.columns, parts.of(thread));
  });
  parts.add_up();
}

template <typename T>
void curvature_of(const RowCurvature& p) {
  const int64_t threads = threads_for(p.x, p.columns);
  const Packed packed(p.vectors, p.x.features, p.columns);
  Sums parts(p.x.features * p.columns, threads, p.sums);
  tiles_of(p.x, threads, [&](int64_t thread, int64_t first, int64_t rows) {
    float* const products = p.products + first * p.columns;
    multiply_rows<T>(p.x, first, rows, p.columns, p.vectors, packed, products);
    auto* const weights = static_cast<float*>(workspace(rows * p.columns * sizeof(float)));
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t k = 0; k < p.columns; ++k) {
        const int64_t at = i * p.columns + k;
        products[at] += p.offset[k];
        weights[at] = p.weights[first * p.columns + at] * products[at];
      }
    }
    add_rows<T>(p.x, first, rows, p.columns, weights, parts.of(thread));
  });
  parts.add_up();
}

void products(const RowProducts& p) { p.x.half ? products_of<c10::Half>(p) : products_of<float>(p); }
void sums(const RowSums& p) { p.x.half ? sums_of<c10::Half>(p) : sums_of<float>(p); }
void curvature(const RowCurvature& p) { p.x.half ? curvature_of<c10::Half>(p) : curvature_of<float>(p); }

}  // namespace

extern const RowProductsKernels row_products{products, sums, curvature};

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
