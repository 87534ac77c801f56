// What was found out about a convolution's shape, remembered for its next call.
#pragma once

#include <ATen/Parallel.h>

#include <array>
#include <map>
#include <mutex>

#include "conv.h"

namespace dcgan_fast::cpu {

template <typename Value>
class ShapeMemo {
 public:
  // `extra`: what else the value depends on. The number of threads always counts.
  template <typename Find>
  Value operator()(const ConvShape& s, Direction d, int64_t extra, Find&& find) {
    const Key key{s.batch, s.fine.height, s.fine.width, s.fine.channels, s.coarse.height, s.coarse.width, s.coarse.channels,
                  s.kernel[0], s.kernel[1], s.stride[0], s.stride[1], s.padding[0], s.padding[1],
                  static_cast<int64_t>(s.dtype), static_cast<int64_t>(d), extra, at::get_num_threads()};
    const std::lock_guard lock(mutex_);
    if (const auto known = known_.find(key); known != known_.end()) return known->second;
    if (known_.size() > 4096) known_.clear();  // somebody walks through shapes: stay small
    return known_[key] = find();
  }

 private:
  using Key = std::array<int64_t, 17>;
  std::mutex mutex_;
  std::map<Key, Value> known_;
};

}  // namespace dcgan_fast::cpu
