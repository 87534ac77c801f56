// How the `thin` engine multiplies on one thread: floats by FMA (gemm.h), or 16-bit values by the tile or pair
// instructions, in the layout of tiles.h.
//
// Sums lie in panels of 64 columns: row i of panel p is at sums + p * panel_floats + 64 * i.
#pragma once

#include <algorithm>

#ifdef __AMX_BF16__
#include <cpuid.h>
#endif

#include "gemm.h"
#include "integers.h"
#include "tiles.h"
#include "workspace.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {

constexpr int64_t kPanel = kGemmPanel;

// The workspaces of a thread, by what they hold.
enum Slot : int { kFineRows, kLeft, kSums, kLine, kLeftOperand, kRightOperand, kPartials, kMaxima };

template <typename T>
T* scratch(Slot slot, int64_t count) {
  return static_cast<T*>(workspace(count * sizeof(T), slot));
}

inline void fetch(const Ahead& ahead) {
  for (int64_t b = 0; b < ahead.bytes; b += 64) __builtin_prefetch(static_cast<const char*>(ahead.at) + b, 0, 2);
}

// ---------------------------------------------------------------- floats

#ifdef __AVX512BF16__  // gemm.h has no body of its own here
using AVX512::gemm;
#endif

// Of maps of T.
template <typename T>
struct Floats {
  using Value = T;
  using Element = float;  // what rows of the fine map are made of before they are multiplied
  static constexpr int64_t kRows = 1;    // of `multiply`: a multiple of this
  static constexpr int64_t kChunk = 48;  // rows that leave sums, rows and weights in L1
  static constexpr int64_t depth(int64_t k) { return k; }

  static int64_t packed_bytes(int64_t depth, int64_t columns) {
    return round_up(columns, kGemmWidth) * depth * static_cast<int64_t>(sizeof(float));
  }

  // From a matrix [depth, columns] of weights.
  static void pack(const T* matrix, int64_t depth, int64_t columns, void* packed) {
    auto* to = static_cast<float*>(packed);
    for (int64_t j = 0; j < columns; j += kPanel) {
      const int64_t n = std::min(kPanel, columns - j), width = round_up(n, kGemmWidth);
      for (int64_t k = 0; k < depth; ++k, to += width) {
        for (int64_t c = 0; c < width; ++c) to[c] = c < n ? static_cast<float>(matrix[k * columns + j + c]) : 0.0f;
      }
    }
  }

  // sums[i, j] = sum over k of left[i, k] * packed[k, j]
  template <typename U>
  static void multiply(const U* left, int64_t rows, int64_t depth, const void* packed, int64_t columns, float* sums,
                       int64_t panel_floats, Ahead ahead = {}) {
    const float* a = as_floats(left, rows * depth);
    const auto* b = static_cast<const float*>(packed);
    for (int64_t j = 0; j < columns; j += kPanel, sums += panel_floats) {
      const int64_t width = round_up(std::min(kPanel, columns - j), kGemmWidth);
      gemm({rows, width, depth, a, depth, 1, b, sums, false, ahead});
      b += depth * width;
      ahead = {};
    }
  }

  // A map's values as floats, in place where they are.
  static const float* as_floats(const float* values, int64_t) { return values; }
  template <typename U>
  static const float* as_floats(const U* values, int64_t n) {
    float* to = scratch<float>(kLeftOperand, n);
    widen(values, n, to);
    return to;
  }

  // Columns [j, j + n) of a matrix, `width` floats a row: a copy, unless that is how they lie.
  static const float* panel(const T* matrix, int64_t rows, int64_t columns, int64_t j, int64_t n, int64_t width) {
    if constexpr (std::is_same_v<T, float>) {
      if (width == columns) return matrix;
    }
    float* to = scratch<float>(kRightOperand, rows * width);
    for (int64_t i = 0; i < rows; ++i) {
      widen(matrix + i * columns + j, n, to + i * width);
      std::fill_n(to + i * width + n, width - n, 0.0f);
    }
    return to;
  }

 private:
  template <typename U>
  static void widen(const U* from, int64_t n, float* to) {
    int64_t i = 0;
    for (; i + lanes<U> <= n; i += lanes<U>) store_acc<U>(to + i, load_vec(from + i));
    for (; i < n; ++i) to[i] = static_cast<float>(from[i]);
  }
};

// ---------------------------------------------------------------- tiles

#ifdef __AVX512BF16__

// C[32, 32] (+)= the sum over steps of A[32, 32] B[32, 32]. Rows of A are a_row bytes apart, and steps a_step; B is in the
// layout of tiles.h.
struct TileProduct {
  const char* a;
  int64_t a_row, a_step;
  const char* b;
  int64_t steps;
  float* c;  // rows kPanel floats apart
  bool add;
};

#ifdef __AMX_BF16__

template <typename T>
inline void multiply_tiles(const TileProduct& p) {
  constexpr int64_t kBytes = kPanel * sizeof(float);
  float* const lower = p.c + kTileRows * kPanel;
  if (p.add) {
    _tile_loadd(0, p.c, kBytes);
    _tile_loadd(1, p.c + 16, kBytes);
    _tile_loadd(2, lower, kBytes);
    _tile_loadd(3, lower + 16, kBytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t step = 0; step < p.steps; ++step) {
    const char *a = p.a + step * p.a_step, *b = p.b + step * kPlaneBytes;
    _tile_loadd(6, b, 64);
    _tile_loadd(4, a, p.a_row);
    _tile_loadd(7, b + kTileBytes, 64);
    _tile_loadd(5, a + kTileRows * p.a_row, p.a_row);
    multiply_parts<T>();
  }
  _tile_stored(0, p.c, kBytes);
  _tile_stored(1, p.c + 16, kBytes);
  _tile_stored(2, lower, kBytes);
  _tile_stored(3, lower + 16, kBytes);
}

inline bool half_tiles() {
  static const bool known = [] {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & 1u << 21) != 0;
  }();
  return known;
}

#else

template <typename T>
inline void multiply_tiles(const TileProduct& p) {
  static_assert(std::is_same_v<T, c10::BFloat16>);
  constexpr int kRows = 8;  // with two columns of B 16 sums in registers
  for (int64_t row = 0; row < kBlock; row += kRows) {
    float* c = p.c + row * kPanel;
    __m512 sums[kRows][2];
    for (int r = 0; r < kRows; ++r) {
      for (int h = 0; h < 2; ++h) sums[r][h] = p.add ? _mm512_loadu_ps(c + r * kPanel + 16 * h) : _mm512_setzero_ps();
    }
    for (int64_t step = 0; step < p.steps; ++step) {
      const char *a = p.a + row * p.a_row + step * p.a_step, *b = p.b + step * kPlaneBytes;
      for (int pair = 0; pair < kTileRows; ++pair) {
        const auto left = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b + pair * 64));
        const auto right = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b + kTileBytes + pair * 64));
        for (int r = 0; r < kRows; ++r) {
          int32_t two;
          std::memcpy(&two, a + r * p.a_row + pair * 4, 4);
          const auto both = reinterpret_cast<__m512bh>(_mm512_set1_epi32(two));
          sums[r][0] = _mm512_dpbf16_ps(sums[r][0], both, left);
          sums[r][1] = _mm512_dpbf16_ps(sums[r][1], both, right);
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int h = 0; h < 2; ++h) _mm512_storeu_ps(c + r * kPanel + 16 * h, sums[r][h]);
    }
  }
}

inline bool half_tiles() { return false; }

#endif

// Of maps of T, 16 bits wide. Depth is padded to whole steps.
template <typename T>
struct Tiles {
  using Value = T;
  using Element = T;
  static constexpr int64_t kRows = kBlock, kChunk = kBlock;
  static constexpr int64_t depth(int64_t k) { return round_up(k, kBlock); }

  static int64_t packed_bytes(int64_t depth, int64_t columns) {
    return ceil_div(columns, kBlock) * ceil_div(depth, kBlock) * kPlaneBytes;
  }

  // [columns / 32][depth / 32] operands
  static void pack(const T* matrix, int64_t depth, int64_t columns, void* packed) {
    auto* operand = static_cast<char*>(packed);
    for (int64_t j = 0; j < columns; j += kBlock) {
      for (int64_t k = 0; k < depth; k += kBlock, operand += kPlaneBytes) {
        pack_rows(matrix + k * columns + j, depth - k, columns, columns - j, operand);
      }
    }
  }

  // As that of Floats.
  static void multiply(const T* left, int64_t rows, int64_t depth, const void* packed, int64_t columns, float* sums,
                       int64_t panel_floats, Ahead ahead = {}) {
    const int64_t steps = ceil_div(depth, kBlock);
    for (int64_t i = 0; i < rows; i += kBlock, left += kBlock * depth) {
      // in place, but for what would reach past the end of rows
      const T* a = depth % kBlock == 0 && rows - i >= kBlock ? left : pad(left, std::min(kBlock, rows - i), depth);
      const auto* b = static_cast<const char*>(packed);
      for (int64_t j = 0; j < columns; j += kBlock, b += steps * kPlaneBytes) {
        multiply_tiles<T>({reinterpret_cast<const char*>(a), 64 * steps, 64, b, steps,
                           sums + j / kPanel * panel_floats + j % kPanel + i * kPanel, false});
      }
    }
    fetch(ahead);  // the products are still under way
  }

 private:
  using Bits = c10::BFloat16;  // of either type: packing only moves them
  static const Bits* bits(const T* p) { return reinterpret_cast<const Bits*>(p); }

  // Up to 32 rows, `stride` values apart, as a B operand.
  static void pack_rows(const T* from, int64_t rows, int64_t stride, int64_t columns, char* operand) {
    for (int64_t pair = 0; pair < kTileRows; ++pair) {
      const T* even = from + 2 * pair * stride;
      pack_pair(2 * pair < rows ? bits(even) : nullptr, 2 * pair + 1 < rows ? bits(even + stride) : nullptr, columns,
                1, operand, pair);
    }
  }

  // Rows with zeros after them; the rows that are missing from 32 may hold anything.
  static const T* pad(const T* left, int64_t rows, int64_t depth) {
    const int64_t pitch = round_up(depth, kBlock);
    T* to = scratch<T>(kLeftOperand, kBlock * pitch);
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(left + r * depth, depth, to + r * pitch);
      std::fill_n(to + r * pitch + depth, pitch - depth, T(0));
    }
    return to;
  }
};

#endif

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
