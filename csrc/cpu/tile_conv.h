// The `tiles` engine: direct convolution as products of bfloat16 tiles (tiles.h).
#pragma once

#include "conv.h"

namespace dcgan_fast::cpu {

bool tiles_pay(at::ScalarType);  // does this machine multiply such tiles faster than floats?

std::vector<const ConvEngine*> tile_engines();  // all bodies that run here, the best first

}  // namespace dcgan_fast::cpu
