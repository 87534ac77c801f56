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
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "activations.h"
#include "moments.h"
#include "vec_loops.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {
namespace {

// Statistics read a chunk twice (mean, then squared deviations): it must stay in L2 between the two.
constexpr int64_t kChunkBytes = 128 * 1024;
// Rows of more bytes than this are cut into panels of so many.
constexpr int64_t kWideRow = 8 * 1024, kPanelBytes = 4 * 1024, kPanelChunkBytes = 512 * 1024;
// Rows that share one load of the per-channel parameters and one visit to the accumulators.
constexpr int64_t kRows = 8;

// ---------------------------------------------------------------- per-channel parameters

// The arguments of BnActForward or BnActBackward with their types, and what follows from them per channel.
// z = (x - mean) * scale + bias with scale = weight * rstd; grad_input = dz * scale + (x - mean) * slope_x + offset.
template <typename T>
struct Parameters {
  using A = Acc<T>;
  const A *weight, *bias;
  A* mean;  // read only in backward
  A* rstd;
  std::vector<A> scale, slope_x, offset;  // [groups, C]

  template <typename Args>
  Parameters(const Maps& m, const Args& args)
      : weight(static_cast<const A*>(args.weight)),
        bias(static_cast<const A*>(args.bias)),
        mean(static_cast<A*>(const_cast<void*>(args.mean))),
        rstd(static_cast<A*>(const_cast<void*>(args.rstd))),
        scale(m.groups * m.channels) {}
};

// The parameters of one vector of elements: of neighbouring channels (loaded), or of one channel (broadcast).
template <typename T, bool channels_last, typename Count>
VEC_INLINE Vec<T> parameter(const Acc<T>* p, Count count) {
  if constexpr (channels_last) return load_acc<T>(p, count);
  return Vec<T>(*p);
}

template <typename T>
struct Affine {
  Vec<T> mean, scale, bias;

  template <bool channels_last, typename Count>
  static VEC_INLINE Affine at(const Parameters<T>& p, int64_t gc, int64_t c, Count count) {
    return {parameter<T, channels_last>(p.mean + gc, count), parameter<T, channels_last>(p.scale.data() + gc, count),
            parameter<T, channels_last>(p.bias + c, count)};
  }
  // Forward and backward must round alike, or they would disagree on the sign at a kink.
  VEC_INLINE Vec<T> z(const Vec<T>& centred) const { return fmadd(centred, scale, bias); }
};

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

// From the sums of dz and dz * (x - mean) over `n` values to the parameters' gradients and the input's coefficients.
template <typename T>
void finish_gradients(const BnActBackward& args, Parameters<T>& p, int64_t gc, double n, double dz, double dz_x) {
  const double rstd = p.rstd[gc], scale = p.scale[gc];
  static_cast<Acc<T>*>(args.grad_weight)[gc] = static_cast<Acc<T>>(dz_x * rstd);
  static_cast<Acc<T>*>(args.grad_bias)[gc] = static_cast<Acc<T>>(dz);
  p.slope_x[gc] = args.training ? static_cast<Acc<T>>(-scale * rstd * rstd * dz_x / n) : Acc<T>(0);
  p.offset[gc] = args.training ? static_cast<Acc<T>>(-scale * dz / n) : Acc<T>(0);
}

// ---------------------------------------------------------------- channels_last: rows of channels

// The rows [N * spatial, C], cut into chunks that never straddle two groups. Rows so wide that a chunk would have few of them
// (a projection's output: 16,384 channels of 128 images) are cut across as well.
struct Rows {
  int64_t per_group, per_chunk, chunks_per_group, channels, width, panels, chunks;

  Rows(const Maps& m, int64_t element_bytes) {
    per_group = m.group_size();
    channels = m.channels;
    width = channels * element_bytes > kWideRow ? kPanelBytes / element_bytes : std::max<int64_t>(channels, 1);
    panels = (channels + width - 1) / width;
    per_chunk = std::max(kRows, (panels > 1 ? kPanelChunkBytes : kChunkBytes) / (width * element_bytes) / kRows * kRows);
    chunks_per_group = (per_group + per_chunk - 1) / per_chunk;
    chunks = chunks_per_group * m.groups * panels;
  }
  // Calls f(chunk) for all chunks, in parallel; a thread takes neighbouring ones in order, or in reverse order: the chunks
  // that it read last are then the first to be read again, from its cache.
  template <typename F>
  void for_chunks(F&& f) const {
    at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) f(k);
    });
  }
  template <typename F>
  void for_chunks_backwards(F&& f) const {
    at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t k = end - 1; k >= begin; --k) f(k);
    });
  }
  int64_t group(int64_t chunk) const { return chunk / panels / chunks_per_group; }
  int64_t begin(int64_t chunk) const { return group(chunk) * per_group + chunk / panels % chunks_per_group * per_chunk; }
  int64_t end(int64_t chunk) const { return std::min(begin(chunk) + per_chunk, (group(chunk) + 1) * per_group); }
  int64_t channel(int64_t chunk) const { return chunk % panels * width; }
  int64_t columns(int64_t chunk) const { return std::min(width, channels - channel(chunk)); }

  // Calls f(begin, end) for runs of channels of one panel, in parallel.
  template <typename F>
  void for_channels(F&& f) const {
    constexpr int64_t kRun = 512;  // a panel has a multiple of it
    at::parallel_for(0, (channels + kRun - 1) / kRun, 1, [&](int64_t first, int64_t last) {
      for (int64_t run = first; run < last; ++run) f(run * kRun, std::min((run + 1) * kRun, channels));
    });
  }
  // Calls f(chunk) for the chunks of a group that channel c is in, in order.
  template <typename F>
  void for_chunks_of(int64_t group, int64_t c, F&& f) const {
    const int64_t first = group * chunks_per_group * panels + c / width;
    for (int64_t k = 0; k < chunks_per_group; ++k) f(first + k * panels);
  }
};

// Calls f(first row, rows, c, count) for blocks of kRows rows and vectors of channels.
template <typename T, typename F>
inline void for_blocks(int64_t begin, int64_t end, int64_t channels, F&& f) {
  for (int64_t r = begin; r < end; r += kRows) {
    const int64_t rows = std::min(kRows, end - r);
    for_vectors<T>(channels, [&](int64_t c, auto count) { f(r, rows, c, count); });
  }
}

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
      for (int64_t c = begin; c < end; ++c) finish_scale(args, p, group * C + c, c);
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
  rows.for_chunks_backwards(apply);
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
  std::vector<Acc<T>> partial(Partial<T>::size(rows));

  const auto reduce = [&](int64_t chunk) {
    chunk_gradients(g, x, rows, chunk, act, slope, p, Partial<T>::at(partial, chunk, rows.width));
  };
  const auto finish = [&](int64_t begin, int64_t end) {
    std::vector<double> dz(end - begin), dz_x(end - begin);
    for (int64_t group = 0; group < m.groups; ++group) {
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

  rows.for_chunks(reduce);
  rows.for_channels(finish);
  if (dx) rows.for_chunks_backwards(apply);
}

// ---------------------------------------------------------------- contiguous: planes of one channel

// Calls f(gc, group, c) for each channel of each group, in parallel.
template <typename T, typename F>
void for_group_channels(const Maps& m, F&& f) {
  const int64_t bytes = std::max<int64_t>(m.group_size() * sizeof(T), 1);
  at::parallel_for(0, m.groups * m.channels, std::max<int64_t>(1, kChunkBytes / bytes), [&](int64_t begin, int64_t end) {
    for (int64_t gc = begin; gc < end; ++gc) f(gc, gc / m.channels, gc % m.channels);
  });
}

// Calls f(offset of the plane) for each plane of a channel in a group.
template <typename F>
void for_planes(const Maps& m, int64_t group, int64_t c, F&& f) {
  const int64_t per_group = m.batch / m.groups;
  for (int64_t b = group * per_group; b < (group + 1) * per_group; ++b) f((b * m.channels + c) * m.spatial);
}

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
