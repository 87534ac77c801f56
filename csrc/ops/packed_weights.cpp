#include "packed_weights.h"

#include <c10/core/StorageImpl.h>
#include <c10/util/intrusive_ptr.h>
#include <pthread.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <list>
#include <mutex>
#include <utility>
#include <vector>

#include "map_pool.h"

namespace dcgan_fast {

namespace {

// ---------------------------------------------------------------- what a packing belongs to

// What tells one packing from another, but for the weight's contents.
struct Key {
  c10::weak_intrusive_ptr<c10::StorageImpl> storage;  // weak: a dead weight's address may come again, its storage not
  const void* data;
  std::array<int64_t, 4> sizes, strides;
  at::ScalarType dtype;
  const cpu::ConvEngine* engine;
  cpu::Direction direction;
  std::array<int64_t, 8> shape;  // of ConvShape, what a packing depends on

  bool same_memory(const Key& other) const {
    return storage._unsafe_get_target() == other.storage._unsafe_get_target() && data == other.data;
  }

  bool operator==(const Key& other) const {
    return same_memory(other) && sizes == other.sizes && strides == other.strides && dtype == other.dtype &&
           engine == other.engine && direction == other.direction && shape == other.shape;
  }
};

std::array<int64_t, 4> four(at::IntArrayRef values) { return {values[0], values[1], values[2], values[3]}; }

Key key_of(const at::Tensor& weight, const cpu::ConvShape& s, cpu::Direction direction, const cpu::ConvEngine& engine) {
  return {weight.storage().getWeakStorageImpl(),
          weight.const_data_ptr(),
          four(weight.sizes()),
          four(weight.strides()),
          weight.scalar_type(),
          &engine,
          direction,
          {s.fine.channels, s.coarse.channels, s.kernel[0], s.kernel[1], s.stride[0], s.stride[1], s.padding[0],
           s.padding[1]}};
}

// ---------------------------------------------------------------- whether the weight is still what was packed

constexpr size_t kSmallWeight = 16 << 10, kProbes = 64;

// The i-th of kProbes words: one from each of as many equal runs of the memory, at an irregular place within it (a
// regular grid could miss a channel).
uint64_t probe(const char* data, size_t bytes, size_t i) {
  const size_t begin = i * bytes / kProbes, room = bytes / kProbes - sizeof(uint64_t);
  const uint64_t irregular = i * uint64_t{0x9E3779B97F4A7C15} >> 32;  // of 2^32, by the golden ratio
  uint64_t word;
  std::memcpy(&word, data + begin + (irregular * room >> 32) / sizeof(word) * sizeof(word), sizeof(word));
  return word;
}

// What a weight holds: its version, all bytes of a small one, probes of a larger one. Of a view with gaps (a part of the
// input channels) also what lies in them: a change there packs the weight once more.
class Contents {
 public:
  explicit Contents(const at::Tensor& weight) : version_(version_of(weight)) {
    const auto [data, bytes] = memory_of(weight);
    if (bytes <= kSmallWeight) {
      words_.resize((bytes + sizeof(uint64_t) - 1) / sizeof(uint64_t));
      std::memcpy(words_.data(), data, bytes);
    } else {
      words_.resize(kProbes);
      for (size_t i = 0; i < kProbes; ++i) words_[i] = probe(data, bytes, i);
    }
  }

  bool has_version_of(const at::Tensor& weight) const { return version_ == version_of(weight); }

  // `weight` has the size it had at construction. Mostly decided by the first word where the answer is no.
  bool are_those_of(const at::Tensor& weight) const {
    if (!has_version_of(weight)) return false;
    const auto [data, bytes] = memory_of(weight);
    if (bytes <= kSmallWeight) return std::memcmp(words_.data(), data, bytes) == 0;
    for (size_t i = 0; i < kProbes; ++i) {
      if (words_[i] != probe(data, bytes, i)) return false;
    }
    return true;
  }

 private:
  static uint32_t version_of(const at::Tensor& weight) {
    return weight.unsafeGetTensorImpl()->version_counter().current_version();
  }

  static std::pair<const char*, size_t> memory_of(const at::Tensor& weight) {
    int64_t last = 0;
    for (int64_t axis = 0; axis < weight.dim(); ++axis) last += (weight.size(axis) - 1) * weight.stride(axis);
    return {static_cast<const char*>(weight.const_data_ptr()), (last + 1) * weight.element_size()};
  }

  uint32_t version_;
  std::vector<uint64_t> words_;
};

bool can_tell_changes(const at::Tensor& weight) { return !weight.is_inference(); }

// ---------------------------------------------------------------- the cache

struct Entry {
  Key key;
  Contents contents;
  size_t bytes;
  std::shared_ptr<const void> packed;
};

// Most recently used first. Some 40 entries for a GAN, so lists are searched one by one.
//
// Entries leave through a list that outlives the lock: their memory goes back to the pool, and the last reference to a
// storage may want Python's lock, whose holder may wait for this one.
class Cache {
 public:
  static Cache& instance() {
    static Cache* const cache = new Cache;  // never destroyed: see MapPool
    return *cache;
  }

  // The packing, or null; what can serve nobody any more goes.
  std::shared_ptr<const void> find(const Key& key, const at::Tensor& weight) {
    std::list<Entry> dropped;
    const std::lock_guard lock(mutex_);
    for (auto it = entries_.begin(); it != entries_.end();) {
      const auto entry = it++;
      const bool same = entry->key == key;
      if (same && entry->contents.are_those_of(weight)) {
        entries_.splice(entries_.begin(), entries_, entry);
        return entry->packed;
      }
      const bool outdated = entry->key.same_memory(key) && !entry->contents.has_version_of(weight);
      if (same || outdated || entry->key.storage.expired()) drop(entry, dropped);
    }
    return nullptr;
  }

  void insert(Entry entry) {
    std::list<Entry> inserted, dropped;
    inserted.push_back(std::move(entry));
    const std::lock_guard lock(mutex_);
    if (inserted.front().bytes > limit_) return;  // nor would all others have to go for it
    held_ += inserted.front().bytes;
    entries_.splice(entries_.begin(), inserted);
    drop_beyond_limit(dropped);
  }

  // Drops entries for whose key `condition` holds.
  template <typename Condition>
  void drop_if(Condition condition) {
    std::list<Entry> dropped;
    const std::lock_guard lock(mutex_);
    for (auto it = entries_.begin(); it != entries_.end();) {
      const auto entry = it++;
      if (condition(entry->key)) drop(entry, dropped);
    }
  }

  void set_limit(size_t bytes) {
    std::list<Entry> dropped;
    const std::lock_guard lock(mutex_);
    limit_ = bytes;
    drop_beyond_limit(dropped);
  }

  size_t held() {
    drop_if([](const Key& key) { return key.storage.expired(); });
    const std::lock_guard lock(mutex_);
    return held_;
  }

 private:
  Cache() {
    pthread_atfork([] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); },
                   [] { instance().mutex_.unlock(); });
  }

  void drop(std::list<Entry>::iterator entry, std::list<Entry>& dropped) {
    held_ -= entry->bytes;
    dropped.splice(dropped.end(), entries_, entry);
  }

  void drop_beyond_limit(std::list<Entry>& dropped) {
    while (held_ > limit_) drop(std::prev(entries_.end()), dropped);
  }

  std::mutex mutex_;
  std::list<Entry> entries_;
  size_t held_ = 0, limit_ = map_pool_limit();
};

// From the pool of maps, whose blocks keep their pages: a training step packs each weight anew.
std::shared_ptr<const void> pack(const at::Tensor& weight, const cpu::ConvShape& shape, cpu::Direction direction,
                                 const cpu::ConvEngine& engine, size_t bytes) {
  const auto memory = std::make_shared<c10::DataPtr>(map_pool().allocate(bytes));
  const auto strides = four(weight.strides());
  const cpu::WeightView view{weight.const_data_ptr(), {strides[0], strides[1], strides[2], strides[3]}};
  engine.pack(shape, direction, view, memory->mutable_get());
  return {memory, memory->get()};
}

}  // namespace

std::shared_ptr<const void> packed_weight(const at::Tensor& weight, const cpu::ConvShape& shape,
                                          cpu::Direction direction, const cpu::ConvEngine& engine, bool keep) {
  const auto bytes = static_cast<size_t>(engine.packed_bytes(shape, direction));
  if (!can_tell_changes(weight)) return pack(weight, shape, direction, engine, bytes);
  Key key = key_of(weight, shape, direction, engine);
  auto& cache = Cache::instance();
  auto packed = cache.find(key, weight);
  if (packed) return packed;
  if (!keep) return pack(weight, shape, direction, engine, bytes);
  Contents contents(weight);  // before packing: a write in between is then seen at the next call
  packed = pack(weight, shape, direction, engine, bytes);  // unlocked: two threads may both pack a new weight
  cache.insert({std::move(key), std::move(contents), bytes, packed});
  return packed;
}

size_t packed_weight_bytes() { return Cache::instance().held(); }

void forget_packed_weight(const at::Tensor& weight) {
  const void* const storage = weight.storage().unsafeGetStorageImpl();
  Cache::instance().drop_if([&](const Key& key) { return key.storage._unsafe_get_target() == storage; });
}

void release_packed_weights() {
  Cache::instance().drop_if([](const Key&) { return true; });
}

void set_packed_weights_limit(size_t bytes) { Cache::instance().set_limit(bytes); }

}  // namespace dcgan_fast
