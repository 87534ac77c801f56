// The scheduler: blocks one after the other, the threads of a block as fibers. Compiled without
// instrumentation, as fiber.cpp is.
#include "emulator.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"

namespace emulator {
namespace {

constexpr int kLanes = 32;
constexpr unsigned kMostThreads = 1024;
constexpr size_t kMostSharedBytes = 48 << 10;  // without asking for more, as on the device
constexpr int64_t kCrews = 3;
constexpr unsigned kRedraw = 512;  // switches between new warp priorities, on average

struct Thread {
  Fiber* fiber = nullptr;
  Index index{};
  int linear = 0;
  bool finished = false;
  // What it waits in, if it does: a barrier, or a warp function with its operands and its result.
  const char* waits_in = nullptr;
  Site site{};
  uint32_t mask = 0;
  uint64_t value = 0;
  int source = 0;
};

struct Warp {
  uint32_t ready = 0;     // lanes that can run
  uint32_t arrived = 0;   // lanes that wait in a warp function
  uint32_t exited = 0;    // lanes that finished or never were
  uint32_t priority = 0;  // kRandomWarps: the highest that is ready runs
  char order[2] = {};     // __syncwarp's happens-before, in turns
  int turn = 0;
};

struct Settings {
  Schedule schedule = Schedule::kInOrder;
  uint64_t seed = 1;
  int64_t last_blocks = -1;
} settings;

// A barrier's happens-before lies in two places in turns: a thread that is fast to the next barrier
// must not seem ordered before one that is slow to leave this one.
struct Barrier {
  int arrived = 0;
  Site site{};
  char order[2] = {};
  int turn = 0;
};

// Fibers outlive blocks and launches: to make one costs more than to run it, in ThreadSanitizer's care
// above all. To ThreadSanitizer a fiber is one thread, which does not race with itself, so neighbouring
// blocks run on different crews of fibers.
Fiber& fiber_of(int64_t block, int thread) {
  static std::vector<std::unique_ptr<Fiber>> crews[kCrews];
  std::vector<std::unique_ptr<Fiber>>& crew = crews[block % kCrews];
  while (static_cast<int>(crew.size()) <= thread) crew.push_back(std::make_unique<Fiber>());
  return *crew[thread];
}

class Block {
 public:
  Block(Index grid, Index size, size_t shared_bytes, const std::function<void()>& body)
      : grid(grid), size(size), body(body), shared_bytes_(shared_bytes), random_(settings.seed) {
    count_ = static_cast<int>(size.x * size.y * size.z);
    threads_ = std::make_unique<Thread[]>(count_);
    warps_.resize((count_ + kLanes - 1) / kLanes);
    release(&launched_);
  }
  ~Block() {
    acquire(&done_);  // what the threads did is done before what follows the launch
    std::free(shared);
  }

  void run(Index block_index);
  std::mt19937_64& random() { return random_; }

  // Called on a fiber.
  void barrier(Site site);
  void sync_warp(uint32_t mask, Site site);
  uint64_t exchange(const char* name, uint32_t mask, uint64_t value, int source, Site site);
  void thread_main();

  Index grid, size, index{};
  const std::function<void()>& body;
  unsigned char* shared = nullptr;
  Thread* current = nullptr;

 private:
  int lane() const { return current->linear % kLanes; }
  Warp& warp() { return warps_[current->linear / kLanes]; }
  Thread& thread(const Warp& warp, int lane) {
    return threads_[static_cast<int>(&warp - warps_.data()) * kLanes + lane];
  }

  void renew_shared_memory();
  int pick();
  int pick_lane(uint32_t ready);
  void wait(const char* what, Site site);
  void wake(Warp& warp, uint32_t lanes) { warp.ready |= lanes; }
  void try_barrier();
  bool meet(const char* name, uint32_t mask, Site site);
  [[noreturn]] void fail(const std::string& what);
  std::string describe(const Thread& thread) const;
  std::string deadlock() const;

  size_t shared_bytes_;
  std::mt19937_64 random_;
  int count_ = 0, finished_ = 0;
  std::unique_ptr<Thread[]> threads_;
  std::vector<Warp> warps_;
  Barrier barrier_;
  std::string error_;
  // Happens-before: what precedes the launch, the threads, what follows it. Blocks stay unordered.
  char launched_ = 0, done_ = 0;
};

Block* running = nullptr;

std::string name_of(Site site) {
  const char* slash = std::strrchr(site.file, '/');
  return std::string(slash ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}

std::string Block::describe(const Thread& thread) const {
  return "thread " + std::to_string(thread.linear) + " in " + thread.waits_in + " at " + name_of(thread.site);
}

std::string Block::deadlock() const {
  std::string text =
      "deadlock: " + std::to_string(count_ - finished_) + " of " + std::to_string(count_) + " threads wait";
  int named = 0;
  for (int i = 0; i < count_ && named < 4; i++) {
    if (threads_[i].finished) continue;
    text += named++ ? ", " : ": ";
    text += describe(threads_[i]);
  }
  return text;
}

// Leaves the kernel for good; the launch throws.
void Block::fail(const std::string& what) {
  error_ = what + " [thread " + std::to_string(current->linear) + "]";
  release(&done_);
  current->fiber->leave(true);
  std::abort();
}

void Block::renew_shared_memory() {
  const Unwatched unwatched;  // no order between the blocks by way of this
  std::free(shared);
  shared = nullptr;
  if (shared_bytes_ == 0) return;
  void* memory = nullptr;
  if (posix_memalign(&memory, 128, shared_bytes_)) throw std::bad_alloc();
  shared = static_cast<unsigned char*>(std::memset(memory, 0xff, shared_bytes_));
}

int Block::pick_lane(uint32_t ready) {
  if (settings.schedule != Schedule::kInOrder) {
    for (int skip = random_() % __builtin_popcount(ready); skip > 0; skip--) ready &= ready - 1;
  }
  return __builtin_ctz(ready);
}

// The next thread to run, or -1 if none can.
int Block::pick() {
  int best = -1, able = 0;
  if (settings.schedule == Schedule::kRandomWarps && random_() % kRedraw == 0) {
    for (Warp& warp : warps_) warp.priority = random_();
  }
  for (int w = 0; w < static_cast<int>(warps_.size()); w++) {
    if (!warps_[w].ready) continue;
    able++;
    const bool better = settings.schedule == Schedule::kRandomThreads ? random_() % able == 0
                        : settings.schedule == Schedule::kRandomWarps
                            ? best < 0 || warps_[w].priority > warps_[best].priority
                            : best < 0;
    if (better) best = w;
  }
  return best < 0 ? -1 : best * kLanes + pick_lane(warps_[best].ready);
}

void Block::run(Index block_index) {
  index = block_index;
  renew_shared_memory();
  finished_ = 0;
  barrier_ = {};
  for (Warp& warp : warps_) {
    warp = {};
    warp.exited = ~0u;
    warp.priority = random_();
  }
  for (int i = 0; i < count_; i++) {
    Thread& thread = threads_[i];
    const unsigned n = static_cast<unsigned>(i);
    thread.index = {n % size.x, n / size.x % size.y, n / (size.x * size.y)};
    thread.linear = i;
    thread.finished = false;
    warps_[i / kLanes].ready |= 1u << i % kLanes;
    warps_[i / kLanes].exited &= ~(1u << i % kLanes);
    thread.fiber = &fiber_of(counters().blocks, i);
    thread.fiber->start([] { running->thread_main(); });
  }
  running = this;
  while (error_.empty() && finished_ < count_) {
    const int next = pick();
    if (next < 0) {
      error_ = deadlock();
      break;
    }
    current = &threads_[next];
    warp().ready &= ~(1u << lane());
    counters().switches++;
    current->fiber->enter();
  }
  running = nullptr;
  if (!error_.empty()) {
    throw Error(error_ + " [block " + std::to_string(index.x) + "," + std::to_string(index.y) + "," +
                std::to_string(index.z) + "]");
  }
  counters().blocks++;
  counters().threads += count_;
}

void Block::thread_main() {
  current->fiber->entered();
  acquire(&launched_);
  body();
  release(&done_);
  current->finished = true;
  finished_++;
  Warp& own = warp();
  own.exited |= 1u << lane();
  for (int l = 0; l < kLanes; l++) {
    if (!(own.arrived >> l & 1)) continue;
    const Thread& other = thread(own, l);
    if (other.mask >> lane() & 1) fail("exited while needed by " + describe(other));
  }
  try_barrier();  // those who exited no longer count
  current->fiber->leave(true);
  std::abort();
}

void Block::wait(const char* what, Site site) {
  current->waits_in = what;
  current->site = site;
  current->fiber->leave();
}

void Block::try_barrier() {
  if (barrier_.arrived == 0 || barrier_.arrived < count_ - finished_) return;
  barrier_.arrived = 0;
  barrier_.turn ^= 1;
  for (Warp& warp : warps_) wake(warp, ~warp.exited);
}

void Block::barrier(Site site) {
  if (barrier_.arrived == 0) {
    barrier_.site = site;
  } else if (barrier_.site.line != site.line || barrier_.site.file != site.file) {
    fail("__syncthreads at " + name_of(site) + " while others wait in the one at " + name_of(barrier_.site));
  }
  char* order = &barrier_.order[barrier_.turn];
  release(order);
  barrier_.arrived++;
  try_barrier();
  wait("__syncthreads", site);
  acquire(order);
}

// A lane arrives at a warp function. True for the last of `mask`: it goes on, having checked that all
// called the same function at the same place; false for the others, once that has happened.
bool Block::meet(const char* name, uint32_t mask, Site site) {
  Warp& own = warp();
  const std::string call = std::string(name) + " at " + name_of(site);
  if (!(mask >> lane() & 1)) fail(call + ": the calling lane is not in its mask");
  if (mask & own.exited) fail(call + ": its mask names a lane that exited or never was");
  current->mask = mask;
  own.arrived |= 1u << lane();
  if ((own.arrived & mask) != mask) {
    wait(name, site);
    return false;
  }
  current->waits_in = name;
  current->site = site;
  for (int l = 0; l < kLanes; l++) {
    if (!(mask >> l & 1)) continue;
    const Thread& other = thread(own, l);
    if (std::strcmp(other.waits_in, name) || other.mask != mask || other.site.line != site.line) {
      fail("divergence: " + call + " meets " + describe(other));
    }
  }
  own.arrived &= ~mask;
  wake(own, mask & ~(1u << lane()));
  return true;
}

void Block::sync_warp(uint32_t mask, Site site) {
  Warp& own = warp();
  char* order = &own.order[own.turn];
  release(order);
  if (meet("__syncwarp", mask, site)) own.turn ^= 1;
  acquire(order);
}

uint64_t Block::exchange(const char* name, uint32_t mask, uint64_t value, int source, Site site) {
  Warp& own = warp();
  current->value = value;
  current->source = source;
  if (source < 0 || source >= kLanes || !(mask >> source & 1)) {
    fail(std::string(name) + " at " + name_of(site) + " reads a lane that takes no part");
  }
  if (meet(name, mask, site)) {  // the last one hands out all results at once
    uint64_t values[kLanes] = {};
    for (int l = 0; l < kLanes; l++) {
      if (mask >> l & 1) values[l] = thread(own, l).value;
    }
    for (int l = 0; l < kLanes; l++) {
      if (mask >> l & 1) thread(own, l).value = values[thread(own, l).source];
    }
  }
  return current->value;
}

std::vector<int64_t> block_order(int64_t blocks, std::mt19937_64& random) {
  const int64_t count = settings.last_blocks < 0 ? blocks : std::min(settings.last_blocks, blocks);
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), blocks - count);
  if (settings.schedule != Schedule::kInOrder) std::shuffle(order.begin(), order.end(), random);
  return order;
}

}  // namespace

void set_schedule(Schedule schedule, uint64_t seed) {
  settings.schedule = schedule;
  settings.seed = seed;
}

void set_last_blocks(int64_t count) { settings.last_blocks = count; }

Counters& counters() {
  static Counters instance;
  return instance;
}

const Index& thread_index() { return running->current->index; }
const Index& block_index() { return running->index; }
const Index& block_size() { return running->size; }
const Index& grid_size() { return running->grid; }
int lane() { return running->current->linear % kLanes; }
unsigned char* dynamic_shared_memory() { return running->shared; }
void barrier(Site site) { running->barrier(site); }
void sync_warp(uint32_t mask, Site site) { running->sync_warp(mask, site); }
uint64_t exchange(const char* name, uint32_t mask, uint64_t value, int source, Site site) {
  return running->exchange(name, mask, value, source, site);
}

bool launch(Index grid, Index size, size_t shared_bytes, const std::function<void()>& body) {
  const int64_t plane = static_cast<int64_t>(grid.x) * grid.y, blocks = plane * grid.z;
  const uint64_t threads = static_cast<uint64_t>(size.x) * size.y * size.z;
  if (blocks == 0 || threads == 0 || threads > kMostThreads || shared_bytes > kMostSharedBytes) {
    return false;
  }
  counters().launches++;
  Block block(grid, size, shared_bytes, body);
  for (const int64_t b : block_order(blocks, block.random())) {
    block.run({static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b % plane / grid.x),
               static_cast<unsigned>(b / plane)});
  }
  return true;
}

}  // namespace emulator
