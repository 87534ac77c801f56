// Parzen windows: a blocked product whose sums go into log-sum-exps while they lie in cache. Compiled once per CPU
// capability (see capability.h).
#include "parzen.h"

#include <ATen/Parallel.h>
#include <ATen/cpu/vec/functional.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "gemm.h"
#include "integers.h"
#include "tasks.h"
#include "vec.h"
#include "workspace.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {
namespace {

// What is packed at once of the samples, to be met by all rows: with 784 features some 5,000. They are read once a block of
// rows, 2 GB/s a thread, so L3 need not hold them. A row is centred anew for each such part.
constexpr int64_t kPackedBytes = 16 << 20;
// Rows that meet a panel of 64 samples: with 784 features 800 KB, beside the panel, sums and windows in L2.
constexpr int64_t kBlockRows = 42 * kGemmRows;
// A term of exp(-40) of the largest one: 10^9 of them change the sum's logarithm by 4e-9.
constexpr float kNothing = -40;
// Half the square of a row's distance from the centre; beyond it float32 overflows.
constexpr double kMostSquare = 1e37;

using V = Vec<float>;
constexpr int64_t kLanes = lanes<float>;
static_assert(kGemmPanel % kLanes == 0);
constexpr int64_t kVectors = kGemmPanel / kLanes;

// Rows of samples that are read side by side; also the sums that a square is gathered in, for the compiler's vectors.
constexpr int64_t kTogether = 8;

// A row less the centre; returns half its square.
double centred(const float* row, const float* centre, int64_t features, float* out) {
  double squares[kTogether] = {};
  int64_t f = 0;
  for (; f + kTogether <= features; f += kTogether) {
    for (int64_t i = 0; i < kTogether; ++i) {
      const float value = row[f + i] - centre[f + i];
      out[f + i] = value;
      squares[i] += static_cast<double>(value) * value;
    }
  }
  for (; f < features; ++f) {
    out[f] = row[f] - centre[f];
    squares[0] += static_cast<double>(out[f]) * out[f];
  }
  return std::accumulate(squares, squares + kTogether, 0.0) / 2;
}

// 64 samples as gemm reads them, and half their squares; infinite ones where there are no more samples, whose terms are
// 0.
bool pack(const ParzenWindows& args, int64_t first, float* panel, float* half_squares) {
  bool fine = true;
  for (int64_t j = 0; j < kGemmPanel; j += kTogether) {
    const float* rows[kTogether];
    for (int64_t i = 0; i < kTogether; ++i) {
      rows[i] = first + j + i < args.count ? args.samples + (first + j + i) * args.features : args.centre;
    }
    double squares[kTogether] = {};
    for (int64_t f = 0; f < args.features; ++f) {
      for (int64_t i = 0; i < kTogether; ++i) {
        const float value = rows[i][f] - args.centre[f];
        panel[f * kGemmPanel + j + i] = value;
        squares[i] += static_cast<double>(value) * value;
      }
    }
    for (int64_t i = 0; i < kTogether; ++i) {
      fine &= squares[i] / 2 <= kMostSquare;
      const bool is_sample = first + j + i < args.count;
      half_squares[j + i] = is_sample ? static_cast<float>(squares[i] / 2) : std::numeric_limits<float>::infinity();
    }
  }
  return fine;
}

VEC_INLINE float largest_of(const V* exponents) {
  using H = V::Half;
  H highest = at::vec::maximum(exponents[0].lo, exponents[0].hi);
  for (int64_t j = 1; j < kVectors; ++j) {
    highest = at::vec::maximum(highest, at::vec::maximum(exponents[j].lo, exponents[j].hi));
  }
  return at::vec::vec_reduce_all<float>([](H& a, H& b) { return at::vec::maximum(a, b); }, highest);
}

// What is known of a block of rows: the largest exponent so far (in units of 1 / sigma^2, so the same pair for every
// sigma), and by lanes the sums of exp((exponent - largest) / sigma^2).
struct Windows {
  float* largest;  // [rows]
  float* sums;     // [rows, sigmas, kLanes]
  const float* inverse_variance;
  int64_t sigmas;

  // `products`: a row's products with 64 samples; `squares`: half the samples' squares.
  VEC_INLINE void add(int64_t row, const float* products, const float* squares) const {
    V exponents[kVectors];
    for (int64_t j = 0; j < kVectors; ++j) {
      exponents[j] = load_acc<float>(products + j * kLanes) - load_acc<float>(squares + j * kLanes);
    }
    const float highest = largest_of(exponents);
    float* const sums_of_row = sums + row * sigmas * kLanes;
    if (highest > largest[row]) {
      for (int64_t s = 0; s < sigmas; ++s) {
        const V factor(std::exp((largest[row] - highest) * inverse_variance[s]));
        store_acc<float>(sums_of_row + s * kLanes, load_acc<float>(sums_of_row + s * kLanes) * factor);
      }
      largest[row] = highest;
    }
    const V most(largest[row]);
    for (int64_t s = 0; s < sigmas; ++s) {
      if ((highest - largest[row]) * inverse_variance[s] < kNothing) continue;
      const V factor(inverse_variance[s]);
      V sum = load_acc<float>(sums_of_row + s * kLanes);
      for (int64_t j = 0; j < kVectors; ++j) {
        const V exponent = (exponents[j] - most) * factor;
        sum = sum + V{exponent.lo.exp_u20(), exponent.hi.exp_u20()};
      }
      store_acc<float>(sums_of_row + s * kLanes, sum);
    }
  }
};

struct Packed {
  const float* panels;   // [panels][features][64]
  const float* squares;  // [panels][64]
  int64_t count;         // of panels
};

template <typename T>
T* scratch(int64_t elements, int slot) {
  return static_cast<T*>(workspace(std::max<int64_t>(1, elements) * sizeof(T), slot));
}

// Rows [begin, end), at most kBlockRows, meet the packed samples.
bool meet(const ParzenWindows& args, const float* inverse_variance, const Packed& samples, int64_t begin, int64_t end,
          float* largest, double* half_squares) {
  const int64_t rows = end - begin, features = args.features;
  float* const x = scratch<float>(kBlockRows * features, 1);
  float* const products = scratch<float>(kBlockRows * kGemmPanel, 2);
  float* const sums = scratch<float>(kBlockRows * args.sigmas * kLanes, 3);
  std::vector<float> before(largest + begin, largest + end);
  std::fill_n(sums, rows * args.sigmas * kLanes, 0.0f);
  bool fine = true;
  for (int64_t i = 0; i < rows; ++i) {
    half_squares[begin + i] = centred(args.data + (begin + i) * features, args.centre, features, x + i * features);
    fine &= half_squares[begin + i] <= kMostSquare;
  }
  if (!fine) return false;
  const Windows windows{largest + begin, sums, inverse_variance, args.sigmas};
  const int64_t panel_size = features * kGemmPanel;
  for (int64_t p = 0; p < samples.count; ++p) {
    const float* const panel = samples.panels + p * panel_size;
    const Ahead ahead =
        p + 1 < samples.count ? Ahead{panel + panel_size, panel_size * int64_t{sizeof(float)}} : Ahead{};
    gemm({rows, kGemmPanel, features, x, features, 1, panel, products, false, ahead});
    for (int64_t i = 0; i < rows; ++i) windows.add(i, products + i * kGemmPanel, samples.squares + p * kGemmPanel);
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t s = 0; s < args.sigmas; ++s) {
      double& total = args.log_sums[s * args.rows + begin + i];  // the sum, until all samples were met
      const double shrunk =
          total == 0 ? 0 : total * std::exp((double{before[i]} - windows.largest[i]) * args.inverse_variance[s]);
      total = shrunk + sum(load_acc<float>(sums + (i * args.sigmas + s) * kLanes));
    }
  }
  return true;
}

ParzenInput log_sums(const ParzenWindows& args) {
  std::fill_n(args.log_sums, args.sigmas * args.rows, 0.0);
  std::vector<float> inverse_variance(args.inverse_variance, args.inverse_variance + args.sigmas);
  std::vector<float> largest(args.rows, -std::numeric_limits<float>::infinity());
  std::vector<double> half_squares(args.rows);
  const int64_t panel_size = args.features * kGemmPanel;
  const int64_t panels_at_once =
      std::max<int64_t>(1, kPackedBytes / std::max<int64_t>(1, panel_size * int64_t{sizeof(float)}));
  const int64_t most_panels = std::min(panels_at_once, ceil_div(args.count, kGemmPanel)),
                most_samples = most_panels * kGemmPanel;
  float* const panels = scratch<float>(most_panels * panel_size, 4);
  std::vector<float> squares(most_panels * kGemmPanel);
  // Few rows: a block for each thread.
  const int64_t of_thread = round_up(ceil_div(args.rows, at::get_num_threads()), kGemmRows);
  const int64_t block = std::clamp(of_thread, kGemmRows, kBlockRows);
  std::atomic<bool> bad_samples{false}, bad_data{false};
  for (int64_t first = 0; first < args.count && !bad_data; first += most_samples) {
    const Packed packed{panels, squares.data(), ceil_div(std::min(most_samples, args.count - first), kGemmPanel)};
    at::parallel_for(0, packed.count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        if (!pack(args, first + p * kGemmPanel, panels + p * panel_size, squares.data() + p * kGemmPanel))
          bad_samples = true;
      }
    });
    if (bad_samples) return ParzenInput::bad_samples;
    for_tasks(ceil_div(args.rows, block), [&](auto take) {
      for (int64_t b; take(b);) {
        const int64_t last = std::min(args.rows, (b + 1) * block);
        if (!meet(args, inverse_variance.data(), packed, b * block, last, largest.data(), half_squares.data()))
          bad_data = true;
      }
    });
  }
  if (bad_data) return ParzenInput::bad_data;
  at::parallel_for(0, args.rows, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t s = 0; s < args.sigmas; ++s) {
      for (int64_t i = begin; i < end; ++i) {
        double& result = args.log_sums[s * args.rows + i];
        result = std::log(result) + (largest[i] - half_squares[i]) * args.inverse_variance[s];
      }
    }
  });
  return ParzenInput::fine;
}

}  // namespace

extern const ParzenKernels parzen{log_sums};

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
