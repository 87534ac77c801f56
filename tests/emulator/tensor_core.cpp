// Products are exact and summed exactly with d; the result is cut, not rounded, to a float. Hardware cuts too, which is
// documented nowhere and costs long sums a bias: a kernel that relies on rounding shall not pass here.
#include "tensor_core.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "include/cuda_fp16.h"

namespace emulator {
namespace {

float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

float half_to_float(uint32_t bits) {
  static const std::vector<float> table = [] {
    std::vector<float> values(1 << 16);
    for (uint32_t i = 0; i < values.size(); i++) values[i] = __half2float({static_cast<uint16_t>(i)});
    return values;
  }();
  return table[bits];
}

// Element i (of two where they have 16 bits) of a fragment's register.
float element(Operand operand, uint32_t bits, int i) {
  switch (operand) {
    case Operand::kBFloat16:
      return float_of(i ? bits & 0xffff0000u : bits << 16);
    case Operand::kFloat16:
      return half_to_float(bits >> 16 * i & 0xffff);
    default:
      return float_of(bits & 0xffffe000u);
  }
}

}  // namespace

float cut(double value) {
  float result = static_cast<float>(value);
  if (std::isfinite(result) && std::fabs(result) > std::fabs(value)) result = std::nextafter(result, 0.f);
  return result;
}

float value_of(Operand operand, uint32_t bits) { return element(operand, bits, 0); }

void multiply(Fragments* const (&lanes)[32]) {
  const Operand operand = lanes[0]->operand;
  const int each = operand == Operand::kTf32 ? 1 : 2;  // elements in a register
  const int depth = 8 * each;
  float a[16][16], b[8][16];
  for (int l = 0; l < 32; l++) {
    const int g = l / 4, t = l % 4;
    for (int i = 0; i < each; i++) {
      for (int r = 0; r < 4; r++)
        a[g + 8 * (r % 2)][each * t + i + depth / 2 * (r / 2)] = element(operand, lanes[l]->a[r], i);
      for (int r = 0; r < 2; r++) b[g][each * t + i + depth / 2 * r] = element(operand, lanes[l]->b[r], i);
    }
  }
  for (int l = 0; l < 32; l++) {
    for (int i = 0; i < 4; i++) {
      const float *row = a[l / 4 + 8 * (i / 2)], *column = b[l % 4 * 2 + i % 2];
      double sum = lanes[l]->d[i];
      for (int k = 0; k < depth; k++) sum += static_cast<double>(row[k]) * column[k];
      lanes[l]->d[i] = cut(sum);
    }
  }
}

uint32_t to_tf32(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if (value != value) return 0x7fffffff;
  return (bits + 0x1000) & 0xffffe000u;
}

}  // namespace emulator
