// Biases of patterns of rows and columns + activation, forward and backward, on the CPU. Compiled once per CPU
// capability (see capability.h).
//
// A map is taken in lines: the W * C values of a row (channels_last), the W values of a row of one channel
// (contiguous). The biases of an image are spread over one line for each pattern of rows, which then serves all rows of
// that pattern from the cache: spreading costs the part of the pass that the patterns are of the rows, a fifth where
// maps are 14x14. The images are shared among the threads; a batch of one runs on one, in a small part of the time that
// its convolution takes.
#include "plane_bias_act.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "activations.h"
#include "vec_loops.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {
namespace {

// Elements that a task should have at least: waking a thread takes as long as some thousands of them.
constexpr int64_t kGrain = 1 << 15;

// Lines of so many vectors are walked one by one; shorter ones, whose last vector would be filled in part, all in one.
constexpr int64_t kLongLine = 4;

// What is taken as one image: all channels of it, or one.
struct Lines {
  const PlaneMaps& maps;
  int64_t images, inner, length, size, biases;

  explicit Lines(const PlaneMaps& m)
      : maps(m),
        images(m.channels_last ? m.batch : m.batch * m.channels),
        inner(m.channels_last ? m.channels : 1),
        length(m.width * inner),
        size(m.height * length),
        biases(m.row_patterns * m.column_patterns * inner) {}

  template <typename T>
  bool are_long() const {
    return length >= kLongLine * lanes<T>;
  }

  template <typename F>
  void for_images(F&& f) const {
    at::parallel_for(0, images, std::max<int64_t>(1, kGrain / std::max<int64_t>(size, 1)), f);
  }

  // spread[r * length + w * inner + c] = bias[r, columns[w], c] for the biases [R, S, inner] of an image
  template <typename A>
  void spread(const A* bias, A* out) const {
    for (int64_t r = 0; r < maps.row_patterns; ++r) {
      const A* const of_row = bias + r * maps.column_patterns * inner;
      for (int64_t w = 0; w < maps.width; ++w) out = std::copy_n(of_row + maps.columns[w] * inner, inner, out);
    }
  }
};

// grad * activation', from the activation's result
template <typename T, Activation A>
VEC_INLINE Vec<T> grad_of_result(Act<A>, const Vec<T>& grad, const Vec<T>& y, [[maybe_unused]] const Vec<T>& slope) {
  const Vec<T> one(Acc<T>(1));
  if constexpr (A == Activation::relu) return zero_where_not_positive(y, grad);
  if constexpr (A == Activation::leaky_relu) return where_positive(y, grad, grad * slope);
  if constexpr (A == Activation::tanh) return grad * (one - y * y);
  if constexpr (A == Activation::sigmoid) return grad * y * (one - y);
  return grad;
}

template <typename T, typename A>
void run_forward(const PlaneMaps& m, const PlaneBiasActForward& args, A act) {
  const Lines lines(m);
  const auto* const input = static_cast<const T*>(args.input);
  const auto* const bias = static_cast<const Acc<T>*>(args.bias);
  auto* const output = static_cast<T*>(args.output);
  const Vec<T> slope(static_cast<Acc<T>>(args.negative_slope));
  const bool whole = !lines.are_long<T>();
  const auto add = [&](const T* x, const Acc<T>* b, T* y, int64_t n) {
    for_vectors<T>(n, [&](int64_t i, auto count) {
      store_vec(y + i, activate(act, load_vec(x + i, count) + load_acc<T>(b + i, count), slope), count);
    });
  };
  lines.for_images([&](int64_t begin, int64_t end) {
    std::vector<Acc<T>> spread(m.row_patterns * lines.length), plane(whole ? lines.size : 0);
    for (int64_t n = begin; n < end; ++n) {
      const T* const x = input + n * lines.size;
      T* const y = output + n * lines.size;
      lines.spread(bias + n * lines.biases, spread.data());
      for (int64_t h = 0; h < m.height; ++h) {
        const Acc<T>* const b = spread.data() + m.rows[h] * lines.length;
        if (whole) {
          std::copy_n(b, lines.length, plane.data() + h * lines.length);
        } else {
          add(x + h * lines.length, b, y + h * lines.length, lines.length);
        }
      }
      if (whole) add(x, plane.data(), y, lines.size);
    }
  });
}

template <typename T, typename A>
void run_backward(const PlaneMaps& m, const PlaneBiasActBackward& args, A act) {
  const Lines lines(m);
  const auto *const grad = static_cast<const T*>(args.grad), *const output = static_cast<const T*>(args.output);
  auto* const grad_input = static_cast<T*>(args.grad_input);
  auto* const grad_bias = static_cast<Acc<T>*>(args.grad_bias);
  const Vec<T> slope(static_cast<Acc<T>>(args.negative_slope));
  const bool whole = !lines.are_long<T>();
  const int64_t rows = m.row_patterns * lines.length;
  // Calls f(i, gradient, count) for the vectors of n elements from `at`, having stored the gradient.
  const auto walk = [&](int64_t at, int64_t n, auto&& f) {
    for_vectors<T>(n, [&](int64_t i, auto count) {
      const Vec<T> g = load_vec(grad + at + i, count);
      const Vec<T> dz = grad_of_result(act, g, load_vec(output + at + i, count), slope);
      if (grad_input) store_vec(grad_input + at + i, dz, count);
      f(i, dz, count);
    });
  };
  lines.for_images([&](int64_t begin, int64_t end) {
    // long lines: sums of the rows of each pattern, and what rounding left out of them; else the gradient of an image
    std::vector<Acc<T>> sums(whole ? lines.size : rows), errors(whole ? 0 : rows);
    std::vector<double> totals(lines.biases);
    for (int64_t n = begin; n < end; ++n) {
      if (whole) {
        walk(n * lines.size, lines.size,
             [&](int64_t i, const Vec<T>& dz, auto count) { store_acc<T>(sums.data() + i, dz, count); });
      } else {
        std::fill(sums.begin(), sums.end(), Acc<T>(0));
        std::fill(errors.begin(), errors.end(), Acc<T>(0));
        for (int64_t h = 0; h < m.height; ++h) {
          const int64_t at = m.rows[h] * lines.length;
          walk(n * lines.size + h * lines.length, lines.length, [&](int64_t i, const Vec<T>& dz, auto count) {
            add_compensated<T>(sums.data() + at + i, errors.data() + at + i, dz, count);
          });
        }
      }
      if (!grad_bias) continue;
      std::fill(totals.begin(), totals.end(), 0.0);
      for (int64_t line = 0; line < (whole ? m.height : m.row_patterns); ++line) {
        double* const of_row = totals.data() + (whole ? m.rows[line] : line) * m.column_patterns * lines.inner;
        for (int64_t w = 0; w < m.width; ++w) {
          const int64_t i = line * lines.length + w * lines.inner;
          double* const total = of_row + m.columns[w] * lines.inner;
          for (int64_t c = 0; c < lines.inner; ++c) {
            total[c] += whole ? double{sums[i + c]} : double{sums[i + c]} - double{errors[i + c]};
          }
        }
      }
      std::transform(totals.begin(), totals.end(), grad_bias + n * lines.biases,
                     [](double total) { return static_cast<Acc<T>>(total); });
    }
  });
}

template <typename F>
void dispatch(const PlaneMaps& m, Activation activation, F&& f) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, m.dtype, "plane_bias_act",
                                  [&] { dispatch_activation(activation, [&](auto act) { f(scalar_t(), act); }); });
}

void forward(const PlaneMaps& m, const PlaneBiasActForward& args) {
  dispatch(m, args.activation, [&](auto t, auto act) { run_forward<decltype(t)>(m, args, act); });
}

void backward(const PlaneMaps& m, const PlaneBiasActBackward& args) {
  dispatch(m, args.activation, [&](auto t, auto act) { run_backward<decltype(t)>(m, args, act); });
}

}  // namespace

extern const PlaneBiasActKernels plane_bias_act{forward, backward};

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
