// A batch of images out of a data set of bytes: one pass, an image a task.
//
// A table holds what each byte becomes: a load from L1 a value, which no arithmetic on vectors undercuts by much, and
// exactly the numbers of the division. Bytes that no memory holds yet are faulted in by all threads.
#include "gather_images.h"

#include <ATen/Parallel.h>

#include <array>

namespace dcgan_fast::cpu {
namespace {

using Table = std::array<float, 256>;

template <bool flip>
void rows_of(const GatherImages& args, const Table& table, const uint8_t* from, float* to) {
  const int64_t width = args.width;
  for (int64_t row = 0; row < args.channels * args.height; ++row, from += width, to += width)
    for (int64_t x = 0; x < width; ++x) to[x] = table[from[flip ? width - 1 - x : x]];
}

template <bool flip>
void pixels_of(const GatherImages& args, const Table& table, const uint8_t* from, float* to) {
  const int64_t channels = args.channels, width = args.width, plane = args.height * width;
  for (int64_t y = 0; y < args.height; ++y, from += width, to += width * channels) {
    for (int64_t c = 0; c < channels; ++c) {
      const uint8_t* const line = from + c * plane;
      for (int64_t x = 0; x < width; ++x) to[x * channels + c] = table[line[flip ? width - 1 - x : x]];
    }
  }
}

}  // namespace

void gather_images(const GatherImages& args) {
  Table table;
  for (int byte = 0; byte < 256; ++byte) table[byte] = static_cast<float>(byte) / args.divisor + args.low;
  const int64_t values = args.channels * args.height * args.width;
  constexpr int64_t kGrain = 32 * 1024;  // values that are worth a thread's while
  at::parallel_for(0, args.batch, kGrain / std::max<int64_t>(values, 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const uint8_t* const from = args.images + args.rows[i] * values;
      float* const to = args.output + i * values;
      const bool flip = args.flips && args.flips[i];
      if (args.channels_last && args.channels > 1)
        flip ? pixels_of<true>(args, table, from, to) : pixels_of<false>(args, table, from, to);
      else
        flip ? rows_of<true>(args, table, from, to) : rows_of<false>(args, table, from, to);
    }
  });
}

}  // namespace dcgan_fast::cpu
