// Maps pooled into rows of features. Compiled once per CPU capability (see capability.h).
#include "pool_features.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

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
        most = maximum(most, load_vec(corner + y * row + x * channels + c, part));
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

void write(const PoolFeatures& p, int64_t image, float* maxima) {
  const int64_t windows = p.size * p.size, count = p.values(), first = image * p.row;
  if (!p.half) return turn(maxima, windows, p.channels, static_cast<float*>(p.features) + first);
  turn(maxima, windows, p.channels, maxima + count);
  narrow_all(maxima + count, count, static_cast<c10::Half*>(p.features) + first);
}

template <typename T>
void pool(const PoolFeatures& p, int64_t image) {
  const int64_t row = p.width * p.channels;
  auto* const maxima = static_cast<float*>(workspace(2 * p.values() * sizeof(float), kPoolSlot));
  const T* const maps = static_cast<const T*>(p.maps) + image * p.height * row;
  for (int64_t y = 0; y < p.size; ++y) {
    const int64_t top = y * p.height / p.size, bottom = ((y + 1) * p.height + p.size - 1) / p.size;
    for (int64_t x = 0; x < p.size; ++x) {
      const int64_t left = x * p.width / p.size, right = ((x + 1) * p.width + p.size - 1) / p.size;
      pool_window(maps + top * row + left * p.channels, bottom - top, right - left, row, p.channels,
                  maxima + (y * p.size + x) * p.channels);
    }
  }
  write(p, image, maxima);
}

void pool_image(const PoolFeatures& p, int64_t image) {
  AT_DISPATCH_SWITCH(p.dtype, "pool_features", AT_DISPATCH_CASE(at::kFloat, [&] { pool<scalar_t>(p, image); })
                                                   AT_DISPATCH_CASE(at::kBFloat16, [&] { pool<scalar_t>(p, image); })
                                                       AT_DISPATCH_CASE(at::kHalf, [&] { pool<scalar_t>(p, image); }));
}

void pool_all(const PoolFeatures& p) {
  at::parallel_for(0, p.images, 1, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) pool_image(p, image);
  });
}

}  // namespace

extern const PoolFeaturesKernels pool_features{pool_all, pool_image, write};

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
