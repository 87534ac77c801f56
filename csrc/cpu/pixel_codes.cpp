// Bytes through a linear layer to bits. Compiled once per CPU capability (see capability.h).
#include "pixel_codes.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "integers.h"
#include "lane_masks.h"
#include "workspace.h"
#if defined(__AVX512BF16__)
#include "tiles.h"
#else
#include "gemm.h"
#endif

namespace dcgan_fast::cpu::CPU_CAPABILITY {
namespace {

constexpr int64_t kWord = 64;
int64_t words_of(const PixelCodes& args) { return ceil_div(args.bits, kWord); }

enum Slot { kWeightSlot, kPixelSlot, kSumSlot };

template <typename T>
T* scratch(int64_t elements, Slot slot) {
  return static_cast<T*>(workspace(elements * sizeof(T), slot));
}

struct Rows {
  const uint8_t* pixels = nullptr;
  int64_t count = 0;
};

// Two bodies of the same: `Weights` packed for all threads, in parts that they share out, and a thread's `Product`,
// which takes up to kRows rows at a time, knows those that come after them, and leaves the 64 sums of a word beside
// each other.
#if defined(__AVX512BF16__)

class Weights {
 public:
  explicit Weights(const PixelCodes& args)
      : steps(ceil_div(args.features, kBlock)),
        blocks(words_of(args) * kWord / kBlock),
        args_(args),
        packed_(scratch<char>(blocks * steps * kPlaneBytes, kWeightSlot)) {}

  int64_t parts() const { return steps; }

  void pack(int64_t step) {
    const auto* const weight = static_cast<const c10::BFloat16*>(args_.weight) + step * kBlock;
    for (int64_t block = 0; block < blocks; ++block) {
      const c10::BFloat16* rows[kBlock];
      for (int64_t j = 0; j < kBlock; ++j) {
        const int64_t bit = block * kBlock + j;
        rows[j] = bit < args_.bits ? weight + bit * args_.features : nullptr;
      }
      const int64_t features = std::min(kBlock, args_.features - step * kBlock);
      pack_transposed<c10::BFloat16, true>(rows, features, 1, packed_ + (block * steps + step) * kPlaneBytes);
    }
  }

  const char* operator[](int64_t block) const { return packed_ + block * steps * kPlaneBytes; }

  const int64_t steps, blocks;

 private:
  const PixelCodes& args_;
  char* const packed_;  // [blocks][steps] of kPlaneBytes
};

// Whole sums stay in tile registers. Pixels and weights of a block, 200 KB each of CIFAR's, stream out of L2; the next
// rows' pixels become bfloat16 between the products, which alone take twice as long as that.
class Product {
 public:
  static constexpr int64_t kRows = kBlock, kMultiple = kBlock;

  Product(const PixelCodes& args, const Weights& weights, Rows first)
      : weights_(weights),
        features_(args.features),
        width_(weights.blocks * kBlock),
        tiles_(scratch<char>(2 * weights.steps * kPlaneBytes, kPixelSlot)),
        sums_(scratch<float>(kRows * width_, kSumSlot)),
        offsets_(weights.steps) {
    for (int64_t i = 0; i < weights.steps; ++i) offsets_[i] = static_cast<int32_t>(i * kPlaneBytes);
    Conversion conversion(*this, first);
    while (!conversion.done()) conversion.advance();
  }

  void multiply(Rows, Rows next) {
    const char* const pixels = tiles();
    half_ ^= 1;
    Conversion conversion(*this, next);
    const int64_t of_all = next.count * weights_.steps, at_once = ceil_div(of_all, weights_.blocks * weights_.steps);
    const Steps steps{offsets_.data(), offsets_.data(), weights_.steps, 1, 0, 0};
    for (int64_t block = 0; block < weights_.blocks; ++block) {
      cpu::CPU_CAPABILITY::multiply<c10::BFloat16>(pixels, RowLayout{}, weights_[block], steps, sums_ + block * kBlock,
                                                   width_, false, [&] {
                                                     for (int64_t i = 0; i < at_once && !conversion.done(); ++i)
                                                       conversion.advance();
                                                   });
    }
  }

  const float* sums(int64_t row, int64_t word) const { return sums_ + row * width_ + word * kWord; }

 private:
  char* tiles() const { return tiles_ + half_ * weights_.steps * kPlaneBytes; }

  // Rows of bytes to tiles, 32 bytes at a time, in the order in which they lie in memory.
  class Conversion {
   public:
    Conversion(const Product& product, Rows rows)
        : at_(rows.pixels),
          row_end_(at_ + product.features_),
          end_(at_ + rows.count * product.features_),
          to_(product.tiles()),
          row_(to_),
          features_(product.features_) {}

    bool done() const { return at_ == end_; }

    VEC_INLINE void advance() {
      const int64_t count = std::min<int64_t>(kBlock, row_end_ - at_);
      const __mmask32 mask = count == kBlock ? ~__mmask32{0} : (__mmask32{1} << count) - 1;
      const __m256i bytes = _mm256_maskz_loadu_epi8(mask, at_);
      const __m512 low = widened(_mm256_castsi256_si128(bytes)), high = widened(_mm256_extracti128_si256(bytes, 1));
      _mm512_store_si512(to_, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
      __builtin_prefetch(at_ + kAhead);
      at_ += count;
      to_ += kPlaneBytes;
      if (at_ == row_end_) {
        row_end_ += features_;
        to_ = row_ += 64;
      }
    }

   private:
    static constexpr int64_t kAhead = 2048;
    static __m512 widened(__m128i bytes) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)); }

    const uint8_t *at_, *row_end_, *end_;
    char *to_, *row_;
    int64_t features_;
  };

  const Weights& weights_;
  const int64_t features_, width_;
  char* const tiles_;  // two halves, for these rows and the next: [steps] of kPlaneBytes
  float* const sums_;  // [kRows][width]
  std::vector<int32_t> offsets_;
  int64_t half_ = 0;
};

#else

struct TileUnit {};

class Weights {
 public:
  explicit Weights(const PixelCodes& args)
      : args_(args), packed_(scratch<float>(words_of(args) * args.features * kWord, kWeightSlot)) {}

  int64_t parts() const { return ceil_div(args_.features, kPart); }

  void pack(int64_t part) {
    args_.dtype == at::kFloat ? pack_from(static_cast<const float*>(args_.weight), part)
                              : pack_from(static_cast<const c10::BFloat16*>(args_.weight), part);
  }

  const float* operator[](int64_t word) const { return packed_ + word * args_.features * kWord; }

 private:
  static constexpr int64_t kPart = 16;  // a line of each of a word's weights, transposed in L1

  template <typename T>
  void pack_from(const T* weight, int64_t part) {
    const int64_t begin = part * kPart, end = std::min(args_.features, begin + kPart);
    for (int64_t word = 0; word < words_of(args_); ++word) {
      float* const to = packed_ + word * args_.features * kWord;
      for (int64_t j = 0; j < kWord; ++j) {
        const int64_t bit = word * kWord + j;
        for (int64_t f = begin; f < end; ++f) {
          to[f * kWord + j] = bit < args_.bits ? static_cast<float>(weight[bit * args_.features + f]) : 0.0f;
        }
      }
    }
  }

  const PixelCodes& args_;
  float* const packed_;  // [words][features][64]
};

// Of all features in turn, a part at a time. The next rows are fetched into L2 meanwhile: reading them takes a twelfth
// of the time of the product.
class Product {
 public:
  static constexpr int64_t kRows = 21 * kGemmRows, kMultiple = kGemmRows;

  Product(const PixelCodes& args, const Weights& weights, Rows)
      : weights_(weights),
        features_(args.features),
        words_(words_of(args)),
        floats_(scratch<float>(kRows * kDepth, kPixelSlot)),
        sums_(scratch<float>(words_ * kRows * kWord, kSumSlot)) {}

  void multiply(Rows rows, Rows next) {
    const int64_t calls = ceil_div(features_, kDepth) * words_, of_call = ceil_div(next.count * features_, calls);
    int64_t fetched = 0;
    for (int64_t begin = 0; begin < features_; begin += kDepth) {
      const int64_t depth = std::min(kDepth, features_ - begin);
      for (int64_t r = 0; r < rows.count; ++r) {
        std::copy_n(rows.pixels + r * features_ + begin, depth, floats_ + r * depth);
      }
      for (int64_t word = 0; word < words_; ++word) {
        const Ahead ahead{next.pixels + fetched, std::min(of_call, next.count * features_ - fetched)};
        fetched += of_call;
        gemm({rows.count, kWord, depth, floats_, depth, 1, weights_[word] + begin * kWord, sums_ + word * kRows * kWord,
              begin > 0, ahead});
      }
    }
  }

  const float* sums(int64_t row, int64_t word) const { return sums_ + (word * kRows + row) * kWord; }

 private:
  static_assert(kWord == kGemmPanel);
  // In L2 400 KB of pixels, as many bytes of the next rows, 200 KB of a word's weights.
  static constexpr int64_t kDepth = 768;

  const Weights& weights_;
  const int64_t features_, words_;
  float* const floats_;  // [kRows][kDepth]
  float* const sums_;    // [words][kRows][64]
};

#endif

// 64 sums and their biases to a word.
uint64_t word_of(const float* sums, const float* bias, float threshold) {
  const Vec<float> limit(threshold);
  uint64_t word = 0;
  for (int64_t j = 0; j < kWord; j += lanes<float>) {
    const Vec<float> sum = load_acc<float>(sums + j) + load_acc<float>(bias + j);
    word |= (larger(sum.lo, limit.lo) | larger(sum.hi, limit.hi) << lanes<float> / 2) << j;
  }
  return word;
}

void run(const PixelCodes& args) {
  const int64_t words = words_of(args), rest = args.bits - (words - 1) * kWord;
  const uint64_t last_mask = rest == kWord ? ~uint64_t{0} : (uint64_t{1} << rest) - 1;
  std::vector<float> bias(words * kWord);
  std::copy_n(args.bias, args.bits, bias.begin());
  Weights weights(args);
  at::parallel_for(0, weights.parts(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) weights.pack(part);
  });
  // Each thread takes the next block when it is done with one: cores that are shared run at different speeds. Few rows:
  // a block for each thread.
  const int64_t of_thread = round_up(ceil_div(args.rows, at::get_num_threads()), Product::kMultiple);
  const int64_t block = std::clamp(of_thread, Product::kMultiple, Product::kRows), blocks = ceil_div(args.rows, block);
  std::atomic<int64_t> taken{0};
  const auto take = [&] {
    const int64_t first = taken++ * block;
    return first < args.rows ? Rows{args.pixels + first * args.features, std::min(block, args.rows - first)} : Rows{};
  };
  at::parallel_for(0, std::min<int64_t>(blocks, at::get_num_threads()), 1, [&](int64_t, int64_t) {
    [[maybe_unused]] const TileUnit unit;
    Rows rows = take();
    Product product(args, weights, rows);
    while (rows.count > 0) {
      const Rows next = take();
      product.multiply(rows, next);
      uint64_t* code = args.codes + (rows.pixels - args.pixels) / args.features * words;
      for (int64_t r = 0; r < rows.count; ++r) {
        for (int64_t word = 0; word < words; ++word) {
          *code++ = word_of(product.sums(r, word), bias.data() + word * kWord, args.threshold);
        }
        code[-1] &= last_mask;
      }
      rows = next;
    }
  });
}

}  // namespace

extern const PixelCodesKernels pixel_codes{run};

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
