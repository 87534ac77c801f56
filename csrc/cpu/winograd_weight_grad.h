#pragma once

#include "conv.h"

namespace dcgan_fast::cpu {

namespace DEFAULT {
void winograd_weight_grad(const ConvShape&, const void* fine, const void* coarse, const MutableWeightView&);
}
namespace AVX2 {
void winograd_weight_grad(const ConvShape&, const void* fine, const void* coarse, const MutableWeightView&);
}
namespace AVX512 {
void winograd_weight_grad(const ConvShape&, const void* fine, const void* coarse, const MutableWeightView&);
}

}  // namespace dcgan_fast::cpu
