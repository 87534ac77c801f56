// A batch of images out of a data set of bytes, on CUDA: the launcher.
//
// As bn_act.h: no torch header, no allocation, no synchronisation, no state; results are a function of the arguments
// alone, bit for bit, whatever the device.
#pragma once

#include <cstdint>

#include "bn_act.h"

namespace dcgan_fast::cuda {

struct GatherImages {
  const uint8_t* images;  // [count, channels, height, width]
  const int64_t* rows;    // [batch]: which image; one that is not there becomes NaN
  const bool* flips;      // [batch], or null: mirror it left to right
  float* output;          // [batch, channels, height, width], or with channels_last [batch, height, width, channels]
  int64_t count, batch;   // batch may be 0
  int64_t channels, height, width;  // at least 1, less than 2^31 pixels and channels together
  bool channels_last;
  float divisor, low;  // output = byte / divisor + low
};

// Null, or a static string that says what is wrong (see bn_act.h).
const char* launch_gather_images(const GatherImages& args, CUstream_st* stream);

}  // namespace dcgan_fast::cuda
