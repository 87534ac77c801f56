// Maps pooled into rows of features. Compiled once per CPU capability (see capability.h).
#include "pool_features.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <type_traits>

#include "vec.h"
#include "workspace.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {
namespace {

// Maxima of one window, all channels: out[c], as accumulators.
template <typename T>
void pool_window(const T* corner, int64_t rows, int64_t columns, int64_t row, int64_t channels, Acc<T>* out) {
  const auto maximum_of = [&](int64_t c, auto part) {
    Vec<T> most = load_vec(corner + c, part);
    for (int64_t y = 0; y < rows; ++y) {
      for (int64_t x = 0; x < columns; ++x) {
        const Vec<T> v = load_vec(corner + y * row + x * channels + c, part);
        most = {at::vec::maximum(most.lo, v.lo), at::vec::maximum(most.hi, v.hi)};
      }
    }
    store_acc<T>(out + c, most, part);
  };
  int64_t c = 0;
  for (; c + lanes<T> <= channels; c += lanes<T>) maximum_of(c, All{});
  if (c < channels) maximum_of(c, First{static_cast<int>(channels - c)});
}

// [windows][channels] to [channels][windows], in squares that stay in registers: one by one it took 5% of the time of a
// discriminator's features.
void turn(const float* from, int64_t windows, int64_t channels, float* to) {
  constexpr int64_t kSide = 16;
  const int64_t whole_windows = windows / kSide * kSide, whole_channels = channels / kSide * kSide;
  for (int64_t w = 0; w < whole_windows; w += kSide) {
    for (int64_t c = 0; c < whole_channels; c += kSide) {
      at::vec::transpose_mxn<float, kSide, kSide>(from + w * channels + c, channels, to + c * windows + w, windows);
    }
  }
  for (int64_t w = 0; w < windows; ++w) {
    for (int64_t c = w < whole_windows ? whole_channels : 0; c < channels; ++c) to[c * windows + w] = from[w * channels + c];
  }
}

void narrow_all(const float* from, int64_t count, c10::Half* to) {
  int64_t i = 0;
  for (; i + lanes<c10::Half> <= count; i += lanes<c10::Half>) store_vec(to + i, load_acc<c10::Half>(from + i));
  for (; i < count; ++i) to[i] = static_cast<c10::Half>(from[i]);
}

template <typename T, typename F>
void pool(const PoolFeatures& p) {
  const int64_t windows = p.size * p.size, count = windows * p.channels, row = p.width * p.channels;
  at::parallel_for(0, p.images, 1, [&](int64_t begin, int64_t end) {
    auto* const pooled = static_cast<float*>(workspace(2 * count * sizeof(float)));  // [windows, channels]
    float* const turned = pooled + count;                                            // [channels, windows]
    for (int64_t n = begin; n < end; ++n) {
      const T* const maps = static_cast<const T*>(p.maps) + n * p.height * row;
      for (int64_t y = 0; y < p.size; ++y) {
        const int64_t top = y * p.height / p.size, bottom = ((y + 1) * p.height + p.size - 1) / p.size;
        for (int64_t x = 0; x < p.size; ++x) {
          const int64_t left = x * p.width / p.size, right = ((x + 1) * p.width + p.size - 1) / p.size;
          pool_window(maps + top * row + left * p.channels, bottom - top, right - left, row, p.channels,
                      pooled + (y * p.size + x) * p.channels);
        }
      }
      F* const features = static_cast<F*>(p.features) + n * p.row;
      if constexpr (std::is_same_v<F, float>) {
        turn(pooled, windows, p.channels, features);
      } else {
        turn(pooled, windows, p.channels, turned);
        narrow_all(turned, count, features);
      }
    }
  });
}

void run(const PoolFeatures& args) {
  AT_DISPATCH_SWITCH(args.dtype, "pool_features", AT_DISPATCH_CASE(at::kFloat, [&] {
                       args.half ? pool<scalar_t, c10::Half>(args) : pool<scalar_t, float>(args);
                     }) AT_DISPATCH_CASE(at::kBFloat16, [&] {
                       args.half ? pool<scalar_t, c10::Half>(args) : pool<scalar_t, float>(args);
                     }) AT_DISPATCH_CASE(at::kHalf, [&] {
                       args.half ? pool<scalar_t, c10::Half>(args) : pool<scalar_t, float>(args);
                     }));
}

}  // namespace

extern const PoolFeaturesKernels pool_features{run};

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
