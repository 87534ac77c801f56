// Direct convolution as products of bfloat16 tiles.
//
// The rows of a product are 32 patches: blocks of neighbouring pixels of one image, all of the same size, each with its
// window of input pixels (with the zeros of the padding, and overlapping its neighbours' windows). Pixel (y, x) of 32
// patches at once is one operand of 32 rows, a tap of the kernel another pixel of the window: no im2col, the window is
// packed once, and a kernel of any size, stride and padding is a list of pairs (pixel of the window, tap).
#include "tile_conv.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "tile_blocking.h"
#include "tiles.h"
#include "workspace.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return a >= 0 ? (a + b - 1) / b : -(-a / b); }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// ---------------------------------------------------------------- geometry

struct Tap {
  int64_t window;  // offset in the window
  int64_t k;       // offset in the kernel
};

// Patches along one axis: output pixels [b * out, (b + 1) * out) of patch b read input pixels b * in_step + in_origin and on.
struct Axis {
  int64_t in_size, out_size;  // of the grids
  int64_t out;                // output pixels of a patch
  int64_t patches;
  int64_t window;  // input pixels of a patch
  int64_t in_step, in_origin;
  std::vector<std::vector<Tap>> taps;  // [out]

  // A single patch knows where the padding is, and leaves it out.
  void keep(int64_t o, Tap tap) {
    const int64_t at = in_origin + tap.window;
    if (patches == 1 && (at < 0 || at >= in_size)) return;
    taps[o].push_back(tap);
  }
};

// `patch` coarse pixels from the fine ones.
Axis down_axis(int64_t fine, int64_t coarse, int64_t kernel, int64_t stride, int64_t padding, int64_t patch) {
  Axis a{fine, coarse, patch, ceil_div(coarse, patch), (patch - 1) * stride + kernel, patch * stride, -padding, {}};
  a.taps.resize(a.out);
  for (int64_t o = 0; o < a.out; ++o) {
    for (int64_t k = 0; k < kernel; ++k) a.keep(o, {o * stride + k, k});
  }
  return a;
}

// `patch * stride` fine pixels from the coarse ones.
Axis up_axis(int64_t fine, int64_t coarse, int64_t kernel, int64_t stride, int64_t padding, int64_t patch) {
  const int64_t out = patch * stride;
  const int64_t first = ceil_div(padding - kernel + 1, stride), last = (out - 1 + padding) / stride;
  Axis a{coarse, fine, out, ceil_div(fine, out), last - first + 1, patch, first, {}};
  a.taps.resize(out);
  for (int64_t o = 0; o < out; ++o) {
    for (int64_t k = (o + padding) % stride; k < kernel; k += stride) a.keep(o, {(o + padding - k) / stride - first, k});
  }
  return a;
}

struct Patches {
  Axis y, x;
  int64_t batch;

  int64_t per_image() const { return y.patches * x.patches; }
  int64_t count() const { return batch * per_image(); }
  int64_t window() const { return y.window * x.window; }
  int64_t out() const { return y.out * x.out; }
  int64_t taps() const {  // of all output pixels of a patch
    int64_t ny = 0, nx = 0;
    for (const auto& t : y.taps) ny += static_cast<int64_t>(t.size());
    for (const auto& t : x.taps) nx += static_cast<int64_t>(t.size());
    return ny * nx;
  }
};

// 32 patches, the rows of a product; the last block may have fewer.
struct PatchBlock {
  struct Place {
    int64_t image, y, x;  // patch (y, x) of an image
  };
  const Patches& patches;
  int64_t count;
  Place places[kBlock];

  PatchBlock(const Patches& p, int64_t begin, int64_t end) : patches(p), count(std::min(kBlock, end - begin)) {
    const int64_t per_image = p.per_image();
    for (int64_t r = 0; r < count; ++r) {
      const int64_t in_image = (begin + r) % per_image;
      places[r] = {(begin + r) / per_image, in_image / p.x.patches, in_image % p.x.patches};
    }
  }
  // Input pixel (wy, wx) of the window of patch r, null in the padding.
  template <typename T>
  const T* in_pixel(const T* map, int64_t channels, int64_t r, int64_t wy, int64_t wx) const {
    const Axis &y = patches.y, &x = patches.x;
    return pixel(map, channels, r, places[r].y * y.in_step + y.in_origin + wy, y.in_size,
                 places[r].x * x.in_step + x.in_origin + wx, x.in_size);
  }
  // Output pixel (oy, ox) of patch r, null beyond the map.
  template <typename T>
  T* out_pixel(T* map, int64_t channels, int64_t r, int64_t oy, int64_t ox) const {
    const Axis &y = patches.y, &x = patches.x;
    return pixel(map, channels, r, places[r].y * y.out + oy, y.out_size, places[r].x * x.out + ox, x.out_size);
  }

 private:
  template <typename T>
  T* pixel(T* map, int64_t channels, int64_t r, int64_t y, int64_t height, int64_t x, int64_t width) const {
    if (y < 0 || y >= height || x < 0 || x >= width) return nullptr;
    return map + ((places[r].image * height + y) * width + x) * channels;
  }
};

// ---------------------------------------------------------------- packing windows

// A operands of the windows of a block: [chunk / 32][pixel of the window], rows are patches. Row by row of the windows:
// long enough runs of pixels for the prefetcher, few enough operands written at a time to stay in L1.
template <typename T>
void pack_windows(const PatchBlock& block, const T* in, int64_t channels, int64_t c0, int64_t chunk, char* packed) {
  const Axis &y = block.patches.y, &x = block.patches.x;
  const int64_t slice_bytes = block.patches.window() * kOperandBytes<T>;
  for (int64_t wy = 0; wy < y.window; ++wy) {
    for (int64_t r = 0; r < kBlock; ++r) {
      char* pixel = packed + wy * x.window * kOperandBytes<T>;
      for (int64_t wx = 0; wx < x.window; ++wx, pixel += kOperandBytes<T>) {
        const T* from = r < block.count ? block.in_pixel(in, channels, r, wy, wx) : nullptr;
        char* operand = pixel;
        for (int64_t c = c0; c < c0 + chunk; c += kBlock, operand += slice_bytes) {
          if (from && c < channels) {
            pack_row(from + c, channels - c, operand, r);
          } else {
            zero_row(kParts<T>, operand, r);
          }
        }
      }
    }
  }
}

// B operands of the same, patches being k.
template <typename T>
void pack_windows_as_b(const PatchBlock& block, const T* in, int64_t channels, int64_t c0, int64_t chunk, char* packed) {
  const Axis &y = block.patches.y, &x = block.patches.x;
  const int64_t slice_bytes = block.patches.window() * kOperandBytes<T>;
  for (int64_t wy = 0; wy < y.window; ++wy) {
    for (int64_t pair = 0; pair < kTileRows; ++pair) {
      char* pixel = packed + wy * x.window * kOperandBytes<T>;
      for (int64_t wx = 0; wx < x.window; ++wx, pixel += kOperandBytes<T>) {
        const int64_t r = 2 * pair;
        const T* even = r < block.count ? block.in_pixel(in, channels, r, wy, wx) : nullptr;
        const T* odd = r + 1 < block.count ? block.in_pixel(in, channels, r + 1, wy, wx) : nullptr;
        for (int64_t c = 0; c < chunk; c += kBlock) {
          pack_pair(even ? even + c0 + c : nullptr, odd ? odd + c0 + c : nullptr, channels - c0 - c,
                    pixel + c / kBlock * slice_bytes, pair);
        }
      }
    }
  }
}

// A operands of the output pixels of a block, transposed: [chunk / 32][pixel], rows are channels, patches are k.
template <typename T>
void pack_pixels_transposed(const PatchBlock& block, const T* out, int64_t channels, int64_t c0, int64_t chunk, char* packed) {
  const int64_t width = block.patches.x.out, pixels = block.patches.out();
  for (int64_t i = 0; i < pixels; ++i) {
    const T* rows[kBlock] = {};
    for (int64_t r = 0; r < block.count; ++r) {
      rows[r] = block.out_pixel(out, channels, r, i / width, i % width);
      if (!rows[r]) continue;
      rows[r] += c0;
#if defined(__AVX512BF16__)
      const char* next = reinterpret_cast<const char*>(rows[r] + channels);
      for (int64_t line = 0; line < chunk * static_cast<int64_t>(sizeof(T)); line += 64) _mm_prefetch(next + line, _MM_HINT_T0);
#endif
    }
    for (int64_t c = 0; c < chunk; c += kBlock) {
      pack_transposed<T, false>(rows, channels - c0 - c, packed + (c / kBlock * pixels + i) * kOperandBytes<T>);
      for (auto& row : rows) row += row ? kBlock : 0;
    }
  }
}

// ---------------------------------------------------------------- epilogue

VEC_INLINE Vec<float> apply(Activation activation, const Vec<float>& z, const Vec<float>& slope) {
  switch (activation) {
    case Activation::relu: return clamp_negative(z);
    case Activation::leaky_relu: return where_positive(z, z, z * slope);
    case Activation::tanh: return tanh(z);
    case Activation::sigmoid: return sigmoid(z);
    default: return z;
  }
}

// One output pixel of up to 32 patches leaves the cache.
template <typename T>
class Finish {
 public:
  Finish(const Epilogue& epilogue, int64_t c0, int64_t channels, float* mean, float* m2)
      : epilogue_(epilogue), c0_(c0), channels_(channels), mean_(mean), m2_(m2) {}

  // Sums of row r at sums + r * stride; goes to rows[r], null for none. Rounded sums are written back for the statistics.
  void operator()(float* sums, int64_t stride, T* const* rows) {
    const Vec<float> slope(epilogue_.negative_slope);
    const float* of_row[kBlock];
    int64_t n = 0;
    for (int64_t r = 0; r < kBlock; ++r) {
      if (!rows[r]) continue;
      float* row = sums + r * stride;
      of_row[n++] = row;
      each([&](int64_t c, auto count) {
        Vec<float> z = load_acc<float>(row + c);
        if (epilogue_.scale) z = z * load_acc<float>(epilogue_.scale + c0_ + c, count);
        if (epilogue_.bias) z = z + load_acc<float>(epilogue_.bias + c0_ + c, count);
        z = apply(epilogue_.activation, z, slope);
        store_wide(rows[r] + c, z, count);
        if (mean_) store_acc<float>(row + c, rounded(z));
      });
    }
    if (mean_ && n > 0) gather(of_row, n);
  }
  int64_t count() const { return count_; }

 private:
  template <typename F>
  void each(F&& f) const {
    int64_t c = 0;
    for (; c + lanes<float> <= channels_; c += lanes<float>) f(c, All{});
    if (c < channels_) f(c, First{static_cast<int>(channels_ - c)});
  }
  template <typename Count>
  static void store_wide(T* p, const Vec<float>& z, Count count) {
    if constexpr (std::is_same_v<T, float>) {
      store_acc<float>(p, z, count);
    } else {
      store_vec<T>(p, Vec<T>{z.lo, z.hi}, count);
    }
  }
  static Vec<float> rounded(const Vec<float>& z) {
    if constexpr (std::is_same_v<T, float>) return z;
    alignas(64) T narrow[lanes<T>];
    store_wide(narrow, z, All{});
    const Vec<T> back = load_vec(narrow);
    return {back.lo, back.hi};
  }

  // Two passes over rows in L1, then Chan's rule: as good as two passes over the whole block.
  void gather(const float* const* rows, int64_t n) {
    const float total = static_cast<float>(count_ + n);
    const Vec<float> inverse(1.0f / static_cast<float>(n)), share(static_cast<float>(n) / total),
        weight(static_cast<float>(count_) * static_cast<float>(n) / total);
    each([&](int64_t c, auto count) {
      Vec<float> sum(0.0f), m2(0.0f);
      for (int64_t i = 0; i < n; ++i) sum = sum + load_acc<float>(rows[i] + c);
      const Vec<float> mean = sum * inverse;
      for (int64_t i = 0; i < n; ++i) {
        const Vec<float> d = load_acc<float>(rows[i] + c) - mean;
        m2 = fmadd(d, d, m2);
      }
      if (count_ > 0) {
        const Vec<float> old = load_acc<float>(mean_ + c, count), delta = mean - old;
        store_acc<float>(mean_ + c, fmadd(delta, share, old), count);
        store_acc<float>(m2_ + c, load_acc<float>(m2_ + c, count) + fmadd(delta * delta, weight, m2), count);
      } else {
        store_acc<float>(mean_ + c, mean, count);
        store_acc<float>(m2_ + c, m2, count);
      }
    });
    count_ += n;
  }

  const Epilogue& epilogue_;
  const int64_t c0_, channels_;
  float *const mean_, *const m2_;
  int64_t count_ = 0;
};

// ---------------------------------------------------------------- down and up

// The operands that each output pixel of a patch sums over.
struct PixelSteps {
  std::vector<int32_t> a, b;
  std::vector<int64_t> begin;  // [pixels + 1]

  PixelSteps(const Patches& p, int64_t kernel_w, int64_t operand_bytes) : begin(1) {
    for (int64_t oy = 0; oy < p.y.out; ++oy) {
      for (int64_t ox = 0; ox < p.x.out; ++ox) {
        for (const Tap& ty : p.y.taps[oy]) {
          for (const Tap& tx : p.x.taps[ox]) {
            a.push_back(static_cast<int32_t>((ty.window * p.x.window + tx.window) * operand_bytes));
            b.push_back(static_cast<int32_t>((ty.k * kernel_w + tx.k) * operand_bytes));
          }
        }
        begin.push_back(static_cast<int64_t>(a.size()));
      }
    }
  }
};

// Packed weights: [output channels / 32][input channels / 32][ky][kx] B operands.
template <typename T>
void run(const ConvShape& s, const Patches& patches, const TileBlocking& blocking, int64_t in_channels, int64_t out_channels,
         const T* in, const char* packed, T* out, const Epilogue& epilogue) {
  constexpr int64_t bytes = kOperandBytes<T>;
  const int64_t taps = s.kernel[0] * s.kernel[1], slices = ceil_div(in_channels, kBlock);
  const PixelSteps steps(patches, s.kernel[1], bytes);
  const int64_t pixels = patches.out(), window = patches.window();
  const int64_t chunks = ceil_div(slices * kBlock, blocking.in_panel), panels = ceil_div(out_channels, blocking.out_panel);
  const int64_t groups = epilogue.moments ? epilogue.moments->groups : 1;
  const int64_t per_group = patches.count() / groups, blocks_per_group = ceil_div(per_group, kBlock),
                blocks = groups * blocks_per_group;
  if (epilogue.moments) epilogue.moments->resize(blocks, out_channels);
  // between chunks all pixels' sums are kept, else one pixel's at a time
  const int64_t sums_bytes = (chunks > 1 ? pixels : 1) * kBlock * blocking.out_panel * 4;
  const int64_t windows_bytes = blocking.in_panel / kBlock * window * bytes;

  at::parallel_for(0, panels * blocks, 1, [&](int64_t first_task, int64_t last_task) {
    const TileUnit unit;
    char* windows = static_cast<char*>(workspace(windows_bytes + sums_bytes));
    auto* sums = reinterpret_cast<float*>(windows + windows_bytes);
    for (int64_t task = first_task; task < last_task; ++task) {
      const int64_t c0 = task / blocks * blocking.out_panel, b = task % blocks, group = b / blocks_per_group;
      const int64_t panel = std::min(blocking.out_panel, out_channels - c0);
      const int64_t begin = group * per_group + b % blocks_per_group * kBlock;
      const PatchBlock block(patches, begin, (group + 1) * per_group);
      BlockMoments* m = epilogue.moments;
      Finish<T> finish(epilogue, c0, panel, m ? m->mean.data() + b * out_channels + c0 : nullptr,
                       m ? m->m2.data() + b * out_channels + c0 : nullptr);
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const int64_t k0 = chunk * blocking.in_panel / kBlock, depth = std::min(blocking.in_panel / kBlock, slices - k0);
        pack_windows(block, in, in_channels, k0 * kBlock, depth * kBlock, windows);
        for (int64_t pixel = 0; pixel < pixels; ++pixel) {
          float* c = sums + (chunks > 1 ? pixel : 0) * kBlock * blocking.out_panel;
          const int64_t from = steps.begin[pixel], n = steps.begin[pixel + 1] - from;
          const Steps list{steps.a.data() + from, steps.b.data() + from, n, depth, window * bytes, taps * bytes};
          for (int64_t j = 0; j < panel; j += kBlock) {
            const char* weights = packed + ((c0 + j) / kBlock * slices + k0) * taps * bytes;
            multiply<kParts<T>>(windows, weights, list, c + j, blocking.out_panel, chunk > 0);
          }
          if (chunk + 1 < chunks) continue;
          T* rows[kBlock] = {};
          for (int64_t r = 0; r < block.count; ++r) {
            T* to = block.out_pixel(out, out_channels, r, pixel / patches.x.out, pixel % patches.x.out);
            rows[r] = to ? to + c0 : nullptr;
          }
          finish(c, blocking.out_panel, rows);
        }
      }
      if (m && c0 == 0) {
        m->group[b] = group;
        m->count[b] = finish.count();
      }
    }
  });
}

template <typename T>
void down(const ConvShape& s, const void* fine, const void* packed, void* coarse, const Epilogue& epilogue) {
  const TileBlocking b = tile_blocking(s, Direction::down, kParts<T>);
  const Patches patches{
      down_axis(s.fine.height, s.coarse.height, s.kernel[0], s.stride[0], s.padding[0], b.patch[0]),
      down_axis(s.fine.width, s.coarse.width, s.kernel[1], s.stride[1], s.padding[1], b.patch[1]), s.batch};
  run(s, patches, b, s.fine.channels, s.coarse.channels, static_cast<const T*>(fine), static_cast<const char*>(packed),
      static_cast<T*>(coarse), epilogue);
}

template <typename T>
void up(const ConvShape& s, const void* coarse, const void* packed, void* fine, const Epilogue& epilogue) {
  const TileBlocking b = tile_blocking(s, Direction::up, kParts<T>);
  const Patches patches{up_axis(s.fine.height, s.coarse.height, s.kernel[0], s.stride[0], s.padding[0], b.patch[0]),
                        up_axis(s.fine.width, s.coarse.width, s.kernel[1], s.stride[1], s.padding[1], b.patch[1]),
                        s.batch};
  run(s, patches, b, s.coarse.channels, s.fine.channels, static_cast<const T*>(coarse), static_cast<const char*>(packed),
      static_cast<T*>(fine), epilogue);
}

// ---------------------------------------------------------------- weights

int64_t packed_bytes(const ConvShape& s, int parts) {
  return round_up(s.fine.channels, kBlock) * round_up(s.coarse.channels, kBlock) / (kBlock * kBlock) * s.kernel[0] *
         s.kernel[1] * parts * kPlaneBytes;
}

template <typename T>
void pack(const ConvShape& s, Direction direction, const WeightView& w, void* packed) {
  const bool down = direction == Direction::down;
  const int64_t taps = s.kernel[0] * s.kernel[1];
  const int64_t fine = s.fine.channels, coarse = s.coarse.channels;
  const int64_t in_slices = ceil_div(down ? fine : coarse, kBlock), out_slices = ceil_div(down ? coarse : fine, kBlock);
  at::parallel_for(0, out_slices * in_slices * taps, 8, [&](int64_t begin, int64_t end) {
    T gathered[kBlock][kBlock];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t tap = i % taps, slice = i / taps, in0 = slice % in_slices * kBlock, out0 = slice / in_slices * kBlock;
      const int64_t coarse0 = down ? out0 : in0, fine0 = down ? in0 : out0;
      const int64_t rows_n = std::min(kBlock, coarse - coarse0), n = std::min(kBlock, fine - fine0);
      const T* origin = static_cast<const T*>(w.data) + coarse0 * w.strides[0] + fine0 * w.strides[1] +
                        tap / s.kernel[1] * w.strides[2] + tap % s.kernel[1] * w.strides[3];
      const T* rows[kBlock] = {};  // of fine channels
      for (int64_t r = 0; r < rows_n; ++r) {
        rows[r] = origin + r * w.strides[0];
        if (w.strides[1] == 1) continue;
        for (int64_t c = 0; c < n; ++c) gathered[r][c] = rows[r][c * w.strides[1]];
        rows[r] = gathered[r];
      }
      char* operand = static_cast<char*>(packed) + i * kOperandBytes<T>;
      if (down) {
        pack_transposed<T, true>(rows, n, operand);
      } else {
        for (int64_t k = 0; k < kTileRows; ++k) pack_pair(rows[2 * k], rows[2 * k + 1], n, operand, k);
      }
    }
  });
}

// ---------------------------------------------------------------- the weight's gradient

template <typename T>
void weight_grad(const ConvShape& s, const void* fine_map, const void* coarse_map, const MutableWeightView& w) {
  constexpr int64_t bytes = kOperandBytes<T>;
  const auto *fine = static_cast<const T*>(fine_map), *coarse = static_cast<const T*>(coarse_map);
  auto* grad = static_cast<T*>(w.data);
  const TileBlocking blocking = tile_blocking(s, Direction::weight_grad, kParts<T>);
  const int64_t coarse_panel = blocking.out_panel, fine_panel = blocking.in_panel;
  const Patches patches{
      down_axis(s.fine.height, s.coarse.height, s.kernel[0], s.stride[0], s.padding[0], blocking.patch[0]),
      down_axis(s.fine.width, s.coarse.width, s.kernel[1], s.stride[1], s.padding[1], blocking.patch[1]), s.batch};
  const Axis &y = patches.y, &x = patches.x;
  const int64_t taps = s.kernel[0] * s.kernel[1], window = patches.window(), pixels = patches.out();
  // for each tap the pixels it meets
  std::vector<std::vector<int32_t>> at_coarse(taps), at_fine(taps);
  for (int64_t oy = 0; oy < y.out; ++oy) {
    for (int64_t ox = 0; ox < x.out; ++ox) {
      for (const Tap& ty : y.taps[oy]) {
        for (const Tap& tx : x.taps[ox]) {
          const int64_t tap = ty.k * s.kernel[1] + tx.k;
          at_coarse[tap].push_back(static_cast<int32_t>((oy * x.out + ox) * bytes));
          at_fine[tap].push_back(static_cast<int32_t>((ty.window * x.window + tx.window) * bytes));
        }
      }
    }
  }
  const int64_t coarse_panels = ceil_div(s.coarse.channels, coarse_panel), fine_panels = ceil_div(s.fine.channels, fine_panel);
  const int64_t fine_bytes = fine_panel / kBlock * window * bytes, coarse_bytes = coarse_panel / kBlock * pixels * bytes,
                sums_bytes = taps * coarse_panel * fine_panel * 4;
  const int64_t blocks = ceil_div(patches.count(), kBlock);

  at::parallel_for(0, coarse_panels * fine_panels, 1, [&](int64_t first_task, int64_t last_task) {
    const TileUnit unit;
    char* fine_packed = static_cast<char*>(workspace(fine_bytes + coarse_bytes + sums_bytes));
    char* coarse_packed = fine_packed + fine_bytes;
    auto* sums = reinterpret_cast<float*>(coarse_packed + coarse_bytes);
    for (int64_t task = first_task; task < last_task; ++task) {
      const int64_t coarse0 = task / fine_panels * coarse_panel, fine0 = task % fine_panels * fine_panel;
      const int64_t coarse_n = std::min(coarse_panel, s.coarse.channels - coarse0),
                    fine_n = std::min(fine_panel, s.fine.channels - fine0);
      for (int64_t b = 0; b < blocks; ++b) {
        const PatchBlock block(patches, b * kBlock, patches.count());
        pack_windows_as_b(block, fine, s.fine.channels, fine0, round_up(fine_n, kBlock), fine_packed);
        pack_pixels_transposed(block, coarse, s.coarse.channels, coarse0, round_up(coarse_n, kBlock), coarse_packed);
        for (int64_t tap = 0; tap < taps; ++tap) {
          const Steps list{at_coarse[tap].data(), at_fine[tap].data(), static_cast<int64_t>(at_coarse[tap].size()), 1, 0, 0};
          for (int64_t i = 0; i < coarse_n; i += kBlock) {
            for (int64_t j = 0; j < fine_n; j += kBlock) {
              multiply<kParts<T>>(coarse_packed + i / kBlock * pixels * bytes, fine_packed + j / kBlock * window * bytes, list,
                                  sums + (tap * coarse_panel + i) * fine_panel + j, fine_panel, b > 0);
            }
          }
        }
      }
      for (int64_t i = 0; i < coarse_n; ++i) {
        for (int64_t tap = 0; tap < taps; ++tap) {
          const float* from = sums + (tap * coarse_panel + i) * fine_panel;
          T* to = grad + (coarse0 + i) * w.strides[0] + fine0 * w.strides[1] + tap / s.kernel[1] * w.strides[2] +
                  tap % s.kernel[1] * w.strides[3];
          for (int64_t j = 0; j < fine_n; ++j) to[j * w.strides[1]] = static_cast<T>(blocks > 0 ? from[j] : 0.0f);
        }
      }
    }
  });
}

// ---------------------------------------------------------------- by dtype

template <typename F>
void dispatch(const ConvShape& s, F&& f) {
  switch (s.dtype) {
    case at::kFloat: return f(float());
    case at::kBFloat16: return f(c10::BFloat16());
    default: return f(c10::Half());
  }
}

}  // namespace

#define TEXT_OF(name) #name
#define TEXT(macro) TEXT_OF(macro)

extern const ConvEngine tiles = {
    "tiles (" TEXT(CPU_CAPABILITY) ")",
    [](const ConvShape& s, Direction) {
      int64_t n = 0;
      dispatch(s, [&](auto t) { n = packed_bytes(s, kParts<decltype(t)>); });
      return n;
    },
    [](const ConvShape& s, Direction d, const WeightView& w, void* packed) {
      dispatch(s, [&](auto t) { pack<decltype(t)>(s, d, w, packed); });
    },
    [](const ConvShape& s, const void* fine, const void* packed, void* coarse, const Epilogue& e) {
      dispatch(s, [&](auto t) { down<decltype(t)>(s, fine, packed, coarse, e); });
    },
    [](const ConvShape& s, const void* coarse, const void* packed, void* fine, const Epilogue& e) {
      dispatch(s, [&](auto t) { up<decltype(t)>(s, coarse, packed, fine, e); });
    },
    [](const ConvShape& s, const void* fine, const void* coarse, const MutableWeightView& w) {
      dispatch(s, [&](auto t) { weight_grad<decltype(t)>(s, fine, coarse, w); });
    },
};

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
