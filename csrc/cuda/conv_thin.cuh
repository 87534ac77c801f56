// The transposed convolution into a few channels: a generator's image, and the gradient of one.
//
// As conv() does it, every pixel of the input would be read once for each tap that it meets, 16 times for a 4 x 4
// kernel, to feed three columns of a tile. Here a block reads a patch of the input once, multiplies it with all taps at
// once,
//     rows      input pixels of the patch
//     columns   taps and output channels
//     depth     input channels
// and adds up what meets in an output pixel, in shared memory. The patches of neighbouring blocks overlap by the
// kernel's reach, so the input is read about 1.5 times, mostly from the L2 cache: bound by copy bandwidth.
#pragma once

#include "conv.cuh"

namespace dcgan_fast::cuda {

// One axis: a block makes `outputs` pixels of `patch` input pixels.
struct ThinAxis {
  ConvAxis conv;  // going up: input is coarse, output fine
  int patch, outputs, tiles;
  Divisor by_stride, by_outputs, by_patch;
};

struct ThinLaunch {
  ThinAxis y, x;
  int in_channels, out_channels;
  bool weight_by_chunks;  // else one by one
  const void *input, *weight;
  Finish finish;
};

// First output pixel of a block along an axis, and the first input pixel that any tap brings there.
struct ThinOrigin {
  int output, input;

  __device__ ThinOrigin(const ThinAxis& axis, int tile) {
    output = tile * axis.outputs;
    const int reach = output + axis.conv.padding - axis.conv.kernel + 1;  // input * stride is this at least
    input = reach > 0 ? (reach + axis.conv.stride - 1) / axis.conv.stride : -(-reach / axis.conv.stride);
  }
};

template <class Shape, class Step>
__global__ void __launch_bounds__(Shape::kThreads, kConvBlocks<Shape, Step::kStrict>)
    conv_thin(const ThinLaunch launch) {
  using T = typename Step::T;
  using Pixels = SharedTile<T, Shape::kRows, true>;
  using Weights = SharedTile<T, Shape::kColumns, false>;
  constexpr int kDepth = Pixels::kDepth, kChunk = Pixels::kChunk;
  const ConvAxis &y_axis = launch.y.conv, &x_axis = launch.x.conv;
  const int tile = blockIdx.x % (launch.y.tiles * launch.x.tiles),
            image = blockIdx.x / (launch.y.tiles * launch.x.tiles);
  const ThinOrigin y(launch.y, tile / launch.x.tiles), x(launch.x, tile % launch.x.tiles);
  const T* const input = static_cast<const T*>(launch.input);
  const T* const weight = static_cast<const T*>(launch.weight);
  const int in_channels = launch.in_channels, out_channels = launch.out_channels;
  const int columns = y_axis.kernel * x_axis.kernel * out_channels;

  const Share<Pixels, Shape::kThreads> rows;
  const Share<Weights, Shape::kThreads> lines;
  int pixel[rows.kLines];  // its number in the input, or less than none outside
#pragma unroll
  for (int i = 0; i < rows.kLines; i++) {
    const int row = rows.line(i), line = launch.x.by_patch.divide(row);
    const int down = y.input + line, across = x.input + row - line * launch.x.patch;
    const bool inside = row < launch.y.patch * launch.x.patch && down >= 0 && down < y_axis.input && across >= 0 &&
                        across < x_axis.input;
    pixel[i] = inside ? (image * y_axis.input + down) * x_axis.input + across : -1;
  }
  int first_channel = 0;
  auto fill = [&](const Pixels& pixels, const Weights& weights) {
    const int channel = first_channel + rows.element();
#pragma unroll
    for (int i = 0; i < rows.kLines; i++) {
      const bool valid = pixel[i] >= 0 && channel < in_channels;
      const T* from = input + static_cast<int64_t>(pixel[i]) * in_channels + channel;
      ptx::cp_async_16(pixels.chunk(rows.line(i), rows.chunk), valid ? from : input, valid);
    }
#pragma unroll
    for (int i = 0; i < lines.kLines; i++) {
      const int in = first_channel + lines.line(i), column = lines.element();
      T* to = weights.chunk(lines.line(i), lines.chunk);
      const T* from = weight + static_cast<int64_t>(in) * columns + column;
      if (launch.weight_by_chunks) {
        const bool valid = in < in_channels && column < columns;
        ptx::cp_async_16(to, valid ? from : weight, valid);
      } else {
        fill_one_by_one<T, kChunk>(
            to, [&](int e) { return in < in_channels && column + e < columns ? from + e : nullptr; });
      }
    }
    first_channel += kDepth;
  };

  Accumulators<Shape> sums;
  multiply_pipeline<Step, Shape, Pixels, Weights>(sums, (in_channels + kDepth - 1) / kDepth, fill);

  const Staging<Shape> staging;
  float* const table = staging.data + Shape::kRows * Shape::kColumns;
  staging.put(sums);
  put_affine_table<Shape>(launch.finish, 0, table);
  __syncthreads();

  const Affinity<Shape> affinity(launch.finish, table);
  const int height = min(launch.y.outputs, y_axis.output - y.output),
            width = min(launch.x.outputs, x_axis.output - x.output);
  T* const output = static_cast<T*>(launch.finish.output);
  constexpr int kTogether = 4;  // channels of a pixel, whose places are found once
  for (int at = threadIdx.x; at < height * launch.x.outputs; at += Shape::kThreads) {
    const int down = launch.x.by_outputs.divide(at), across = at - down * launch.x.outputs;
    if (across >= width) continue;
    // Taps that meet this pixel: k with (pixel + padding - k) a multiple of the stride.
    const int to_y = y.output + down + y_axis.padding, to_x = x.output + across + x_axis.padding;
    const int input_y = launch.y.by_stride.divide(to_y), input_x = launch.x.by_stride.divide(to_x);
    const int tap_y = to_y - input_y * y_axis.stride, tap_x = to_x - input_x * x_axis.stride;
    const int first_row = (input_y - y.input) * launch.x.patch + input_x - x.input;
    const int first_column = (tap_y * x_axis.kernel + tap_x) * out_channels;
    const int down_columns = y_axis.stride * x_axis.kernel * out_channels;
    const int across_columns = x_axis.stride * out_channels;
    const int64_t line = static_cast<int64_t>(image) * y_axis.output + y.output + down;
    T* const to = output + (line * x_axis.output + x.output + across) * out_channels;
    for (int channel = 0; channel < out_channels; channel += kTogether) {
      float sums[kTogether] = {};
      for (int ky = tap_y, row = first_row, column = first_column; ky < y_axis.kernel;
           ky += y_axis.stride, row -= launch.x.patch, column += down_columns) {
        for (int kx = tap_x, i = 0; kx < x_axis.kernel; kx += x_axis.stride, i++) {
#pragma unroll
          for (int c = 0; c < kTogether; c++) {
            if (channel + c < out_channels) sums[c] += *staging.at(row - i, column + i * across_columns + channel + c);
          }
        }
      }
#pragma unroll
      for (int c = 0; c < kTogether; c++) {
        if (channel + c < out_channels) to[channel + c] = from_float<T>(affinity(sums[c], channel + c));
      }
    }
  }
}

}  // namespace dcgan_fast::cuda
