// Runs CUDA kernels on the CPU, one fiber per CUDA thread. README.md has the why and the how.
//
// Kernels see this through include/cuda_runtime.h; tests call the first part directly.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>

namespace emulator {

// --- for tests ---

// Which thread runs next. A correct kernel gives the same bits under all of them.
enum class Schedule {
  kInOrder,        // the first thread that can run; blocks in order
  kRandomThreads,  // any thread that can run; blocks in random order
  kRandomWarps,    // warps have priorities, redrawn now and then: one may run far ahead of the others,
                   // which exposes missing barriers that random threads rarely do; blocks as above
};
void set_schedule(Schedule schedule, uint64_t seed = 1);

// Runs only the last `count` blocks of later launches (the grid stays as it is), so that a test can look
// at the far end of a tensor too large to process. count < 0: all blocks.
void set_last_blocks(int64_t count);

struct Counters {
  uint64_t launches = 0, blocks = 0, threads = 0, switches = 0;
  uint64_t products = 0;                             // mma of a warp, a warp's part of wgmma
  uint64_t shared_loads = 0, bank_conflicts = 0;     // ldmatrix and load_shared of a warp; passes more than they need
  uint64_t boxes = 0;                                // copies of the engine
  uint64_t copied_bytes = 0, copied_sectors = 0;     // background copies: bytes of global memory, 32-byte sectors they lie in
};
Counters& counters();

// What a kernel did wrong, thrown by the launch: deadlock, barrier or warp function reached by only
// some of its threads, a shuffle from a lane that takes no part.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// --- for the stand-in headers ---

struct Index {
  unsigned x, y, z;
};

// A line of a kernel, taken as a default argument: names the caller of a CUDA function.
struct Site {
  const char* file;
  int line;
  static Site caller(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

const Index& thread_index();
const Index& block_index();
const Index& block_size();
const Index& grid_size();
int lane();

// The running block's shared memory: freshly allocated for each block at exactly the size asked for
// and filled with NaNs, so that reads before a write show in the results.
unsigned char* dynamic_shared_memory();

void barrier(Site site);
void sync_warp(uint32_t mask, Site site);

// Gives `value` to the other lanes of `mask` and returns that of lane `source`. Orders no memory.
uint64_t exchange(const char* name, uint32_t mask, uint64_t value, int source, Site site);

// Gives `value` to the other lanes of `mask` and has theirs in return. Orders no memory.
void gather(const char* name, uint32_t mask, uint64_t value, uint64_t (&values)[32], Site site);

// Other threads may run now, in all schedules but the first: called before each atomic access, for what a thread has read
// may be out of date by then.
void before_atomic();

// Lets `kernel` have more shared memory than the 48 KB that need no leave. False: more than any device has. More than all
// have is for kernels with the instructions of those that do.
bool allow_shared_memory(const void* kernel, size_t bytes);

// Runs a kernel, `body` once for each thread. False: the device would refuse the configuration.
bool launch(const void* kernel, Index grid, Index block, size_t shared_bytes, const std::function<void()>& body);

// --- for csrc/cuda/ptx.cuh, which says what these instructions do ---

enum class Operand { kBFloat16, kFloat16, kTf32 };
void mma(Operand operand, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site);
uint32_t to_tf32(float value);

struct MatrixRow {
  uint32_t words[4];
  const void* address;
};
void exchange_rows(uint32_t (&r)[4], const MatrixRow& own, bool transposed, Site site);
void count_shared_load(const void* from, size_t bytes, Site site);

// A copy may happen at once or as late as the thread waits for it; which, the schedule decides.
struct Copy {
  void* to;
  const void* from;
  bool valid;
};
bool starts_at_once(const Copy& copy, Site site);  // else it is in the thread's queue
void close_copies();
bool next_copy(int latest, Copy& copy);  // takes one that must be done when all but `latest` groups are

// wgmma, and what it reads of shared memory (csrc/cuda/ptx.cuh). It may happen at once or as late as the warpgroup waits
// for it, in turn.
struct SharedOperand {
  const unsigned char* start;
  int blocks_apart;
  bool across;  // lines run along the extent, in blocks of 64
};
struct Product {
  Operand operand;
  float (*d)[4];
  int fragments;
  SharedOperand a, b;
};
bool starts_at_once(const Product& product, Site site);  // else it is in the thread's queue
void close_products();
bool next_product(int latest, Product& product);
void fence_shared();  // between a thread's copies and the products that read them
int warp_of_warpgroup();
float value_of(Operand operand, uint32_t bits);
float cut(double value);

// Barriers in shared memory (mbarrier) and the copy engine (csrc/cuda/ptx.cuh). A phase of a barrier ends when all arrivals
// and all bytes that it was told to expect have come. A copy of the engine happens at any time between its issue and
// the end of the phase that counts it, on a fiber of its own: nothing orders it but its issue and that end.
void init_barrier(uint64_t* barrier, int count, Site site);
void fence_barriers();  // between the initialisation of a thread's barriers and the copies that they count
void arrive(const uint64_t* barrier, int bytes, Site site);
void wait_for(const uint64_t* barrier, int parity, Site site);

// What lies in a CUtensorMap (include/cuda.h), whose numbers are those of cuTensorMapEncodeTiled().
struct TensorMap {
  static constexpr uint32_t kMagic = 0x7e45041a;
  static constexpr int kMostRank = 5;
  uint32_t magic;
  uint8_t rank, element_bytes;
  bool rounds;  // to tf32
  const unsigned char* start;
  uint32_t sizes[kMostRank];
  uint16_t box[kMostRank];
  uint64_t pitches[kMostRank];  // in bytes, that of an element first

  int box_bytes() const {
    int bytes = element_bytes;
    for (int i = 0; i < rank; i++) bytes *= box[i];
    return bytes;
  }
};

struct BoxCopy {
  unsigned char* to;
  TensorMap map;
  int at[TensorMap::kMostRank];
  const uint64_t* barrier;
  void (*perform)(const BoxCopy&);
};
void check_box(const BoxCopy& copy, const void* map, int rank, Site site);
void issue(const BoxCopy& copy);

// What follows reads and writes a kernel's memory: here, so that the sanitizers see whose access it is. Words are
// volatile, for g++ instruments no small memcpy that it expands.
inline void load_matrices(uint32_t (&r)[4], const void* row, bool transposed, Site site) {
  MatrixRow own;
  own.address = row;
  for (int i = 0; i < 4; i++) own.words[i] = static_cast<const volatile uint32_t*>(row)[i];
  exchange_rows(r, own, transposed, site);
}

inline void perform(const Copy& copy) {
  for (int i = 0; i < 4; i++) {
    static_cast<volatile uint32_t*>(copy.to)[i] = copy.valid ? static_cast<const volatile uint32_t*>(copy.from)[i] : 0;
  }
}

inline void copy_later(void* to, const void* from, bool valid, Site site) {
  const Copy copy{to, from, valid};
  for (int i = 0; i < 4; i++) static_cast<volatile uint32_t*>(to)[i] = ~0u;  // NaNs until it is waited for
  if (starts_at_once(copy, site)) perform(copy);
}

inline void finish_copies(int latest) {
  for (Copy copy; next_copy(latest, copy);) perform(copy);
}

// Element (i of the extent, k) of an operand: the address of hardware, whose bits 4 to 6 are permuted by bits 7 to 9.
template <typename Bits>
Bits element_of(const SharedOperand& operand, int i, int k) {
  constexpr int kBytes = sizeof(Bits);
  const int place = operand.across ? i / 64 * operand.blocks_apart + k * 128 + i % 64 * kBytes : i * 128 + k * kBytes;
  uintptr_t address = reinterpret_cast<uintptr_t>(operand.start) + place;
  address ^= (address >> 7 & 7) << 4;
  return *reinterpret_cast<const volatile Bits*>(address);
}

// A lane's part: two rows of A, two columns of each fragment of B.
template <typename Bits>
void perform_as(const Product& product) {
  constexpr int kDepth = 32 / sizeof(Bits);
  const int row = warp_of_warpgroup() * 16 + lane() / 4;
  float a[2][kDepth];
  for (int half = 0; half < 2; half++) {
    for (int k = 0; k < kDepth; k++) a[half][k] = value_of(product.operand, element_of<Bits>(product.a, row + 8 * half, k));
  }
  for (int j = 0; j < product.fragments; j++) {
    for (int e = 0; e < 2; e++) {
      double sums[2] = {product.d[j][e], product.d[j][2 + e]};
      for (int k = 0; k < kDepth; k++) {
        const double b = value_of(product.operand, element_of<Bits>(product.b, 8 * j + lane() % 4 * 2 + e, k));
        for (int half = 0; half < 2; half++) sums[half] += a[half][k] * b;
      }
      product.d[j][e] = cut(sums[0]);
      product.d[j][2 + e] = cut(sums[1]);
    }
  }
}

constexpr uint64_t kBarrierMark = 0x6d62617272696572;  // what lies in the memory of a barrier

// Those who use a barrier touch its memory: a race with its initialisation is one.
inline void make_barrier(uint64_t* barrier, int count, Site site) {
  init_barrier(barrier, count, site);
  *static_cast<volatile uint64_t*>(barrier) = kBarrierMark;
}
inline void arrive_at(const uint64_t* barrier, int bytes, Site site) {
  (void)*static_cast<const volatile uint64_t*>(barrier);
  arrive(barrier, bytes, site);
}
inline void wait_at(const uint64_t* barrier, int parity, Site site) {
  (void)*static_cast<const volatile uint64_t*>(barrier);
  wait_for(barrier, parity, site);
}

// Of 128 bytes the lines of a box, and their chunks permuted as a product reads them; zeros outside of the tensor.
inline void perform(const BoxCopy& copy) {
  const TensorMap& map = copy.map;
  uint16_t in_box[TensorMap::kMostRank] = {};
  const int lines = map.box_bytes() / (map.box[0] * map.element_bytes);
  for (int line = 0; line < lines; line++) {
    bool inside = true;
    const unsigned char* from = map.start;
    for (int d = 1; d < map.rank; d++) {
      const int64_t at = int64_t{copy.at[d]} + in_box[d];
      inside = inside && at >= 0 && at < map.sizes[d];
      from += at * static_cast<int64_t>(map.pitches[d]);
    }
    for (int i = 0; i < map.box[0]; i++) {
      const int64_t at = int64_t{copy.at[0]} + i;
      const bool exists = inside && at >= 0 && at < map.sizes[0];
      uintptr_t to = reinterpret_cast<uintptr_t>(copy.to) + (line * map.box[0] + i) * map.element_bytes;
      to ^= (to >> 7 & 7) << 4;
      const unsigned char* element = from + at * map.element_bytes;
      if (map.element_bytes == 2) {
        *reinterpret_cast<volatile uint16_t*>(to) =
            exists ? *reinterpret_cast<const volatile uint16_t*>(element) : uint16_t{0};
      } else {
        uint32_t bits = exists ? *reinterpret_cast<const volatile uint32_t*>(element) : 0u;
        if (map.rounds) {
          float value;
          __builtin_memcpy(&value, &bits, sizeof(value));
          bits = to_tf32(value);
        }
        *reinterpret_cast<volatile uint32_t*>(to) = bits;
      }
    }
    for (int d = 1; d < map.rank && ++in_box[d] == map.box[d]; d++) in_box[d] = 0;
  }
}

inline void copy_box(void* to, const void* map, const int* at, int rank, const uint64_t* barrier, Site site) {
  BoxCopy copy = {};
  copy.to = static_cast<unsigned char*>(to);
  for (int d = 0; d < rank; d++) copy.at[d] = at[d];
  copy.barrier = barrier;
  copy.perform = [](const BoxCopy& own) { perform(own); };
  copy.map = *static_cast<const TensorMap*>(map);
  check_box(copy, map, rank, site);
  for (int i = 0; i < copy.map.box_bytes() / 4; i++) static_cast<volatile uint32_t*>(to)[i] = ~0u;  // NaNs until then
  issue(copy);
}

inline void perform(const Product& product) {
  product.operand == Operand::kTf32 ? perform_as<uint32_t>(product) : perform_as<uint16_t>(product);
}

inline void multiply_later(const Product& product, Site site) {
  if (starts_at_once(product, site)) perform(product);
}

inline void finish_products(int latest) {
  for (Product product; next_product(latest, product);) perform(product);
}

}  // namespace emulator
