// Convolution as a matrix product whose operand is gathered from the map, pixel by pixel: no map is unfolded in memory.
//
// Both directions are one kernel. The output pixels of a *phase* meet the same kernel taps: going down there is one
// phase, with every tap; going up, output pixel o meets the taps k with (o + padding - k) a multiple of the stride, so
// there are stride x stride phases with a share of the taps each, and no product with an inserted zero is computed. All
// phases are tiles of one launch. Within a phase
//     rows      output pixels: images, then the phase's pixels in order (a *lattice*)
//     columns   output channels
//     depth     taps, and for each the input channels
// and a row meets input pixel (lattice point * step + origin + tap * direction), or zeros outside of the map.
//
// Floor: a layer of 8.6 GFLOP (64 x 64 DCGAN, batch 128, bfloat16) takes 11 us at 790 TFLOP/s, its maps 3 to 6 us of
// copy bandwidth: the product decides, and maps are read 16 bytes at a time from the L2 cache by cp.async.
#pragma once

#include "conv.h"
#include "conv_finish.cuh"
#include "matrix.cuh"

namespace dcgan_fast::cuda {

// Division of 0 <= n < 2^31 by what the host knows: a product and a shift (Granlund and Montgomery, 1994).
struct Divisor {
  uint32_t factor, shift;

  static Divisor of(int64_t divisor) {
    uint32_t bits = 0;
    while ((int64_t{1} << bits) < divisor) bits++;
    const uint64_t power = uint64_t{1} << (31 + bits);
    return {static_cast<uint32_t>((power + divisor - 1) / divisor), 31 + bits};
  }
  __host__ __device__ int divide(int n) const {
    return static_cast<int>(static_cast<uint64_t>(static_cast<uint32_t>(n)) * factor >> shift);
  }
};

constexpr int kMostTaps = 16;  // of a phase along an axis, where operands are read by chunks

// One axis of a convolution in one direction, as the kernels see it.
struct ConvAxis {
  int input, output;  // pixels
  int kernel, stride, padding;
};

// How operands are read. By chunks of 16 bytes in the background, where their channels are a multiple of a chunk. Else
// one by one: a weight's because the transposed convolution has a few output channels; pixels because their channels
// are no multiple of a chunk, as a latent's 100: then the depth counts taps and channels in one; or all.
enum class Access : int32_t { kChunks, kWeightElements, kPixelElements, kElements };

struct ConvLaunch {
  ConvAxis y, x;
  int in_channels, out_channels;
  int group_images;  // images of a statistics group
  const void *input, *weight;
  float* partials;          // [tile, split][a block's accumulators]; null if splits is 1
  int tiles, column_tiles;  // of a group in a phase, along the rows and the columns
  int phases_y, phases_x;   // 1 x 1 going down
  // Of a phase's pixels across and of all: the most that a phase has, or one less along an axis.
  int most_points_y, most_points_x;
  Divisor by_width[2], by_points[2][2];
  int splits;               // parts of the depth
  Access access;
  Finish finish;

  __host__ __device__ int phases() const { return phases_y * phases_x; }
};

// What the taps and pixels of a phase are along one axis.
struct PhaseAxis {
  int points;  // output pixels of the phase: first_output + point * step of the output
  int first_output, output_step;
  int first_input, input_step;  // input pixel of a point through tap 0
  int taps, first_tap, tap_step, input_per_tap;

  template <bool kUp>
  __device__ static PhaseAxis of(const ConvAxis& axis, int phase) {
    PhaseAxis p;
    if constexpr (kUp) {
      p.output_step = axis.stride, p.input_step = 1;
      p.first_output = (phase - axis.padding % axis.stride + axis.stride) % axis.stride;
      p.points = (axis.output - p.first_output + axis.stride - 1) / axis.stride;
      p.first_input = (p.first_output + axis.padding - phase) / axis.stride;
      p.taps = phase < axis.kernel ? (axis.kernel - phase + axis.stride - 1) / axis.stride : 0;
      p.first_tap = phase, p.tap_step = axis.stride, p.input_per_tap = -1;
    } else {
      p.output_step = 1, p.input_step = axis.stride;
      p.first_output = 0, p.points = axis.output, p.first_input = -axis.padding;
      p.taps = axis.kernel, p.first_tap = 0, p.tap_step = 1, p.input_per_tap = 1;
    }
    p.points = max(p.points, 0);
    return p;
  }

  // A bit for each of up to kMostTaps taps: whether it meets a pixel of a map of `size`, if tap 0 meets `first`.
  __device__ uint32_t reached(int first, int size) const {
    const int begin = min(max(input_per_tap > 0 ? -first : first - size + 1, 0), taps);
    const int end = min(max(input_per_tap > 0 ? size - first : first + 1, begin), taps);
    return (1u << end) - (1u << begin);
  }
};

// Which part of the output a block computes. Neighbouring blocks share rows of the input: first the columns of a tile,
// then its phases, then the next tile.
template <class Shape, bool kUp>
struct ConvTile {
  PhaseAxis y, x;
  int group, tile, phase, split;
  int first_row, rows;  // of the group in this phase
  int first_column;
  Divisor by_width, by_points;

  // That of a block, where every tile has so many.
  __device__ ConvTile(const ConvLaunch& launch, unsigned block, int splits) {
    unsigned rest = block;
    split = rest % splits, rest /= splits;
    first_column = rest % launch.column_tiles * Shape::kColumns, rest /= launch.column_tiles;
    phase = rest % launch.phases(), rest /= launch.phases();
    tile = rest % launch.tiles, group = rest / launch.tiles;
    y = PhaseAxis::of<kUp>(launch.y, phase / launch.phases_x);
    x = PhaseAxis::of<kUp>(launch.x, phase % launch.phases_x);
    rows = launch.group_images * y.points * x.points;
    first_row = tile * Shape::kRows;
    const int less_y = y.points < launch.most_points_y, less_x = x.points < launch.most_points_x;
    by_width = launch.by_width[less_x];
    by_points = launch.by_points[less_y][less_x];
  }

  __device__ int taps() const { return y.taps * x.taps; }

  // The image and the lattice point of a row, which must exist.
  struct Point {
    int image, y, x;
  };
  __device__ Point point(const ConvLaunch& launch, int row) const {
    const int image = by_points.divide(row), within = row - image * y.points * x.points,
              line = by_width.divide(within);
    return {group * launch.group_images + image, line, within - line * x.points};
  }

  // Its place among the tiles of the group.
  __device__ int moments_tile(const ConvLaunch& launch) const { return tile * launch.phases() + phase; }
};

template <typename T, class Shape, class Tile>
__device__ void finish_conv(const Accumulators<Shape>& sums, const ConvLaunch& launch, const Tile& tile) {
  const int64_t width = launch.x.output, height = launch.y.output, channels = launch.out_channels;
  const auto line_of = [&](int row) {  // where the channels of a row's pixel begin
    const auto point = tile.point(launch, tile.first_row + row);
    const int64_t y = tile.y.first_output + static_cast<int64_t>(point.y) * tile.y.output_step;
    const int64_t x = tile.x.first_output + static_cast<int64_t>(point.x) * tile.x.output_step;
    return ((point.image * height + y) * width + x) * channels;
  };
  const int rows = min(tile.rows - tile.first_row, Shape::kRows);
  const int64_t place = tile.moments_tile(launch);
  finish<T>(sums, launch.finish, tile.group, place, tile.first_column, rows, line_of);
  if (launch.finish.sums.x) {
    finish_gradient_sums<T, Shape>(launch.finish, tile.group, place, tile.first_column, rows, line_of);
  }
}

// Blocks that an SM's registers must have room for: 128 registers a thread of 8 warps, 80 where those are narrow
// warpgroups, 168 of 4 warps, and 255 of 4 that need more, as strict ones do and those that read elements.
template <class Shape, bool kMore = false>
constexpr int kConvBlocks =
    (Shape::kWarps == 4 && !kMore) || (Shape::kWarpRows == 16 && Shape::kWarpColumns == 64) ? 3 : 2;

// Computes the sums of a tile; stores them, or puts them aside where the depth is split.
template <class Shape, class Step, bool kUp, Access kAccess>
__global__ void __launch_bounds__(Shape::kThreads, kConvBlocks<Shape, Step::kStrict || kAccess != Access::kChunks>)
    conv(const ConvLaunch launch) {
  using T = typename Step::T;
  using Pixels = typename Step::template Tile<Shape::kRows, true>;
  using Weights = typename Step::template Tile<Shape::kColumns, !kUp>;
  constexpr int kDepth = Pixels::kDepth;
  [[maybe_unused]] constexpr int kChunk = Pixels::kChunk;
  constexpr bool kByChunks = kAccess == Access::kChunks || kAccess == Access::kWeightElements;
  [[maybe_unused]] constexpr bool kWholeStages = Step::kOfWarpgroups;  // channels are a multiple of a stage's
  const ConvTile<Shape, kUp> tile(launch, blockIdx.x, launch.splits);
  if (tile.first_row >= tile.rows) {
    if (launch.splits == 1)
      finish_nothing<Shape>(launch.finish, tile.group, tile.moments_tile(launch), tile.first_column);
    return;
  }
  const T* const input = static_cast<const T*>(launch.input);
  const T* const weight = static_cast<const T*>(launch.weight);
  const int in_channels = launch.in_channels, out_channels = launch.out_channels;
  const int kernel_taps = launch.y.kernel * launch.x.kernel;

  // Where a row's point meets the first tap: the pixel's number in the input, which may be outside of its map.
  struct Origin {
    int pixel, y, x;

    __device__ bool reaches(const ConvLaunch& launch, int tap_y, int tap_x) const {
      return static_cast<unsigned>(y + tap_y) < static_cast<unsigned>(launch.y.input) &&
             static_cast<unsigned>(x + tap_x) < static_cast<unsigned>(launch.x.input);
    }
  };
  const auto origin = [&](int row) {
    if (row >= tile.rows) return Origin{0, -(1 << 30), 0};  // reaches nothing
    const auto point = tile.point(launch, row);
    const int y = tile.y.first_input + point.y * tile.y.input_step,
              x = tile.x.first_input + point.x * tile.x.input_step;
    return Origin{(point.image * launch.y.input + y) * launch.x.input + x, y, x};
  };
  // By chunks: where the line's chunk is for the first tap and channel, and which taps reach the map, a bit for each
  // along either axis, so that a copy costs an addition and a test.
  const Share<Pixels, Shape::kThreads> rows;
  const char* pixel_chunks[kByChunks ? rows.kLines : 1];
  uint32_t reached[kByChunks ? rows.kLines : 1];
  if constexpr (kByChunks) {
#pragma unroll
    for (int i = 0; i < rows.kLines; i++) {
      const Origin own = origin(tile.first_row + rows.line(i));
      pixel_chunks[i] =
          reinterpret_cast<const char*>(input + static_cast<int64_t>(own.pixel) * in_channels + rows.element());
      reached[i] = tile.y.reached(own.y, launch.y.input) | tile.x.reached(own.x, launch.x.input) << kMostTaps;
    }
  }

  const int channel_steps = static_cast<int>((in_channels + kDepth - 1) / kDepth);
  const int depth = static_cast<int>(tile.taps() * in_channels);
  const int steps = kByChunks ? tile.taps() * channel_steps : (depth + kDepth - 1) / kDepth;
  const int each = (steps + launch.splits - 1) / launch.splits;
  const int first_step = min(tile.split * each, steps), own_steps = min(each, steps - first_step);

  // A tap's place in the kernel.
  const auto kernel_tap = [&](int y, int x) {
    return (tile.y.first_tap + y * tile.y.tap_step) * launch.x.kernel + tile.x.first_tap + x * tile.x.tap_step;
  };

  // The stage that is filled next; stages are filled in order. By chunks: how far its operands are from those of the
  // first tap and channel, in bytes and in elements.
  struct {
    int tap_y, tap_x, channel;
    int64_t pixel_on, weight_on;
  } next = {0, 0, first_step * kDepth, 0, 0};
  [[maybe_unused]] const auto begin_tap = [&] {
    const int y = next.tap_y * tile.y.input_per_tap, x = next.tap_x * tile.x.input_per_tap;
    const int64_t place = kernel_tap(next.tap_y, next.tap_x);
    const int64_t elements = static_cast<int64_t>(y * launch.x.input + x) * in_channels + next.channel;
    next.pixel_on = elements * static_cast<int>(sizeof(T));
    next.weight_on = kUp ? (static_cast<int64_t>(next.channel) * kernel_taps + place) * out_channels
                         : place * in_channels + next.channel;
  };
  if constexpr (kByChunks) {
    const int tap = first_step / channel_steps;
    next.tap_y = tap / max(tile.x.taps, 1), next.tap_x = tap - next.tap_y * tile.x.taps;
    next.channel -= tap * channel_steps * kDepth;
    begin_tap();
  }

  const Share<Weights, Shape::kThreads> lines;
  // From a line of the weight to the next, to the thread's next, and to the next stage where lines are input channels.
  [[maybe_unused]] const int64_t weight_line = static_cast<int64_t>(kernel_taps) * (kUp ? out_channels : in_channels);
  [[maybe_unused]] const int64_t weight_lines_apart = lines.kLinesApart * weight_line;
  [[maybe_unused]] const int64_t weight_stage = kDepth * weight_line;
  [[maybe_unused]] const T* const weight_chunk =
      weight + ((kUp ? 0 : tile.first_column) + lines.first) * weight_line + (kUp ? tile.first_column : 0) +
      lines.element();
  auto fill = [&](const Pixels& pixels, const Weights& weights) {
    if constexpr (kByChunks) {
      const int first_channel = next.channel;
      const uint32_t tap = 1u << next.tap_y | 1u << (kMostTaps + next.tap_x);
      const bool has_channel = kWholeStages || first_channel + rows.element() < in_channels;
#pragma unroll
      for (int i = 0; i < rows.kLines; i++) {
        ptx::cp_async_16(pixels.chunk(rows.line(i), rows.chunk), pixel_chunks[i] + next.pixel_on,
                         (reached[i] & tap) == tap && has_channel);
      }
      const T* from = weight_chunk + next.weight_on;
#pragma unroll
      for (int i = 0; i < lines.kLines; i++, from += weight_lines_apart) {
        T* to = weights.chunk(lines.line(i), lines.chunk);
        const int in = first_channel + (kUp ? lines.line(i) : lines.element()),
                  out = tile.first_column + (kUp ? lines.element() : lines.line(i));
        if constexpr (kAccess == Access::kChunks) {
          ptx::cp_async_16(to, from, (kWholeStages || in < in_channels) && out < out_channels);
        } else {
          fill_one_by_one<T, kChunk>(to, [&](int e) {
            const bool valid = in + (kUp ? 0 : e) < in_channels && out + (kUp ? e : 0) < out_channels;
            return valid ? from + e : nullptr;
          });
        }
      }
      next.channel += kDepth;
      next.pixel_on += kDepth * sizeof(T);
      next.weight_on += kUp ? weight_stage : kDepth;
      if (next.channel >= in_channels) {
        next.channel = 0;
        if (++next.tap_x == tile.x.taps) next.tap_x = 0, next.tap_y++;
        begin_tap();
      }
    } else {
      const int first = next.channel;
      next.channel += kDepth;
      const auto part = [&](int k, int& tap_y, int& tap_x) {  // returns the channel
        const int tap = k / in_channels;
        tap_y = tap / tile.x.taps, tap_x = tap - tap_y * tile.x.taps;
        return k - tap * in_channels;
      };
      if (kAccess == Access::kPixelElements && tile.taps() == 1) {  // a dense layer: no place asks for a division
        const int y = 0, x = 0;
#pragma unroll 2
        for (int i = 0; i < rows.kLines; i++) {
          const Origin own = origin(tile.first_row + rows.line(i));
          const int k = first + rows.element();
          const T* from = input + static_cast<int64_t>(own.pixel) * in_channels + k;
          const bool reaches = own.reaches(launch, y, x);
          fill_one_by_one<T, kChunk>(pixels.chunk(rows.line(i), rows.chunk),
                                     [&](int e) { return reaches && k + e < depth ? from + e : nullptr; });
        }
      } else {
#pragma unroll 1
        for (int i = 0; i < rows.kLines; i++) {
          const Origin own = origin(tile.first_row + rows.line(i));
          fill_one_by_one<T, kChunk>(pixels.chunk(rows.line(i), rows.chunk), [&](int e) -> const T* {
            const int k = first + rows.element() + e;
            int y, x;
            const int channel = part(k, y, x);
            y *= tile.y.input_per_tap, x *= tile.x.input_per_tap;
            if (k >= depth || !own.reaches(launch, y, x)) return nullptr;
            return input + static_cast<int64_t>(own.pixel + y * launch.x.input + x) * in_channels + channel;
          });
        }
      }
#pragma unroll 1
      for (int i = 0; i < lines.kLines; i++) {
        const int line = lines.line(i), element = lines.element();
        T* to = weights.chunk(line, lines.chunk);
        const auto weight_at = [&](int k, int out) -> const T* {
          if (k >= depth || out >= out_channels) return nullptr;
          int y, x;
          const int in = part(k, y, x), place = kernel_tap(y, x);
          return weight + (kUp ? (static_cast<int64_t>(in) * kernel_taps + place) * out_channels + out
                               : (static_cast<int64_t>(out) * kernel_taps + place) * in_channels + in);
        };
        if constexpr (kAccess == Access::kPixelElements) {
          static_assert(kUp);
          const T* from = weight_at(first + line, tile.first_column + element);
          ptx::cp_async_16(to, from ? from : weight, from);
        } else {
          fill_one_by_one<T, kChunk>(to, [&](int e) {
            return weight_at(first + (kUp ? line : element + e), tile.first_column + (kUp ? element + e : line));
          });
        }
      }
    }
  };

  Accumulators<Shape> sums;
  multiply_pipeline<Step, Shape, Pixels, Weights>(sums, own_steps, fill);
  if (launch.splits > 1) {
    put_aside(sums, launch.partials, blockIdx.x, out_channels - tile.first_column);  // parts of a tile are neighbours
  } else {
    // Found anew: kept, the tile's numbers would take the product's registers.
    finish_conv<T>(sums, launch, ConvTile<Shape, kUp>(launch, ptx::unknown(blockIdx.x), 1));
  }
}

// Where the depth was split: adds the parts in order, and stores. Such tiles are half of kTargetBlocks at most, one an
// SM: a block may have all its registers.
template <typename T, class Shape, bool kUp>
__global__ void __launch_bounds__(Shape::kThreads, 1) conv_finish_splits(const ConvLaunch launch) {
  const int splits = launch.splits;
  const ConvTile<Shape, kUp> tile(launch, blockIdx.x, 1);
  if (tile.first_row >= tile.rows) {
    finish_nothing<Shape>(launch.finish, tile.group, tile.moments_tile(launch), tile.first_column);
    return;
  }
  Accumulators<Shape> sums;
  add_parts(sums, launch.partials, static_cast<int64_t>(blockIdx.x) * splits, splits,
            launch.out_channels - tile.first_column);
  finish_conv<T>(sums, launch, tile);
}

}  // namespace dcgan_fast::cuda
