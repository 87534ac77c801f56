// Stands in for NVIDIA's cuda_bf16.h: bfloat16 as storage, converted by round-to-nearest-even.
#pragma once

#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

inline __nv_bfloat16 __float2bfloat16(float value) {
  if (value != value) return {0x7fff};  // the one NaN that the device makes
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t odd = bits >> 16 & 1;
  return {static_cast<uint16_t>((bits + 0x7fff + odd) >> 16)};
}
