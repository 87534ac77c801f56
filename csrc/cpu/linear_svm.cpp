// Linear L2-SVMs by dual coordinate descent. Compiled once per CPU capability (see capability.h).
//
// Threads share the features out: each has its part of w to itself, and its part of every product with a row. In one
// pass a chunk of w takes the update of the last block and is multiplied with the next, while it lies in L1. Rows are
// copied to a tile first, some 3% of the instructions: rows are often a multiple of 4 KB apart, where a few fill all
// that a cache has for them, and halves become floats on the way.
#include "linear_svm.h"

#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "float_vec.h"
#include "gemm.h"
#include "integers.h"
#include "workspace.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {
namespace {

static_assert(kSvmPanel == kGemmPanel);

// A tile of 30 KB and the chunk of w that it meets stay in L1.
constexpr int64_t kChunk = 128, kTileRows = 64;

template <typename T>
void copy_row(const T* from, int64_t columns, float* to) {
  int64_t f = 0;
  for (; f + lanes<T> <= columns; f += lanes<T>) {
    const auto v = load_vec(from + f);
    v.lo.store(to + f);
    v.hi.store(to + f + lanes<T> / 2);
  }
  for (; f < columns; ++f) to[f] = static_cast<float>(from[f]);
}

// Features begin to begin + columns of rows first to first + rows of block q, as floats [rows, kChunk].
void pack(const SvmRows& x, int64_t q, int64_t first, int64_t rows, int64_t begin, int64_t columns, float* tile) {
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t at = x.row(q, first + r) * x.features + begin;
    if (x.half) {
      copy_row(static_cast<const c10::Half*>(x.data) + at, columns, tile + r * kChunk);
    } else {
      copy_row(static_cast<const float*>(x.data) + at, columns, tile + r * kChunk);
    }
  }
}

// Rows lie in the order in which they are met only by accident: the machine's own prefetcher does not know the next.
constexpr int64_t kRowsAhead = 4;
void fetch_row(const SvmRows& x, int64_t q, int64_t row, int64_t begin, int64_t columns) {
  const int64_t size = x.half ? sizeof(c10::Half) : sizeof(float), at = x.row(q, row) * x.features + begin;
  const char* const from = static_cast<const char*>(x.data) + at * size;
  for (int64_t byte = 0; byte < std::min(columns, x.features - begin) * size; byte += 64) __builtin_prefetch(from + byte);
}

// What a thread multiplies with: scratch in slot 0.
struct Scratch {
  float* tile;    // [kTileRows, kChunk]
  float* update;  // [kChunk, kGemmPanel]

  Scratch() {
    tile = static_cast<float*>(workspace((kTileRows + kGemmPanel) * kChunk * sizeof(float), 0));
    update = tile + kTileRows * kChunk;
  }
};

// Calls take(first, rows) for the tiles of block q.
template <typename Take>
void tiles_of(const SvmRows& x, int64_t q, const Take& take) {
  const int64_t rows = x.in_block(q);
  for (int64_t first = 0; first < rows; first += kTileRows) take(first, std::min(kTileRows, rows - first));
}

// scores += block q's rows times the chunk of the weights
void multiply_block(const SvmProblem& p, int64_t q, int64_t begin, int64_t columns, const Scratch& scratch,
                    float* scores) {
  tiles_of(p.x, q, [&](int64_t first, int64_t rows) {
    pack(p.x, q, first, rows, begin, columns, scratch.tile);
    gemm({rows, p.width, columns, scratch.tile, kChunk, 1, p.weights + begin * p.width, scores + first * kGemmPanel,
          true});
  });
}

// the chunk of the weights += block q's rows, transposed, times delta
void update_weights(const SvmProblem& p, int64_t q, const float* delta, int64_t begin, int64_t columns,
                    const Scratch& scratch) {
  tiles_of(p.x, q, [&](int64_t first, int64_t rows) {
    pack(p.x, q, first, rows, begin, columns, scratch.tile);
    gemm({columns, p.width, rows, scratch.tile, 1, kChunk, delta + first * p.width, scratch.update, first > 0});
  });
  for (int64_t f = 0; f < columns; ++f) {
    float* const w = p.weights + (begin + f) * p.width;
    for (int64_t k = 0; k < p.width; k += kLanes) store(w + k, load(w + k) + load(scratch.update + f * kGemmPanel + k));
  }
}

// Calls visit(thread, begin, columns) for chunks of features, those of a thread one after another.
template <typename Visit>
void chunks_by_thread(int64_t features, int threads, const Visit& visit) {
  const int64_t chunks = ceil_div(features, kChunk);
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t c = chunks * t / threads; c < chunks * (t + 1) / threads; ++c) {
        visit(t, c * kChunk, std::min(kChunk, features - c * kChunk));
      }
    }
  });
}

// Products that a thread should have of a block at least: waking one takes as long as some of them.
constexpr int64_t kGrain = 1 << 20;

int threads_for(const SvmProblem& p) {
  const int64_t products = p.x.block() * p.x.features * p.width;
  return static_cast<int>(std::clamp<int64_t>(products / kGrain, 1, at::get_num_threads()));
}

// Each thread's part of a block's scores, and their sum: [block, kGemmPanel], of which `width` columns are used, as
// gemm has it.
class Scores {
 public:
  Scores(const SvmProblem& p, int threads)
      : p_(p), size_(p.x.block() * kGemmPanel), threads_(threads), parts_(size_ * threads) {}

  void clear() { std::fill(parts_.begin(), parts_.end(), 0.0f); }
  float* of(int64_t thread) { return parts_.data() + thread * size_; }

  float* sum(int64_t rows) {
    at::parallel_for(0, rows, 512, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * kGemmPanel; i < end * kGemmPanel; i += kGemmPanel) {
        for (int64_t k = 0; k < p_.width; ++k) {
          float score = p_.scaling * p_.intercept[k];
          for (int t = 0; t < threads_; ++t) score += parts_[t * size_ + i + k];
          parts_[i + k] = score;
        }
      }
    });
    return parts_.data();
  }

 private:
  const SvmProblem& p_;
  int64_t size_;
  int threads_;
  std::vector<float> parts_;
};

void add_losses(const SvmProblem& p, int64_t q, const float* scores) {
  for (int64_t i = 0; i < p.x.in_block(q); ++i) {
    const int64_t target = p.targets[p.x.row(q, i)];
    for (int64_t k = 0; k < p.columns; ++k) {
      const float score = scores[i * kGemmPanel + k];
      const double short_of = std::max(0.0, 1.0 - (k == target ? score : -score));
      p.losses[k] += short_of * short_of;
    }
  }
}

// ------------------------------------------------------------------------------------------------- descent on a block

// W: the width.
template <int W>
class Block {
 public:
  // `scores` [block, kGemmPanel]: of the block's rows, kept up to date
  Block(const SvmEpoch& args, int64_t q, float* scores)
      : args_(args),
        x_(args.problem.x),
        q_(q),
        block_(x_.block()),
        rows_(x_.in_block(q)),
        gram_(args.grams + q * block_ * block_),
        scores_(scores),
        order_(rows_) {
    std::iota(order_.begin(), order_.end(), 0);
  }

  // delta [block, W]: by how much y * dual changes. False: nothing does.
  bool descend(std::mt19937& random, float* delta) {
    std::fill_n(delta, block_ * W, 0.0f);
    bool any = false;
    for (int64_t sweep = 0; sweep < args_.sweeps; ++sweep) {
      std::shuffle(order_.begin(), order_.end(), random);  // the same panels each time take three times as many sweeps
      float worst = 0;
      for (int64_t first = 0; first < rows_; first += kSvmPanel) {
        worst = std::max(worst, panel(order_.data() + first, std::min(kSvmPanel, rows_ - first), delta));
      }
      any |= worst > 0;
      if (worst <= args_.tolerance) break;
    }
    return any;
  }

 private:
  // One step on each of `rows` rows, then the scores of all; returns the largest violation of optimality that was met.
  float panel(const int32_t* of, int64_t rows, float* delta) {
    alignas(64) float scores[kSvmPanel * W], change[kSvmPanel * W] = {}, products[kSvmPanel * kSvmPanel];
    for (int64_t i = 0; i < rows; ++i) {
      std::copy_n(scores_ + of[i] * kGemmPanel, W, scores + i * W);
      for (int64_t j = 0; j < rows; ++j) products[i * kSvmPanel + j] = gram_[of[i] * block_ + of[j]];
    }
    float worst = 0;
    for (int64_t i = 0; i < rows; ++i) worst = std::max(worst, step(of[i], i, rows, products, scores, change));
    if (worst == 0) return 0;
    at::parallel_for(0, (rows_ + kChunk - 1) / kChunk, 8, [&](int64_t begin, int64_t end) {
      const Scratch scratch;
      for (int64_t j = begin * kChunk; j < std::min(rows_, end * kChunk); j += kChunk) {
        const int64_t count = std::min(kChunk, rows_ - j);
        for (int64_t i = 0; i < rows; ++i) copy_row(gram_ + of[i] * block_ + j, count, scratch.tile + i * kChunk);
        gemm({count, W, rows, scratch.tile, 1, kChunk, change, scores_ + j * kGemmPanel, true});
      }
    });
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t k = 0; k < W; ++k) delta[of[i] * W + k] += change[i * W + k];
    }
    return worst;
  }

  // The best value of one row's variables, all columns at once; i: its place in the panel.
  float step(int64_t of_block, int64_t i, int64_t rows, const float* products, float* scores, float* change) const {
    const int64_t row = x_.row(q_, of_block), target = args_.problem.targets[row];
    float* const dual = args_.dual + row * W;
    const float ridge = 1 / (2 * args_.C), inverse = 1 / (products[i * kSvmPanel + i] + ridge);
    float worst = 0, most = 0;
    for (int64_t k = 0; k < W; ++k) {
      const float y = k == target ? 1.0f : -1.0f;
      const float slope = y * scores[i * W + k] - 1 + dual[k] * ridge;
      const bool real = k < args_.problem.columns;
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

  const SvmEpoch& args_;
  const SvmRows& x_;
  int64_t q_, block_, rows_;
  const float* gram_;
  float* scores_;
  std::vector<int32_t> order_;
};

template <int W>
void epoch_of(const SvmEpoch& args) {
  const SvmProblem& p = args.problem;
  const int threads = threads_for(p);
  std::mt19937 random(static_cast<uint32_t>(args.seed));
  Scores scores(p, threads);
  std::vector<float> delta(p.x.block() * W);
  std::fill_n(p.losses, W, 0.0);
  int64_t changed = -1;  // the block whose change the weights lack
  for (int64_t b = 0; b <= p.x.blocks; ++b) {
    const int64_t next = b < p.x.blocks ? args.order[b] : -1;
    if (next < 0 && changed < 0) break;
    scores.clear();
    chunks_by_thread(p.x.features, threads, [&](int64_t thread, int64_t begin, int64_t columns) {
      const Scratch scratch;
      if (changed >= 0) update_weights(p, changed, delta.data(), begin, columns, scratch);
      if (next >= 0) multiply_block(p, next, begin, columns, scratch, scores.of(thread));
    });
    if (next < 0) break;
    float* const sums = scores.sum(p.x.in_block(next));
    add_losses(p, next, sums);
    changed = Block<W>(args, next, sums).descend(random, delta.data()) ? next : -1;
    for (int64_t i = 0; changed >= 0 && i < p.x.in_block(next); ++i) {
      for (int64_t k = 0; k < W; ++k) p.intercept[k] += p.scaling * delta[i * W + k];
    }
  }
}

void epoch(const SvmEpoch& args) {
  switch (args.problem.width) {
    case 16:
      return epoch_of<16>(args);
    case 32:
      return epoch_of<32>(args);
    case 48:
      return epoch_of<48>(args);
    default:
      return epoch_of<64>(args);
  }
}

void losses(const SvmProblem& p) {
  const int threads = threads_for(p);
  Scores scores(p, threads);
  std::fill_n(p.losses, p.width, 0.0);
  for (int64_t q = 0; q < p.x.blocks; ++q) {
    scores.clear();
    chunks_by_thread(p.x.features, threads, [&](int64_t thread, int64_t begin, int64_t columns) {
      multiply_block(p, q, begin, columns, Scratch(), scores.of(thread));
    });
    add_losses(p, q, scores.sum(p.x.in_block(q)));
  }
}

// ------------------------------------------------------------------------------------------------------ Gram matrices

// Squares of this side are tasks; what they multiply over a chunk stays in L2.
constexpr int64_t kSquare = 512;

// One square of block q's matrix, rows from `top` and columns from `left` <= top, over all features.
struct Square {
  const SvmRows& x;
  int64_t q, top, left;
  float* gram;    // of the block
  float* sums{};  // [width / kSvmPanel, kSquare, kSvmPanel]: panel by panel, as gemm has it

  int64_t height() const { return std::min(kSquare, x.in_block(q) - top); }
  int64_t width() const { return std::min(kSquare, x.in_block(q) - left); }
  float* at(int64_t i, int64_t j) const {
    return sums + (j / kSvmPanel * kSquare + i) * kSvmPanel;
  }  // j: of a panel's first

  // Into the matrix, on both sides of its diagonal.
  void keep(float offset) const {
    const int64_t block = x.block();
    for (int64_t i0 = 0; i0 < height(); i0 += kSvmPanel) {
      for (int64_t j0 = 0; j0 < width(); j0 += kSvmPanel) {
        for (int64_t i = 0; i < std::min(kSvmPanel, height() - i0); ++i) {
          for (int64_t j = 0; j < std::min(kSvmPanel, width() - j0); ++j) {
            const float product = at(i0 + i, j0)[j] + offset;
            const int64_t row = top + i0 + i, column = left + j0 + j;
            gram[row * block + column] = product;
            if (top != left) gram[column * block + row] = product;
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
    pack(s.x, s.q, s.top, s.height(), begin, depth, rows);
    pack(s.x, s.q, s.left, s.width(), begin, depth, others);
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

// The same on the matrix unit: products of floats as three of bfloat16 parts. Its errors, 2^-17 of the rows' norms,
// cost nothing but speed of convergence: a block is met with scores from float32.
constexpr int64_t kTileDepth = 256;

struct Parts {
  uint16_t *high, *low;  // [kSquare, kTileDepth]
};

uint16_t rounded_bfloat16(uint32_t bits) { return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16); }

void split(const float* from, int64_t count, uint16_t* high, uint16_t* low) {
  for (int64_t i = 0; i < count; ++i) {
    const uint16_t top = rounded_bfloat16(std::bit_cast<uint32_t>(from[i]));
    high[i] = top;
    low[i] =
        rounded_bfloat16(std::bit_cast<uint32_t>(from[i] - std::bit_cast<float>(static_cast<uint32_t>(top) << 16)));
  }
}

// `count` rows of the square's side; zeros up to a whole panel and to the depth.
void split_rows(const Square& s, int64_t first, int64_t count, int64_t begin, float* tile, const Parts& parts) {
  for (int64_t r = 0; r < (count + kSvmPanel - 1) / kSvmPanel * kSvmPanel; ++r) {
    if (r + kRowsAhead < count) fetch_row(s.x, s.q, first + r + kRowsAhead, begin, kTileDepth);
    for (int64_t half = 0; half < kTileDepth; half += kChunk) {
      const int64_t depth = std::clamp<int64_t>(s.x.features - begin - half, 0, kChunk);
      const bool there = r < count && depth > 0;
      if (there) pack(s.x, s.q, first + r, 1, begin + half, depth, tile);
      std::fill(tile + (there ? depth : 0), tile + kChunk, 0.0f);
      split(tile, kChunk, parts.high + r * kTileDepth + half, parts.low + r * kTileDepth + half);
    }
  }
}

// Pairs of features beside each other: [kTileDepth / 2, kSvmPanel, 2]
void pair_up(const uint16_t* rows, uint32_t* panel) {
  const auto* const pairs = reinterpret_cast<const uint32_t*>(rows);
  for (int64_t j = 0; j < kSvmPanel; ++j) {
    for (int64_t l = 0; l < kTileDepth / 2; ++l) panel[l * kSvmPanel + j] = pairs[j * (kTileDepth / 2) + l];
  }
}

void multiply_square_on_tiles(const Square& s) {
  using at::native::cpublas::brgemm;
  constexpr int64_t kSide = kSquare * kTileDepth, kOfPanel = kSvmPanel * kTileDepth;
  auto* const memory =
      static_cast<uint16_t*>(workspace((4 * kSide + 2 * kOfPanel) * sizeof(uint16_t) + kChunk * sizeof(float)));
  const Parts rows{memory, memory + kSide},
      others = s.top == s.left ? rows : Parts{memory + 2 * kSide, memory + 3 * kSide};
  uint16_t *const high = memory + 4 * kSide, *const low = high + kOfPanel;
  auto* const tile = reinterpret_cast<float*>(low + kOfPanel);
  const auto multiply = [](int64_t m, const uint16_t* a, const uint16_t* b, float* c, bool accumulate) {
    brgemm(m, kSvmPanel, kTileDepth, kTileDepth, kSvmPanel, kSvmPanel, accumulate,
           reinterpret_cast<const at::BFloat16*>(a), reinterpret_cast<const at::BFloat16*>(b), c);
  };
  for (int64_t begin = 0; begin < s.x.features; begin += kTileDepth) {
    split_rows(s, s.top, s.height(), begin, tile, rows);
    if (s.top != s.left) split_rows(s, s.left, s.width(), begin, tile, others);
    for (int64_t j = 0; j < s.width(); j += kSvmPanel) {
      pair_up(others.high + j * kTileDepth, reinterpret_cast<uint32_t*>(high));
      pair_up(others.low + j * kTileDepth, reinterpret_cast<uint32_t*>(low));
      for (int64_t i = 0; i < s.height(); i += kSvmPanel) {
        const int64_t of_side = i * kTileDepth;
        float* const c = s.at(i, j);
        multiply(kSvmPanel, rows.high + of_side, high, c, begin > 0);
        multiply(kSvmPanel, rows.high + of_side, low, c, true);
        multiply(kSvmPanel, rows.low + of_side, high, c, true);
      }
    }
  }
  at::native::cpublas::brgemm_release();
}

void grams(const SvmGrams& args) {
  const SvmRows& x = args.x;
  const int64_t size = x.block() * x.block();
  std::vector<Square> squares;
  for (int64_t q = 0; q < x.blocks; ++q) {
    for (int64_t top = 0; top < x.in_block(q); top += kSquare) {
      for (int64_t left = 0; left <= top; left += kSquare) squares.push_back({x, q, top, left, args.grams + q * size});
    }
  }
  std::atomic<size_t> taken{0};
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
    for (size_t i; (i = taken++) < squares.size();) {
      Square& square = squares[i];
      square.sums = static_cast<float*>(workspace(kSquare * kSquare * sizeof(float), 1));
      args.tiles ? multiply_square_on_tiles(square) : multiply_square(square);
      square.keep(args.offset);
    }
  });
}

}  // namespace

extern const LinearSvmKernels linear_svm{grams, epoch, losses};

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
