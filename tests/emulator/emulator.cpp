// The scheduler: blocks one after the other, the threads of a block as fibers. Compiled without
// instrumentation, as fiber.cpp is.
#include "emulator.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"
#include "tensor_core.h"

namespace emulator {
namespace {

constexpr int kLanes = 32;
constexpr unsigned kMostThreads = 1024;
constexpr size_t kSharedBytes = 48 << 10;      // without asking for more, as on the device
constexpr size_t kMostSharedBytes = 99 << 10;      // what every device from sm_80 on gives
constexpr size_t kLargeSharedBytes = 227 << 10;    // what one with a copy engine gives
constexpr int64_t kCrews = 3;
constexpr unsigned kEngines = 3;  // fibers that copy in turn: to ThreadSanitizer, copies of one are ordered
constexpr unsigned kRest = 16;    // switches between copies of the engine, on average
constexpr int64_t kMostBytes = (1 << 20) - 1;  // that a barrier may wait for
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
  void* operands = nullptr;
  // Copies that may still be going on: of the group that is open, and of the closed ones, oldest first.
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> closed;
  std::vector<uintptr_t> sources;  // of all its copies in turn, null where nothing was read
  bool unfenced = false;           // copies were done that products may not see
  // Products that may still be going on: as the copies, oldest first.
  std::deque<Product> open_products;
  std::deque<std::deque<Product>> closed_products;
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
  std::map<const void*, size_t> shared_bytes;  // of the kernels that asked for more
} settings;

// A barrier's happens-before lies in two places in turns: a thread that is fast to the next barrier
// must not seem ordered before one that is slow to leave this one.
struct Barrier {
  int arrived = 0;
  Site site{};
  char order[2] = {};
  int turn = 0;
};

// A barrier that lies in shared memory; its happens-before is kept as that of Barrier.
struct SharedBarrier {
  int count = 0, pending = 0;
  int64_t bytes = 0;  // expected and not come
  int phase = 0;
  bool fenced = false;
  int made_by = 0;
  char order[2] = {};
};

// A copy that was issued and has not been done.
struct Pending {
  BoxCopy copy;
  char issued = 0;  // happens-before
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

Fiber& engine_of(int64_t copy) {
  static Fiber engines[kEngines];
  return engines[copy % kEngines];
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
  void gather(const char* name, uint32_t mask, uint64_t value, uint64_t (&values)[kLanes], Site site);
  void may_switch();
  // All lanes meet; the last one to come does `together` with the operands of all.
  void meet_all(const char* name, void* operands, void (*together)(void* const (&lanes)[kLanes]), Site site);
  void check_shared(const char* name, const void* from, size_t bytes, Site site);
  bool starts_at_once(const Copy& copy, Site site);
  bool starts_at_once(const Product& product, Site site);
  void init_barrier(uint64_t* barrier, int count, Site site);
  void fence_barriers();
  void arrive(const uint64_t* barrier, int bytes, Site site);
  void wait_for(const uint64_t* barrier, int parity, Site site);
  void check_box(const BoxCopy& copy, const void* map, int rank, Site site);
  void issue(const BoxCopy& copy);
  void thread_main();
  void engine_main();

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
  void count_sectors();
  static void count_sectors(const BoxCopy& copy);
  bool turn_of_engine();
  void run_engine();
  void check_end();
  SharedBarrier& barrier_at(const char* name, const uint64_t* barrier, Site site);
  void try_phase(const uint64_t* address, SharedBarrier& barrier);
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
  std::map<const uint64_t*, SharedBarrier> shared_barriers_;
  std::deque<std::unique_ptr<Pending>> copies_;
  std::unique_ptr<Pending> copied_;  // by the engine, now
  int64_t copies_done_ = 0;
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
  if (posix_memalign(&memory, 1024, shared_bytes_)) throw std::bad_alloc();
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
    thread.open.clear();
    thread.closed.clear();
    thread.sources.clear();
    warps_[i / kLanes].ready |= 1u << i % kLanes;
    warps_[i / kLanes].exited &= ~(1u << i % kLanes);
    thread.fiber = &fiber_of(counters().blocks, i);
    thread.fiber->start([] { running->thread_main(); });
  }
  {
    const Unwatched unwatched;
    shared_barriers_.clear();
    copies_.clear();
  }
  running = this;
  while (error_.empty() && finished_ < count_) {
    if (turn_of_engine()) {
      run_engine();
      continue;
    }
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
  if (error_.empty()) check_end();
  running = nullptr;
  if (!error_.empty()) {
    throw Error(error_ + " [block " + std::to_string(index.x) + "," + std::to_string(index.y) + "," +
                std::to_string(index.z) + "]");
  }
  count_sectors();
  counters().blocks++;
  counters().threads += count_;
}

// The nth copies of a warp's lanes are one instruction: copies are switched off by `valid`, not by branches.
void Block::count_sectors() {
  constexpr uintptr_t kSector = 32;
  for (int first = 0; first < count_; first += kLanes) {
    const int last = std::min(first + kLanes, count_);
    for (size_t n = 0; n < threads_[first].sources.size(); n++) {
      std::vector<uintptr_t> sectors;
      for (int i = first; i < last; i++) {
        if (n >= threads_[i].sources.size() || !threads_[i].sources[n]) continue;
        counters().copied_bytes += 16;
        sectors.push_back(threads_[i].sources[n] / kSector);
      }
      std::sort(sectors.begin(), sectors.end());
      counters().copied_sectors += std::unique(sectors.begin(), sectors.end()) - sectors.begin();
    }
  }
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

void Block::gather(const char* name, uint32_t mask, uint64_t value, uint64_t (&values)[kLanes], Site site) {
  Warp& own = warp();
  current->value = value;
  current->operands = values;
  if (!meet(name, mask, site)) return;
  for (int to = 0; to < kLanes; to++) {
    if (!(mask >> to & 1)) continue;
    for (int from = 0; from < kLanes; from++) {
      static_cast<uint64_t*>(thread(own, to).operands)[from] = mask >> from & 1 ? thread(own, from).value : 0;
    }
  }
}

bool Block::turn_of_engine() {
  if (copies_.empty()) return false;
  const bool rests = std::all_of(warps_.begin(), warps_.end(), [](const Warp& warp) { return !warp.ready; });
  return rests || (settings.schedule != Schedule::kInOrder && random_() % kRest == 0);
}

// One of the copies, on a fiber of its own.
void Block::run_engine() {
  const Unwatched unwatched;
  const size_t chosen = settings.schedule == Schedule::kInOrder ? 0 : random_() % copies_.size();
  copied_ = std::move(copies_[chosen]);
  copies_.erase(copies_.begin() + static_cast<std::ptrdiff_t>(chosen));
  count_sectors(copied_->copy);
  Fiber& engine = engine_of(copies_done_++);
  engine.start([] { running->engine_main(); });
  engine.enter();
  const uint64_t* const address = copied_->copy.barrier;
  SharedBarrier& barrier = shared_barriers_.at(address);
  barrier.bytes -= copied_->copy.map.box_bytes();
  if (-barrier.bytes > kMostBytes) error_ = "mbarrier: more bytes than it can count";
  try_phase(address, barrier);
}

void Block::engine_main() {
  Fiber* own = &engine_of(copies_done_ - 1);
  own->entered();
  acquire(&copied_->issued);
  const BoxCopy copy = copied_->copy;
  copy.perform(copy);
  SharedBarrier& barrier = shared_barriers_.at(copied_->copy.barrier);
  release(&barrier.order[barrier.phase & 1]);
  own->leave(true);
  std::abort();
}

void Block::count_sectors(const BoxCopy& copy) {
  counters().boxes++;
  const TensorMap& map = copy.map;
  const int64_t first = std::max<int64_t>(0, -int64_t{copy.at[0]});
  const int64_t last = std::min<int64_t>(map.box[0], int64_t{map.sizes[0]} - copy.at[0]);
  uint16_t in_box[TensorMap::kMostRank] = {};
  const int lines = map.box_bytes() / (map.box[0] * map.element_bytes);
  for (int line = 0; line < lines; line++) {
    bool inside = first < last;
    int64_t from = copy.at[0];
    from = from * map.element_bytes + static_cast<int64_t>(reinterpret_cast<uintptr_t>(map.start));
    for (int d = 1; d < map.rank; d++) {
      const int64_t at = int64_t{copy.at[d]} + in_box[d];
      inside = inside && at >= 0 && at < map.sizes[d];
      from += at * static_cast<int64_t>(map.pitches[d]);
    }
    if (inside) {
      counters().copied_bytes += (last - first) * map.element_bytes;
      counters().copied_sectors += (from + last * map.element_bytes - 1) / 32 - (from + first * map.element_bytes) / 32 + 1;
    }
    for (int d = 1; d < map.rank && ++in_box[d] == map.box[d]; d++) in_box[d] = 0;
  }
}

// What a block must not leave behind, or take.
void Block::check_end() {
  if (!copies_.empty()) error_ = "the block ended before copies that nobody waited for";
  for (const auto& [address, barrier] : shared_barriers_) {
    if (barrier.bytes) error_ = "an mbarrier is left with bytes that were not expected, or did not come";
  }
  if (shared_bytes_ > kMostSharedBytes && shared_barriers_.empty())
    error_ = "more shared memory than every device has, and nothing that only larger ones do";
}

SharedBarrier& Block::barrier_at(const char* name, const uint64_t* barrier, Site site) {
  const auto found = shared_barriers_.find(barrier);
  const std::string call = std::string(name) + " at " + name_of(site);
  if (found == shared_barriers_.end()) fail(call + ": there is no barrier at this address");
  if (*barrier != kBarrierMark) fail(call + ": something else was written where the barrier is");
  return found->second;
}

void Block::init_barrier(uint64_t* barrier, int count, Site site) {
  const Unwatched unwatched;
  check_shared("mbarrier.init", barrier, sizeof(uint64_t), site);
  if (count < 1 || shared_barriers_.count(barrier)) fail("mbarrier.init at " + name_of(site) + ": of no thread, or again");
  SharedBarrier& own = shared_barriers_[barrier];
  own.count = own.pending = count;
  own.made_by = current->linear;
}

void Block::fence_barriers() {
  const Unwatched unwatched;
  for (auto& [address, barrier] : shared_barriers_) barrier.fenced |= barrier.made_by == current->linear;
}

void Block::try_phase(const uint64_t* address, SharedBarrier& barrier) {
  if (barrier.pending || barrier.bytes) return;
  barrier.phase++;
  barrier.pending = barrier.count;
  for (int i = 0; i < count_; i++) {
    if (threads_[i].operands != address) continue;
    threads_[i].operands = nullptr;
    wake(warps_[i / kLanes], 1u << i % kLanes);
  }
}

void Block::arrive(const uint64_t* address, int bytes, Site site) {
  SharedBarrier* barrier;
  {
    const Unwatched unwatched;
    barrier = &barrier_at("mbarrier.arrive", address, site);
    if (!barrier->pending) fail("mbarrier.arrive at " + name_of(site) + ": more arrivals than the barrier counts");
  }
  release(&barrier->order[barrier->phase & 1]);
  const Unwatched unwatched;
  barrier->pending--;
  barrier->bytes += bytes;
  if (barrier->bytes > kMostBytes) fail("mbarrier.arrive at " + name_of(site) + ": more bytes than it can count");
  try_phase(address, *barrier);
}

void Block::wait_for(const uint64_t* address, int parity, Site site) {
  SharedBarrier* barrier;
  {
    const Unwatched unwatched;
    barrier = &barrier_at("mbarrier.try_wait", address, site);
    while ((barrier->phase & 1) == parity) {
      current->operands = const_cast<uint64_t*>(address);
      wait("mbarrier.try_wait", site);
    }
  }
  acquire(&barrier->order[parity]);
}

void Block::check_box(const BoxCopy& copy, const void* map, int rank, Site site) {
  const Unwatched unwatched;
  const std::string call = "cp.async.bulk.tensor at " + name_of(site);
  if (copy.map.magic != TensorMap::kMagic || copy.map.rank != rank) fail(call + ": no tensor map of this rank");
  if (reinterpret_cast<uintptr_t>(map) % 64) fail(call + ": the tensor map is not aligned to 64");
  if ((copy.to - shared) % 1024) fail(call + ": the box is not aligned to 1024, whose lines are permuted");
  check_shared("cp.async.bulk.tensor", copy.to, 1, site);
  check_shared("cp.async.bulk.tensor", copy.to + copy.map.box_bytes() - 1, 1, site);
  if (!barrier_at("cp.async.bulk.tensor", copy.barrier, site).fenced) fail(call + ": a barrier that was not fenced");
}

void Block::issue(const BoxCopy& copy) {
  Pending* pending;
  {
    const Unwatched unwatched;
    copies_.push_back(std::make_unique<Pending>(Pending{copy}));
    pending = copies_.back().get();
  }
  release(&pending->issued);
}

void Block::may_switch() {
  if (settings.schedule == Schedule::kInOrder || random_() % 2) return;
  wake(warp(), 1u << lane());
  current->fiber->leave();
}

void Block::meet_all(const char* name, void* operands, void (*together)(void* const (&lanes)[kLanes]), Site site) {
  current->operands = operands;
  if (!meet(name, ~0u, site)) return;
  void* lanes[kLanes];
  for (int l = 0; l < kLanes; l++) lanes[l] = thread(warp(), l).operands;
  together(lanes);
}

void Block::check_shared(const char* name, const void* from, size_t bytes, Site site) {
  const auto* at = static_cast<const unsigned char*>(from);
  if (at < shared || at + bytes > shared + shared_bytes_) {
    fail(std::string(name) + " at " + name_of(site) + ": the address is not in shared memory");
  }
  if (reinterpret_cast<uintptr_t>(from) % bytes) {
    fail(std::string(name) + " at " + name_of(site) + ": the address is not aligned to " + std::to_string(bytes));
  }
}

bool Block::starts_at_once(const Copy& copy, Site site) {
  const Unwatched unwatched;  // the books are kept on the thread, but they are not its own
  check_shared("cp.async", copy.to, 16, site);
  if (reinterpret_cast<uintptr_t>(copy.from) % 16) fail("cp.async at " + name_of(site) + ": the source is not aligned to 16");
  current->sources.push_back(copy.valid ? reinterpret_cast<uintptr_t>(copy.from) : 0);
  current->unfenced = true;
  if (settings.schedule != Schedule::kInOrder && random_() % 2) return true;
  current->open.push_back(copy);
  return false;
}

bool Block::starts_at_once(const Product& product, Site site) {
  const Unwatched unwatched;
  if (lane() == 0) counters().products++;
  const std::string name = "wgmma at " + name_of(site);
  if (current->unfenced) fail(name + ": copies that were not fenced");
  for (const SharedOperand& operand : {product.a, product.b}) {
    check_shared("wgmma", operand.start, 1, site);
    // Along K a product begins within a line, of a row that is a multiple of 8; across, at such a line.
    if ((operand.start - shared) % (operand.across ? 128 * 8 : 32) || (operand.start - shared) % 1024 >= 128)
      fail(name + ": the operand is not aligned");
  }
  bool waits = !current->open_products.empty();
  for (const auto& group : current->closed_products) waits |= !group.empty();
  if (!waits && settings.schedule != Schedule::kInOrder && random_() % 2) return true;
  current->open_products.push_back(product);
  return false;
}

// A warp's load is served in passes: of up to 4 bytes a lane all lanes at once, of 16 bytes eight at a time, unless two
// different words lie in one of the 32 banks.
void count_conflicts(const uintptr_t (&addresses)[kLanes], size_t bytes) {
  const size_t words_of_lane = std::max<size_t>(1, bytes / 4);
  const int at_once = static_cast<int>(kLanes / words_of_lane);
  counters().shared_loads++;
  for (int first = 0; first < kLanes; first += at_once) {
    std::vector<uintptr_t> words;
    for (int l = first; l < first + at_once; l++) {
      for (size_t i = 0; i < words_of_lane; i++) words.push_back(addresses[l] / 4 + i);
    }
    std::sort(words.begin(), words.end());
    words.erase(std::unique(words.begin(), words.end()), words.end());
    int in_bank[32] = {}, most = 1;
    for (const uintptr_t word : words) most = std::max(most, ++in_bank[word % 32]);
    counters().bank_conflicts += most - 1;
  }
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
void gather(const char* name, uint32_t mask, uint64_t value, uint64_t (&values)[kLanes], Site site) {
  running->gather(name, mask, value, values, site);
}
void before_atomic() { running->may_switch(); }

void mma(Operand operand, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site) {
  Fragments own{operand, d, a, b};
  running->meet_all("mma", &own, [](void* const (&lanes)[kLanes]) {
    counters().products++;
    multiply(reinterpret_cast<Fragments* const (&)[kLanes]>(lanes));
  }, site);
}

void exchange_rows(uint32_t (&r)[4], const MatrixRow& own, bool transposed, Site site) {
  running->check_shared("ldmatrix", own.address, sizeof(own.words), site);
  struct Operands {
    uint32_t (&r)[4];
    const MatrixRow& row;
    bool transposed;
  } operands{r, own, transposed};
  running->meet_all("ldmatrix", &operands, [](void* const (&lanes)[kLanes]) {
    const auto lane = [&](int l) -> Operands& { return *static_cast<Operands*>(lanes[l]); };
    uintptr_t addresses[kLanes];
    for (int l = 0; l < kLanes; l++) addresses[l] = reinterpret_cast<uintptr_t>(lane(l).row.address);
    count_conflicts(addresses, 16);
    for (int q = 0; q < 4; q++) {
      for (int l = 0; l < kLanes; l++) {
        const int g = l / 4, t = l % 4;
        const auto element = [&](int row) {  // of column g
          return lane(8 * q + row).row.words[g / 2] >> g % 2 * 16 & 0xffff;
        };
        lane(l).r[q] = lane(l).transposed ? element(2 * t) | element(2 * t + 1) << 16 : lane(8 * q + g).row.words[t];
      }
    }
  }, site);
}

void count_shared_load(const void* from, size_t bytes, Site site) {
  running->check_shared("load_shared", from, bytes, site);
  struct Operands {
    uintptr_t address;
    size_t bytes;
  } operands{reinterpret_cast<uintptr_t>(from), bytes};
  running->meet_all("load_shared", &operands, [](void* const (&lanes)[kLanes]) {
    uintptr_t addresses[kLanes];
    for (int l = 0; l < kLanes; l++) addresses[l] = static_cast<Operands*>(lanes[l])->address;
    count_conflicts(addresses, static_cast<Operands*>(lanes[0])->bytes);
  }, site);
}

bool starts_at_once(const Copy& copy, Site site) { return running->starts_at_once(copy, site); }

void close_copies() {
  const Unwatched unwatched;
  Thread& thread = *running->current;
  thread.closed.push_back(std::move(thread.open));
  thread.open.clear();
}

bool next_copy(int latest, Copy& copy) {
  const Unwatched unwatched;
  auto& closed = running->current->closed;
  while (static_cast<int>(closed.size()) > latest && closed.front().empty()) closed.pop_front();
  if (static_cast<int>(closed.size()) <= latest) return false;
  copy = closed.front().back();
  closed.front().pop_back();
  running->current->unfenced = true;
  return true;
}

bool starts_at_once(const Product& product, Site site) { return running->starts_at_once(product, site); }

void close_products() {
  const Unwatched unwatched;
  Thread& thread = *running->current;
  thread.closed_products.push_back(std::move(thread.open_products));
  thread.open_products.clear();
}

bool next_product(int latest, Product& product) {
  const Unwatched unwatched;
  auto& closed = running->current->closed_products;
  while (static_cast<int>(closed.size()) > latest && closed.front().empty()) closed.pop_front();
  if (static_cast<int>(closed.size()) <= latest) return false;
  product = closed.front().front();
  closed.front().pop_front();
  return true;
}

void fence_shared() { running->current->unfenced = false; }

void init_barrier(uint64_t* barrier, int count, Site site) { running->init_barrier(barrier, count, site); }
void fence_barriers() { running->fence_barriers(); }
void arrive(const uint64_t* barrier, int bytes, Site site) { running->arrive(barrier, bytes, site); }
void wait_for(const uint64_t* barrier, int parity, Site site) { running->wait_for(barrier, parity, site); }
void check_box(const BoxCopy& copy, const void* map, int rank, Site site) { running->check_box(copy, map, rank, site); }
void issue(const BoxCopy& copy) { running->issue(copy); }

int warp_of_warpgroup() { return running->current->linear / kLanes % 4; }

bool allow_shared_memory(const void* kernel, size_t bytes) {
  if (bytes > kLargeSharedBytes) return false;
  settings.shared_bytes[kernel] = bytes;
  return true;
}

bool launch(const void* kernel, Index grid, Index size, size_t shared_bytes, const std::function<void()>& body) {
  const int64_t plane = static_cast<int64_t>(grid.x) * grid.y, blocks = plane * grid.z;
  const uint64_t threads = static_cast<uint64_t>(size.x) * size.y * size.z;
  const auto allowed = settings.shared_bytes.find(kernel);
  const size_t most_shared = allowed == settings.shared_bytes.end() ? kSharedBytes : allowed->second;
  if (blocks == 0 || threads == 0 || threads > kMostThreads || shared_bytes > most_shared) return false;
  counters().launches++;
  Block block(grid, size, shared_bytes, body);
  for (const int64_t b : block_order(blocks, block.random())) {
    block.run({static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b % plane / grid.x),
               static_cast<unsigned>(b / plane)});
  }
  return true;
}

}  // namespace emulator
