// The weight's gradient of the `thin` engine: what neighbouring coarse pixels and the values around them have in common.
#pragma once

#include "thin_rows.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {

// The gradient of the weights [k, coarse channel o], summed over neighbouring coarse pixels: `floats` sums, at(k, o) the place
// of one of them. `add` takes the pixels [begin, end), at most kChunk; the first ones set the sums.
template <typename T>
class FloatGradient {
 public:
  static constexpr int64_t kChunk = 64;
  const int64_t floats;

  explicit FloatGradient(const ConvShape& s)
      : floats(ceil_div(s.coarse.channels, kPanel) * depth_of(s) * kPanel), s_(s), depth_(depth_of(s)) {}

  int64_t at(int64_t k, int64_t o) const { return (o / kPanel * depth_ + k) * kPanel + o % kPanel; }

  void add(FineRows<T, float>& rows, const T* coarse, int64_t begin, int64_t end, float* sums, bool first) const {
    const int64_t n = end - begin, channels = s_.coarse.channels;
    float* left = scratch<float>(kLeft, kChunk * depth_);
    im2col(s_, rows, begin, end, 0, s_.kernel[0], depth_, left);
    for (int64_t c = 0; c < channels; c += kPanel, sums += depth_ * kPanel) {
      const int64_t columns = std::min(kPanel, channels - c), width = round_up(columns, kGemmWidth);
      const float* right = Floats<T>::panel(coarse + begin * channels, n, channels, c, columns, width);
      const Ahead ahead = c == 0 ? Ahead{coarse + end * channels, n * channels * static_cast<int64_t>(sizeof(T))} : Ahead{};
      gemm({depth_, width, n, left, 1, depth_, right, sums, !first, ahead});
    }
  }

 private:
  const ConvShape& s_;
  const int64_t depth_;
};

#ifdef __AVX512BF16__

// Pixels are the depth of the product. Pairs of them are interleaved straight from the rows of the fine map, 16 columns at
// a time; those of the coarse map are transposed.
template <typename T>
class TileGradient {
 public:
  static constexpr int64_t kChunk = 128;
  const int64_t floats;

  explicit TileGradient(const ConvShape& s)
      : floats(Runs(s, kTileRows).panels * round_up(s.coarse.channels, kBlock) * kPanel), s_(s), runs_(s, kTileRows),
        panel_floats_(floats / runs_.panels) {}

  int64_t at(int64_t k, int64_t o) const {
    const int64_t column = runs_.column(k / run_of(s_)) + k % run_of(s_);
    return column / kPanel * panel_floats_ + o * kPanel + column % kPanel;
  }

  void add(FineRows<T, T>& rows, const T* coarse, int64_t begin, int64_t end, float* sums, bool first) const {
    const int64_t channels = s_.coarse.channels, columns = runs_.column(s_.kernel[0] - 1) + runs_.slot;
    const int64_t steps = ceil_div(end - begin, kBlock), bytes = steps * kPlaneBytes;
    char* left = scratch<char>(kLeftOperand, ceil_div(channels, kBlock) * bytes);
    char* right = scratch<char>(kRightOperand, ceil_div(columns, kBlock) * bytes);
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t pixel = begin + step * kBlock, n = std::min(kBlock, end - pixel);
      fetch({coarse + (pixel + kChunk) * channels, kBlock * channels * static_cast<int64_t>(sizeof(T))});
      pack_coarse(coarse + pixel * channels, n, left + step * kPlaneBytes, bytes);
      pack_fine(rows, pixel, n, right + step * kPlaneBytes, bytes);
    }
    for (int64_t j = 0; j < columns; j += kBlock) {
      for (int64_t i = 0; i < channels; i += kBlock) {
        multiply_tiles<T>({left + i / kBlock * bytes, 64, kPlaneBytes, right + j / kBlock * bytes, steps,
                           sums + j / kPanel * panel_floats_ + i * kPanel + j % kPanel, !first});
      }
    }
  }

 private:
  using Bits = c10::BFloat16;  // of either type: packing only moves them

  // `n` pixels as one step of the left operands, which are `next` bytes apart.
  void pack_coarse(const T* pixels, int64_t n, char* operand, int64_t next) const {
    const int64_t channels = s_.coarse.channels;
    for (int64_t c = 0; c < channels; c += kBlock, operand += next) {
      const Bits* of_step[kBlock] = {};
      for (int64_t i = 0; i < n; ++i) of_step[i] = reinterpret_cast<const Bits*>(pixels + i * channels + c);
      pack_transposed<Bits, false>(of_step, channels - c, 1, operand);
    }
  }

  // What lies around `n` pixels as one step of the right operands.
  void pack_fine(FineRows<T, T>& rows, int64_t pixel, int64_t n, char* operands, int64_t next) const {
    const Place place(s_, pixel);
    for (int64_t k = 0; k < s_.kernel[0]; ++k) {
      const T* from;
      int64_t step = s_.stride[1] * s_.fine.channels;
      if (place.x + n <= s_.coarse.width) {
        from = rows(place, k) + place.x * step;
      } else {  // of several rows, which are not all kept
        T* gathered = scratch<T>(kLeft, kBlock * runs_.slot);
        im2col(s_, rows, pixel, pixel + n, k, k + 1, runs_.slot, gathered);
        from = gathered;
        step = runs_.slot;
      }
      for (int64_t e = 0; e < runs_.slot; e += kTileRows) {
        const int64_t column = runs_.column(k) + e;
        char* tile = operands + column / kBlock * next + column % kBlock / kTileRows * kTileBytes;
        const T* p = from + e;
        int64_t i = 0;
        for (; i + 2 <= n; i += 2, p += 2 * step, tile += 64) interleave(p, p + step, tile);
        for (; i < kBlock; i += 2, tile += 64) interleave(i < n ? p : rows.zeros(), rows.zeros(), tile);
      }
    }
  }

  // 16 values of each of two pixels to 16 pairs.
  static void interleave(const T* even, const T* odd, char* to) {
    const __m512i order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                           5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    _mm512_store_si512(to, _mm512_permutex2var_epi16(half(even), order, half(odd)));
  }
  static __m512i half(const T* p) {
    return _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }

  const ConvShape& s_;
  const Runs runs_;
  const int64_t panel_floats_;
};

template <typename T>
TileGradient<T> gradient_of(Tiles<T>);
#endif

template <typename T>
FloatGradient<T> gradient_of(Floats<T>);

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
