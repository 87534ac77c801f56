#include "ceilings.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <functional>
#include <iterator>
#include <memory>
#include <numeric>
#include <type_traits>
#include <vector>

#include "capability.h"
#include "tile_conv.h"

#ifdef DCGAN_FAST_X86
#include <immintrin.h>
#endif

namespace dcgan_fast::cpu {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// GFLOP/s of all threads together. Each makes a `work` of its own by `prepare` and runs it until time is up; one call of
// `work` should take well under a millisecond and returns the floating-point operations that it made.
using Work = std::function<double()>;

double throughput(double seconds, const std::function<Work()>& prepare) {
  const int threads = at::get_num_threads();
  std::vector<double> rates(threads);
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      const Work work = prepare();
      work();
      double flop = 0, elapsed = 0;
      const double start = now();
      do {
        flop += work();
        elapsed = now() - start;
      } while (elapsed < seconds);
      rates[thread] = flop / elapsed / 1e9;
    }
  });
  return std::accumulate(rates.begin(), rates.end(), 0.0);
}

// ---------------------------------------------------------------- fused multiply-add

// Ten accumulators: two units of four cycles' latency want eight, and sixteen registers hold ten and both constants. They
// are named one by one because GCC keeps an array of them in memory, at a third of the speed, and none starts at 1, where
// the step changes nothing and the chain would be folded away. Vectors are the compiler's own, a function a width, because
// wide ones are cut up before a function of theirs could be inlined.
#define FMA_CHAINS(NAME, TARGET, BYTES)                                                                         \
  TARGET double NAME(int64_t repeats) {                                                                         \
    typedef float V __attribute__((vector_size(BYTES)));                                                        \
    const V scale = V{} + 0.999f, step = V{} + 1e-3f;                                                           \
    V a = V{} + 2, b = V{} + 3, c = V{} + 4, d = V{} + 5, e = V{} + 6;                                          \
    V f = V{} + 7, g = V{} + 8, h = V{} + 9, i = V{} + 10, j = V{} + 11;                                        \
    for (int64_t repeat = 0; repeat < repeats; ++repeat) {                                                      \
      a = a * scale + step, b = b * scale + step, c = c * scale + step, d = d * scale + step;                   \
      e = e * scale + step, f = f * scale + step, g = g * scale + step, h = h * scale + step;                   \
      i = i * scale + step, j = j * scale + step;                                                               \
    }                                                                                                           \
    const V sum = a + b + c + d + e + f + g + h + i + j;                                                        \
    volatile float sink = sum[0];                                                                               \
    static_cast<void>(sink);                                                                                    \
    return 2.0 * 10 * (BYTES / sizeof(float)) * static_cast<double>(repeats);                                   \
  }

FMA_CHAINS(fma_generic, , 16)
#ifdef DCGAN_FAST_X86
FMA_CHAINS(fma_avx2, __attribute__((target("avx2,fma"))), 32)
FMA_CHAINS(fma_avx512, __attribute__((target("avx512f,fma"))), 64)
#endif

#undef FMA_CHAINS

// ---------------------------------------------------------------- tiles

#ifdef DCGAN_FAST_X86

// Four sums of two operands each, as tiles.h has them; all tiles hold zeros, which take as long as anything.
__attribute__((target("amx-tile,amx-bf16"))) double tile_products(int64_t repeats) {
  struct Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
  alignas(64) static const Config config;  // static: GCC knows of 8 bytes only that loadconfig reads
  _tile_loadconfig(&config);
  for (int64_t repeat = 0; repeat < repeats; ++repeat) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return 4 * 2.0 * 16 * 16 * 32 * static_cast<double>(repeats);
}

#endif

// ---------------------------------------------------------------- brgemm

struct TileSize {
  int64_t m, n, k;
};

// A sum of kDepth products into one tile of C, all of whose operands fit L2 of a core.
constexpr int64_t kDepth = 4;

struct Operands {
  at::Tensor a, b, c;
  ~Operands() { at::native::cpublas::brgemm_release(); }  // by the thread that multiplied, as AMX wants
};

template <typename T>
Work brgemm_work(TileSize size) {
  const auto options = at::TensorOptions(c10::CppTypeToScalarType<T>::value);
  const auto operands = std::make_shared<Operands>(at::rand({size.m, size.k}, options),
                                                   at::rand({kDepth, size.k, size.n}, options),
                                                   at::empty({size.m, size.n}, at::kFloat));
  return [=] {
    const T *a = operands->a.const_data_ptr<T>(), *b = operands->b.const_data_ptr<T>();
    float* c = operands->c.mutable_data_ptr<float>();
    for (int64_t i = 0; i < kDepth; ++i) {
      at::native::cpublas::brgemm(size.m, size.n, size.k, size.k, size.n, size.n, i > 0, a, b + i * size.k * size.n, c,
                                  !std::is_same_v<T, float>);
    }
    return 2.0 * kDepth * static_cast<double>(size.m * size.n * size.k);
  };
}

template <typename T>
double best_brgemm(double seconds) {
  static constexpr TileSize kSizes[] = {{64, 64, 256}, {32, 256, 256}, {256, 64, 256}, {128, 64, 512}, {64, 128, 512}};
  double best = 0;
  for (const TileSize size : kSizes) {
    best = std::max(best, throughput(seconds / std::size(kSizes), [=] { return brgemm_work<T>(size); }));
  }
  return best;
}

}  // namespace

double measure_fma(double seconds) {
  double (*chains)(int64_t) = fma_generic;
#ifdef DCGAN_FAST_X86
  if (capability() == Capability::avx2) chains = fma_avx2;
  if (capability() == Capability::avx512) chains = fma_avx512;
#endif
  return throughput(seconds, [=] { return [=] { return chains(10000); }; });
}

std::optional<double> measure_tiles([[maybe_unused]] double seconds) {
#ifdef DCGAN_FAST_X86
  if (tiles_pay(at::kFloat)) return throughput(seconds, [=] { return [=] { return tile_products(1000); }; });
#endif
  return std::nullopt;
}

std::optional<double> measure_brgemm(c10::ScalarType dtype, double seconds) {
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kBFloat16,
                    "measure_brgemm(): 'dtype' must be float32 or bfloat16, got ", dtype);
  try {
    return dtype == at::kFloat ? best_brgemm<float>(seconds) : best_brgemm<at::BFloat16>(seconds);
  } catch (const std::exception&) {  // of torch or oneDNN, whose errors share no other class: other processors, older ones
    return std::nullopt;
  }
}

}  // namespace dcgan_fast::cpu
