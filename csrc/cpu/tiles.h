// Products of matrix tiles of 16-bit floats, summed in float: packing, and the kernel that multiplies.
//
// The kernel computes a block of 32 x 32 floats, C (+)= sum over steps of A(step) B(step), where A(step) is 32 x 32 and
// B(step) 32 x 32. One operand of one step is `kParts` planes of two tiles of 1 KB, in the layout of the AMX instructions:
// tile = 16 rows of 32 values; of B the rows are pairs of k, 16 columns of 2 values each.
//
// Values that are wider than a tile's are the sum of several, their parts:
//   bfloat16 parts (8 bits of the significand each): a float is the exact sum of three, a half of two. Multiplying planes i and
//     j with i + j < parts leaves out products below 2^-24 of the largest (half: 2^-16, far below its own rounding), so the
//     result is as good as that of float multiplications: 6 products, on a matrix unit 6/16 of the cost of one FMA. Infinities
//     come out as NaN (inf - inf), values below 2^-110 lose digits.
//   half parts (11 bits): two of them hold 22 bits of a float that is scaled into their range, and 3 products are
//     multiplied. Where its neighbours (those with the same scale, see scale_for) are no more than 2^17 times larger a value
//     keeps its 22 bits, beyond it loses some: what it adds to a sum is still known to 2^-40 of the largest.
// Which ones a body uses is for TILE_HALF to say. bfloat16 maps are always multiplied as they are.
//
// Three bodies of the same operation: AMX, AVX512_BF16 (vdpbf16ps), and plain C++ that runs anywhere.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AMX_BF16__) || defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "vec.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {

constexpr int64_t kBlock = 32;            // rows and columns of C, and depth of a step
constexpr int64_t kTileBytes = 1024;      // 16 rows of 64 bytes
constexpr int64_t kTileRows = 16;
constexpr int64_t kPlaneBytes = 2 * kTileBytes;

#ifdef TILE_HALF
constexpr bool kHalfTiles = true;
#else
constexpr bool kHalfTiles = false;
#endif

// What the tiles of maps of T hold, and how many of them make a value.
template <typename T>
using Part = std::conditional_t<kHalfTiles && !std::is_same_v<T, c10::BFloat16>, c10::Half, c10::BFloat16>;
template <typename T>
inline constexpr int kParts = std::is_same_v<T, Part<T>> ? 1 : std::is_same_v<T, c10::Half> ? 2 : kHalfTiles ? 2 : 3;
// Are values multiplied by a power of two before they are split?
template <typename T>
inline constexpr bool kScaled = kHalfTiles && std::is_same_v<T, float>;
template <typename T>
inline constexpr int64_t kOperandBytes = kParts<T> * kPlaneBytes;  // one operand of one step

// Where the rows of an A operand lie: so many bytes apart, the lower 16 so many after the upper, a plane after the other.
struct RowLayout {
  int64_t row = 64, half = kTileBytes, plane = kPlaneBytes;
};

// The operands of a sum: `count` pairs of offsets in bytes, repeated for `repeats` slices of the channels.
struct Steps {
  const int32_t *a, *b;
  int64_t count;
  int64_t repeats, a_stride, b_stride;
};

// ---------------------------------------------------------------- splitting

// The power of two that takes values of up to `largest` close to the largest half.
inline float scale_for(float largest) {
  if (!(largest > 0) || !std::isfinite(largest)) return 1;
  return std::ldexp(1.0f, std::clamp(14 - std::ilogb(largest), -126, 126));
}

// The planes of 32 values, each 32 parts = one tile row of 64 bytes.
#if defined(__AVX512BF16__)

struct Planes {
  __m512i plane[3];
};

template <typename P>
VEC_INLINE __m512i round_to(__m512 lo, __m512 hi) {
  if constexpr (std::is_same_v<P, c10::BFloat16>) return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(hi, lo));
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtps_ph(lo, kNearest)), _mm512_cvtps_ph(hi, kNearest), 1);
}

template <typename P>
VEC_INLINE __m512 widen(__m256i part) {
  if constexpr (std::is_same_v<P, c10::BFloat16>) return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(part), 16));
  return _mm512_cvtph_ps(part);
}

template <typename T>
VEC_INLINE Planes split(__m512 lo, __m512 hi) {
  using P = Part<T>;
  Planes out;
  for (int i = 0; i < kParts<T>; ++i) {
    const __m512i rounded = round_to<P>(lo, hi);
    out.plane[i] = rounded;
    if (i + 1 < kParts<T>) {
      lo = _mm512_sub_ps(lo, widen<P>(_mm512_castsi512_si256(rounded)));
      hi = _mm512_sub_ps(hi, widen<P>(_mm512_extracti64x4_epi64(rounded, 1)));
    }
  }
  return out;
}

inline __mmask16 first(int64_t n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : static_cast<__mmask16>((1u << n) - 1); }

// The first n of 32 values, zeros after them, times `scale` where values are scaled.
template <typename T>
VEC_INLINE Planes load_planes(const T* p, int64_t n, [[maybe_unused]] float scale = 1) {
  if constexpr (std::is_same_v<T, float>) {
    __m512 lo, hi;
    if (n >= 32) {
      lo = _mm512_loadu_ps(p);
      hi = _mm512_loadu_ps(p + 16);
    } else {
      lo = _mm512_maskz_loadu_ps(first(n), p);
      hi = _mm512_maskz_loadu_ps(first(n - 16), p + 16);
    }
    if constexpr (kScaled<T>) {
      lo = _mm512_mul_ps(lo, _mm512_set1_ps(scale));
      hi = _mm512_mul_ps(hi, _mm512_set1_ps(scale));
    }
    return split<T>(lo, hi);
  } else {
    const __mmask32 mask = n >= 32 ? 0xffffffffu : (1u << n) - 1;
    const __m512i v = _mm512_maskz_loadu_epi16(mask, p);
    if constexpr (kParts<T> == 1) {
      return {{v}};
    } else {
      return split<T>(_mm512_cvtph_ps(_mm512_castsi512_si256(v)), _mm512_cvtph_ps(_mm512_extracti64x4_epi64(v, 1)));
    }
  }
}

inline void transpose16(__m512i* r) {  // 16 x 16 of 32 bits
  __m512i t[16];
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 4; ++j) {
      t[8 * i + j] = _mm512_shuffle_i32x4(r[8 * i + j], r[8 * i + 4 + j], 0x88);
      t[8 * i + 4 + j] = _mm512_shuffle_i32x4(r[8 * i + j], r[8 * i + 4 + j], 0xdd);
    }
  }
  for (int j = 0; j < 8; ++j) {
    r[j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0x88);
    r[8 + j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0xdd);
  }
}

VEC_INLINE void store_row(void* p, const __m512i& v) { _mm512_store_si512(p, v); }

#else

struct Planes {
  uint16_t plane[3][32];  // the bits
};

template <typename T>
inline Planes load_planes(const T* p, int64_t n, [[maybe_unused]] float scale = 1) {
  Planes out{};
  for (int64_t k = 0; k < std::min<int64_t>(n, 32); ++k) {
    float rest = static_cast<float>(p[k]);
    if constexpr (kScaled<T>) rest *= scale;
    for (int i = 0; i < kParts<T>; ++i) {
      const Part<T> part = rest;
      out.plane[i][k] = part.x;
      rest -= static_cast<float>(part);
    }
  }
  return out;
}

inline void store_row(void* p, const uint16_t* v) { std::memcpy(p, v, 64); }

#endif

// ---------------------------------------------------------------- packing

// Row `r` of 32 of an A operand.
template <typename T>
VEC_INLINE void pack_row(const T* p, int64_t n, float scale, char* operand, int64_t r) {
  const Planes planes = load_planes(p, n, scale);
  for (int i = 0; i < kParts<T>; ++i) store_row(operand + i * kPlaneBytes + r * 64, planes.plane[i]);
}

inline void zero_row(int parts, char* operand, int64_t r) {
  for (int i = 0; i < parts; ++i) std::memset(operand + i * kPlaneBytes + r * 64, 0, 64);
}

#if defined(__AVX512BF16__)

// The 32 columns of a pair of k's as they stand in B: 16 in the row of the left tile, 16 in that of the right.
inline void interleave(const __m512i& even, const __m512i& odd, __m512i& left, __m512i& right) {
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5,
                                       36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  left = _mm512_permutex2var_epi16(even, low, odd);
  right = _mm512_permutex2var_epi16(even, _mm512_add_epi16(low, _mm512_set1_epi16(16)), odd);
}

#endif

// Rows 2 * pair and 2 * pair + 1 of a B operand (null: zeros).
template <typename T>
VEC_INLINE void pack_pair(const T* even, const T* odd, int64_t n, float scale, char* operand, int64_t pair) {
  const Planes e = even ? load_planes(even, n, scale) : Planes{}, o = odd ? load_planes(odd, n, scale) : Planes{};
  for (int i = 0; i < kParts<T>; ++i) {
    char* to = operand + i * kPlaneBytes + pair * 64;
#if defined(__AVX512BF16__)
    __m512i left, right;
    interleave(e.plane[i], o.plane[i], left, right);
    store_row(to, left);
    store_row(to + kTileBytes, right);
#else
    for (int64_t c = 0; c < 32; ++c) {
      auto* at = reinterpret_cast<uint16_t*>(to + c / 16 * kTileBytes) + c % 16 * 2;
      at[0] = e.plane[i][c];
      at[1] = o.plane[i][c];
    }
#endif
  }
}

// The transpose of 32 rows of 32 values (row r at rows[r], null for zeros; the first n values, zeros after them), as an A
// operand or, where `as_b`, a B operand.
template <typename T, bool as_b>
inline void pack_transposed(const T* const* rows, int64_t n, float scale, char* operand) {
#if defined(__AVX512BF16__)
  // As dwords, 16 rows of values are pairs of k in columns; 16 interleaved pairs of rows are pairs of k in rows.
  __m512i tile[2 * kParts<T>][16];
  for (int r = 0; r < 16; ++r) {
    const T *upper = rows[as_b ? r : 2 * r], *lower = rows[as_b ? 16 + r : 2 * r + 1];
    const Planes u = upper ? load_planes(upper, n, scale) : Planes{}, l = lower ? load_planes(lower, n, scale) : Planes{};
    for (int i = 0; i < kParts<T>; ++i) {
      if constexpr (as_b) {
        tile[2 * i][r] = u.plane[i];
        tile[2 * i + 1][r] = l.plane[i];
      } else {
        interleave(u.plane[i], l.plane[i], tile[2 * i][r], tile[2 * i + 1][r]);
      }
    }
  }
  for (int t = 0; t < 2 * kParts<T>; ++t) {
    transpose16(tile[t]);
    for (int r = 0; r < 16; ++r) store_row(operand + t * kTileBytes + r * 64, tile[t][r]);
  }
#else
  auto* out = reinterpret_cast<uint16_t*>(operand);
  for (int64_t r = 0; r < 32; ++r) {
    const Planes planes = rows[r] ? load_planes(rows[r], n, scale) : Planes{};
    for (int64_t c = 0; c < 32; ++c) {
      const int64_t at = as_b ? r / 16 * 512 + c / 2 * 32 + r % 16 * 2 + c % 2 : c * 32 + r;
      for (int s = 0; s < kParts<T>; ++s) out[s * 1024 + at] = planes.plane[s][c];
    }
  }
#endif
}

// ---------------------------------------------------------------- the product

struct Nothing {
  void operator()() const {}
};

#if defined(__AMX_BF16__)

// While it lives the thread's tile registers are configured; nothing else may use them then.
class TileUnit {
 public:
  TileUnit() {
    struct Config {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    alignas(64) static const Config config;  // static: GCC knows of 8 bytes only that loadconfig reads
    _tile_loadconfig(&config);
  }
  ~TileUnit() { _tile_release(); }
  TileUnit(const TileUnit&) = delete;
  TileUnit& operator=(const TileUnit&) = delete;
};

#define LOAD_A(part)                                                \
  _tile_loadd(4, a + (part) * rows.plane, rows.row);                \
  _tile_loadd(5, a + (part) * rows.plane + rows.half, rows.row)
#define LOAD_B(part)                                                \
  _tile_loadd(6, b + (part) * kPlaneBytes, 64);                     \
  _tile_loadd(7, b + (part) * kPlaneBytes + 1024, 64)

// tdpfp16ps, for which GCC has an intrinsic from 13 on only: tdpbf16ps with another prefix.
#define TDPFP16PS(vex, modrm) asm volatile(".byte 0xc4, 0xe2, " #vex ", 0x5c, " #modrm)

// C of tiles 0 to 3 += A of 4 and 5 times B of 6 and 7.
template <typename P>
VEC_INLINE void multiply_parts() {
  if constexpr (std::is_same_v<P, c10::BFloat16>) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  } else {
    TDPFP16PS(0x4b, 0xc4);  // (0, 4, 6)
    TDPFP16PS(0x43, 0xcc);  // (1, 4, 7)
    TDPFP16PS(0x4b, 0xd5);  // (2, 5, 6)
    TDPFP16PS(0x43, 0xdd);  // (3, 5, 7)
  }
}

#undef TDPFP16PS

#define MULTIPLY() multiply_parts<Part<T>>()

// C[32, 32] at c with rows `stride` floats apart. `meanwhile` is called once a step: what it does on vectors, up to some 60
// cycles, goes on beside the matrix unit.
template <typename T, typename Meanwhile = Nothing>
inline void multiply(const char* a0, const RowLayout& rows, const char* b0, const Steps& steps, float* c, int64_t stride, bool add,
                     Meanwhile meanwhile = {}) {
  constexpr int parts = kParts<T>;
  float* const lower = c + 16 * stride;
  const int64_t bytes = stride * 4;
  if (add) {
    _tile_loadd(0, c, bytes);
    _tile_loadd(1, c + 16, bytes);
    _tile_loadd(2, lower, bytes);
    _tile_loadd(3, lower + 16, bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < steps.repeats; ++k) {
    for (int64_t i = 0; i < steps.count; ++i) {
      const char *a = a0 + k * steps.a_stride + steps.a[i], *b = b0 + k * steps.b_stride + steps.b[i];
      LOAD_A(0);
      if constexpr (parts == 3) {  // small products first; 16 loads for 24 products
        LOAD_B(2);
        MULTIPLY();
        LOAD_B(1);
        MULTIPLY();
        LOAD_A(1);
        MULTIPLY();
        LOAD_B(0);
        MULTIPLY();
        LOAD_A(2);
        MULTIPLY();
        LOAD_A(0);
        MULTIPLY();
      } else if constexpr (parts == 2) {
        LOAD_B(1);
        MULTIPLY();
        LOAD_B(0);
        MULTIPLY();
        LOAD_A(1);
        MULTIPLY();
      } else {
        LOAD_B(0);
        MULTIPLY();
      }
      meanwhile();
    }
  }
  _tile_stored(0, c, bytes);
  _tile_stored(1, c + 16, bytes);
  _tile_stored(2, lower, bytes);
  _tile_stored(3, lower + 16, bytes);
}

#undef LOAD_A
#undef LOAD_B
#undef MULTIPLY

#elif defined(__AVX512BF16__)

struct TileUnit {};

template <typename T, typename Meanwhile = Nothing>
inline void multiply(const char* a0, const RowLayout& rows, const char* b0, const Steps& steps, float* c, int64_t stride, bool add,
                     Meanwhile meanwhile = {}) {
  constexpr int parts = kParts<T>, kRows = 8;  // 16 accumulators, 2 columns of B
  for (int64_t row = 0; row < kBlock; row += kRows) {
    __m512 acc[kRows][2];
    for (int r = 0; r < kRows; ++r) {
      for (int h = 0; h < 2; ++h) {
        acc[r][h] = add ? _mm512_loadu_ps(c + (row + r) * stride + 16 * h) : _mm512_setzero_ps();
      }
    }
    for (int64_t k = 0; k < steps.repeats; ++k) {
      for (int64_t i = 0; i < steps.count; ++i) {
        const char *a = a0 + k * steps.a_stride + steps.a[i] + row / kTileRows * rows.half + row % kTileRows * rows.row,
                   *b = b0 + k * steps.b_stride + steps.b[i];
        for (int s = parts - 1; s >= 0; --s) {
          for (int pa = s; pa >= 0; --pa) {
            const char *ap = a + pa * rows.plane, *bp = b + (s - pa) * kPlaneBytes;
            for (int pair = 0; pair < 16; ++pair) {
              const auto left = reinterpret_cast<__m512bh>(_mm512_load_si512(bp + pair * 64));
              const auto right = reinterpret_cast<__m512bh>(_mm512_load_si512(bp + kTileBytes + pair * 64));
              for (int r = 0; r < kRows; ++r) {
                int32_t two;
                std::memcpy(&two, ap + r * rows.row + pair * 4, 4);
                const auto both = reinterpret_cast<__m512bh>(_mm512_set1_epi32(two));
                acc[r][0] = _mm512_dpbf16_ps(acc[r][0], both, left);
                acc[r][1] = _mm512_dpbf16_ps(acc[r][1], both, right);
              }
            }
          }
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int h = 0; h < 2; ++h) _mm512_storeu_ps(c + (row + r) * stride + 16 * h, acc[r][h]);
    }
  }
  for (int64_t i = 0; i < steps.repeats * steps.count; ++i) meanwhile();
}

#else

struct TileUnit {};

template <typename T, typename Meanwhile = Nothing>
inline void multiply(const char* a0, const RowLayout& rows, const char* b0, const Steps& steps, float* c, int64_t stride, bool add,
                     Meanwhile meanwhile = {}) {
  constexpr int parts = kParts<T>;
  for (int64_t row = 0; row < kBlock; ++row) {
    float acc[kBlock];
    for (int64_t col = 0; col < kBlock; ++col) acc[col] = add ? c[row * stride + col] : 0.0f;
    for (int64_t k = 0; k < steps.repeats; ++k) {
      for (int64_t i = 0; i < steps.count; ++i) {
        const char *a = a0 + k * steps.a_stride + steps.a[i] + row / kTileRows * rows.half + row % kTileRows * rows.row,
                   *b = b0 + k * steps.b_stride + steps.b[i];
        float step[kBlock] = {};  // summed apart, small products first, as the digits of six products for one ask
        for (int s = parts - 1; s >= 0; --s) {
          for (int pa = s; pa >= 0; --pa) {
            const auto* ap = reinterpret_cast<const Part<T>*>(a + pa * rows.plane);
            const auto* bp = reinterpret_cast<const Part<T>*>(b + (s - pa) * kPlaneBytes);
            for (int64_t depth = 0; depth < kBlock; ++depth) {
              const float factor = ap[depth];
              const auto* pairs = bp + depth / 2 * 32 + depth % 2;
              for (int64_t col = 0; col < kBlock; ++col) {
                step[col] += factor * static_cast<float>(pairs[col / 16 * 512 + col % 16 * 2]);
              }
            }
          }
        }
        for (int64_t col = 0; col < kBlock; ++col) acc[col] += step[col];
      }
    }
    for (int64_t col = 0; col < kBlock; ++col) c[row * stride + col] = acc[col];
  }
  for (int64_t i = 0; i < steps.repeats * steps.count; ++i) meanwhile();
}

#endif

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
