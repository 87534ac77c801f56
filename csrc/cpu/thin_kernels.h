// The tables that thin_conv.cpp picks from, one per CPU capability.
#pragma once

#include "conv.h"

namespace dcgan_fast::cpu {

namespace DEFAULT {
extern const ConvEngine thin_engine;
}
namespace AVX2 {
extern const ConvEngine thin_engine;
}
namespace AVX512 {
extern const ConvEngine thin_engine;
}
namespace AVX512_BF16 {
extern const ConvEngine thin_engine;
}
namespace AMX {
extern const ConvEngine thin_engine;
}

}  // namespace dcgan_fast::cpu
