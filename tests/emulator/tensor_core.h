// What a warp's mma computes: the fragments of 32 lanes, multiplied. csrc/cuda/ptx.cuh says which lane has what.
#pragma once

#include "emulator.h"

namespace emulator {

struct Fragments {
  Operand operand;
  float (&d)[4];
  const uint32_t (&a)[4];
  const uint32_t (&b)[2];
};

void multiply(Fragments* const (&lanes)[32]);

}  // namespace emulator
