// The table that winograd.cpp picks from, one per CPU capability.
#pragma once

#include "conv.h"

namespace dcgan_fast::cpu {

namespace DEFAULT {
extern const ConvEngine winograd_engine;
}
namespace AVX2 {
extern const ConvEngine winograd_engine;
}
namespace AVX512 {
extern const ConvEngine winograd_engine;
}

}  // namespace dcgan_fast::cpu
