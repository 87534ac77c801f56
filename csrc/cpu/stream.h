// Stores past the caches, for what is not read again soon: the lines they go to are not read first, and push out nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#ifndef CPU_CAPABILITY
#error "compile this file once per CPU capability: -DCPU_CAPABILITY=AVX512 and its -m flags"
#endif

#ifdef __SSE2__
#include <immintrin.h>
#endif

namespace dcgan_fast::cpu::CPU_CAPABILITY {

// Copies `bytes`; past the caches where both ends are aligned to 64 bytes and whole lines go.
inline void stream(void* to, const void* from, size_t bytes) {
#ifdef __SSE2__
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from) | bytes) % 64 == 0) {
    auto* const t = static_cast<char*>(to);
    const auto* const f = static_cast<const char*>(from);
    for (size_t i = 0; i < bytes; i += 64) {
#if defined(__AVX512F__)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(t + i), _mm512_load_si512(f + i));
#elif defined(__AVX__)
      for (size_t j = i; j < i + 64; j += 32) {
        _mm256_stream_si256(reinterpret_cast<__m256i*>(t + j), _mm256_load_si256(reinterpret_cast<const __m256i*>(f + j)));
      }
#else
      for (size_t j = i; j < i + 64; j += 16) {
        _mm_stream_si128(reinterpret_cast<__m128i*>(t + j), _mm_load_si128(reinterpret_cast<const __m128i*>(f + j)));
      }
#endif
    }
    return;
  }
#endif
  std::memcpy(to, from, bytes);
}

// After the last stream() of a thread, before another may read.
inline void stream_fence() {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

// Writes an array front to back past the caches, whole lines at a time. Values are put at next(), then add()ed, `batch` of them
// at most; finish() writes the last line's, and a stream_fence() is for the caller.
template <typename T, int64_t batch>
class StreamedArray {
  static constexpr int64_t kLine = 64 / sizeof(T);

 public:
  // The first line may begin with what is somebody else's.
  explicit StreamedArray(T* to) : to_(to), others_(reinterpret_cast<uintptr_t>(to) / sizeof(T) % kLine), waiting_(others_) {}

  T* next() { return values_ + waiting_; }

  void add(int64_t values) {
    waiting_ += values;
    const int64_t whole = waiting_ / kLine * kLine;
    if (whole == 0) return;
    write(whole);
    waiting_ -= whole;
    std::memcpy(values_, values_ + whole, waiting_ * sizeof(T));
  }

  void finish() { write(waiting_); }

 private:
  void write(int64_t end) {
    stream(to_, values_ + others_, (end - others_) * sizeof(T));
    to_ += end - others_;
    others_ = 0;
  }

  alignas(64) T values_[batch + 2 * kLine];
  T* to_;
  int64_t others_, waiting_;
};

inline void fetch_lines(const void* from, int lines) {
  for (int line = 0; line < lines; ++line) __builtin_prefetch(static_cast<const char*>(from) + 64 * line);
}

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
