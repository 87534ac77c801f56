// Batch normalisation + activation, forward and backward, on the CPU.
//
// Compiled once per CPU capability (see capability.h). Maps are cut into chunks by shape alone, never by the number of
// threads, and partial results are combined in chunk order: the same bits on every run and thread count.
//
// channels_last maps are taken in chunks of rows (very wide rows: of panels of rows), all for the statistics, then all for
// the result; contiguous maps channel by channel. (Panels of neighbouring channels small enough to stay in L2 between the
// passes read memory once instead of twice, and were slower on the convolutions' maps that they fit: a row is then read in
// short, far-apart pieces.)
#include "bn_act.h"

#include <ATen/Dispatch.h>

#include <cmath>

#include "bn_maps.h"
#include "moments.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {
namespace {

// ---------------------------------------------------------------- moments

template <typename T>
void finish_statistics(const Moments& moments, Acc<T>* mean, Acc<T>* var) {
  *mean = static_cast<Acc<T>>(moments.mean);
  *var = static_cast<Acc<T>>(moments.m2 / moments.n);
}

template <typename T>
void finish_scale(const BnActForward& args, Parameters<T>& p, int64_t gc, int64_t c) {
  const auto eps = static_cast<Acc<T>>(args.eps);
  const Acc<T> var = static_cast<const Acc<T>*>(args.var)[gc];
  p.rstd[gc] = args.training && var == 0 && eps == 0 ? Acc<T>(0) : 1 / std::sqrt(var + eps);
  p.scale[gc] = p.weight[c] * p.rstd[gc];
}

// From the parameters' gradients, averaged over the values that the statistics are of, to the input's coefficients.
template <typename T>
void finish_coefficients(const BnActBackward& args, Parameters<T>& p, int64_t gc, double of_weight, double of_bias) {
  const double scale = p.scale[gc];
  p.slope_x[gc] = args.training ? static_cast<Acc<T>>(-scale * p.rstd[gc] * of_weight) : Acc<T>(0);
  p.offset[gc] = args.training ? static_cast<Acc<T>>(-scale * of_bias) : Acc<T>(0);
}

template <typename T>
void take_averages(const BnActBackward& args, Parameters<T>& p, int64_t gc) {
  finish_coefficients(args, p, gc, static_cast<const Acc<T>*>(args.grad_weight)[gc],
                      static_cast<const Acc<T>*>(args.grad_bias)[gc]);
}

// From the sums of dz and dz * (x - mean) over `n` values to the parameters' gradients and the input's coefficients.
template <typename T>
void finish_gradients(const BnActBackward& args, Parameters<T>& p, int64_t gc, double n, double dz, double dz_x) {
  const double of_weight = dz_x * p.rstd[gc];
  static_cast<Acc<T>*>(args.grad_weight)[gc] = static_cast<Acc<T>>(of_weight);
  static_cast<Acc<T>*>(args.grad_bias)[gc] = static_cast<Acc<T>>(dz);
  finish_coefficients(args, p, gc, of_weight / n, dz / n);
}

// ---------------------------------------------------------------- channels_last: rows of channels

// Three vectors of one value per channel, for each chunk, and a fourth to compute with.
template <typename T>
struct Partial {
  Acc<T>*a, *b, *c, *scratch;

  static int64_t size(const Rows& rows) { return 4 * rows.chunks * rows.width; }
  static Partial at(std::vector<Acc<T>>& storage, int64_t chunk, int64_t width) {
    Acc<T>* p = storage.data() + 4 * chunk * width;
    return {p, p + width, p + 2 * width, p + 3 * width};
  }
};

// a: a chunk's mean rounded to the accumulator's type; b: what the rounding left out; c: the squared deviations about a.
template <typename T>
void chunk_moments(const T* x, int64_t C, int64_t columns, int64_t begin, int64_t end, const Partial<T>& out) {
  using V = Vec<T>;
  const auto sum_rows = [&](auto&& term) {
    std::fill_n(out.c, columns, Acc<T>(0));
    std::fill_n(out.scratch, columns, Acc<T>(0));
    for_blocks<T>(begin, end, columns, [&](int64_t r, int64_t rows, int64_t c, auto count) {
      const T* p = x + r * C + c;
      const V shift = load_acc<T>(out.a + c, count);
      V total(Acc<T>(0));
      for (int64_t i = 0; i < rows; ++i) total = total + term(load_vec(p + i * C, count) - shift);
      add_compensated<T>(out.c + c, out.scratch + c, total, count);
    });
  };
  // Deviations from the first row are exact where mean/std is large: a plain sum would lose the mean's last digits.
  for_vectors<T>(columns,
                 [&](int64_t c, auto count) { store_acc<T>(out.a + c, load_vec(x + begin * C + c, count), count); });
  sum_rows([](const V& d) { return d; });
  for (int64_t c = 0; c < columns; ++c) {
    const double sum = static_cast<double>(out.c[c]) - static_cast<double>(out.scratch[c]);
    const double mean = static_cast<double>(out.a[c]) + sum / static_cast<double>(end - begin);
    out.a[c] = static_cast<Acc<T>>(mean);
    out.b[c] = static_cast<Acc<T>>(mean - out.a[c]);
  }
  sum_rows([](const V& d) { return d * d; });
}

// a: sum of dz over a chunk; b: sum of dz * (x - mean).
template <typename T, typename A>
void chunk_gradients(const T* g, const T* x, const Rows& all, int64_t chunk, A act, const Vec<T>& slope,
                     const Parameters<T>& p, const Partial<T>& out) {
  using V = Vec<T>;
  const int64_t C = all.channels, first = all.channel(chunk), columns = all.columns(chunk), group = all.group(chunk);
  for (Acc<T>* sums : {out.a, out.b, out.c, out.scratch}) std::fill_n(sums, columns, Acc<T>(0));
  for_blocks<T>(all.begin(chunk), all.end(chunk), columns, [&](int64_t r, int64_t rows, int64_t c, auto count) {
    const auto affine = Affine<T>::template at<true>(p, group * C + first + c, first + c, count);
    V dz_total(Acc<T>(0)), dz_x_total(Acc<T>(0));
    for (int64_t i = r * C + first + c, last = i + rows * C; i < last; i += C) {
      const V centred = load_vec(x + i, count) - affine.mean;
      const V dz = activate_grad(act, load_vec(g + i, count), affine.z(centred), slope);
      dz_total = dz_total + dz;
      dz_x_total = fmadd(dz, centred, dz_x_total);
    }
    add_compensated<T>(out.a + c, out.c + c, dz_total, count);
    add_compensated<T>(out.b + c, out.scratch + c, dz_x_total, count);
  });
}

template <typename T, typename A>
void forward_channels_last(const Maps& m, const BnActForward& args, A act) {
  const auto* x = static_cast<const T*>(args.input);
  auto* y = static_cast<T*>(args.output);
  auto* var = static_cast<Acc<T>*>(args.var);
  const int64_t C = m.channels;
  const Rows rows(m, sizeof(T));
  const Vec<T> slope(static_cast<Acc<T>>(args.negative_slope));
  Parameters<T> p(m, args);
  std::vector<Acc<T>> partial(args.measure ? Partial<T>::size(rows) : 0);

  const auto measure = [&](int64_t chunk) {
    chunk_moments(x + rows.channel(chunk), C, rows.columns(chunk), rows.begin(chunk), rows.end(chunk),
                  Partial<T>::at(partial, chunk, rows.width));
  };
  const auto finish = [&](int64_t begin, int64_t end) {
    for (int64_t group = 0; group < m.groups; ++group) {
      if (args.measure) {
        std::vector<Moments> moments(end - begin);
        rows.for_chunks_of(group, begin, [&](int64_t chunk) {
          const auto part = Partial<T>::at(partial, chunk, rows.width);
          const auto n = static_cast<double>(rows.end(chunk) - rows.begin(chunk));
          const int64_t at = begin - rows.channel(chunk);
          for (int64_t i = 0; i < end - begin; ++i) moments[i].add(n, part.a[at + i], part.b[at + i], part.c[at + i]);
        });
        for (int64_t c = begin; c < end; ++c)
          finish_statistics<T>(moments[c - begin], p.mean + group * C + c, var + group * C + c);
      }
      for (int64_t c = begin; y && c < end; ++c) finish_scale(args, p, group * C + c, c);
    }
  };
  const auto apply = [&](int64_t chunk) {
    const int64_t group = rows.group(chunk), first = rows.channel(chunk);
    for_blocks<T>(rows.begin(chunk), rows.end(chunk), rows.columns(chunk),
                  [&](int64_t r, int64_t n, int64_t column, auto count) {
                    const int64_t c = first + column;
                    const auto affine = Affine<T>::template at<true>(p, group * C + c, c, count);
                    for (int64_t i = r * C + c, last = i + n * C; i < last; i += C) {
                      store_vec(y + i, activate(act, affine.z(load_vec(x + i, count) - affine.mean), slope), count);
                    }
                  });
  };

  if (args.measure) rows.for_chunks(measure);
  rows.for_channels(finish);
  if (y) rows.for_chunks_backwards(apply);
}

template <typename T, typename A>
void backward_channels_last(const Maps& m, const BnActBackward& args, A act) {
  const auto *g = static_cast<const T*>(args.grad), *x = static_cast<const T*>(args.input);
  auto* dx = static_cast<T*>(args.grad_input);
  const int64_t C = m.channels;
  const Rows rows(m, sizeof(T));
  const Vec<T> slope(static_cast<Acc<T>>(args.negative_slope));
  Parameters<T> p(m, args);
  p.slope_x.resize(m.groups * C);
  p.offset.resize(m.groups * C);
  for (int64_t gc = 0; gc < m.groups * C; ++gc) p.scale[gc] = p.weight[gc % C] * p.rstd[gc];
  std::vector<Acc<T>> partial(args.averages ? 0 : Partial<T>::size(rows));

  const auto reduce = [&](int64_t chunk) {
    chunk_gradients(g, x, rows, chunk, act, slope, p, Partial<T>::at(partial, chunk, rows.width));
  };
  const auto finish = [&](int64_t begin, int64_t end) {
    std::vector<double> dz(end - begin), dz_x(end - begin);
    for (int64_t group = 0; group < m.groups; ++group) {
      if (args.averages) {
        for (int64_t c = begin; c < end; ++c) take_averages(args, p, group * C + c);
        continue;
      }
      std::fill(dz.begin(), dz.end(), 0);
      std::fill(dz_x.begin(), dz_x.end(), 0);
      rows.for_chunks_of(group, begin, [&](int64_t chunk) {
        const auto part = Partial<T>::at(partial, chunk, rows.width);
        const int64_t at = begin - rows.channel(chunk);
        for (int64_t i = 0; i < end - begin; ++i) {
          dz[i] += part.a[at + i];
          dz_x[i] += part.b[at + i];
        }
      });
      const auto n = static_cast<double>(rows.per_group);
      for (int64_t c = begin; c < end; ++c) finish_gradients(args, p, group * C + c, n, dz[c - begin], dz_x[c - begin]);
    }
  };
  const auto apply = [&](int64_t chunk) {
    const int64_t group = rows.group(chunk), first = rows.channel(chunk);
    for_blocks<T>(rows.begin(chunk), rows.end(chunk), rows.columns(chunk),
                  [&](int64_t r, int64_t n, int64_t column, auto count) {
                    const int64_t c = first + column, gc = group * C + c;
                    const auto affine = Affine<T>::template at<true>(p, gc, c, count);
                    const auto slope_x = parameter<T, true>(p.slope_x.data() + gc, count);
                    const auto offset = parameter<T, true>(p.offset.data() + gc, count);
                    for (int64_t i = r * C + c, last = i + n * C; i < last; i += C) {
                      const Vec<T> centred = load_vec(x + i, count) - affine.mean;
                      const Vec<T> dz = activate_grad(act, load_vec(g + i, count), affine.z(centred), slope);
                      store_vec(dx + i, fmadd(dz, affine.scale, fmadd(centred, slope_x, offset)), count);
                    }
                  });
  };

  if (!args.averages) rows.for_chunks(reduce);
  rows.for_channels(finish);
  if (dx) rows.for_chunks_backwards(apply);
}

// ---------------------------------------------------------------- contiguous: planes of one channel

template <typename T>
Moments plane_moments(const Maps& m, const T* x, int64_t group, int64_t c) {
  using V = Vec<T>;
  const int64_t S = m.spatial;
  Moments moments;
  for_planes(m, group, c, [&](int64_t plane) {
    const auto sum_plane = [&](Acc<T> shift, auto&& term) {
      V sums(Acc<T>(0));
      int64_t s = 0;
      for (; s + lanes<T> <= S; s += lanes<T>) sums = sums + term(load_vec(x + plane + s) - V(shift));
      double result = s > 0 ? sum<T>(sums) : 0.0;
      for (; s < S; ++s) result += term(static_cast<Acc<T>>(x[plane + s]) - shift);
      return result;
    };
    const auto first = static_cast<Acc<T>>(x[plane]);  // see chunk_moments
    const double mean = first + sum_plane(first, [](const auto& d) { return d; }) / static_cast<double>(S);
    const auto rounded = static_cast<Acc<T>>(mean);
    moments.add(static_cast<double>(S), rounded, mean - rounded,
                sum_plane(rounded, [](const auto& d) { return d * d; }));
  });
  return moments;
}

template <typename T, typename A>
void forward_contiguous(const Maps& m, const BnActForward& args, A act) {
  const auto* x = static_cast<const T*>(args.input);
  auto* y = static_cast<T*>(args.output);
  auto* var = static_cast<Acc<T>*>(args.var);
  const Vec<T> slope(static_cast<Acc<T>>(args.negative_slope));
  Parameters<T> p(m, args);
  for_group_channels<T>(m, [&](int64_t gc, int64_t group, int64_t c) {
    if (args.measure) finish_statistics<T>(plane_moments(m, x, group, c), p.mean + gc, var + gc);
    if (!y) return;
    finish_scale(args, p, gc, c);
    const auto affine = Affine<T>::template at<false>(p, gc, c, All{});
    for_planes(m, group, c, [&](int64_t plane) {
      for_vectors<T>(m.spatial, [&](int64_t s, auto count) {
        const int64_t i = plane + s;
        store_vec(y + i, activate(act, affine.z(load_vec(x + i, count) - affine.mean), slope), count);
      });
    });
  });
}

template <typename T, typename A>
void backward_contiguous(const Maps& m, const BnActBackward& args, A act) {
  using V = Vec<T>;
  const auto *g = static_cast<const T*>(args.grad), *x = static_cast<const T*>(args.input);
  auto* dx = static_cast<T*>(args.grad_input);
  const V slope(static_cast<Acc<T>>(args.negative_slope));
  Parameters<T> p(m, args);
  p.slope_x.resize(m.groups * m.channels);
  p.offset.resize(m.groups * m.channels);
  for_group_channels<T>(m, [&](int64_t gc, int64_t group, int64_t c) {
    p.scale[gc] = p.weight[c] * p.rstd[gc];
    const auto affine = Affine<T>::template at<false>(p, gc, c, All{});
    if (args.averages) {
      take_averages(args, p, gc);
    } else {
      double dz_sum = 0, dz_x_sum = 0;
      for_planes(m, group, c, [&](int64_t plane) {
        V dz_total(Acc<T>(0)), dz_x_total(Acc<T>(0));
        for_vectors<T>(m.spatial, [&](int64_t s, auto count) {
          const int64_t i = plane + s;
          const V centred = load_vec(x + i, count) - affine.mean;
          const V dz = activate_grad(act, load_vec(g + i, count), affine.z(centred), slope);  // 0 beyond count: so is grad
          dz_total = dz_total + dz;
          dz_x_total = fmadd(dz, centred, dz_x_total);
        });
        dz_sum += sum<T>(dz_total);
        dz_x_sum += sum<T>(dz_x_total);
      });
      finish_gradients(args, p, gc, static_cast<double>(m.group_size()), dz_sum, dz_x_sum);
    }
    if (!dx) return;
    const V slope_x(p.slope_x[gc]), offset(p.offset[gc]);
    for_planes(m, group, c, [&](int64_t plane) {
      for_vectors<T>(m.spatial, [&](int64_t s, auto count) {
        const int64_t i = plane + s;
        const V centred = load_vec(x + i, count) - affine.mean;
        const V dz = activate_grad(act, load_vec(g + i, count), affine.z(centred), slope);
        store_vec(dx + i, fmadd(dz, affine.scale, fmadd(centred, slope_x, offset)), count);
      });
    });
  });
}

// ---------------------------------------------------------------- the table

template <typename F>
void dispatch(const Maps& m, Activation activation, F&& f) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, m.dtype, "bn_act", [&] {
    dispatch_activation(activation, [&](auto act) { f(scalar_t(), act); });
  });
}

void forward(const Maps& m, const BnActForward& args) {
  dispatch(m, args.activation, [&](auto t, auto act) {
    using T = decltype(t);
    m.channels_last ? forward_channels_last<T>(m, args, act) : forward_contiguous<T>(m, args, act);
  });
}

void backward(const Maps& m, const BnActBackward& args) {
  dispatch(m, args.activation, [&](auto t, auto act) {
    using T = decltype(t);
    m.channels_last ? backward_channels_last<T>(m, args, act) : backward_contiguous<T>(m, args, act);
  });
}

}  // namespace

extern const BnActKernels bn_act{forward, backward};

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
