// How the `tiles` engine cuts a convolution up, and what that will cost.
#pragma once

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

}  // namespace dcgan_fast::cpu
