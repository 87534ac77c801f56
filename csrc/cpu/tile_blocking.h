// How the `tiles` engine cuts a convolution up, and what that will cost.
#pragma once

#include <algorithm>

#include "conv.h"

namespace dcgan_fast::cpu {

struct TileBlocking {
  int64_t patch[2];      // coarse pixels of a patch, (vertical, horizontal)
  int64_t out_panel;     // channels of the output that a task computes (weight_grad: coarse channels)
  int64_t in_panel;      // channels of the input packed at a time (weight_grad: fine channels that a task computes)
  double seconds;        // predicted
};

// The cheapest blocking for this shape by a model of the time; remembered. `parts` as in tiles.h.
TileBlocking tile_blocking(const ConvShape&, Direction, int parts);

// Output pixels of a patch that are summed side by side where the same weights meet them, which then stay in L1. In strips of
// one part that takes 10 to 17% off (64 <-> 128 channels in bfloat16). Windows that lie apart are read from L2 as fast as
// the weights are, and products of several parts last longer than any load: there it costs up to 7%.
inline int64_t pixels_at_once(bool strips, int64_t pixels, int parts) {
  return strips && parts == 1 ? std::min<int64_t>(pixels, 16) : 1;
}

}  // namespace dcgan_fast::cpu
