// Stands in for NVIDIA's cuda_fp16.h: float16 as storage, converted by round-to-nearest-even.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

struct __half {
  uint16_t bits;
};

inline float __half2float(__half value) {
  const int exponent = value.bits >> 10 & 31, mantissa = value.bits & 1023;
  float magnitude;
  if (exponent == 31) {
    magnitude = mantissa ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
  } else if (exponent == 0) {
    magnitude = std::ldexp(static_cast<float>(mantissa), -24);
  } else {
    magnitude = std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
  }
  return value.bits >> 15 ? -magnitude : magnitude;
}

inline __half __float2half(float value) {
  if (value != value) return {0x7fff};  // the one NaN that the device makes
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::fabs(value);
  if (magnitude >= 65520.f) return {static_cast<uint16_t>(sign | 0x7c00)};  // rounds to infinity
  // The unit in the last place is 2^-24 below 2^-14 and grows with the exponent above. Counting the
  // value in units rounds it; the count carries into the exponent by itself.
  const int exponent = magnitude < 0x1p-14f ? -14 : std::ilogb(magnitude);
  const int units = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
  return {static_cast<uint16_t>(sign | (units + ((exponent + 14) << 10)))};
}
