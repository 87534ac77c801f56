// The `tiles` engine: direct convolution as products of 16-bit tiles (tiles.h).
#pragma once

#include <vector>

#include "conv.h"

namespace dcgan_fast::cpu {

bool tiles_pay(at::ScalarType);  // does this machine multiply such tiles faster than floats?

// A body that runs here.
struct TileEngine {
  const ConvEngine* engine;
  bool pays;    // worth running, else for tests
  bool halves;  // makes floats of two halves
};

std::vector<TileEngine> tile_engines();

}  // namespace dcgan_fast::cpu
