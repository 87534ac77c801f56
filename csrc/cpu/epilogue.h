// What an engine does to a block of sums before it leaves the cache (conv.h: Epilogue, BlockMoments).
#pragma once

#include <algorithm>
#include <atomic>
#include <vector>

#include "activations.h"
#include "conv.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {

// Calls f(first, All or First) for each vector of n values.
template <typename T, typename F>
VEC_INLINE void for_vectors(int64_t n, F&& f) {
  int64_t i = 0;
  for (; i + lanes<T> <= n; i += lanes<T>) f(i, All{});
  if (i < n) f(i, First{static_cast<int>(n - i)});
}

// ---------------------------------------------------------------- statistics

// Mean and sum of squared deviations of each lane, in one pass: sums of deviations from an origin and of their squares. What
// is lost is the square of the mean's distance from the origin, in standard deviations: nothing where that is about the mean.
template <typename T>
class RunningMoments {
 public:
  VEC_INLINE explicit RunningMoments(const Vec<T>& origin = Vec<T>(0.0f)) : origin_(origin) {}

  VEC_INLINE void add(const Vec<T>& v) {
    ++count_;
    const Vec<T> d = v - origin_;
    sum_ = sum_ + d;
    squares_ = fmadd(d, d, squares_);
  }

  template <typename Count>
  VEC_INLINE void finish(float* mean, float* m2, Count count) const {
    store_acc<T>(mean, this->mean(), count);
    store_acc<T>(m2, this->m2(), count);
  }

  VEC_INLINE Vec<T> mean() const { return origin_ + average(); }
  VEC_INLINE Vec<T> m2() const { return clamp_negative(squares_ - sum_ * average()); }
  int64_t count() const { return count_; }

 private:
  VEC_INLINE Vec<T> average() const { return sum_ * Vec<T>(1.0f / static_cast<float>(std::max<int64_t>(count_, 1))); }

  Vec<T> origin_, sum_{0.0f}, squares_{0.0f};
  int64_t count_ = 0;
};

// The same of many rows: of a few at a time by RunningMoments, joined by Chan's rule.
struct JoinedMoments {
  Vec<float> mean{0.0f}, m2{0.0f};
  int64_t count = 0;

  VEC_INLINE void add(const RunningMoments<float>& some) {
    if (some.count() == 0) return;
    const auto n = static_cast<float>(some.count()), before = static_cast<float>(count), total = n + before;
    const Vec<float> delta = some.mean() - mean;
    mean = fmadd(delta, Vec<float>(n / total), mean);
    m2 = m2 + fmadd(delta * delta, Vec<float>(before * n / total), some.m2());
    count += some.count();
  }
};

// ---------------------------------------------------------------- pooling

// Pools each image of an output as soon as all of it is written, by the thread that wrote the last of it and has most of it
// in its cache.
class PoolWhole {
 public:
  // An image is so many units of work, each in so many shares. No `pool`: nothing is pooled.
  PoolWhole(const PoolFeatures* pool, int64_t images, int64_t units, int64_t shares = 1)
      : pool_(pool), units_(units), left_(pool_ ? images : 0) {
    for (auto& left : left_) left.store(units * shares, std::memory_order_relaxed);
  }

  // Units [begin, end) of the batch, counted image by image, are written, so many shares of them.
  void wrote(int64_t begin, int64_t end, int64_t shares = 1) {
    while (pool_ && begin < end) {
      const int64_t image = begin / units_, next = std::min(end, (image + 1) * units_), done = (next - begin) * shares;
      if (left_[image].fetch_sub(done, std::memory_order_acq_rel) == done) pool_features_kernels().one(*pool_, image);
      begin = next;
    }
  }

 private:
  const PoolFeatures* const pool_;
  const int64_t units_;
  std::vector<std::atomic<int64_t>> left_;
};

// ---------------------------------------------------------------- memory

template <typename T>
VEC_INLINE void store_wide(T* p, const Vec<float>& z, All) {
  if constexpr (std::is_same_v<T, float>) {
    store_acc<float>(p, z);
  } else {
    narrow<T>(z).store(p);
  }
}
template <typename T>
VEC_INLINE void store_wide(T* p, const Vec<float>& z, First first) {
  if constexpr (std::is_same_v<T, float>) {
    store_acc<float>(p, z, first);
  } else {
    narrow<T>(z).store(p, first.n);
  }
}

// Past the caches: a map that would not stay in them until it is read need not be read before it is written. Measured on a
// core with 2 MB of L2 and a share of a large L3, written and read again: 8 MB of floats equally fast either way, 34 MB 15%
// faster; 16-bit maps gained nothing.
template <typename T>
bool may_stream([[maybe_unused]] const T* map, [[maybe_unused]] int64_t pixels, [[maybe_unused]] int64_t channels) {
#ifdef CPU_CAPABILITY_AVX512
  constexpr int64_t kFloats = 3 << 20;
  return std::is_same_v<T, float> && pixels * channels >= kFloats && channels % lanes<float> == 0 &&
         reinterpret_cast<uintptr_t>(map) % 64 == 0;
#else
  return false;
#endif
}

template <typename T, typename Count>
VEC_INLINE void stream_wide(T* p, const Vec<float>& z, Count count) {
#ifdef CPU_CAPABILITY_AVX512
  if constexpr (std::is_same_v<T, float> && std::is_same_v<Count, All>) {
    _mm512_stream_ps(p, z.lo);
    _mm512_stream_ps(p + z.lo.size(), z.hi);
    return;
  }
#endif
  store_wide(p, z, count);
}

// Before another thread may read what was streamed.
inline void end_stream() {
#ifdef CPU_CAPABILITY_AVX512
  _mm_sfence();
#endif
}

// ---------------------------------------------------------------- sums

// A block of sums in cache: `columns` of them from column `at` of the output on, rows `stride` apart, to be multiplied by
// `factor`.
struct Sums {
  const float* data;
  int64_t rows, columns, stride, at;
  float factor = 1;
};

// Takes blocks of sums of some columns of an output to their places, and keeps the statistics of each column.
template <typename T>
class Finish {
 public:
  // Column i is channel (first_channel + i) % channels. `factor`: of all sums; `stream` as may_stream allows.
  Finish(const Epilogue& epilogue, int64_t first_channel, int64_t columns, int64_t channels, float factor = 1, bool stream = false)
      : epilogue_(epilogue), columns_(columns), stream_(stream), scale_(columns + lanes<float>, factor),
        bias_(columns + lanes<float>, 0.0f) {
    for (int64_t i = 0; i < columns; ++i) {
      if (epilogue.scale) scale_[i] = factor * epilogue.scale[(first_channel + i) % channels];
      if (epilogue.bias) bias_[i] = epilogue.bias[(first_channel + i) % channels];
    }
    reset();
  }

  // place(row): where the row's first column goes, null for nowhere.
  template <typename Place>
  void operator()(const Sums& sums, Place&& place) {
    dispatch_activation(epilogue_.activation, [&](auto activation) {
      epilogue_.moments ? finish<true>(activation, sums, place) : finish<false>(activation, sums, place);
    });
  }

  // The same without statistics; most[row]: the maxima so far of the columns of the row's window.
  template <typename Place>
  void operator()(const Sums& sums, Place&& place, float* const* most) {
    dispatch_activation(epilogue_.activation, [&](auto activation) { finish<false>(activation, sums, place, most); });
  }

  void reset() {
    if (epilogue_.moments) moments_.assign((columns_ + lanes<float> - 1) / lanes<float>, {});
  }

  // Of what came by since the last reset. Returns the number of values per column.
  int64_t statistics(float* mean, float* m2) const {
    for_vectors<float>(columns_, [&](int64_t c, auto count) {
      store_acc<float>(mean + c, moments_[c / lanes<float>].mean, count);
      store_acc<float>(m2 + c, moments_[c / lanes<float>].m2, count);
    });
    return moments_[0].count;
  }

 private:
  struct NoMaxima {};

  template <bool kMoments, Activation A, typename Place, typename Most = NoMaxima>
  void finish(Act<A> activation, const Sums& sums, Place&& place, Most most = {}) {
    const Vec<float> slope(epilogue_.negative_slope), factor(sums.factor);
    for_vectors<float>(sums.columns, [&](int64_t c, auto count) {
      const int64_t column = sums.at + c;
      const Vec<float> scale = load_acc<float>(scale_.data() + column), bias = load_acc<float>(bias_.data() + column);
      RunningMoments<float> moments(origin<kMoments>(sums, c, scale, bias, place));
      for (int64_t r = 0; r < sums.rows; ++r) {
        T* const to = place(r);
        if (!to) continue;
        const Vec<float> sum = load_acc<float>(sums.data + r * sums.stride + c) * factor;
        const Vec<float> z = activate(activation, fmadd(sum, scale, bias), slope);
        if (stream_) {
          stream_wide(to + c, z, count);
        } else {
          store_wide(to + c, z, count);
        }
        if constexpr (kMoments) moments.add(rounded<T>(z));
        if constexpr (!std::is_same_v<Most, NoMaxima>) {
          float* const so_far = most[r] + column;
          store_acc<float>(so_far, maximum(load_acc<float>(so_far, count), rounded<T>(z)), count);
        }
      }
      if constexpr (kMoments) moments_[column / lanes<float>].add(moments);
    });
  }

  // The mean of all values that came by before; of the first ones by a look ahead.
  template <bool kMoments, typename Place>
  VEC_INLINE Vec<float> origin(const Sums& sums, int64_t c, const Vec<float>& scale, const Vec<float>& bias, Place&& place) const {
    Vec<float> total(0.0f);
    if constexpr (kMoments) {
      const JoinedMoments& before = moments_[(sums.at + c) / lanes<float>];
      if (before.count > 0) return before.mean;
      int64_t n = 0;
      for (int64_t r = 0; r < sums.rows; ++r) {
        if (!place(r)) continue;
        total = total + load_acc<float>(sums.data + r * sums.stride + c);
        ++n;
      }
      total = fmadd(total * Vec<float>(sums.factor / static_cast<float>(std::max<int64_t>(n, 1))), scale, bias);
    }
    return total;
  }

  const Epilogue& epilogue_;
  const int64_t columns_;
  const bool stream_;
  std::vector<float> scale_, bias_;
  std::vector<JoinedMoments> moments_;
};

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
