#include "workspace.h"

#include <c10/util/Exception.h>
#include <pthread.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <list>
#include <mutex>
#include <utility>

#include "pages.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(data, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(data, bytes)
#endif

namespace dcgan_fast::cpu {

namespace {

struct Slot {
  void* data = nullptr;
  size_t bytes = 0;
};

using Slots = std::array<Slot, kWorkspaceSlots>;

// Every thread's slots. A thread reads its own without the lock: others change them only while no scope is open, and
// opening one takes the lock. A fork waits for the lock, so that the child finds it open and the books in order.
class Registry {
 public:
  static Registry& instance() {
    static Registry* const registry = new Registry;  // never destroyed: threads may end after static destructors
    return *registry;
  }

  std::list<Slots>::iterator enroll() {
    const std::lock_guard lock(mutex_);
    return threads_.emplace(threads_.end());
  }

  void leave(std::list<Slots>::iterator slots) {
    const std::lock_guard lock(mutex_);
    free(*slots);
    threads_.erase(slots);
  }

  void grow(Slot& slot, size_t bytes) {
    const std::lock_guard lock(mutex_);
    // Half as much again, or a kernel met with ever larger maps would allocate each time. Untouched pages cost nothing.
    const size_t wanted = std::max(bytes, slot.bytes + slot.bytes / 2);
    free(slot);
    slot = {allocate_pages(wanted, "the scratch memory of a kernel"), wanted};
    held_ += wanted;
  }

  void open_scope() {
    const std::lock_guard lock(mutex_);
    ++scopes_;
  }

  void close_scope() {
    const std::lock_guard lock(mutex_);
    if (--scopes_ == 0 && std::exchange(release_at_close_, false)) free_all();
  }

  void release() {
    const std::lock_guard lock(mutex_);
    if (scopes_ == 0) {
      free_all();
    } else {
      release_at_close_ = true;
    }
  }

  size_t held() {
    const std::lock_guard lock(mutex_);
    return held_;
  }

 private:
  Registry() {
    pthread_atfork([] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); },
                   [] {
                     instance().scopes_ = 0;  // those of threads that the child does not have; forks happen outside ops
                     instance().mutex_.unlock();
                   });
  }

  void free(Slot& slot) {
    ASAN_UNPOISON_MEMORY_REGION(slot.data, slot.bytes);
    free_pages(slot.data, slot.bytes);
    held_ -= slot.bytes;
    slot = {};
  }

  void free(Slots& slots) {
    for (Slot& slot : slots) free(slot);
  }

  void free_all() {
    for (Slots& slots : threads_) free(slots);
  }

  std::mutex mutex_;
  std::list<Slots> threads_;  // here and not with the thread: a forked child keeps those of the threads it lost
  size_t held_ = 0;
  int64_t scopes_ = 0;
  bool release_at_close_ = false;
};

struct ThreadSlots {
  const std::list<Slots>::iterator slots = Registry::instance().enroll();
  ~ThreadSlots() { Registry::instance().leave(slots); }
};

}  // namespace

void* workspace(size_t bytes, int slot) {
  thread_local ThreadSlots own;
  TORCH_INTERNAL_ASSERT_DEBUG_ONLY(slot >= 0 && slot < kWorkspaceSlots);
  Slot& chosen = (*own.slots)[slot];
  if (chosen.bytes < bytes) Registry::instance().grow(chosen, bytes);
  // Slots are larger than what is asked for: let AddressSanitizer see a kernel that takes more.
  ASAN_POISON_MEMORY_REGION(chosen.data, chosen.bytes);
  ASAN_UNPOISON_MEMORY_REGION(chosen.data, bytes);
  return chosen.data;
}

WorkspaceScope::WorkspaceScope() { Registry::instance().open_scope(); }
WorkspaceScope::~WorkspaceScope() { Registry::instance().close_scope(); }

void release_workspaces() { Registry::instance().release(); }

size_t workspace_bytes() { return Registry::instance().held(); }

}  // namespace dcgan_fast::cpu
