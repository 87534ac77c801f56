#include "map_pool.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/impl/alloc_cpu.h>
#include <c10/util/Exception.h>
#include <pthread.h>
#include <torch/library.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <mutex>
#include <set>
#include <utility>

#include "../cpu/pages.h"

namespace dcgan_fast {

namespace {

constexpr size_t kSmallest = 64 << 10;  // of a block; the C library keeps the pages of smaller ones itself
constexpr size_t kGrain = 4 << 10;      // blocks are whole pages: at most 6% of one is lost to rounding
// A segment serves maps of at least this part of its size: a small map that lives long would pin a large one.
constexpr size_t kSmallestPart = 32;
constexpr uint64_t kStale = 2048;  // blocks taken and given back; some ten training steps

constexpr const char* kPurpose = "a feature map";

size_t quarter_of_memory() {
  return static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE)) / 4;
}

// Best fit in segments, each allocated for the first map that found no room: a block is split where less is asked for,
// and joined with its free neighbours when it comes back.
//
// What splitting is for: maps of one training step are live at different times, so blocks that serve one size each
// would hold 1.4 times the most that is in use at once. Like this it is 1.0 to 1.13 times, and after the first steps at
// most 32 MB a step are allocated anew (simulated: the 64x64 net at batches 16 to 128).
class MapPool final : public c10::Allocator {
 public:
  static MapPool& instance() {
    static MapPool* const pool = new MapPool;  // never destroyed: tensors may outlive static destructors
    return *pool;
  }

  c10::DataPtr allocate(size_t bytes) override {
    const bool pooled = bytes >= kSmallest && limit() > 0;
    void* const data = pooled ? take(round_up(bytes)) : bytes > 0 ? c10::alloc_cpu(bytes) : nullptr;
    return {data, data, &give_back, c10::Device(c10::kCPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }

  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

  size_t limit() {
    const std::lock_guard lock(mutex_);
    return limit_;
  }

  void set_limit(size_t bytes) {
    {
      const std::lock_guard lock(mutex_);
      limit_ = bytes;
    }
    drop_beyond_limit();
  }

  size_t free_bytes() {
    const std::lock_guard lock(mutex_);
    return held_ - in_use_;
  }

  void release() {
    drop_while([](const Block&) { return true; });
    const std::lock_guard lock(mutex_);
    most_in_use_ = in_use_;
  }

 private:
  struct Block {
    char* segment;  // which it is part of
    size_t segment_size, size;
    bool free;
    uint64_t freed;  // clock_ at that moment
  };

  using Blocks = std::map<char*, Block>;  // by address, so that neighbours in a segment are neighbours here

  // A fork waits until the books are in order; the child has pages of its own and may go on with them.
  MapPool() {
    pthread_atfork([] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); },
                   [] { instance().mutex_.unlock(); });
  }

  static size_t round_up(size_t bytes) { return (bytes + kGrain - 1) / kGrain * kGrain; }

  void* take(size_t size) {
    void* data;
    size_t most;
    uint64_t now;
    bool look_for_stale;
    {
      const std::lock_guard lock(mutex_);
      now = ++clock_;
      look_for_stale = now >= next_look_;
      if (look_for_stale) next_look_ = now + kStale;
      data = take_free(size);
      // A new segment may bring the pool to an eighth above the most that was in use at once, not more: what stays
      // otherwise is a sum of all sizes ever seen.
      most = std::max(most_in_use_, in_use_ + size) * 9 / 8;
    }
    if (look_for_stale) drop_while([&](const Block& oldest) { return oldest.freed + kStale < now; });
    if (data) return data;
    drop_while([&](const Block&) { return held_ + size > most; });
    char* const segment = allocate_segment(size);
    const std::lock_guard lock(mutex_);
    held_ += size;
    return use(blocks_.emplace(segment, Block{segment, size, size, true, now}).first);
  }

  static char* allocate_segment(size_t size) {
    try {
      return static_cast<char*>(cpu::allocate_pages(size, kPurpose));
    } catch (const c10::OutOfMemoryError&) {
      instance().release();
      return static_cast<char*>(cpu::allocate_pages(size, kPurpose));
    }
  }

  // ---- under the lock

  void* take_free(size_t size) {
    for (auto it = free_.lower_bound({size, nullptr}); it != free_.end(); ++it) {
      const auto block = blocks_.find(it->second);
      if (block->second.segment_size > kSmallestPart * size) continue;
      free_.erase(it);
      if (block->second.size - size >= kSmallest) {
        Block rest = block->second;
        rest.size -= size;
        block->second.size = size;
        blocks_.emplace(block->first + size, rest);
        free_.emplace(rest.size, block->first + size);
      }
      return use(block);
    }
    return nullptr;
  }

  void* use(Blocks::iterator block) {
    block->second.free = false;
    in_use_ += block->second.size;
    most_in_use_ = std::max(most_in_use_, in_use_);
    return block->first;
  }

  void make_free(Blocks::iterator block) {
    in_use_ -= block->second.size;
    if (const auto after = std::next(block); after != blocks_.end() && after->second.free && touch(block, after)) {
      unlist(after);
      block = join(block, after);
    }
    if (block != blocks_.begin()) {
      if (const auto before = std::prev(block); before->second.free && touch(before, block)) {
        unlist(before);
        block = join(before, block);
      }
    }
    block->second.free = true;
    block->second.freed = ++clock_;
    free_.emplace(block->second.size, block->first);
  }

  // Whether `after` can be joined to `before`: what lay between two blocks of a segment may be gone.
  bool touch(Blocks::iterator before, Blocks::iterator after) {
    return before->first + before->second.size == after->first && before->second.segment == after->second.segment;
  }

  void unlist(Blocks::iterator block) { free_.erase({block->second.size, block->first}); }

  Blocks::iterator join(Blocks::iterator block, Blocks::iterator after) {
    block->second.size += after->second.size;
    blocks_.erase(after);
    return block;
  }

  // ---- not under the lock

  // Gives free blocks back, the one that was free for longest first, while `condition` holds for it. Unlocked in
  // between: unmapping takes milliseconds.
  //
  // Of a segment in use only a part goes. Would all wait for a segment that is wholly free, then a training step held a
  // fifth more than was ever in use.
  template <typename Condition>
  void drop_while(Condition condition) {
    for (;;) {
      std::unique_lock lock(mutex_);
      auto oldest = blocks_.end();
      for (const auto& entry : free_) {
        const auto block = blocks_.find(entry.second);
        if (oldest == blocks_.end() || block->second.freed < oldest->second.freed) oldest = block;
      }
      if (oldest == blocks_.end() || !condition(oldest->second)) return;
      char* const pages = oldest->first;
      const size_t size = oldest->second.size;
      held_ -= size;
      unlist(oldest);
      blocks_.erase(oldest);
      lock.unlock();
      cpu::free_pages(pages, size);
    }
  }

  void drop_beyond_limit() {
    drop_while([this](const Block&) { return held_ - in_use_ > limit_; });
  }

  static void give_back(void* data) {
    if (!instance().take_back(static_cast<char*>(data))) c10::free_cpu(data);
  }

  // Whether `data` was the pool's.
  bool take_back(char* data) {
    {
      const std::lock_guard lock(mutex_);
      const auto block = blocks_.find(data);
      if (block == blocks_.end()) return false;
      make_free(block);
      if (held_ - in_use_ <= limit_) return true;
    }
    drop_beyond_limit();
    return true;
  }

  std::mutex mutex_;
  Blocks blocks_;
  std::set<std::pair<size_t, char*>> free_;  // by size, then address
  size_t limit_ = quarter_of_memory(), held_ = 0, in_use_ = 0, most_in_use_ = 0;
  uint64_t clock_ = 0, next_look_ = kStale;  // in blocks taken and given back
};

// Python's torch.empty for maps.
at::Tensor empty_maps_op(at::IntArrayRef size, at::ScalarType dtype, at::MemoryFormat format) {
  return empty_maps(size, at::TensorOptions().dtype(dtype), format);
}

TORCH_LIBRARY_FRAGMENT(dcgan_fast, m) {
  m.def("_empty_maps(int[] size, *, ScalarType dtype, MemoryFormat memory_format) -> Tensor", empty_maps_op);
}

}  // namespace

at::Tensor empty_maps(at::IntArrayRef sizes, const at::TensorOptions& options, at::MemoryFormat format) {
  const bool ordinary = options.device().is_cpu() && options.layout() == at::kStrided && !options.pinned_memory();
  if (!ordinary) return at::empty(sizes, options, format);
  return at::detail::empty_generic(sizes, &MapPool::instance(), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                   c10::typeMetaToScalarType(options.dtype()), format);
}

at::Tensor empty_maps_like(const at::Tensor& maps) {
  if (!maps.is_cpu() || !maps.is_non_overlapping_and_dense()) return at::empty_like(maps);
  return at::detail::empty_strided_generic(maps.sizes(), maps.strides(), &MapPool::instance(),
                                           c10::DispatchKeySet(c10::DispatchKey::CPU), maps.scalar_type());
}

c10::Allocator& map_pool() { return MapPool::instance(); }

size_t free_map_bytes() { return MapPool::instance().free_bytes(); }

void release_free_maps() { MapPool::instance().release(); }

size_t map_pool_limit() { return MapPool::instance().limit(); }

void set_map_pool_limit(size_t bytes) { MapPool::instance().set_limit(bytes); }

}  // namespace dcgan_fast
