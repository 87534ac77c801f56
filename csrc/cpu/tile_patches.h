// What the `tiles` engine makes operands of: blocks of neighbouring output pixels ("patches") with their windows of input
// pixels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "integers.h"
#include "tiles.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {

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
inline Axis down_axis(int64_t fine, int64_t coarse, int64_t kernel, int64_t stride, int64_t padding, int64_t patch) {
  Axis a{fine, coarse, patch, ceil_div(coarse, patch), (patch - 1) * stride + kernel, patch * stride, -padding, {}};
  a.taps.resize(a.out);
  for (int64_t o = 0; o < a.out; ++o) {
    for (int64_t k = 0; k < kernel; ++k) a.keep(o, {o * stride + k, k});
  }
  return a;
}

// `patch * stride` fine pixels from the coarse ones.
inline Axis up_axis(int64_t fine, int64_t coarse, int64_t kernel, int64_t stride, int64_t padding, int64_t patch) {
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

// ---------------------------------------------------------------- the largest value, for scale_for

inline float largest_of(const float* p, int64_t n, float so_far) {
  using V = at::vec::Vectorized<float>;
  V most[4] = {V(so_far), V(so_far), V(so_far), V(so_far)};
  int64_t i = 0;
  for (; i + 4 * V::size() <= n; i += 4 * V::size()) {
    for (int j = 0; j < 4; ++j) most[j] = at::vec::maximum(most[j], V::loadu(p + i + j * V::size()).abs());
  }
  alignas(64) float lanes[V::size()];
  at::vec::maximum(at::vec::maximum(most[0], most[1]), at::vec::maximum(most[2], most[3])).store(lanes);
  for (const float lane : lanes) so_far = lane > so_far || lane != lane ? lane : so_far;
  for (; i < n; ++i) so_far = std::max(so_far, std::abs(p[i]));
  return so_far;
}

// Of the pixels that a block's patches read.
template <typename T>
float largest_of(const PatchBlock& block, const T* map, int64_t channels) {
  float largest = 0;
  if constexpr (kScaled<T>) {
    const auto span = [](const Axis& axis, int64_t patch) {
      const int64_t begin = patch * axis.in_step + axis.in_origin;
      return std::pair(std::clamp<int64_t>(begin, 0, axis.in_size), std::clamp<int64_t>(begin + axis.window, 0, axis.in_size));
    };
    const Axis &y = block.patches.y, &x = block.patches.x;
    for (int64_t r = 0; r < block.count; ++r) {
      const auto &place = block.places[r], *left = r > 0 ? &block.places[r - 1] : nullptr;
      const auto [y0, y1] = span(y, place.y);
      auto [x0, x1] = span(x, place.x);
      if (left && left->image == place.image && left->y == place.y) x0 = std::max(x0, span(x, left->x).second);  // seen
      for (int64_t row = y0; row < y1; ++row) {
        const T* from = map + ((place.image * y.in_size + row) * x.in_size + x0) * channels;
        largest = largest_of(from, std::max<int64_t>(0, x1 - x0) * channels, largest);
      }
    }
  }
  return largest;
}

// ---------------------------------------------------------------- windows as A operands

// How the windows of a block lie in memory: each patch's by itself, or in strips.
//
// A strip is what 16 patches side by side read: rows of the map, which their windows share. It is smaller than the windows by
// all that overlaps, and filled by going along the map. Maps of at least 16 patches' width are cut so.
struct WindowLayout {
  int64_t strip = 0;           // pixels of a strip's row; 0: no strips
  int64_t pixel, line, slice;  // bytes to the pixel on the right, to the one below, to its next 32 channels
  RowLayout rows;              // of 32 patches
  int64_t bytes;

  // Of up to `channels` channels, a multiple of 32.
  WindowLayout(const Patches& p, int64_t channels, int64_t parts) {
    if (p.x.patches % kTileRows == 0) {
      strip = (kTileRows - 1) * p.x.in_step + p.x.window;
      slice = kBlock * 2;
      pixel = channels * 2;
      line = strip * pixel;
      const int64_t plane = p.y.window * line;
      rows = {p.x.in_step * pixel, parts * plane, plane};
      bytes = 2 * parts * plane;
    } else {
      pixel = parts * kPlaneBytes;
      line = p.x.window * pixel;
      slice = p.y.window * line;
      bytes = channels / kBlock * slice;
    }
  }
  int64_t at(int64_t wy, int64_t wx) const { return wy * line + wx * pixel; }
};

// Row by row of the windows: long enough runs of pixels for the prefetcher, few enough operands written at a time to stay in
// L1.
template <typename T>
void pack_each_window(const PatchBlock& block, const T* in, int64_t channels, int64_t c0, int64_t chunk, float scale, char* packed) {
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
            pack_row(from + c, channels - c, scale, operand, r);
          } else {
            zero_row(kParts<T>, operand, r);
          }
        }
      }
    }
  }
}

template <typename T>
void pack_strips(const PatchBlock& block, const WindowLayout& layout, const T* in, int64_t channels, int64_t c0, int64_t chunk,
                 float scale, char* packed) {
  const Axis &y = block.patches.y, &x = block.patches.x;
  for (int64_t half = 0; half * kTileRows < block.count; ++half) {
    const PatchBlock::Place& place = block.places[half * kTileRows];
    const int64_t column = place.x * x.in_step + x.in_origin;
    const int64_t begin = std::clamp<int64_t>(-column, 0, layout.strip), end = std::clamp(x.in_size - column, begin, layout.strip);
    for (int64_t wy = 0; wy < y.window; ++wy) {
      char* line = packed + half * layout.rows.half + wy * layout.line;
      const int64_t row = place.y * y.in_step + y.in_origin + wy;
      const bool inside = row >= 0 && row < y.in_size;
      const int64_t first = inside ? begin : layout.strip, last = inside ? end : layout.strip;
      for (int i = 0; i < kParts<T>; ++i) {
        std::memset(line + i * layout.rows.plane, 0, first * layout.pixel);
        std::memset(line + i * layout.rows.plane + last * layout.pixel, 0, (layout.strip - last) * layout.pixel);
      }
      const T* from = in + ((place.image * y.in_size + row) * x.in_size + column) * channels + c0;
      for (int64_t px = first; px < last; ++px) {
        for (int64_t c = 0; c < chunk; c += kBlock) {
          const Planes planes = load_planes(from + px * channels + c, channels - c0 - c, scale);
          char* to = line + px * layout.pixel + c / kBlock * layout.slice;
          for (int i = 0; i < kParts<T>; ++i) store_row(to + i * layout.rows.plane, planes.plane[i]);
        }
      }
    }
  }
}

// Input channels [c0, c0 + chunk) of the windows of a block, times `scale`.
template <typename T>
void pack_windows(const PatchBlock& block, const WindowLayout& layout, const T* in, int64_t channels, int64_t c0, int64_t chunk,
                  float scale, char* packed) {
  if (layout.strip > 0) {
    pack_strips(block, layout, in, channels, c0, chunk, scale, packed);
  } else {
    pack_each_window(block, in, channels, c0, chunk, scale, packed);
  }
}

// ---------------------------------------------------------------- operands of the weight's gradient

// B operands of the same, patches being k.
template <typename T>
void pack_windows_as_b(const PatchBlock& block, const T* in, int64_t channels, int64_t c0, int64_t chunk, float scale,
                       char* packed) {
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
          pack_pair(even ? even + c0 + c : nullptr, odd ? odd + c0 + c : nullptr, channels - c0 - c, scale,
                    pixel + c / kBlock * slice_bytes, pair);
        }
      }
    }
  }
}

// A operands of the output pixels of a block, transposed: [chunk / 32][pixel], rows are channels, patches are k.
template <typename T>
void pack_pixels_transposed(const PatchBlock& block, const T* out, int64_t channels, int64_t c0, int64_t chunk, float scale,
                            char* packed) {
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
      pack_transposed<T, false>(rows, channels - c0 - c, scale, packed + (c / kBlock * pixels + i) * kOperandBytes<T>);
      for (auto& row : rows) row += row ? kBlock : 0;
    }
  }
}

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
