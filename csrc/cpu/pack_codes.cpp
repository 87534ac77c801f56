// Activations to bits, 64 to a word. Compiled once per CPU capability (see capability.h).
#include "pack_codes.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

#include "vec.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {
namespace {

// Activations that a task should have at least: waking a thread takes as long as packing some 100,000.
constexpr int64_t kGrain = 1 << 17;
// Bytes ahead that are fetched: with the machine's own prefetcher alone a core reads a fifth to a third slower.
constexpr int64_t kAhead = 2048;

// Bit i: is lane i of a larger than that of b? Is it NaN in one of the two? at::vec has comparisons, but their results are
// vectors, and to make bits of those takes longer than reading the activations.
#if defined(CPU_CAPABILITY_AVX512)
using Floats = at::vec::Vectorized<float>;
using Doubles = at::vec::Vectorized<double>;
VEC_INLINE uint64_t larger(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
VEC_INLINE uint64_t larger(Doubles a, Doubles b) { return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ); }
VEC_INLINE uint64_t unordered(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q); }
VEC_INLINE uint64_t unordered(Doubles a, Doubles b) { return _mm512_cmp_pd_mask(a, b, _CMP_UNORD_Q); }
#elif defined(CPU_CAPABILITY_AVX2)
using Floats = at::vec::Vectorized<float>;
using Doubles = at::vec::Vectorized<double>;
VEC_INLINE uint64_t larger(Floats a, Floats b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)); }
VEC_INLINE uint64_t larger(Doubles a, Doubles b) { return _mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_GT_OQ)); }
VEC_INLINE uint64_t unordered(Floats a, Floats b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_UNORD_Q)); }
VEC_INLINE uint64_t unordered(Doubles a, Doubles b) { return _mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_UNORD_Q)); }
#else
template <typename V>
VEC_INLINE uint64_t bits_of(const V& truth) {
  return ~static_cast<uint64_t>(truth.zero_mask()) & ((uint64_t{1} << V::size()) - 1);
}
template <typename V>
VEC_INLINE uint64_t larger(const V& a, const V& b) { return bits_of(a > b); }
template <typename V>
VEC_INLINE uint64_t unordered(const V& a, const V& b) { return bits_of((a != a) | (b != b)); }
#endif

template <typename T>
struct Comparison {
  const typename Vec<T>::Half threshold;
  uint64_t nan = 0;

  explicit Comparison(T value) : threshold(static_cast<Acc<T>>(value)) {}

  VEC_INLINE uint64_t operator()(const Vec<T>& v) {
    nan |= unordered(v.lo, v.hi);
    return larger(v.lo, threshold) | larger(v.hi, threshold) << lanes<T> / 2;
  }
};

template <typename T>
VEC_INLINE void fetch_ahead(const T* activations) {
  const char* const ahead = reinterpret_cast<const char*>(activations) + kAhead;
  for (size_t line = 0; line < sizeof(T) * lanes<T>; line += 64) __builtin_prefetch(ahead + line);
}

template <typename T>
bool pack(const PackCodes& args) {
  const auto* const activations = static_cast<const T*>(args.activations);
  const int64_t words = (args.bits + 63) / 64;
  std::atomic<bool> nan{false};
  at::parallel_for(0, args.rows, std::max<int64_t>(1, kGrain / args.bits), [&](int64_t begin, int64_t end) {
    Comparison<T> compare(static_cast<T>(args.threshold));
    for (int64_t row = begin; row < end; ++row) {
      const T* const x = activations + row * args.bits;
      uint64_t* const code = args.codes + row * words;
      for (int64_t w = 0; w < words; ++w) {
        const int bits = static_cast<int>(std::min<int64_t>(64, args.bits - 64 * w));
        uint64_t word = 0;
        int j = 0;
        for (; j + lanes<T> <= bits; j += lanes<T>) {
          fetch_ahead(x + 64 * w + j);
          word |= compare(load_vec(x + 64 * w + j)) << j;
        }
        if (j < bits) {  // the lanes beyond are zeros, which may be larger than the threshold
          const First rest{bits - j};
          word |= (compare(load_vec(x + 64 * w + j, rest)) & ((uint64_t{1} << rest.n) - 1)) << j;
        }
        code[w] = word;
      }
    }
    if (compare.nan) nan = true;
  });
  return !nan;
}

bool run(const PackCodes& args) {
  return AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, args.dtype, "pack_codes",
                                         [&] { return pack<scalar_t>(args); });
}

}  // namespace

extern const PackCodesKernels pack_codes{run};

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
