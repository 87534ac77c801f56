// A maxout layer. Compiled once per CPU capability (see capability.h).
//
// Forward multiplies weight by input transposed, not input by weight: the weight, the larger of the two, is then read
// in place; the transposed input is small; and the pieces of a unit are rows of the product, among which the largest is
// found vector by vector.
//
// Backward adds up rows: a row of the input's gradient is the sum of the winners' rows of the weight, a row of the
// weight's gradient the sum of those rows of the input where it won, each times a gradient. One multiply-add takes one
// load, so what is added up must lie in L1: some 30 KB of weight or input, packed, a panel of columns wide.
#include "maxout_linear.h"

#include <ATen/Parallel.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "float_vec.h"
#include "gemm.h"
#include "integers.h"
#include "workspace.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {
namespace {

// Rows of the weight that are worked on at a time: of the product's c, 30 KB; of a panel of the weight, as much. A
// multiple of the rows that gemm() takes together, and of 2, 3, 4 and 5 pieces.
constexpr int64_t kWeightRows = 120;

int64_t units_of_block(const MaxoutShape& s) { return std::max<int64_t>(1, kWeightRows / s.pieces); }

// Equal shares of a range.
struct Shares {
  int64_t size, count;
  int64_t begin(int64_t i) const { return size * i / count; }
  int64_t length(int64_t i) const { return begin(i + 1) - begin(i); }
};

// Shares of at most `most`, none of them empty; as many for each thread, where that does not leave less than half of it.
Shares share(int64_t size, int64_t most) {
  const int64_t least = ceil_div(size, most), threads = at::get_num_threads();
  const int64_t even = ceil_div(least, threads) * threads;
  return {size, size / even >= std::max<int64_t>(1, most / 2) ? even : least};
}

// Calls of f(begin, end) on the threads, on one where all is done before another would have begun.
template <typename F>
void run_parallel(int64_t count, double flop, F f) {
  constexpr double kFlopOfTask = 5e5;
  at::parallel_for(0, count, std::max<int64_t>(1, static_cast<int64_t>(count * std::min(1.0, kFlopOfTask / flop))), f);
}

float* floats(int64_t count, int slot) { return static_cast<float*>(workspace(count * sizeof(float), slot)); }

// Slots of workspace(): what all threads read, and each thread's own.
enum Slot { kShared, kOwn, kOwnResults };

// ---------------------------------------------------------------- forward

// The input transposed, in panels of kGemmPanel rows: [panel][in][width].
struct TransposedInput {
  const float* data;
  int64_t rows, in;

  int64_t panels() const { return ceil_div(rows, kGemmPanel); }
  int64_t rows_of(int64_t panel) const { return std::min(kGemmPanel, rows - panel * kGemmPanel); }
  int64_t width_of(int64_t panel) const { return ceil_div(rows_of(panel), kGemmWidth) * kGemmWidth; }
  const float* of(int64_t panel) const { return data + panel * kGemmPanel * in; }
};

void transpose_panel(const TransposedInput& t, const float* input, int64_t panel, float* to) {
  constexpr int64_t kSide = 16;
  static_assert(kGemmWidth % kSide == 0);
  const int64_t rows = t.rows_of(panel), width = t.width_of(panel);
  const float* from = input + panel * kGemmPanel * t.in;
  for (int64_t i = 0; i < width; i += kSide) {
    const int64_t m = std::clamp<int64_t>(rows - i, 0, kSide);
    for (int64_t l = 0; l < t.in; l += kSide) {
      const int64_t n = std::min(kSide, t.in - l);
      at::vec::transpose_mxn<float>(from + i * t.in + l, t.in, to + l * width + i, width, static_cast<int>(m),
                                    static_cast<int>(n));
      for (int64_t k = l; m < kSide && k < l + n; ++k)
        std::fill(to + k * width + i + m, to + k * width + i + kSide, 0.0f);
    }
  }
}

// c = a * b over all of `in`, by parts: a sum of sums has a fraction of the rounding error of one long one.
void multiply(GemmPanel product, int64_t in, const float* a, const float* b, float* scratch) {
  constexpr int64_t kMostTerms = 512;
  const Shares parts{in, ceil_div(in, kMostTerms)};
  float* const sums = product.c;
  product.ahead.bytes /= parts.count;
  for (int64_t part = 0; part < parts.count; ++part) {
    product.k = parts.length(part);
    product.a = a + parts.begin(part);
    product.b = b + parts.begin(part) * product.n;
    product.c = part == 0 ? sums : scratch;
    gemm(product);
    product.ahead.at = static_cast<const char*>(product.ahead.at) + product.ahead.bytes;
    for (int64_t i = 0; part > 0 && i < product.m * kGemmPanel; i += kGemmPanel) {
      for (int64_t j = 0; j < product.n; ++j) sums[i + j] += scratch[i + j];
    }
  }
}

// The largest of `pieces` rows of c, and which it was.
void take_largest(const float* c, int64_t pieces, int64_t width, const float* bias, float* __restrict best,
                  int32_t* __restrict index) {
  for (int64_t j = 0; j < width; ++j) {
    best[j] = c[j] + (bias ? bias[0] : 0);
    index[j] = 0;
  }
  for (int32_t p = 1; p < pieces; ++p) {
    const float* row = c + p * kGemmPanel;
    const float b = bias ? bias[p] : 0;
    for (int64_t j = 0; j < width; ++j) {
      const float value = row[j] + b;
      const bool take = !(value <= best[j]) & (best[j] == best[j]);  // a NaN is taken, and stays
      best[j] = take ? value : best[j];
      index[j] = take ? p : index[j];
    }
  }
}

void forward(const MaxoutShape& s, const float* input, const float* weight, const float* bias, float* output,
             uint8_t* winner) {
  float* const packed = floats(ceil_div(s.rows, kGemmWidth) * kGemmWidth * s.in, kShared);
  const TransposedInput transposed{packed, s.rows, s.in};
  const int64_t panels = transposed.panels();
  run_parallel(panels, 16.0 * s.rows * s.in, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      transpose_panel(transposed, input, panel, packed + panel * kGemmPanel * s.in);
    }
  });

  const Shares blocks = share(s.out, units_of_block(s));
  const int64_t most_units = ceil_div(s.out, blocks.count);
  // block after block, so that a block's weights stay in L2 for all panels
  run_parallel(blocks.count * panels, 2.0 * s.rows * s.in * s.out * s.pieces, [&](int64_t begin, int64_t end) {
    float* const c = floats(2 * most_units * s.pieces * kGemmPanel, kOwn);
    float* const best = floats(2 * most_units * kGemmPanel, kOwnResults);
    int32_t* const index = reinterpret_cast<int32_t*>(best + most_units * kGemmPanel);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / panels, panel = task % panels, width = transposed.width_of(panel);
      const int64_t first = blocks.begin(block), units = blocks.length(block);
      const float* of_block = weight + first * s.pieces * s.in;
      GemmPanel product{units * s.pieces, width, 0, nullptr, s.in, 1, nullptr, c, false};
      if (panel + 1 < panels) {
        product.ahead = {transposed.of(panel + 1), transposed.width_of(panel + 1) * s.in * int64_t{sizeof(float)}};
      } else if (block + 1 < blocks.count) {
        product.ahead = {of_block + units * s.pieces * s.in,
                         blocks.length(block + 1) * s.pieces * s.in * int64_t{sizeof(float)}};
      }
      multiply(product, s.in, of_block, transposed.of(panel), c + most_units * s.pieces * kGemmPanel);
      for (int64_t o = 0; o < units; ++o) {
        take_largest(c + o * s.pieces * kGemmPanel, s.pieces, width, bias ? bias + (first + o) * s.pieces : nullptr,
                     best + o * kGemmPanel, index + o * kGemmPanel);
      }
      const int64_t rows = transposed.rows_of(panel), at = panel * kGemmPanel * s.out + first;
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t o = 0; o < units; ++o) output[at + i * s.out + o] = best[o * kGemmPanel + i];
      }
      for (int64_t i = 0; winner && i < rows; ++i) {
        for (int64_t o = 0; o < units; ++o)
          winner[at + i * s.out + o] = static_cast<uint8_t>(index[o * kGemmPanel + i]);
      }
    }
  });
}

// ---------------------------------------------------------------- backward

// Columns of a panel: as many as eight registers hold twice or once. Rows of a packed panel are this far apart,
// whatever the panel's width.
constexpr int64_t kPanel = kLanes == 16 ? 64 : 8 * kLanes;
constexpr int kMostVectors = kPanel / kLanes;

// A panel of `columns` columns from `first` on. The last vector may reach beyond: packed rows end in zeros there.
struct Panel {
  int64_t first, columns;
  int vectors() const { return static_cast<int>(ceil_div(columns, kLanes)); }
};

class Panels {
 public:
  explicit Panels(int64_t in) : in_(in), vectors_(share(ceil_div(in, kLanes), kMostVectors)) {}
  int64_t count() const { return vectors_.count; }
  Panel operator[](int64_t i) const {
    const int64_t first = vectors_.begin(i) * kLanes;
    return {first, std::min(vectors_.length(i) * kLanes, in_ - first)};
  }

 private:
  int64_t in_;
  Shares vectors_;
};

// The panel's columns of `rows` rows of a matrix, kPanel apart.
void pack_rows(const float* matrix, int64_t rows, int64_t row_length, const Panel& panel, float* to) {
  const int64_t width = panel.vectors() * kLanes;
  for (int64_t i = 0; i < rows; ++i) {
    const float* from = matrix + i * row_length + panel.first;
    float* const row = to + i * kPanel;
    if (width == panel.columns) {
      for (int64_t j = 0; j < width; j += kLanes) store(row + j, load(from + j));
    } else {
      std::copy_n(from, panel.columns, row);
      std::fill(row + panel.columns, row + width, 0.0f);
    }
  }
}

// sums[k][0 .. N vectors) (+)= the winners' rows of `units` units, of which `packed` holds all pieces, for R rows k of
// the gradient: three of them keep enough multiply-adds under way and share the loop.
template <int N, int R>
VEC_INLINE void add_winners(const MaxoutShape& s, int64_t units, const float* grad, const uint8_t* winner,
                            const float* packed, float* sums, bool accumulate) {
  V set[R][N];
#pragma GCC unroll 3
  for (int k = 0; k < R; ++k) {
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) set[k][j] = broadcast(0.0f);
  }
  for (int64_t o = 0; o < units; ++o) {
    const float* const unit = packed + o * s.pieces * kPanel;
#pragma GCC unroll 3
    for (int k = 0; k < R; ++k) {
      const V f = broadcast(grad[k * s.out + o]);
      const float* row = unit + winner[k * s.out + o] * kPanel;
      asm("" : "+r"(row));  // an address of one register: of two, a multiply-add from memory is two operations
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) set[k][j] = multiply_add(f, load(row + j * kLanes), set[k][j]);
    }
  }
#pragma GCC unroll 3
  for (int k = 0; k < R; ++k) {
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) {
      float* const to = sums + k * kPanel + j * kLanes;
      store(to, accumulate ? load(to) + set[k][j] : set[k][j]);
    }
  }
}

// Calls f with the number as a constant.
template <int N = kMostVectors, typename F>
void with_vectors(int vectors, F f) {
  if constexpr (N > 0) {
    if (vectors == N) return f(std::integral_constant<int, N>());
    with_vectors<N - 1>(vectors, f);
  }
}

// A panel of the weight at a time; of it the rows of a block of units lie in L1 while all rows of the gradient pass by.
void grad_input(const MaxoutShape& s, const float* grad, const uint8_t* winner, const float* weight,
                float* grad_input) {
  constexpr int64_t kRows = 2048;  // whose sums, of a panel, stay in L2
  const Panels panels(s.in);
  const Shares blocks = share(s.out, units_of_block(s));
  const int64_t of_unit = s.pieces * kPanel;
  run_parallel(panels.count(), 2.0 * s.rows * s.in * s.out, [&](int64_t begin, int64_t end) {
    float* const packed = floats(ceil_div(s.out, blocks.count) * of_unit, kOwn);
    float* const sums = floats(std::min(s.rows, kRows) * kPanel, kOwnResults);
    for (int64_t p = begin; p < end; ++p) {
      const Panel panel = panels[p];
      for (int64_t row = 0; row < s.rows; row += kRows) {
        const int64_t rows = std::min(kRows, s.rows - row);
        for (int64_t block = 0; block < blocks.count; ++block) {
          const int64_t first = blocks.begin(block), units = blocks.length(block);
          pack_rows(weight + first * s.pieces * s.in, units * s.pieces, s.in, panel, packed);
          with_vectors(panel.vectors(), [&]<int N>(std::integral_constant<int, N>) {
            constexpr int kTogether = 3 * N <= 12 ? 3 : 1;
            int64_t i = 0;
            const auto take = [&]<int R>(std::integral_constant<int, R>) {
              for (; i + R <= rows; i += R) {
                const int64_t at = (row + i) * s.out + first;
                add_winners<N, R>(s, units, grad + at, winner + at, packed, sums + i * kPanel, block > 0);
              }
            };
            take(std::integral_constant<int, kTogether>());
            take(std::integral_constant<int, 1>());
          });
        }
        for (int64_t i = 0; i < rows; ++i) {
          std::copy_n(sums + i * kPanel, panel.columns, grad_input + (row + i) * s.in + panel.first);
        }
      }
    }
  });
}

// A row of the input and its gradient.
struct Won {
  uint32_t offset;  // in a packed chunk
  float grad;
};

constexpr int64_t kChunk = 32768 / sizeof(float) / kPanel;  // rows of the input, 32 KB of a panel
// From list to list: room for a whole chunk, and a line, or all would begin in the same few sets of L1.
constexpr int64_t kList = kChunk + 64 / sizeof(Won);

// sums[0 .. N vectors) (+)= the listed rows of a packed chunk, each times its gradient.
template <int N>
VEC_INLINE void add_rows(const Won* list, int64_t count, const float* chunk, float* sums, bool accumulate) {
  constexpr int kSets = 2 * N <= 8 ? 2 : 1;  // eight multiply-adds are under way at a time
  V set[kSets][N];
#pragma GCC unroll 2
  for (int k = 0; k < kSets; ++k) {
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) set[k][j] = broadcast(0.0f);
  }
  const auto add = [&](const Won& won, V(&to)[N]) {
    const V f = broadcast(won.grad);
    const float* row = chunk + won.offset;
    asm("" : "+r"(row));
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) to[j] = multiply_add(f, load(row + j * kLanes), to[j]);
  };
  int64_t i = 0;
  for (; i + kSets <= count; i += kSets) {
#pragma GCC unroll 2
    for (int k = 0; k < kSets; ++k) add(list[i + k], set[k]);
  }
  if (i < count) add(list[i], set[0]);
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j) {
    V sum = kSets == 2 ? set[0][j] + set[kSets - 1][j] : set[0][j];
    if (accumulate) sum = load(sums + j * kLanes) + sum;
    store(sums + j * kLanes, sum);
  }
}

// Who won which rows of a chunk: a list for each piece of the units.
struct Winners {
  Won* lists;
  uint16_t* lengths;
};

void list_winners(const MaxoutShape& s, const float* grad, const uint8_t* winner, int64_t rows, int64_t units,
                  const Winners& to, double* grad_bias) {
  std::fill_n(to.lengths, units * s.pieces, 0);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t o = 0; o < units; ++o) {
      const int64_t piece = o * s.pieces + winner[i * s.out + o];
      const float g = grad[i * s.out + o];
      to.lists[piece * kList + to.lengths[piece]++] = {static_cast<uint32_t>(i * kPanel), g};
      grad_bias[piece] += g;
    }
  }
}

// A block of units at a time: lists of the rows that each piece won, and for each panel of the input the sums of those
// rows.
void grad_weight(const MaxoutShape& s, const float* grad, const uint8_t* winner, const float* input, float* grad_weight,
                 float* grad_bias) {
  const Panels panels(s.in);
  const int64_t chunks = ceil_div(s.rows, kChunk);
  float* const packed = floats(grad_weight ? panels.count() * s.rows * kPanel : 0, kShared);
  if (grad_weight) {
    run_parallel(panels.count(), 8.0 * s.rows * s.in, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) pack_rows(input, s.rows, s.in, panels[p], packed + p * s.rows * kPanel);
    });
  }
  const Shares blocks = share(s.out, units_of_block(s));
  run_parallel(blocks.count, 2.0 * s.rows * s.in * s.out, [&](int64_t begin, int64_t end) {
    const int64_t most_pieces = ceil_div(s.out, blocks.count) * s.pieces;
    const Winners winners{static_cast<Won*>(workspace(chunks * most_pieces * kList * sizeof(Won), kOwn)),
                          static_cast<uint16_t*>(workspace(chunks * most_pieces * sizeof(uint16_t), kOwnResults))};
    const auto of_chunk = [&](int64_t chunk) {
      return Winners{winners.lists + chunk * most_pieces * kList, winners.lengths + chunk * most_pieces};
    };
    std::vector<double> of_bias(most_pieces);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = blocks.begin(block), units = blocks.length(block);
      std::fill(of_bias.begin(), of_bias.end(), 0.0);
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const int64_t row = chunk * kChunk, at = row * s.out + first;
        list_winners(s, grad + at, winner + at, std::min(kChunk, s.rows - row), units, of_chunk(chunk), of_bias.data());
      }
      if (grad_bias) std::copy_n(of_bias.begin(), units * s.pieces, grad_bias + first * s.pieces);
      for (int64_t p = 0; grad_weight && p < panels.count(); ++p) {
        const Panel panel = panels[p];
        const bool whole = panel.columns % kLanes == 0;
        with_vectors(panel.vectors(), [&]<int N>(std::integral_constant<int, N>) {
          for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            const float* const rows = packed + (p * s.rows + chunk * kChunk) * kPanel;
            const Winners won = of_chunk(chunk);
            for (int64_t piece = 0; piece < units * s.pieces; ++piece) {
              float* const to = grad_weight + (first * s.pieces + piece) * s.in + panel.first;
              const Won* const list = won.lists + piece * kList;
              if (whole) {
                add_rows<N>(list, won.lengths[piece], rows, to, chunk > 0);
              } else {
                float sums[kPanel];
                add_rows<N>(list, won.lengths[piece], rows, sums, false);
                for (int64_t j = 0; j < panel.columns; ++j) to[j] = chunk > 0 ? to[j] + sums[j] : sums[j];
              }
            }
          }
        });
      }
    }
  });
}

}  // namespace

extern const MaxoutKernels maxout_linear{forward, grad_input, grad_weight};

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
