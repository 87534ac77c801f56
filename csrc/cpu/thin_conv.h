// The `thin` engine: convolutions whose fine map has few channels, as a DCGAN's images have (thin_kernels.cpp).
#pragma once

#include "conv.h"

namespace dcgan_fast::cpu {

const ConvEngine& thin_engine();  // with the best body that this machine runs

// At most 8 channels, and a row of the kernel at most 64 values wide; any stride, padding and map.
bool thin_serves(const ConvShape&, Direction);

// Predicted seconds on at::get_num_threads() threads.
double thin_cost(const ConvShape&, Direction);

}  // namespace dcgan_fast::cpu
