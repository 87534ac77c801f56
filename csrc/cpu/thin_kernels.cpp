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

#include <bit>
#include <vector>

#include "thin_products.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {
namespace {

int64_t run_of(const ConvShape& s) { return s.kernel[1] * s.fine.channels; }
int64_t depth_of(const ConvShape& s) { return s.kernel[0] * run_of(s); }
int64_t coarse_pixels(const ConvShape& s) { return s.batch * s.coarse.height * s.coarse.width; }

// Bytes that may be read and written past the end of a run, a row or a line: whole vectors are moved.
constexpr int64_t kSlackBytes = 128;
template <typename E>
constexpr int64_t kSlack = kSlackBytes / sizeof(E);

// Units of work (pixels or rows), in blocks that do not straddle groups of images.
struct Blocks {
  int64_t per_group, size, blocks_per_group, count;

  Blocks(int64_t units, int64_t groups, int64_t preferred, int64_t multiple) : per_group(units / groups) {
    constexpr int64_t kEnough = 64;  // blocks, for as many threads
    size = std::clamp(round_up(ceil_div(units, kEnough), multiple), multiple, std::max(preferred, multiple));
    blocks_per_group = ceil_div(per_group, size);
    count = groups * blocks_per_group;
  }
  int64_t group(int64_t block) const { return block / blocks_per_group; }
  int64_t begin(int64_t block) const { return group(block) * per_group + block % blocks_per_group * size; }
  int64_t end(int64_t block) const { return std::min(begin(block) + size, (group(block) + 1) * per_group); }
};

// ---------------------------------------------------------------- epilogue

// Scale and bias of `pixels` neighbouring pixels of the output, and some more for whole vectors.
struct Affine {
  std::vector<float> scale, bias;

  Affine(const Epilogue& e, int64_t channels, int64_t pixels)
      : scale(channels * pixels + lanes<float>, 1.0f), bias(channels * pixels + lanes<float>, 0.0f) {
    for (int64_t i = 0; i < channels * pixels; ++i) {
      if (e.scale) scale[i] = e.scale[i % channels];
      if (e.bias) bias[i] = e.bias[i % channels];
    }
  }
};

template <Activation A>
VEC_INLINE Vec<float> activate(const Vec<float>& z, [[maybe_unused]] const Vec<float>& slope) {
  if constexpr (A == Activation::relu) return clamp_negative(z);
  if constexpr (A == Activation::leaky_relu) return where_positive(z, z, z * slope);
  if constexpr (A == Activation::tanh) return tanh(z);
  if constexpr (A == Activation::sigmoid) return sigmoid(z);
  return z;
}

template <typename T>
VEC_INLINE at::vec::Vectorized<T> narrow(const Vec<float>& z) {
#ifdef __AVX512BF16__
  if constexpr (std::is_same_v<T, c10::BFloat16>) return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(z.hi, z.lo));
#endif
  return at::vec::convert<T, 1, float, 2>(at::vec::VectorizedN<float, 2>(z.lo, z.hi));
}

template <typename T, typename Count>
VEC_INLINE void store_wide(T* p, const Vec<float>& z, Count count) {
  if constexpr (std::is_same_v<T, float>) {
    store_acc<float>(p, z, count);
  } else if constexpr (std::is_same_v<Count, All>) {
    narrow<T>(z).store(p);
  } else {
    narrow<T>(z).store(p, count.n);
  }
}

// Past the caches: a map that would not stay in them until it is read need not be read before it is written.
template <typename T>
VEC_INLINE void stream_wide(T* p, const Vec<float>& z, All) {
#ifdef CPU_CAPABILITY_AVX512
  if constexpr (std::is_same_v<T, float>) {
    _mm512_stream_ps(p, z.lo);
    _mm512_stream_ps(p + z.lo.size(), z.hi);
    return;
  }
#endif
  store_wide(p, z, All{});
}
template <typename T>
VEC_INLINE void stream_wide(T* p, const Vec<float>& z, First first) { store_wide(p, z, first); }

template <typename T>
VEC_INLINE Vec<float> rounded(const Vec<float>& z) {
  if constexpr (std::is_same_v<T, float>) return z;
  alignas(64) T buffer[lanes<T>];
  store_wide(buffer, z, All{});
  const Vec<T> back = load_vec(buffer);
  return {back.lo, back.hi};
}

// Calls f(c, count) for the vectors of [0, n).
template <typename F>
VEC_INLINE void for_vectors(int64_t n, F&& f) {
  int64_t c = 0;
  for (; c + lanes<float> <= n; c += lanes<float>) f(c, All{});
  if (c < n) f(c, First{static_cast<int>(n - c)});
}

// A block of sums in cache, [rows, columns] with rows `stride` apart, whose columns have scales and biases from `at` on.
struct Sums {
  float* data;
  int64_t rows, columns, stride, at;
};

// Is it better to write a map of `pixels` past the caches? Measured on a core with 2 MB of L2 and a share of a large L3: a map
// of 8 MB was written and read again equally fast either way, one of 34 MB 15% faster; 16-bit maps gained nothing.
template <typename T>
bool streams(const T* map, int64_t pixels, int64_t pixel_bytes) {
  constexpr int64_t kBytes = 12 << 20;
  return std::is_same_v<T, float> && pixels * pixel_bytes >= kBytes && pixel_bytes % 128 == 0 &&
         reinterpret_cast<uintptr_t>(map) % 64 == 0;
}

// Finished values go to `to`, and back to the sums where statistics will be taken of them.
template <Activation A, bool kStream, typename T>
void finish(const Epilogue& e, const Affine& affine, const Sums& sums, T* to, int64_t to_stride) {
  const Vec<float> slope(e.negative_slope);
  const bool keep = e.moments != nullptr;
  for_vectors(sums.columns, [&](int64_t c, auto count) {
    const Vec<float> scale = load_acc<float>(affine.scale.data() + sums.at + c),
                     bias = load_acc<float>(affine.bias.data() + sums.at + c);
    for (int64_t r = 0; r < sums.rows; ++r) {
      float* from = sums.data + r * sums.stride + c;
      const Vec<float> z = activate<A>(fmadd(load_acc<float>(from), scale, bias), slope);
      if constexpr (kStream) {
        stream_wide(to + r * to_stride + c, z, count);
      } else {
        store_wide(to + r * to_stride + c, z, count);
      }
      if (keep) store_acc<float>(from, rounded<T>(z));
    }
  });
}

template <bool kStream, typename T>
void finish(const Epilogue& e, const Affine& affine, const Sums& sums, T* to, int64_t to_stride) {
  switch (e.activation) {
    case Activation::relu: return finish<Activation::relu, kStream>(e, affine, sums, to, to_stride);
    case Activation::leaky_relu: return finish<Activation::leaky_relu, kStream>(e, affine, sums, to, to_stride);
    case Activation::tanh: return finish<Activation::tanh, kStream>(e, affine, sums, to, to_stride);
    case Activation::sigmoid: return finish<Activation::sigmoid, kStream>(e, affine, sums, to, to_stride);
    case Activation::none: return finish<Activation::none, kStream>(e, affine, sums, to, to_stride);
  }
}

// Merges rows into the statistics per column of `seen` rows before them: two passes over rows in L1, then Chan's rule.
void gather(const Sums& sums, int64_t seen, float* mean, float* m2) {
  const auto n = static_cast<float>(sums.rows), before = static_cast<float>(seen), total = n + before;
  const Vec<float> inverse(1 / n), share(n / total), weight(before * n / total);
  for_vectors(sums.columns, [&](int64_t c, auto count) {
    Vec<float> average(0.0f), around(0.0f);
    for (int64_t r = 0; r < sums.rows; ++r) average = average + load_acc<float>(sums.data + r * sums.stride + c);
    average = average * inverse;
    for (int64_t r = 0; r < sums.rows; ++r) {
      const Vec<float> d = load_acc<float>(sums.data + r * sums.stride + c) - average;
      around = fmadd(d, d, around);
    }
    if (seen > 0) {
      const Vec<float> old = load_acc<float>(mean + c, count), delta = average - old;
      average = fmadd(delta, share, old);
      around = load_acc<float>(m2 + c, count) + fmadd(delta * delta, weight, around);
    }
    store_acc<float>(mean + c, average, count);
    store_acc<float>(m2 + c, around, count);
  });
}

// ---------------------------------------------------------------- im2col

// Rows of the fine map with zeros for the padding, as elements of the products. The last ones asked for are kept: going
// down the map, each is made once.
template <typename T, typename E>
class FineRows {
 public:
  FineRows(const ConvShape& s, const void* map)
      : s_(s), map_(static_cast<const T*>(map)), slots_(std::bit_ceil(static_cast<uint64_t>(s.kernel[0]))),
        tags_(slots_, -1) {
    const int64_t width = (s.coarse.width - 1) * s.stride[1] + s.kernel[1];
    pixels_ = std::clamp<int64_t>(width - s.padding[1], 0, s.fine.width);
    row_ = width * s.fine.channels + kSlack<E>;
    rows_ = scratch<E>(kFineRows, (slots_ + 1) * row_);
    std::fill(rows_, rows_ + (slots_ + 1) * row_, E(0));
  }

  // Row y of an image, from padding pixels on.
  const E* operator()(int64_t image, int64_t y) {
    if (y < 0 || y >= s_.fine.height) return rows_ + slots_ * row_;
    const int64_t tag = image * s_.fine.height + y, slot = tag & (slots_ - 1);
    E* row = rows_ + slot * row_;
    if (tags_[slot] != tag) {
      const T* from = map_ + tag * s_.fine.width * s_.fine.channels;
      convert(from, pixels_ * s_.fine.channels, row + s_.padding[1] * s_.fine.channels);
      tags_[slot] = tag;
    }
    return row;
  }

 private:
  static void convert(const T* from, int64_t n, E* to) {
    if constexpr (std::is_same_v<T, E>) {
      std::copy(from, from + n, to);
    } else {
      for_vectors(n, [&](int64_t i, auto count) { store_acc<T>(to + i, load_vec(from + i, count), count); });
    }
  }

  const ConvShape& s_;
  const T* const map_;
  const int64_t slots_;  // neighbouring rows have neighbouring slots, so that the rows of one kernel do not meet
  std::vector<int64_t> tags_;
  int64_t pixels_, row_;
  E* rows_;
};

// Runs of `n` neighbouring pixels, `bytes` long: from every `step` bytes to every `pitch` bytes. Two moves of kMove bytes
// overlap where one is too short, so that nothing is written that is not of the run.
template <int kMove>
void copy_runs(const char* from, int64_t step, int64_t bytes, int64_t n, char* to, int64_t pitch) {
  if (bytes <= 2 * kMove) {
    const int64_t second = bytes - kMove;
    for (int64_t i = 0; i < n; ++i, from += step, to += pitch) {
      std::memcpy(to, from, kMove);
      std::memcpy(to + second, from + second, kMove);
    }
  } else {
    for (int64_t i = 0; i < n; ++i) std::memcpy(to + i * pitch, from + i * step, bytes);
  }
}

inline void copy_runs(const char* from, int64_t step, int64_t bytes, int64_t n, char* to, int64_t pitch) {
  if (bytes < 4) return copy_runs<2>(from, step, bytes, n, to, pitch);
  if (bytes < 8) return copy_runs<4>(from, step, bytes, n, to, pitch);
  if (bytes < 16) return copy_runs<8>(from, step, bytes, n, to, pitch);
  if (bytes < 32) return copy_runs<16>(from, step, bytes, n, to, pitch);
  if (bytes < 64) return copy_runs<32>(from, step, bytes, n, to, pitch);
  copy_runs<64>(from, step, bytes, n, to, pitch);
}

// The K values around each of the coarse pixels [begin, end) of the batch, in rows of `depth`.
template <typename T, typename E>
void im2col(const ConvShape& s, FineRows<T, E>& rows, int64_t begin, int64_t end, int64_t depth, E* to) {
  constexpr auto kBytes = static_cast<int64_t>(sizeof(E));
  const int64_t run = run_of(s), step = s.stride[1] * s.fine.channels;
  for (int64_t pixel = begin; pixel < end;) {
    const int64_t row = pixel / s.coarse.width, x = pixel % s.coarse.width,
                  n = std::min(s.coarse.width - x, end - pixel);
    const int64_t image = row / s.coarse.height, y = row % s.coarse.height * s.stride[0] - s.padding[0];
    for (int64_t k = 0; k < s.kernel[0]; ++k) {
      copy_runs(reinterpret_cast<const char*>(rows(image, y + k) + x * step), step * kBytes, run * kBytes, n,
                reinterpret_cast<char*>(to + k * run), depth * kBytes);
    }
    to += n * depth;
    pixel += n;
  }
}

// ---------------------------------------------------------------- down

template <typename P>
void down(const ConvShape& s, const void* fine, const void* packed, void* coarse, const Epilogue& epilogue) {
  using T = typename P::Value;
  using E = typename P::Element;
  constexpr int64_t kBlockPixels = 512;
  const int64_t depth = P::depth(depth_of(s)), channels = s.coarse.channels, panel_floats = P::kChunk * kPanel;
  BlockMoments* moments = epilogue.moments;
  const Blocks blocks(coarse_pixels(s), moments ? moments->groups : 1, kBlockPixels, P::kChunk);
  if (moments) moments->resize(blocks.count, channels);
  const Affine affine(epilogue, channels, 1);
  const bool stream = streams(static_cast<const T*>(coarse), coarse_pixels(s), channels * static_cast<int64_t>(sizeof(T)));

  at::parallel_for(0, blocks.count, 1, [&](int64_t first, int64_t last) {
    [[maybe_unused]] const TileUnit unit;
    FineRows<T, E> rows(s, fine);
    E* left = scratch<E>(kLeft, P::kChunk * depth);
    std::fill_n(left, P::kChunk * depth, E(0));
    float* sums = scratch<float>(kSums, ceil_div(channels, kPanel) * panel_floats);
    for (int64_t b = first; b < last; ++b) {
      const int64_t begin = blocks.begin(b), end = blocks.end(b);
      for (int64_t at = begin; at < end; at += P::kChunk) {
        const int64_t n = std::min(P::kChunk, end - at);
        im2col(s, rows, at, at + n, depth, left);
        P::multiply(left, round_up(n, P::kRows), depth, packed, channels, sums, panel_floats);
        for (int64_t c = 0; c < channels; c += kPanel) {
          const Sums panel{sums + c / kPanel * panel_floats, n, std::min(kPanel, channels - c), kPanel, c};
          T* to = static_cast<T*>(coarse) + at * channels + c;
          stream ? finish<true>(epilogue, affine, panel, to, channels) : finish<false>(epilogue, affine, panel, to, channels);
          if (!moments) continue;
          gather(panel, at - begin, moments->mean.data() + b * channels + c, moments->m2.data() + b * channels + c);
        }
      }
      if (!moments) continue;
      moments->group[b] = blocks.group(b);
      moments->count[b] = end - begin;
    }
  });
}

// ---------------------------------------------------------------- up

// The columns of `up`: row k of the kernel is a run of columns, none of which straddles two panels.
struct Runs {
  int64_t run, per_panel;

  explicit Runs(const ConvShape& s) : run(run_of(s)), per_panel(kPanel / run) {}
  int64_t panel(int64_t k) const { return k / per_panel; }
  int64_t column(int64_t k) const { return k % per_panel * run; }
  int64_t columns(int64_t kernel_height) const {
    return panel(kernel_height - 1) * kPanel + column(kernel_height - 1) + run;
  }
};

// Rows of the coarse map, multiplied: K columns for each pixel. Made when asked for, some rows at a time; the last ones
// are kept, so that going down a map each is made once.
template <typename P>
class Columns {
  using T = typename P::Value;

 public:
  Columns(const ConvShape& s, const void* map, const void* packed)
      : s_(s), map_(static_cast<const T*>(map)), packed_(packed), columns_(Runs(s).columns(s.kernel[0])) {
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
      const int64_t n = std::min(rows_, s_.batch * s_.coarse.height - first) * s_.coarse.width;
      P::multiply(pixel(first), n, s_.coarse.channels, packed_, columns_, sums, panel_floats_);
      tags_[slot] = chunk;
    }
    return sums + (row - first) * s_.coarse.width * kPanel;
  }
  int64_t panel_floats() const { return panel_floats_; }

  // Asks for the pixels that will be multiplied a chunk after those of row `row`.
  void ahead(int64_t row) const {
    fetch(pixel(row + rows_), s_.coarse.width * s_.coarse.channels * static_cast<int64_t>(sizeof(T)));
  }

 private:
  static constexpr int64_t kChunkPixels = 32;

  const T* pixel(int64_t row) const { return map_ + row * s_.coarse.width * s_.coarse.channels; }

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
  const Runs runs(s);
  BlockMoments* moments = epilogue.moments;
  const Blocks blocks(s.batch * bands, moments ? moments->groups : 1, ceil_div(kBlockPixels, s.coarse.width), 1);
  if (moments) moments->resize(blocks.count, channels);
  const Affine affine(epilogue, channels, s.fine.width);

  at::parallel_for(0, blocks.count, 1, [&](int64_t first, int64_t last) {
    [[maybe_unused]] const TileUnit unit;
    Columns<P> columns(s, coarse, packed);
    Line line(s);
    std::vector<const float*> rows(parts), terms;
    std::vector<float> mean, m2;
    if (moments) mean.resize(row_values), m2.resize(row_values);
    for (int64_t b = first; b < last; ++b) {
      int64_t seen = 0;
      for (int64_t i = blocks.begin(b); i < blocks.end(b); ++i) {
        const int64_t image = i / bands, band = first_band + i % bands;
        for (int64_t j = 0; j < parts; ++j) {
          const bool inside = band >= j && band - j < s.coarse.height;
          rows[j] = inside ? columns.row(image * s.coarse.height + band - j) : nullptr;
        }
        columns.ahead(image * s.coarse.height + band);
        for (int64_t k = 0; k < s.stride[0]; ++k) {
          const int64_t y = band * s.stride[0] + k - s.padding[0];
          if (y < 0 || y >= s.fine.height) continue;
          terms.clear();
          for (int64_t j = 0; j < parts; ++j) {
            const int64_t of_kernel = j * s.stride[0] + k;
            if (!rows[j] || of_kernel >= s.kernel[0]) continue;
            terms.push_back(rows[j] + runs.panel(of_kernel) * columns.panel_floats() + runs.column(of_kernel));
          }
          const Sums sums{line(terms), 1, row_values, 0, 0};
          finish<false>(epilogue, affine, sums, static_cast<T*>(fine) + (image * s.fine.height + y) * row_values, 0);
          if (moments) gather(sums, seen++, mean.data(), m2.data());
        }
      }
      if (!moments) continue;
      moments->group[b] = blocks.group(b);
      moments->count[b] = seen * s.fine.width;
      fold(mean, m2, s.fine.width, channels, seen, moments->mean.data() + b * channels, moments->m2.data() + b * channels);
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
  return d == Direction::down ? s.coarse.channels : Runs(s).columns(s.kernel[0]);
}

template <typename P>
int64_t packed_bytes(const ConvShape& s, Direction d) {
  return P::packed_bytes(d == Direction::down ? P::depth(depth_of(s)) : s.coarse.channels, columns_of(s, d));
}

template <typename P>
void pack(const ConvShape& s, Direction d, const WeightView& w, void* packed) {
  using T = typename P::Value;
  const WeightOrder order{s, w.strides};
  const Runs runs(s);
  const bool down = d == Direction::down;
  const int64_t depth = down ? P::depth(depth_of(s)) : s.coarse.channels, columns = columns_of(s, d);
  std::vector<T> matrix(depth * columns, T(0));
  for (int64_t k = 0; k < depth_of(s); ++k) {
    const int64_t row = k / run_of(s), column = runs.panel(row) * kPanel + runs.column(row) + k % run_of(s);
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
  using E = typename P::Element;
  constexpr int64_t kSlices = 32, kChunk = 128;
  const int64_t depth = P::depth(depth_of(s)), channels = s.coarse.channels, pixels = coarse_pixels(s);
  const int64_t slice = std::max(kChunk, round_up(ceil_div(pixels, kSlices), kChunk)), slices = ceil_div(pixels, slice);
  const int64_t panel_floats = round_up(depth, kBlock) * kPanel, slice_floats = ceil_div(channels, kPanel) * panel_floats;
  float* partials = scratch<float>(kPartials, slices * slice_floats);

  at::parallel_for(0, slices, 1, [&](int64_t first, int64_t last) {
    [[maybe_unused]] const TileUnit unit;
    FineRows<T, E> rows(s, fine);
    E* left = scratch<E>(kLeft, kChunk * depth);
    std::fill_n(left, kChunk * depth, E(0));
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = i * slice, end = std::min(begin + slice, pixels);
      for (int64_t at = begin; at < end; at += kChunk) {
        const int64_t n = std::min(kChunk, end - at);
        im2col(s, rows, at, at + n, depth, left);
        P::multiply_transposed(left, static_cast<const T*>(coarse) + at * channels, n, depth, channels,
                               partials + i * slice_floats, panel_floats, at > begin);
      }
    }
  });

  const WeightOrder order{s, w.strides};
  at::parallel_for(0, depth_of(s), 8, [&](int64_t first, int64_t last) {
    std::vector<float> sums(channels);
    for (int64_t k = first; k < last; ++k) {
      std::fill(sums.begin(), sums.end(), 0.0f);
      for (int64_t i = 0; i < slices; ++i) {
        for (int64_t c = 0; c < channels; c += kPanel) {
          const float* from = partials + i * slice_floats + c / kPanel * panel_floats + k * kPanel;
          for (int64_t o = 0; o < std::min(kPanel, channels - c); ++o) sums[c + o] += from[o];
        }
      }
      for (int64_t o = 0; o < channels; ++o) static_cast<T*>(w.data)[order.offset(k, o)] = static_cast<T>(sums[o]);
    }
  });
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
    "thin",
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
