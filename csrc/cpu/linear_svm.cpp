// Linear L2-SVMs by dual coordinate descent. Compiled once per CPU capability (see capability.h).
#include "linear_svm.h"

#include <ATen/Parallel.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "float_vec.h"
#include "gemm.h"
#include "tasks.h"
#include "workspace.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {
namespace {

static_assert(kSvmPanel == kGemmPanel);

// What is multiplied is copied to tiles of so many columns first, that stay in L1: rows are often a multiple of 4 KB
// apart, where a few fill all that a cache has for them, and halves become floats on the way.
constexpr int64_t kChunk = 128;

template <typename T>
void copy_row(const T* from, int64_t columns, float* to) {
  int64_t f = 0;
  for (; f + kLanes <= columns; f += kLanes) store(to + f, load(from + f));
  for (; f < columns; ++f) to[f] = static_cast<float>(from[f]);
}

// ------------------------------------------------------------------------------------------------- descent on a matrix

// W: the width.
template <int W>
class Descent {
 public:
  explicit Descent(const SvmDescent& args) : args_(args), rows_(args.rows), scores_(rows_ * kGemmPanel), order_(rows_) {
    for (int64_t i = 0; i < rows_; ++i) std::copy_n(args.scores + i * W, W, scores_.data() + i * kGemmPanel);
    std::iota(order_.begin(), order_.end(), 0);
  }

  void run() {
    std::mt19937 random(static_cast<uint32_t>(args_.seed));
    std::fill_n(args_.delta, rows_ * W, 0.0f);
    for (int64_t sweep = 0; sweep < args_.sweeps; ++sweep) {
      std::shuffle(order_.begin(), order_.end(), random);  // the same panels each time take three times as many sweeps
      float worst = 0;
      for (int64_t first = 0; first < rows_; first += kSvmPanel) {
        worst = std::max(worst, panel(order_.data() + first, std::min(kSvmPanel, rows_ - first)));
      }
      if (worst <= args_.tolerance) break;
    }
  }

 private:
  // One step on each of `rows` rows, then the scores of all; returns the largest violation of optimality that was met.
  float panel(const int32_t* of, int64_t rows) {
    alignas(64) float scores[kSvmPanel * W], change[kSvmPanel * W] = {}, products[kSvmPanel * kSvmPanel];
    for (int64_t i = 0; i < rows; ++i) {
      std::copy_n(scores_.data() + of[i] * kGemmPanel, W, scores + i * W);
      for (int64_t j = 0; j < rows; ++j) products[i * kSvmPanel + j] = args_.gram[of[i] * rows_ + of[j]];
    }
    float worst = 0;
    for (int64_t i = 0; i < rows; ++i) worst = std::max(worst, step(of[i], i, rows, products, scores, change));
    if (worst == 0) return 0;
    at::parallel_for(0, (rows_ + kChunk - 1) / kChunk, 8, [&](int64_t begin, int64_t end) {
      auto* const tile = static_cast<float*>(workspace(kSvmPanel * kChunk * sizeof(float)));
      for (int64_t j = begin * kChunk; j < std::min(rows_, end * kChunk); j += kChunk) {
        const int64_t count = std::min(kChunk, rows_ - j);
        for (int64_t i = 0; i < rows; ++i) copy_row(args_.gram + of[i] * rows_ + j, count, tile + i * kChunk);
        gemm({count, W, rows, tile, 1, kChunk, change, scores_.data() + j * kGemmPanel, true});
      }
    });
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t k = 0; k < W; ++k) args_.delta[of[i] * W + k] += change[i * W + k];
    }
    return worst;
  }

  // The best value of one row's variables, all columns at once; i: its place in the panel.
  float step(int64_t row, int64_t i, int64_t rows, const float* products, float* scores, float* change) const {
    const int64_t target = args_.targets[row];
    float* const dual = args_.dual + row * W;
    const float ridge = 1 / (2 * args_.C), inverse = 1 / (products[i * kSvmPanel + i] + ridge);
    float worst = 0, most = 0;
    for (int64_t k = 0; k < W; ++k) {
      const float y = k == target ? 1.0f : -1.0f;
      const float slope = y * scores[i * W + k] - 1 + dual[k] * ridge;
      const bool real = k < args_.columns;
      const float next = real ? std::max(0.0f, dual[k] - slope * inverse) : 0.0f;
      const float violation = dual[k] > 0 ? std::abs(slope) : std::max(0.0f, -slope);
      worst = std::max(worst, real ? violation : 0.0f);
      change[i * W + k] = y * (next - dual[k]);
      most = std::max(most, std::abs(change[i * W + k]));
      dual[k] = next;
    }
    if (most == 0) return worst;
    V c[W / kLanes];
    for (int v = 0; v < W / kLanes; ++v) c[v] = load(change + i * W + v * kLanes);
    for (int64_t j = i + 1; j < rows; ++j) {  // those before have had their turn
      float* const score = scores + j * W;
      const V product = broadcast(products[i * kSvmPanel + j]);
      for (int v = 0; v < W / kLanes; ++v) {
        store(score + v * kLanes, multiply_add(product, c[v], load(score + v * kLanes)));
      }
    }
    return worst;
  }

  const SvmDescent& args_;
  int64_t rows_;
  std::vector<float> scores_;  // [rows, kGemmPanel], kept up to date
  std::vector<int32_t> order_;
};

void descend(const SvmDescent& args) {
  switch (args.width) {
    case 16:
      return Descent<16>(args).run();
    case 32:
      return Descent<32>(args).run();
    case 48:
      return Descent<48>(args).run();
    default:
      return Descent<64>(args).run();
  }
}

// ------------------------------------------------------------------------------------------------------ Gram matrices

// Features begin to begin + columns of rows first to first + rows, as floats [rows, kChunk].
void pack(const TableRows& x, int64_t first, int64_t rows, int64_t begin, int64_t columns, float* tile) {
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t at = x.row(first + r) * x.features + begin;
    if (x.half) {
      copy_row(static_cast<const c10::Half*>(x.data) + at, columns, tile + r * kChunk);
    } else {
      copy_row(static_cast<const float*>(x.data) + at, columns, tile + r * kChunk);
    }
  }
}

// Rows come in an order of their own: the machine's own prefetcher does not know the next.
constexpr int64_t kRowsAhead = 4;
void fetch(const TableRows& x, int64_t row, int64_t begin, int64_t columns) {
  const int64_t size = x.half ? sizeof(c10::Half) : sizeof(float), at = x.row(row) * x.features + begin;
  const char* const from = static_cast<const char*>(x.data) + at * size;
  for (int64_t byte = 0; byte < std::min(columns, x.features - begin) * size; byte += 64)
    __builtin_prefetch(from + byte);
}

// Squares of this side are tasks; what they multiply over a chunk stays in L2.
constexpr int64_t kSquare = 512;

// One square of the matrix, rows from `top` and columns from `left` <= top, over all features.
struct Square {
  const TableRows& x;
  int64_t top, left;
  float* gram;
  float* sums{};  // [width / kSvmPanel, kSquare, kSvmPanel]: panel by panel, as gemm has it

  int64_t height() const { return std::min(kSquare, x.rows - top); }
  int64_t width() const { return std::min(kSquare, x.rows - left); }
  float* at(int64_t i, int64_t j) const {
    return sums + (j / kSvmPanel * kSquare + i) * kSvmPanel;
  }  // j: of a panel's first

  // Into the matrix, on both sides of its diagonal.
  void keep(float offset) const {
    for (int64_t i0 = 0; i0 < height(); i0 += kSvmPanel) {
      for (int64_t j0 = 0; j0 < width(); j0 += kSvmPanel) {
        for (int64_t i = 0; i < std::min(kSvmPanel, height() - i0); ++i) {
          for (int64_t j = 0; j < std::min(kSvmPanel, width() - j0); ++j) {
            const float product = at(i0 + i, j0)[j] + offset;
            const int64_t row = top + i0 + i, column = left + j0 + j;
            gram[row * x.rows + column] = product;
            if (top != left) gram[column * x.rows + row] = product;
          }
        }
      }
    }
  }
};

void multiply_square(const Square& s) {
  auto* const rows = static_cast<float*>(workspace((2 * kSquare + kSvmPanel) * kChunk * sizeof(float)));
  float *const others = rows + kSquare * kChunk, *const panel = others + kSquare * kChunk;
  for (int64_t begin = 0; begin < s.x.features; begin += kChunk) {
    const int64_t depth = std::min(kChunk, s.x.features - begin);
    pack(s.x, s.top, s.height(), begin, depth, rows);
    pack(s.x, s.left, s.width(), begin, depth, others);
    for (int64_t j = 0; j < s.width(); j += kSvmPanel) {
      const int64_t count = std::min(kSvmPanel, s.width() - j);
      if (count < kSvmPanel) std::fill_n(panel, depth * kSvmPanel, 0.0f);
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t f = 0; f < depth; ++f) panel[f * kSvmPanel + i] = others[(j + i) * kChunk + f];
      }
      gemm({s.height(), kSvmPanel, depth, rows, kChunk, 1, panel, s.at(0, j), begin > 0});
    }
  }
}

// The same on the matrix unit, on bfloat16: floats as they round, or in two parts whose three products are one along a
// depth that is three times as long, [high, high, low] by [high, low, high]. Errors, 2^-9 or 2^-17 of the rows' norms,
// cost nothing but speed of convergence: scores come from float32.
constexpr int64_t kMostDepth = 768;  // of a product

struct Parts {
  bool whole;  // whether floats are taken in two parts

  int64_t depth() const { return whole ? 768 : 512; }
  int64_t features() const { return whole ? 256 : 512; }  // at once
};

// Halves away from zero: one addition, and finite rows stay finite but for the largest floats.
uint32_t rounded_bfloat16(float x) { return std::bit_cast<uint32_t>(x) + 0x8000 & 0xFFFF0000; }

void round_row(const float* __restrict from, uint16_t* __restrict high) {
  for (int64_t i = 0; i < kChunk; ++i) high[i] = static_cast<uint16_t>(rounded_bfloat16(from[i]) >> 16);
}

void split_row(const float* __restrict from, uint16_t* __restrict high, uint16_t* __restrict low) {
  for (int64_t i = 0; i < kChunk; ++i) {
    const uint32_t top = rounded_bfloat16(from[i]);
    high[i] = static_cast<uint16_t>(top >> 16);
    low[i] = static_cast<uint16_t>(rounded_bfloat16(from[i] - std::bit_cast<float>(top)) >> 16);
  }
}

// `count` of the table's rows to [rows, depth], whole panels of rows, zeros where there is nothing.
void lay_out(const TableRows& x, int64_t first, int64_t count, int64_t begin, Parts parts, bool left, float* tile,
             uint16_t* to) {
  const int64_t features = parts.features();
  for (int64_t r = 0; r < (count + kSvmPanel - 1) / kSvmPanel * kSvmPanel; ++r, to += parts.depth()) {
    if (r + kRowsAhead < count) fetch(x, first + r + kRowsAhead, begin, features);
    for (int64_t f = 0; f < features; f += kChunk) {
      const int64_t size = std::clamp<int64_t>(x.features - begin - f, 0, kChunk);
      const float* from = tile;
      if (r < count && size == kChunk && !x.half) {
        from = static_cast<const float*>(x.data) + x.row(first + r) * x.features + begin + f;
      } else if (r < count && size > 0) {
        pack(x, first + r, 1, begin + f, size, tile);
        std::fill(tile + size, tile + kChunk, 0.0f);
      } else {
        std::fill_n(tile, kChunk, 0.0f);
      }
      uint16_t* const high = to + f;
      if (!parts.whole) {
        round_row(from, high);
        continue;
      }
      split_row(from, high, high + (left ? 2 : 1) * features);
      std::copy_n(high, kChunk, high + (left ? 1 : 2) * features);
    }
  }
}

// Pairs along the depth beside each other: [depth / 2, kSvmPanel, 2]
void pair_up(const uint16_t* rows, int64_t depth, uint16_t* panel) {
  const auto* const from = reinterpret_cast<const float*>(rows);
  auto* const to = reinterpret_cast<float*>(panel);
  constexpr int64_t kSide = 16;
  for (int64_t j = 0; j < kSvmPanel; j += kSide) {
    for (int64_t l = 0; l < depth / 2; l += kSide) {
      at::vec::transpose_mxn<float>(from + j * (depth / 2) + l, depth / 2, to + l * kSvmPanel + j, kSvmPanel, kSide,
                                    kSide);
    }
  }
}

void multiply_square_on_tiles(const Square& s, Parts parts) {
  constexpr int64_t kSide = kSquare * kMostDepth, kOfPanel = kSvmPanel * kMostDepth;
  auto* const rows =
      static_cast<uint16_t*>(workspace((kSide + 2 * kOfPanel) * sizeof(uint16_t) + kChunk * sizeof(float)));
  uint16_t *const others = rows + kSide, *const panel = others + kOfPanel;
  auto* const tile = reinterpret_cast<float*>(panel + kOfPanel);
  const int64_t depth = parts.depth();
  for (int64_t begin = 0; begin < s.x.features; begin += parts.features()) {
    lay_out(s.x, s.top, s.height(), begin, parts, true, tile, rows);
    for (int64_t j = 0; j < s.width(); j += kSvmPanel) {
      lay_out(s.x, s.left + j, std::min(kSvmPanel, s.width() - j), begin, parts, false, tile, others);
      pair_up(others, depth, panel);
      for (int64_t i = 0; i < s.height(); i += kSvmPanel) {
        at::native::cpublas::brgemm(kSvmPanel, kSvmPanel, depth, depth, kSvmPanel, kSvmPanel, begin > 0,
                                    reinterpret_cast<const at::BFloat16*>(rows + i * depth),
                                    reinterpret_cast<const at::BFloat16*>(panel), s.at(i, j));
      }
    }
  }
  at::native::cpublas::brgemm_release();
}

void gram(const SvmGram& args) {
  std::vector<Square> squares;
  for (int64_t top = 0; top < args.x.rows; top += kSquare) {
    for (int64_t left = 0; left <= top; left += kSquare) squares.push_back({args.x, top, left, args.gram});
  }
  for_tasks(static_cast<int64_t>(squares.size()), [&](auto take) {
    for (int64_t i; take(i);) {
      Square& square = squares[i];
      square.sums = static_cast<float*>(workspace(kSquare * kSquare * sizeof(float), 1));
      args.tiles ? multiply_square_on_tiles(square, {args.whole}) : multiply_square(square);
      square.keep(args.offset);
    }
  });
}

}  // namespace

extern const LinearSvmKernels linear_svm{gram, descend};

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
