// Activations to bits, 64 to a word. Compiled once per CPU capability (see capability.h).
#include "pack_codes.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

#include "lane_masks.h"
#include "vec.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {
namespace {

// Activations that a task should have at least: waking a thread takes as long as packing some 100,000.
constexpr int64_t kGrain = 1 << 17;
// Bytes ahead that are fetched: with the machine's own prefetcher alone a core reads a fifth to a third slower.
constexpr int64_t kAhead = 2048;

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
