// A batch of images out of a data set of bytes, on the CPU.
#pragma once

#include <cstdint>

namespace dcgan_fast::cpu {

struct GatherImages {
  const uint8_t* images;  // [count, channels, height, width]
  const int64_t* rows;    // [batch]: which image, each below count
  const bool* flips;      // [batch], or null: mirror it left to right
  float* output;          // [batch, channels, height, width], or with channels_last [batch, height, width, channels]
  int64_t batch, channels, height, width;
  bool channels_last;
  float divisor, low;  // output = byte / divisor + low
};

void gather_images(const GatherImages& args);

}  // namespace dcgan_fast::cpu
