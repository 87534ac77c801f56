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

// Runs a kernel, `body` once for each thread. False: the device would refuse the configuration.
bool launch(Index grid, Index block, size_t shared_bytes, const std::function<void()>& body);

}  // namespace emulator
