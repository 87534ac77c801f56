// The engine `winograd`: polyphase Winograd for machines whose best matrix unit is FMA in float (winograd_plan.h).
//
// Operands are float whatever the maps' dtype. bfloat16 operands would be rounded after the transforms: measured on DCGAN
// layers, 1.8 to 2.8 times the error of PyTorch's bfloat16 convolution.
#pragma once

#include "conv.h"

namespace dcgan_fast::cpu {

const ConvEngine& winograd_engine();

// 1 to 3 taps in every phase of the kernel: 4x4 stride 2, 5x5 stride 2, 3x3 stride 1 ...
bool winograd_serves(const ConvShape&, Direction);

double winograd_seconds(const ConvShape&, Direction);  // predicted, on as many threads as there are

}  // namespace dcgan_fast::cpu
