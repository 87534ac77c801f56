// The `thin` engine: convolutions whose fine map has few channels, as a DCGAN's images have (thin_kernels.cpp).
#pragma once

#include <vector>

#include "conv.h"

namespace dcgan_fast::cpu {

// The best body that this machine runs for 16-bit maps, if any multiplies their tiles; then the best that has floats only.
std::vector<const ConvEngine*> thin_engines();

// At most 8 channels, and a row of the kernel at most 64 values wide; any stride, padding and map.
bool thin_serves(const ConvShape&, Direction);

double thin_seconds(const ConvShape&, Direction);  // predicted, on as many threads as there are

}  // namespace dcgan_fast::cpu
