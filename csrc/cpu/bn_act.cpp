// Batch normalisation + activation, forward and backward, in two passes each way.
//
// Compiled once per CPU capability (see cpu/capability.h). Work is cut into chunks by shape alone, never by the
// number of threads, and partial results are combined in chunk order: the same bits on every run and thread count.
#include "bn_act.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "vec.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {
namespace {

// Statistics read a chunk twice (mean, then squared deviations): it must stay in L2 between the two.
constexpr int64_t kChunkBytes = 128 * 1024;
// Rows that share one load of the per-channel parameters and one visit to the accumulators.
constexpr int64_t kRows = 8;

template <Activation A>
using Act = std::integral_constant<Activation, A>;

template <typename V, Activation A>
inline V activate(Act<A>, const V& z, [[maybe_unused]] const V& slope) {
  using S = typename V::value_type;
  if constexpr (A == Activation::relu) {
    return clamp_min(z, V(S(0)));  // keeps NaN, as torch.relu does
  } else if constexpr (A == Activation::leaky_relu) {
    return V::blendv(z * slope, z, z > V(S(0)));
  } else if constexpr (A == Activation::tanh) {
    return z.tanh();
  } else if constexpr (A == Activation::sigmoid) {
    return V(S(1)) / (V(S(1)) + z.neg().exp());
  } else {
    return z;
  }
}

// grad * activation'(z)
template <typename V, Activation A>
inline V activate_grad(Act<A> a, const V& grad, const V& z, const V& slope) {
  using S = typename V::value_type;
  if constexpr (A == Activation::relu) {
    return V::blendv(grad, V(S(0)), z <= V(S(0)));
  } else if constexpr (A == Activation::leaky_relu) {
    return V::blendv(grad * slope, grad, z > V(S(0)));
  } else if constexpr (A == Activation::tanh) {
    const V y = activate(a, z, slope);
    return grad * (V(S(1)) - y * y);
  } else if constexpr (A == Activation::sigmoid) {
    const V y = activate(a, z, slope);
    return grad * y * (V(S(1)) - y);
  } else {
    return grad;
  }
}

template <typename F>
void dispatch_activation(Activation a, F&& f) {
  switch (a) {
    case Activation::relu: return f(Act<Activation::relu>());
    case Activation::leaky_relu: return f(Act<Activation::leaky_relu>());
    case Activation::tanh: return f(Act<Activation::tanh>());
    case Activation::sigmoid: return f(Act<Activation::sigmoid>());
    case Activation::none: return f(Act<Activation::none>());
  }
}

// The rows [N * spatial, C] of channels_last maps, cut into chunks that never straddle two groups.
struct RowChunks {
  int64_t rows_per_group, rows_per_chunk, chunks_per_group, chunks;

  template <typename T>
  static RowChunks of(const Maps& m, T /*storage type*/) {
    RowChunks r;
    r.rows_per_group = m.group_size();
    const int64_t row_bytes = std::max<int64_t>(m.channels * sizeof(T), 1);
    r.rows_per_chunk = std::max(kRows, kChunkBytes / row_bytes / kRows * kRows);
    r.chunks_per_group = (r.rows_per_group + r.rows_per_chunk - 1) / r.rows_per_chunk;
    r.chunks = r.chunks_per_group * m.groups;
    return r;
  }
  int64_t group(int64_t chunk) const { return chunk / chunks_per_group; }
  int64_t begin(int64_t chunk) const {
    return group(chunk) * rows_per_group + chunk % chunks_per_group * rows_per_chunk;
  }
  int64_t end(int64_t chunk) const {
    return std::min(begin(chunk) + rows_per_chunk, (group(chunk) + 1) * rows_per_group);
  }
};

// Calls f(c, count) for vectors of channels; only the last has count < lanes.
template <typename T, typename F>
inline void for_channels(int64_t channels, F&& f) {
  int64_t c = 0;
  for (; c + lanes<T> <= channels; c += lanes<T>) f(c, std::integral_constant<int, lanes<T>>());
  if (c < channels) f(c, static_cast<int>(channels - c));
}

// sum += value with the rounding error carried in `error` (Kahan): a chunk's sums are then as good as float64's.
template <typename T>
inline void add_compensated(Acc<T>* sum, Acc<T>* error, const Vec<T>& value, int count) {
  const Vec<T> s = Vec<T>::loadu(sum, count);
  const Vec<T> y = value - Vec<T>::loadu(error, count);
  const Vec<T> t = s + y;
  ((t - s) - y).store(error, count);
  t.store(sum, count);
}

// ---------------------------------------------------------------- statistics

// Mean and sum of squared deviations of a growing set of values (Chan, Golub, LeVeque 1979). In double: the mean of a
// hundred parts keeps the digits of one.
struct Moments {
  double n = 0, mean = 0, m2 = 0;

  // Adds `n_b` values of mean `mean_b + rest` and squared deviations `around` about mean_b.
  void add(double n_b, double mean_b, double rest, double around) {
    const double total = n + n_b, delta = mean_b + rest - mean;
    mean += delta * (n_b / total);
    m2 += around - n_b * rest * rest + delta * delta * (n * n_b / total);
    n = total;
  }
  double variance() const { return m2 / n; }
};

// A chunk's statistics, per channel: its mean rounded to the accumulator's type, what the rounding left out, and the
// sum of squared deviations about the rounded mean.
template <typename T>
struct ChunkMoments {
  Acc<T>*mean, *rest, *around;
};

template <typename T>
void chunk_statistics(const T* x, int64_t rows, int64_t channels, const ChunkMoments<T>& out, Acc<T>* error) {
  using V = Vec<T>;
  const auto sum_rows = [&](Acc<T>* sum, auto&& term) {
    std::fill_n(sum, channels, Acc<T>(0));
    std::fill_n(error, channels, Acc<T>(0));
    for (int64_t r = 0; r < rows; r += kRows) {
      const int64_t n = std::min(kRows, rows - r);
      for_channels<T>(channels, [&](int64_t c, auto count) {
        const T* p = x + r * channels + c;
        V total(Acc<T>(0));
        const V shift = V::loadu(out.mean + c, count);
        for (int64_t i = 0; i < n; ++i) total = total + term(load_vec(p + i * channels, count) - shift);
        add_compensated<T>(sum + c, error + c, total, count);
      });
    }
  };
  // Deviations from the first row are exact where mean/std is large: a plain sum would lose the mean's last digits.
  for_channels<T>(channels, [&](int64_t c, auto count) { load_vec(x + c, count).store(out.mean + c, count); });
  sum_rows(out.around, [](const V& d) { return d; });
  for (int64_t c = 0; c < channels; ++c) {
    const double sum = static_cast<double>(out.around[c]) - static_cast<double>(error[c]);
    const double mean = static_cast<double>(out.mean[c]) + sum / static_cast<double>(rows);
    out.mean[c] = static_cast<Acc<T>>(mean);
    out.rest[c] = static_cast<Acc<T>>(mean - out.mean[c]);
  }
  sum_rows(out.around, [](const V& d) { return d * d; });
}

template <typename T>
void statistics_channels_last(const Maps& m, const T* x, Acc<T>* mean, Acc<T>* var) {
  const int64_t C = m.channels;
  const auto chunks = RowChunks::of(m, T());
  std::vector<Acc<T>> partial(3 * chunks.chunks * C);
  const auto moments = [&](int64_t k) {
    Acc<T>* p = partial.data() + 3 * k * C;
    return ChunkMoments<T>{p, p + C, p + 2 * C};
  };
  at::parallel_for(0, chunks.chunks, 1, [&](int64_t begin, int64_t end) {
    std::vector<Acc<T>> error(C);
    for (int64_t k = begin; k < end; ++k) {
      chunk_statistics(x + chunks.begin(k) * C, chunks.end(k) - chunks.begin(k), C, moments(k), error.data());
    }
  });
  for (int64_t g = 0; g < m.groups; ++g) {
    std::vector<Moments> total(C);
    for (int64_t k = g * chunks.chunks_per_group; k < (g + 1) * chunks.chunks_per_group; ++k) {
      const auto part = moments(k);
      const auto rows = static_cast<double>(chunks.end(k) - chunks.begin(k));
      for (int64_t c = 0; c < C; ++c) total[c].add(rows, part.mean[c], part.rest[c], part.around[c]);
    }
    for (int64_t c = 0; c < C; ++c) {
      mean[g * C + c] = static_cast<Acc<T>>(total[c].mean);
      var[g * C + c] = static_cast<Acc<T>>(total[c].variance());
    }
  }
}

template <typename T>
void statistics_contiguous(const Maps& m, const T* x, Acc<T>* mean, Acc<T>* var) {
  using V = Vec<T>;
  const int64_t C = m.channels, S = m.spatial, per_group = m.batch / m.groups;
  at::parallel_for(0, m.groups * C, std::max<int64_t>(1, kChunkBytes / (S * per_group * sizeof(T) + 1)),
                   [&](int64_t begin, int64_t end) {
    for (int64_t gc = begin; gc < end; ++gc) {
      const int64_t g = gc / C, c = gc % C;
      Moments total;
      for (int64_t b = g * per_group; b < (g + 1) * per_group; ++b) {
        const T* plane = x + (b * C + c) * S;
        const auto sum_plane = [&](Acc<T> shift, auto&& term) {
          V sums(Acc<T>(0));
          int64_t s = 0;
          for (; s + lanes<T> <= S; s += lanes<T>) sums = sums + term(load_vec(plane + s) - V(shift));
          double result = sum<T>(sums);
          for (; s < S; ++s) result += term(static_cast<Acc<T>>(plane[s]) - shift);
          return result;
        };
        const auto first = static_cast<Acc<T>>(plane[0]);  // see chunk_statistics
        const double plane_mean =
            static_cast<double>(first) + sum_plane(first, [](const auto& d) { return d; }) / static_cast<double>(S);
        const auto rounded = static_cast<Acc<T>>(plane_mean);
        total.add(static_cast<double>(S), rounded, plane_mean - rounded,
                  sum_plane(rounded, [](const auto& d) { return d * d; }));
      }
      mean[gc] = static_cast<Acc<T>>(total.mean);
      var[gc] = static_cast<Acc<T>>(total.variance());
    }
  });
}

// ---------------------------------------------------------------- elementwise passes

// Runs `f(offset, group, channel, count, per_channel)` over the maps in vectors of `count` neighbouring elements.
// In channels_last the elements are neighbouring channels: parameters are loaded from [group, channel]; in the
// contiguous format they share one channel: parameters are broadcast. `Params` hides which.
template <typename T, bool channels_last>
struct Params {
  const Normalize& n;
  int64_t channels;
  const Acc<T>* mean = static_cast<const Acc<T>*>(n.mean);
  const Acc<T>* scale = static_cast<const Acc<T>*>(n.scale);
  const Acc<T>* bias = static_cast<const Acc<T>*>(n.bias);

  static Vec<T> at(const Acc<T>* p, int64_t c, int count) {
    if constexpr (channels_last) {
      return count == lanes<T> ? Vec<T>::loadu(p + c) : Vec<T>::loadu(p + c, count);
    } else {
      return Vec<T>(p[c]);
    }
  }
};

// The parameters of one vector of elements.
template <typename T>
struct Affine {
  Vec<T> mean, scale, bias;

  template <typename P>
  static Affine at(const P& p, int64_t group, int64_t c, int count) {
    return {p.at(p.mean, group * p.channels + c, count), p.at(p.scale, group * p.channels + c, count),
            p.at(p.bias, c, count)};
  }
  // Forward and backward must round alike, or they would disagree on the sign at a kink.
  Vec<T> z(const Vec<T>& centred) const { return fmadd(centred, scale, bias); }
};

// Visits every element once: body(block parameters)(offset, count). `make(group, c, count)` loads the parameters
// that a run of elements shares.
template <typename T, bool channels_last, typename Make>
void elementwise(const Maps& m, Make&& make) {
  const int64_t C = m.channels, S = m.spatial;
  if constexpr (channels_last) {
    const auto chunks = RowChunks::of(m, T());
    at::parallel_for(0, chunks.chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        const int64_t group = chunks.group(k), last = chunks.end(k);
        for (int64_t r = chunks.begin(k); r < last; r += kRows) {
          const int64_t rows = std::min(kRows, last - r);
          for_channels<T>(C, [&](int64_t c, auto count) {
            const auto body = make(group, c, count);
            for (int64_t i = 0; i < rows; ++i) body((r + i) * C + c, count);
          });
        }
      }
    });
  } else {
    const int64_t planes_per_group = m.batch / m.groups * C;
    at::parallel_for(0, m.batch * C, std::max<int64_t>(1, kChunkBytes / (S * sizeof(T))),
                     [&](int64_t begin, int64_t end) {
      for (int64_t plane = begin; plane < end; ++plane) {
        const auto body = make(plane / planes_per_group, plane % C, 1);
        for_channels<T>(S, [&](int64_t s, auto count) { body(plane * S + s, count); });
      }
    });
  }
}

template <typename T, bool channels_last, typename A>
void forward(const Maps& m, const Normalize& n, A act, const T* x, T* y) {
  const Params<T, channels_last> params{n, m.channels};
  const Vec<T> slope(static_cast<Acc<T>>(n.negative_slope));
  elementwise<T, channels_last>(m, [&](int64_t group, int64_t c, auto n) {
    return [=, a = Affine<T>::at(params, group, c, n)](int64_t i, auto count) {
      store_vec(y + i, activate(act, a.z(load_vec(x + i, count) - a.mean), slope), count);
    };
  });
}

template <typename T, bool channels_last, typename A>
void backward(const Maps& m, const Normalize& n, A act, const Acc<T>* slope_x, const Acc<T>* offset, const T* g,
              const T* x, T* dx) {
  const Params<T, channels_last> params{n, m.channels};
  const Vec<T> slope(static_cast<Acc<T>>(n.negative_slope));
  elementwise<T, channels_last>(m, [&](int64_t group, int64_t c, auto n) {
    const int64_t gc = group * params.channels + c;
    return [=, a = Affine<T>::at(params, group, c, n), bx = params.at(slope_x, gc, n),
            b0 = params.at(offset, gc, n)](int64_t i, auto count) {
      const Vec<T> centred = load_vec(x + i, count) - a.mean;
      const Vec<T> dz = activate_grad(act, load_vec(g + i, count), a.z(centred), slope);
      store_vec(dx + i, fmadd(dz, a.scale, fmadd(centred, bx, b0)), count);
    };
  });
}

// ---------------------------------------------------------------- gradient sums

template <typename T, typename A>
void reduce_grad_channels_last(const Maps& m, const Normalize& n, A act, const T* g, const T* x, Acc<T>* sum_dz,
                               Acc<T>* sum_dz_x) {
  using V = Vec<T>;
  const int64_t C = m.channels;
  const Params<T, true> params{n, C};
  const V slope(static_cast<Acc<T>>(n.negative_slope));
  const auto chunks = RowChunks::of(m, T());
  std::vector<Acc<T>> partial(2 * chunks.chunks * C);
  at::parallel_for(0, chunks.chunks, 1, [&](int64_t begin, int64_t end) {
    std::vector<Acc<T>> error(2 * C);
    for (int64_t k = begin; k < end; ++k) {
      Acc<T>* p = partial.data() + 2 * k * C;
      std::fill(error.begin(), error.end(), Acc<T>(0));
      const int64_t group = chunks.group(k), last = chunks.end(k);
      for (int64_t r = chunks.begin(k); r < last; r += kRows) {
        const int64_t rows = std::min(kRows, last - r);
        for_channels<T>(C, [&](int64_t c, auto count) {
          const auto a = Affine<T>::at(params, group, c, count);
          V dz_total(Acc<T>(0)), dz_x_total(Acc<T>(0));
          for (int64_t i = (r * C) + c; i < (r + rows) * C; i += C) {
            const V centred = load_vec(x + i, count) - a.mean;
            const V dz = activate_grad(act, load_vec(g + i, count), a.z(centred), slope);
            dz_total = dz_total + dz;
            dz_x_total = fmadd(dz, centred, dz_x_total);
          }
          add_compensated<T>(p + c, error.data() + c, dz_total, count);
          add_compensated<T>(p + C + c, error.data() + C + c, dz_x_total, count);
        });
      }
    }
  });
  for (int64_t gc = 0; gc < m.groups * C; ++gc) {
    const int64_t first = gc / C * chunks.chunks_per_group, c = gc % C;
    double dz = 0, dz_x = 0;
    for (int64_t k = first; k < first + chunks.chunks_per_group; ++k) {
      dz += partial[2 * k * C + c];
      dz_x += partial[2 * k * C + C + c];
    }
    sum_dz[gc] = static_cast<Acc<T>>(dz);
    sum_dz_x[gc] = static_cast<Acc<T>>(dz_x);
  }
}

template <typename T, typename A>
void reduce_grad_contiguous(const Maps& m, const Normalize& n, A act, const T* g, const T* x, Acc<T>* sum_dz,
                            Acc<T>* sum_dz_x) {
  using V = Vec<T>;
  const int64_t C = m.channels, S = m.spatial, per_group = m.batch / m.groups;
  const Params<T, false> params{n, C};
  const V slope(static_cast<Acc<T>>(n.negative_slope));
  at::parallel_for(0, m.groups * C, std::max<int64_t>(1, kChunkBytes / (S * per_group * sizeof(T) + 1)),
                   [&](int64_t begin, int64_t end) {
    for (int64_t gc = begin; gc < end; ++gc) {
      const int64_t group = gc / C, c = gc % C;
      const auto a = Affine<T>::at(params, group, c, 1);
      double dz_sum = 0, dz_x_sum = 0;
      for (int64_t b = group * per_group; b < (group + 1) * per_group; ++b) {
        const int64_t plane = (b * C + c) * S;
        V dz_total(Acc<T>(0)), dz_x_total(Acc<T>(0));
        for_channels<T>(S, [&](int64_t s, auto count) {
          const V centred = load_vec(x + plane + s, count) - a.mean;
          V dz = activate_grad(act, load_vec(g + plane + s, count), a.z(centred), slope);
          if (count < lanes<T>) dz = V::set(V(Acc<T>(0)), dz, count);
          dz_total = dz_total + dz;
          dz_x_total = fmadd(dz, centred, dz_x_total);
        });
        dz_sum += sum<T>(dz_total);
        dz_x_sum += sum<T>(dz_x_total);
      }
      sum_dz[gc] = static_cast<Acc<T>>(dz_sum);
      sum_dz_x[gc] = static_cast<Acc<T>>(dz_x_sum);
    }
  });
}

// ---------------------------------------------------------------- the table

template <typename F>
void dispatch_dtype(at::ScalarType dtype, F&& f) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, dtype, "bn_act", [&] { f(scalar_t()); });
}

void statistics_entry(const Maps& m, const void* input, void* mean, void* var) {
  dispatch_dtype(m.dtype, [&](auto t) {
    using T = decltype(t);
    (m.channels_last ? statistics_channels_last<T> : statistics_contiguous<T>)(
        m, static_cast<const T*>(input), static_cast<Acc<T>*>(mean), static_cast<Acc<T>*>(var));
  });
}

void forward_entry(const Maps& m, const Normalize& n, const void* input, void* output) {
  dispatch_dtype(m.dtype, [&](auto t) {
    dispatch_activation(n.activation, [&](auto act) {
      using T = decltype(t);
      using A = decltype(act);
      (m.channels_last ? forward<T, true, A> : forward<T, false, A>)(
          m, n, act, static_cast<const T*>(input), static_cast<T*>(output));
    });
  });
}

void reduce_grad_entry(const Maps& m, const Normalize& n, const void* grad, const void* input, void* sum_dz,
                       void* sum_dz_x) {
  dispatch_dtype(m.dtype, [&](auto t) {
    dispatch_activation(n.activation, [&](auto act) {
      using T = decltype(t);
      using A = decltype(act);
      (m.channels_last ? reduce_grad_channels_last<T, A> : reduce_grad_contiguous<T, A>)(
          m, n, act, static_cast<const T*>(grad), static_cast<const T*>(input), static_cast<Acc<T>*>(sum_dz),
          static_cast<Acc<T>*>(sum_dz_x));
    });
  });
}

void backward_entry(const Maps& m, const Normalize& n, const void* slope_x, const void* offset, const void* grad,
                    const void* input, void* grad_input) {
  dispatch_dtype(m.dtype, [&](auto t) {
    dispatch_activation(n.activation, [&](auto act) {
      using T = decltype(t);
      using A = decltype(act);
      (m.channels_last ? backward<T, true, A> : backward<T, false, A>)(
          m, n, act, static_cast<const Acc<T>*>(slope_x), static_cast<const Acc<T>*>(offset),
          static_cast<const T*>(grad), static_cast<const T*>(input), static_cast<T*>(grad_input));
    });
  });
}

}  // namespace

extern const BnActKernels bn_act{statistics_entry, forward_entry, reduce_grad_entry, backward_entry};

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
