// Work in tasks that any thread may do. Each thread has its share, a run of neighbours as of at::parallel_for, so that the next
// layer finds in a core's cache what this one left there; one that is done takes over from the others. A share alone would
// wait for the slowest core, which beside other work has half the time of the next.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <vector>

namespace dcgan_fast::cpu {

class Tasks {
 public:
  Tasks(int64_t count, int64_t shares) : shares_(shares) {
    for (int64_t i = 0; i < shares; ++i) {
      shares_[i].next = count * i / shares;
      shares_[i].end = count * (i + 1) / shares;
    }
  }

  // Whether there is another task for the thread of this share, and which.
  bool take(int64_t share, int64_t& task) {
    const auto count = static_cast<int64_t>(shares_.size());
    for (int64_t i = 0; i < count; ++i) {
      Share& from = shares_[(share + i) % count];
      if (from.next.load(std::memory_order_relaxed) >= from.end) continue;
      task = from.next.fetch_add(1, std::memory_order_relaxed);
      if (task < from.end) return true;
    }
    return false;
  }

 private:
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };
  std::vector<Share> shares_;
};

// Calls work(take) in each thread, which does `for (int64_t task; take(task);)`. What it sets up before serves all its tasks.
// `one_queue`: threads take whatever is next, without shares: for few tasks of different sizes, the largest first.
template <typename F>
void for_tasks(int64_t count, F&& work, bool one_queue = false) {
  const int64_t shares = at::in_parallel_region() ? 1 : std::min<int64_t>(count, at::get_num_threads());
  Tasks tasks(count, one_queue ? std::min<int64_t>(shares, 1) : shares);
  at::parallel_for(0, shares, 1, [&](int64_t begin, int64_t end) {
    for (int64_t share = begin; share < end; ++share) work([&](int64_t& task) { return tasks.take(share, task); });
  });
}

}  // namespace dcgan_fast::cpu
