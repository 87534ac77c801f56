// Convolutions whose fine map has few channels, compiled once per CPU capability.
//
// A row of the kernel covers a run of kernel width * channels neighbouring values of the fine map (DCGAN's images: 12), and
// everything is made of such runs. With K = kernel height * run values around a coarse pixel:
//   down         rows of K values (im2col) times the weights [K, coarse channels];
//   up           coarse pixels times the weights [coarse channels, K], and each fine pixel is the sum of the runs over it;
//   weight_grad  rows of K values, transposed, times the coarse pixels.
// Neither rows nor columns ever leave the caches: a few dozen pixels at a time. What remains is 2 * K FLOPs per value of
// the coarse map and one pass over both maps.
//
// Work is cut by shape alone, and every sum has an order of its own: the same bits with any number of threads.
#include "thin_kernels.h"

#include <ATen/Parallel.h>

#include <limits>
#include <optional>
#include <vector>

#include "epilogue.h"
#include "tasks.h"
#include "thin_conv.h"
#include "thin_gradient.h"
#include "thin_rows.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {
namespace {

// ---------------------------------------------------------------- down

// Of a block of whole images: the maxima of their windows, taken beside the sums, so that the map need not stay in a cache.
class Maxima {
 public:
  // What is asked for, if pixels have a window each and images suffice for all threads.
  static const PoolFeatures* wanted(const ConvShape& s, const PoolFeatures* pool) {
    return pool && pool->divides() && s.batch >= at::get_num_threads() ? pool : nullptr;
  }

  Maxima(const PoolFeatures& pool, int64_t begin, int64_t end)
      : pool_(pool), pixels_(pool.height * pool.width), first_(begin / pixels_), images_((end - begin) / pixels_),
        data_(scratch<float>(kMaxima, (images_ + 1) * pool.values())) {
    std::fill_n(data_, images_ * pool.values(), -std::numeric_limits<float>::infinity());
  }

  float* of(int64_t pixel) const {
    const int64_t y = pixel % pixels_ / pool_.width, x = pixel % pool_.width;
    return data_ + (pixel / pixels_ - first_) * pool_.values() + pool_.window(y, x) * pool_.channels;
  }

  // Writes them: from the last image on, since what lies behind one is scratch.
  void finish() const {
    for (int64_t i = images_; i-- > 0;) pool_features_kernels().known(pool_, first_ + i, data_ + i * pool_.values());
  }

 private:
  const PoolFeatures& pool_;
  const int64_t pixels_, first_, images_;
  float* const data_;
};

template <typename P>
void down(const ConvShape& s, const void* fine, const void* packed, void* coarse, const Epilogue& epilogue) {
  using T = typename P::Value;
  using E = typename P::Element;
  constexpr int64_t kBlockPixels = 512;
  const int64_t depth = P::depth(depth_of(s)), channels = s.coarse.channels, panel_floats = P::kChunk * kPanel;
  BlockMoments* moments = epilogue.moments;
  const PoolFeatures* const beside = Maxima::wanted(s, moments ? nullptr : epilogue.pool);
  const int64_t image = s.coarse.height * s.coarse.width;
  const Blocks blocks(coarse_pixels(s), moments ? moments->groups : 1, kBlockPixels, beside ? image : P::kChunk);
  if (moments) moments->resize(blocks.count, channels);
  const bool read_again = epilogue.pool && !beside;
  const bool stream = !read_again && may_stream(static_cast<const T*>(coarse), coarse_pixels(s), channels);
  PoolWhole pool(read_again ? epilogue.pool : nullptr, s.batch, image);

  for_tasks(blocks.count, [&](auto take) {
    [[maybe_unused]] const TileUnit unit;
    FineRows<T, E> rows(s, fine);
    E* left = scratch<E>(kLeft, P::kChunk * depth);
    std::fill_n(left, P::kChunk * depth, E(0));
    float* sums = scratch<float>(kSums, ceil_div(channels, kPanel) * panel_floats);
    Finish<T> finish(epilogue, 0, channels, channels, 1, stream);
    for (int64_t b; take(b);) {
      const int64_t begin = blocks.begin(b), end = blocks.end(b);
      std::optional<Maxima> maxima;
      if (beside) maxima.emplace(*beside, begin, end);
      for (int64_t at = begin; at < end; at += P::kChunk) {
        const int64_t n = std::min(P::kChunk, end - at);
        float* most[P::kChunk];
        for (int64_t r = 0; maxima && r < n; ++r) most[r] = maxima->of(at + r);
        im2col(s, rows, at, at + n, 0, s.kernel[0], depth, left);
        P::multiply(left, round_up(n, P::kRows), depth, packed, channels, sums, panel_floats);
        for (int64_t c = 0; c < channels; c += kPanel) {
          T* to = static_cast<T*>(coarse) + at * channels + c;
          const Sums of_panel{sums + c / kPanel * panel_floats, n, std::min(kPanel, channels - c), kPanel, c};
          const auto place = [&](int64_t r) { return to + r * channels; };
          maxima ? finish(of_panel, place, most) : finish(of_panel, place);
        }
      }
      if (maxima) maxima->finish();
      pool.wrote(begin, end);
      if (!moments) continue;
      moments->group[b] = blocks.group(b);
      moments->count[b] = finish.statistics(moments->mean.data() + b * channels, moments->m2.data() + b * channels);
      finish.reset();
    }
    if (stream) end_stream();
  });
}

// ---------------------------------------------------------------- up

int64_t up_columns(const ConvShape& s) { return Runs(s, 1).column(s.kernel[0] - 1) + run_of(s); }

// Rows of the coarse map, multiplied: K columns for each pixel. Made when asked for, some rows at a time; the last ones
// are kept, so that going down a map each is made once.
template <typename P>
class Columns {
  using T = typename P::Value;

 public:
  Columns(const ConvShape& s, const void* map, const void* packed)
      : s_(s), map_(static_cast<const T*>(map)), packed_(packed), columns_(up_columns(s)) {
    const int64_t reach = (s.kernel[0] - 1) / s.stride[0];  // rows before the newest that one fine row needs
    rows_ = std::max<int64_t>(1, kChunkPixels / s.coarse.width);
    panel_floats_ = round_up(rows_ * s.coarse.width, kBlock) * kPanel;
    slot_floats_ = ceil_div(columns_, kPanel) * panel_floats_;
    tags_.assign(ceil_div(reach, rows_) + 1, -1);
    data_ = scratch<float>(kSums, static_cast<int64_t>(tags_.size()) * slot_floats_ + kSlack<float>);
  }

  // The first panel of row `row` of the batch, kPanel floats for each pixel.
  const float* row(int64_t row) {
    const int64_t chunk = row / rows_, slot = chunk % static_cast<int64_t>(tags_.size()), first = chunk * rows_;
    float* sums = data_ + slot * slot_floats_;
    if (tags_[slot] != chunk) {
      const int64_t pixels = std::min(rows_, s_.batch * s_.coarse.height - first) * s_.coarse.width,
                    depth = s_.coarse.channels;
      const T* from = map_ + first * s_.coarse.width * depth;
      const Ahead next{from + pixels * depth, pixels * depth * static_cast<int64_t>(sizeof(T))};
      P::multiply(from, pixels, depth, packed_, columns_, sums, panel_floats_, next);
      tags_[slot] = chunk;
    }
    return sums + (row - first) * s_.coarse.width * kPanel;
  }
  int64_t panel_floats() const { return panel_floats_; }

 private:
  static constexpr int64_t kChunkPixels = 32;

  const ConvShape& s_;
  const T* const map_;
  const void* const packed_;
  const int64_t columns_;
  int64_t rows_, panel_floats_, slot_floats_;
  std::vector<int64_t> tags_;
  float* data_;
};

// A fine row is a row of cells of stride * channels values. Cell i is the sum of part j of the runs of coarse pixel i - j,
// for every row of the kernel and j that meet it.
class Line {
 public:
  explicit Line(const ConvShape& s)
      : cell_(s.stride[1] * s.fine.channels), parts_(ceil_div(s.kernel[1], s.stride[1])),
        first_(s.padding[1] / s.stride[1]), last_(ceil_div(s.padding[1] + s.fine.width, s.stride[1])),
        coarse_width_(s.coarse.width), offset_(s.padding[1] * s.fine.channels - first_ * cell_),
        line_(scratch<float>(kLine, (last_ - first_) * cell_ + kSlack<float>)),
        mask_pitch_(round_up(cell_, kEight)), masks_(parts_ * mask_pitch_) {
    for (int64_t i = 0; i < run_of(s); ++i) masks_[i / cell_ * mask_pitch_ + i % cell_] = -1;
  }

  // The sum over rows of columns; the result is the values of the fine row's pixels.
  float* operator()(const std::vector<const float*>& rows) {
    float* to = line_;
    for (int64_t i = first_; i < last_;) {
      const int64_t begin = std::max<int64_t>(0, i - coarse_width_ + 1), end = std::min(parts_, i + 1);
      const bool inside = begin == 0 && end == parts_;
      const int64_t n = inside ? std::min(last_, coarse_width_) - i : 1;
      terms_.clear();
      for (const float* row : rows) {
        for (int64_t j = begin; j < end; ++j) {
          terms_.push_back({row + (i - j) * kPanel + j * cell_, masks_.data() + j * mask_pitch_});
        }
      }
      add(n, to);
      to += n * cell_;
      i += n;
    }
    return line_ + offset_;
  }

 private:
  // Cells are short (DCGAN: 6 values), and half a register of AVX-512 meets fewer ends of cache lines than a whole one.
  static constexpr int64_t kEight = 8;
  typedef float Eight __attribute__((vector_size(32), aligned(4), may_alias));
  typedef int32_t EightBits __attribute__((vector_size(32), aligned(4), may_alias));
  static EightBits eight(const void* p) { return *static_cast<const EightBits*>(p); }
  static void put(float* p, const Eight& values) { *reinterpret_cast<Eight*>(p) = values; }

  struct Term {
    const float* from;
    const int32_t* mask;  // all bits where the part has values
  };

  void add(int64_t cells, float* to) const {
    if (cell_ <= kEight && terms_.size() == 4) return add<4>(cells, to);  // DCGAN's layers
    if (cell_ <= kEight && terms_.size() == 2) return add<2>(cells, to);  // their upper and lower edge
    for (int64_t i = 0; i < cells; ++i, to += cell_) {
      for (int64_t v = 0; v < cell_; v += kEight) {
        Eight sum{};
        for (const Term& t : terms_) sum += reinterpret_cast<Eight>(eight(t.from + i * kPanel + v) & eight(t.mask + v));
        put(to + v, sum);
      }
    }
  }
  // What is too much of a cell is overwritten by the next, here and above.
  template <int kTerms>
  void add(int64_t cells, float* to) const {
    EightBits masks[kTerms];
    const float* from[kTerms];
    for (int t = 0; t < kTerms; ++t) masks[t] = eight(terms_[t].mask), from[t] = terms_[t].from;
    for (int64_t i = 0, step = cell_; i < cells; ++i, to += step) {
      Eight sum{};
      for (int t = 0; t < kTerms; ++t) sum += reinterpret_cast<Eight>(eight(from[t] + i * kPanel) & masks[t]);
      put(to, sum);
    }
  }

  const int64_t cell_, parts_, first_, last_, coarse_width_, offset_;
  float* const line_;
  const int64_t mask_pitch_;
  std::vector<int32_t> masks_;  // [parts, cell]
  std::vector<Term> terms_;
};

// Statistics per position of a row [pixels, channels], of `count` rows, to statistics per channel.
void fold(const std::vector<float>& mean, const std::vector<float>& m2, int64_t pixels, int64_t channels, int64_t count,
          float* mean_out, float* m2_out) {
  for (int64_t c = 0; c < channels; ++c) {
    double average = 0, around = 0;
    for (int64_t x = 0; x < pixels; ++x) average += mean[x * channels + c];
    average /= static_cast<double>(pixels);
    for (int64_t x = 0; x < pixels; ++x) {
      const double d = mean[x * channels + c] - average;
      around += m2[x * channels + c] + static_cast<double>(count) * d * d;
    }
    mean_out[c] = static_cast<float>(average);
    m2_out[c] = static_cast<float>(around);
  }
}

template <typename P>
void up(const ConvShape& s, const void* coarse, const void* packed, void* fine, const Epilogue& epilogue) {
  using T = typename P::Value;
  constexpr int64_t kBlockPixels = 1024;  // coarse ones
  const int64_t row_values = s.fine.width * s.fine.channels, channels = s.fine.channels;
  // A band is the fine rows that begin at a multiple of the stride, padding counted: band q is the sum of coarse rows q - j
  // times rows j * stride and on of the kernel.
  const int64_t first_band = s.padding[0] / s.stride[0],
                bands = ceil_div(s.padding[0] + s.fine.height, s.stride[0]) - first_band,
                parts = ceil_div(s.kernel[0], s.stride[0]);
  const Runs runs(s, 1);
  BlockMoments* moments = epilogue.moments;
  const Blocks blocks(s.batch * bands, moments ? moments->groups : 1, ceil_div(kBlockPixels, s.coarse.width), 1);
  if (moments) moments->resize(blocks.count, channels);
  PoolWhole pool(epilogue.pool, s.batch, bands);

  for_tasks(blocks.count, [&](auto take) {
    [[maybe_unused]] const TileUnit unit;
    Columns<P> columns(s, coarse, packed);
    Line line(s);
    std::vector<const float*> rows(parts), terms;
    Finish<T> finish(epilogue, 0, row_values, channels);
    std::vector<float> mean(row_values), m2(row_values);
    for (int64_t b; take(b);) {
      for (int64_t i = blocks.begin(b); i < blocks.end(b); ++i) {
        const int64_t image = i / bands, band = first_band + i % bands;
        for (int64_t j = 0; j < parts; ++j) {
          const bool inside = band >= j && band - j < s.coarse.height;
          rows[j] = inside ? columns.row(image * s.coarse.height + band - j) : nullptr;
        }
        for (int64_t k = 0; k < s.stride[0]; ++k) {
          const int64_t y = band * s.stride[0] + k - s.padding[0];
          if (y < 0 || y >= s.fine.height) continue;
          terms.clear();
          for (int64_t j = 0; j < parts; ++j) {
            const int64_t of_kernel = j * s.stride[0] + k;
            if (!rows[j] || of_kernel >= s.kernel[0]) continue;
            const int64_t column = runs.column(of_kernel);
            terms.push_back(rows[j] + column / kPanel * columns.panel_floats() + column % kPanel);
          }
          T* to = static_cast<T*>(fine) + (image * s.fine.height + y) * row_values;
          finish({line(terms), 1, row_values, 0, 0}, [&](int64_t) { return to; });
        }
      }
      pool.wrote(blocks.begin(b), blocks.end(b));
      if (!moments) continue;
      const int64_t rows_seen = finish.statistics(mean.data(), m2.data());
      finish.reset();
      moments->group[b] = blocks.group(b);
      moments->count[b] = rows_seen * s.fine.width;
      fold(mean, m2, s.fine.width, channels, rows_seen, moments->mean.data() + b * channels, moments->m2.data() + b * channels);
    }
  });
}

// ---------------------------------------------------------------- weights

// Element [k, o] of the weights of `down`: k = (y, x, fine channel), o the coarse channel.
struct WeightOrder {
  const ConvShape& s;
  const int64_t* strides;

  int64_t offset(int64_t k, int64_t o) const {
    const int64_t c = k % s.fine.channels, x = k / s.fine.channels % s.kernel[1], y = k / run_of(s);
    return o * strides[0] + c * strides[1] + y * strides[2] + x * strides[3];
  }
};

int64_t columns_of(const ConvShape& s, Direction d) {
  return d == Direction::down ? s.coarse.channels : up_columns(s);
}

template <typename P>
int64_t packed_bytes(const ConvShape& s, Direction d) {
  return P::packed_bytes(d == Direction::down ? P::depth(depth_of(s)) : s.coarse.channels, columns_of(s, d));
}

template <typename P>
void pack(const ConvShape& s, Direction d, const WeightView& w, void* packed) {
  using T = typename P::Value;
  const WeightOrder order{s, w.strides};
  const Runs runs(s, 1);
  const bool down = d == Direction::down;
  const int64_t depth = down ? P::depth(depth_of(s)) : s.coarse.channels, columns = columns_of(s, d);
  std::vector<T> matrix(depth * columns, T(0));
  for (int64_t k = 0; k < depth_of(s); ++k) {
    const int64_t column = runs.column(k / run_of(s)) + k % run_of(s);
    for (int64_t o = 0; o < s.coarse.channels; ++o) {
      matrix[down ? k * columns + o : o * columns + column] = static_cast<const T*>(w.data)[order.offset(k, o)];
    }
  }
  P::pack(matrix.data(), depth, columns, packed);
}

// ---------------------------------------------------------------- weight gradient

template <typename P>
void weight_grad(const ConvShape& s, const void* fine, const void* coarse, const MutableWeightView& w) {
  using T = typename P::Value;
  using Gradient = decltype(gradient_of(P()));
  constexpr int64_t kSlices = 32;
  const Gradient gradient(s);
  const int64_t pixels = coarse_pixels(s), slice = round_up(ceil_div(pixels, kSlices), Gradient::kChunk),
                slices = pixels > 0 ? ceil_div(pixels, slice) : 0;
  float* partials = scratch<float>(kPartials, slices * gradient.floats);

  for_tasks(slices, [&](auto take) {
    [[maybe_unused]] const TileUnit unit;
    FineRows<T, typename P::Element> rows(s, fine);
    for (int64_t i; take(i);) {
      const int64_t begin = i * slice, end = std::min(begin + slice, pixels);
      for (int64_t at = begin; at < end; at += Gradient::kChunk) {
        gradient.add(rows, static_cast<const T*>(coarse), at, std::min(at + Gradient::kChunk, end),
                     partials + i * gradient.floats, at == begin);
      }
    }
  });

  constexpr int64_t kBlockFloats = 512;
  at::parallel_for(0, ceil_div(gradient.floats, kBlockFloats), 4, [&](int64_t first, int64_t last) {
    for (int64_t b = first * kBlockFloats; b < std::min(last * kBlockFloats, gradient.floats); b += kBlockFloats) {
      const int64_t n = std::min(kBlockFloats, gradient.floats - b);
      for (int64_t i = 1; i < slices; ++i) {
        for (int64_t j = b; j < b + n; ++j) partials[j] += partials[i * gradient.floats + j];
      }
    }
  });
  const WeightOrder order{s, w.strides};
  for (int64_t k = 0; k < depth_of(s); ++k) {
    T* to = static_cast<T*>(w.data) + order.offset(k, 0);
    for (int64_t o = 0; o < s.coarse.channels; ++o) {
      to[o * w.strides[0]] = static_cast<T>(slices > 0 ? partials[gradient.at(k, o)] : 0.0f);
    }
  }
}

// ---------------------------------------------------------------- by dtype

template <typename F>
auto dispatch(const ConvShape& s, F&& f) {
  switch (s.dtype) {
#ifdef __AVX512BF16__
    case at::kBFloat16: return f(Tiles<c10::BFloat16>());
#else
    case at::kBFloat16: return f(Floats<c10::BFloat16>());
#endif
#ifdef __AMX_BF16__
    case at::kHalf: return half_tiles() ? f(Tiles<c10::Half>()) : f(Floats<c10::Half>());
#else
    case at::kHalf: return f(Floats<c10::Half>());
#endif
    default: return f(Floats<float>());
  }
}

}  // namespace

extern const ConvEngine thin_engine = {
#ifdef __AVX512BF16__
    "thin (tiles)",
#else
    "thin",
#endif
    thin_serves,
    thin_seconds,
    [](const ConvShape& s, Direction d) { return dispatch(s, [&](auto p) { return packed_bytes<decltype(p)>(s, d); }); },
    [](const ConvShape& s, Direction d, const WeightView& w, void* packed) {
      dispatch(s, [&](auto p) { pack<decltype(p)>(s, d, w, packed); });
    },
    [](const ConvShape& s, const void* fine, const void* packed, void* coarse, const Epilogue& e) {
      dispatch(s, [&](auto p) { down<decltype(p)>(s, fine, packed, coarse, e); });
    },
    [](const ConvShape& s, const void* coarse, const void* packed, void* fine, const Epilogue& e) {
      dispatch(s, [&](auto p) { up<decltype(p)>(s, coarse, packed, fine, e); });
    },
    [](const ConvShape& s, const void* fine, const void* coarse, const MutableWeightView& w) {
      dispatch(s, [&](auto p) { weight_grad<decltype(p)>(s, fine, coarse, w); });
    },
};

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
