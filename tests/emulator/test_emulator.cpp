// Tests of the emulator itself: right kernels run, wrong ones are caught and named. Prints a line a
// test; exit status 1 if any failed. Faults that only a sanitizer sees are run one at a time, by name.
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

namespace {

using emulator::Schedule;

int failures = 0;

void expect(bool holds, const char* what) {
  std::printf("%s: %s\n", holds ? "ok" : "FAILED", what);
  failures += !holds;
}

template <typename... Parameters, typename... Arguments>
void run(int blocks, int threads, size_t shared, void (*kernel)(Parameters...), Arguments... arguments) {
  cudaLaunchConfig_t config;
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  if (cudaLaunchKernelEx(&config, kernel, arguments...) != cudaSuccess) {
    throw emulator::Error("refused");
  }
}

// The message of the error that `call` throws, or "".
std::string fault(const std::function<void()>& call) {
  try {
    call();
  } catch (const emulator::Error& error) {
    return error.what();
  }
  return "";
}

bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

float* shared_floats() { return reinterpret_cast<float*>(emulator::dynamic_shared_memory()); }

__global__ void index_kernel(int* out) {
  const int block = blockIdx.x, thread = threadIdx.x + blockDim.x * threadIdx.y;
  out[block * 64 + thread] = block * 1000 + threadIdx.y * 100 + threadIdx.x;
}

// Sum over a block: shuffles within warps, shared memory between them.
__global__ void sum_kernel(const float* in, float* out, bool with_barrier) {
  float sum = in[threadIdx.x];
  for (int distance = 16; distance > 0; distance /= 2) {
    sum += __shfl_down_sync(~0u, sum, distance);
  }
  if (threadIdx.x % 32 == 0) shared_floats()[threadIdx.x / 32] = sum;
  if (with_barrier) __syncthreads();
  if (threadIdx.x == 0) {
    sum = 0;
    for (unsigned w = 0; w < blockDim.x / 32; w++) sum += shared_floats()[w];
    *out = sum;
  }
}

__global__ void shuffle_kernel(double* out) {
  const int lane = threadIdx.x;
  out[lane] = __shfl_down_sync(~0u, 1. * lane, 3, 8);
  out[32 + lane] = __shfl_xor_sync(~0u, 1. * lane, 5);
  out[64 + lane] = __shfl_sync(~0u, 1. * lane, 2, 16);
  out[96 + lane] = __shfl_up_sync(~0u, 1. * lane, 3, 8);
}

__global__ void vote_kernel(unsigned* out) {
  const unsigned lane = threadIdx.x;
  if (lane >= 24) return;
  out[lane] = __ballot_sync(0xffffffu, lane % 3 == 1);
  out[24 + lane] = __match_any_sync(0xffffffu, uint64_t{lane % 5} << 40);
}

__global__ void lone_ballot_kernel() {
  if (threadIdx.x < 16) __ballot_sync(~0u, 1);
}

__global__ void half_barrier_kernel() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void lone_warp_function_kernel() {
  if (threadIdx.x == 5) __syncwarp();
}

__global__ void exited_lane_kernel(int* out) {
  if (threadIdx.x == 7) return;
  out[threadIdx.x] = __shfl_down_sync(~0u, 1, 1);
}

__global__ void outside_mask_kernel(int* out) {
  if (threadIdx.x < 4) out[threadIdx.x] = __shfl_sync(0xfu, 1, 9);
}

__global__ void early_exit_kernel(int* out) {
  if (threadIdx.x >= 40) return;
  __syncthreads();  // of those who are left
  out[threadIdx.x] = 1;
}

__global__ void order_kernel(std::vector<int>* order) {
  if (threadIdx.x % 32 == 0) order->push_back(blockIdx.x * 1000 + threadIdx.x);
}

__global__ void unwritten_kernel(float* out) { *out = shared_floats()[threadIdx.x]; }

// Faults for sanitizers.
__global__ void past_shared_memory_kernel() { shared_floats()[16 + threadIdx.x] = 1; }
__global__ void past_array_kernel(float* out) { out[threadIdx.x] = 1; }
__global__ void between_blocks_kernel(float* out) {
  if (threadIdx.x == 0) *out += 1;
}
__global__ void atomic_kernel(float* out) { atomicAdd(out, 1.f); }
__global__ void plain_read_kernel(int* out) {  // of what others change atomically
  if (threadIdx.x == 40) out[1] = *out;
  atomicAdd(out, 1);
}

// Counts those who found the number as the one before them left it.
__global__ void stale_kernel(int* out) {
  const int seen = atomicAdd(out, 0);
  if (atomicCAS(out, seen, seen + 1) == seen) atomicAdd(out + 1, 1);
}

// Each thread takes a place that seemed free; whether it still is, the compare-and-swap says.
__global__ void claim_kernel(unsigned* places, unsigned* taken_by, unsigned* least, bool look) {
  const unsigned own = threadIdx.x;
  unsigned at = 0;
  while (atomicCAS(places + at, 0u, own + 1) != 0 && look) at++;
  taken_by[at]++;
  atomicMin(least, own);
}
// Without __syncwarp lanes of a warp are not ordered, a shuffle in between or not.
__global__ void warp_race_kernel(float* out, bool synchronise) {
  shared_floats()[threadIdx.x] = threadIdx.x;
  const int other = __shfl_xor_sync(~0u, static_cast<int>(threadIdx.x), 1);
  if (synchronise) __syncwarp();
  out[threadIdx.x] = shared_floats()[other];
}

// D = A B of one warp: A 16 x 16 and B 16 x 8 of bfloat16 in shared memory, row-major, loaded by ldmatrix.
__global__ void product_kernel(const uint16_t* in, float* out, int skew, bool wait) {
  uint16_t* shared = reinterpret_cast<uint16_t*>(emulator::dynamic_shared_memory());
  const int lane = threadIdx.x;
  for (int chunk = lane; chunk < 16 * 2 + 16; chunk += 32) {  // rows of A are two chunks, those of B one
    emulator::copy_later(shared + chunk * (8 + skew), in + chunk * 8, true, emulator::Site::caller());
  }
  emulator::close_copies();
  if (wait) emulator::finish_copies(0);
  __syncwarp();
  uint32_t a[4], b[4];
  float d[4] = {};
  emulator::load_matrices(a, shared + (lane % 16 * 2 + lane / 16) * (8 + skew), false, emulator::Site::caller());
  emulator::load_matrices(b, shared + (32 + lane % 16) * (8 + skew), true, emulator::Site::caller());
  const uint32_t column[2] = {b[0], b[1]};
  emulator::mma(emulator::Operand::kBFloat16, d, a, column, emulator::Site::caller());
  for (int i = 0; i < 4; i++) out[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}

// A 16-bit load of each lane, so many bytes from its neighbour's.
__global__ void halves_kernel(int apart) {
  emulator::count_shared_load(emulator::dynamic_shared_memory() + threadIdx.x * apart, 2, emulator::Site::caller());
}

__global__ void lone_product_kernel() {
  float d[4];
  const uint32_t a[4] = {}, b[2] = {};
  if (threadIdx.x < 16) emulator::mma(emulator::Operand::kTf32, d, a, b, emulator::Site::caller());
}

__global__ void misaligned_copy_kernel(const char* in) {
  emulator::copy_later(emulator::dynamic_shared_memory(), in + 4, true, emulator::Site::caller());
}

void test_tensor_cores() {
  alignas(32) std::array<uint16_t, 16 * 16 + 16 * 8> in;  // whole sectors
  std::vector<float> values(in.size());
  for (size_t i = 0; i < in.size(); i++) {
    values[i] = static_cast<float>(static_cast<int>(i * 37 % 101) - 50);
    in[i] = __float2bfloat16(values[i]).bits;
  }
  std::vector<float> exact(128), out(128);
  for (int m = 0; m < 16; m++) {
    for (int n = 0; n < 8; n++) {
      for (int k = 0; k < 16; k++) exact[m * 8 + n] += values[m * 16 + k] * values[256 + k * 8 + n];
    }
  }
  bool right = true;
  for (const Schedule schedule : {Schedule::kInOrder, Schedule::kRandomThreads}) {
    emulator::set_schedule(schedule, 5);
    emulator::counters() = {};
    run(1, 32, 1024, product_kernel, in.data(), out.data(), 0, true);
    right &= out == exact;
  }
  emulator::set_schedule(Schedule::kInOrder);
  expect(right, "copies, matrix loads and a product of a warp");
  expect(emulator::counters().copied_bytes == 768 && emulator::counters().copied_sectors == 24,
         "bytes and sectors of copies are counted");
  // Rows of A are 32 bytes apart: eight of them lie in half of the banks. Rows of B are neighbours.
  expect(emulator::counters().shared_loads == 2 && emulator::counters().bank_conflicts == 4,
         "bank conflicts are counted");
  emulator::counters() = {};
  run(1, 32, 2048, product_kernel, in.data(), out.data(), 8, true);
  expect(out == exact && emulator::counters().bank_conflicts > 4, "and depend on the places of rows");
  emulator::counters() = {};
  run(1, 32, 64, halves_kernel, 2);
  expect(emulator::counters().shared_loads == 1 && emulator::counters().bank_conflicts == 0,
         "16-bit loads of one word do not conflict");
  run(1, 32, 256 * 32, halves_kernel, 256);
  expect(emulator::counters().bank_conflicts == 31, "16-bit loads of one bank do");
  run(1, 32, 1024, product_kernel, in.data(), out.data(), 0, false);
  expect(std::isnan(out[0]), "what is copied and not waited for are NaNs");
  expect(contains(fault([] { run(1, 32, 0, lone_product_kernel); }), "mma at test_emul"),
         "a product that some lanes do not reach is named");
  expect(contains(fault([&] { run(1, 32, 64, misaligned_copy_kernel, reinterpret_cast<const char*>(in.data())); }),
                  "not aligned"),
         "a copy from an address that is not aligned is named");
  const auto ask = [](int kilobytes) {
    return cudaFuncSetAttribute(product_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kilobytes << 10);
  };
  expect(ask(227) == cudaSuccess && ask(228) != cudaSuccess, "a kernel may ask for as much shared memory as a device has");
  run(1, 32, 99 << 10, product_kernel, in.data(), out.data(), 0, true);
  expect(contains(fault([&] { run(1, 32, 100 << 10, product_kernel, in.data(), out.data(), 0, true); }),
                  "more shared memory than every device has"),
         "but have it only with instructions of such a device");
}

// What a kernel of the copy engine may do wrong.
struct Engine {
  bool fenced = true, waits = true, releases = true, exits_early = false, overwrites = false;
  int more_bytes = 0, more_arrivals = 0, shift = 0;
};

constexpr int kBoxes = 5, kBoxLines = 16, kBoxWords = kBoxLines * 32;

// A thread of the second warp fills two buffers in turn with boxes of a tensor of floats, the first warp adds them up.
__global__ void engine_kernel(const CUtensorMap map, float* out, Engine how) {
  using emulator::Site;
  unsigned char* const shared = emulator::dynamic_shared_memory();
  uint64_t* const full = reinterpret_cast<uint64_t*>(shared + 2 * kBoxWords * 4);
  uint64_t* const empty = full + 2;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; i++) {
      emulator::make_barrier(full + i, 1, Site::caller());
      emulator::make_barrier(empty + i, 32, Site::caller());
    }
    if (how.fenced) emulator::fence_barriers();
  }
  __syncthreads();
  const auto buffer = [&](int i) { return reinterpret_cast<float*>(shared + i % 2 * kBoxWords * 4 + how.shift); };
  if (threadIdx.x >= 32) {
    if (threadIdx.x > 32) return;
    for (int i = 0; i < kBoxes; i++) {
      if (how.releases) emulator::wait_at(empty + i % 2, i / 2 % 2 ^ 1, Site::caller());
      emulator::arrive_at(full + i % 2, kBoxWords * 4 + how.more_bytes, Site::caller());
      for (int a = 0; a < how.more_arrivals; a++) emulator::arrive_at(full + i % 2, 0, Site::caller());
      const int at[3] = {i, -1, i};
      emulator::copy_box(buffer(i), &map, at, 3, full + i % 2, Site::caller());
    }
    return;
  }
  if (how.exits_early) return;
  if (how.overwrites && threadIdx.x == 0) *full = 5;
  for (int line = 0; line < kBoxLines; line++) out[line * 32 + threadIdx.x] = 0;
  for (int i = 0; i < kBoxes; i++) {
    if (how.waits) emulator::wait_at(full + i % 2, i / 2 % 2, Site::caller());
    for (int line = 0; line < kBoxLines; line++) {
      const int chunk = threadIdx.x / 4 ^ line % 8;
      out[line * 32 + threadIdx.x] += buffer(i)[line * 32 + chunk * 4 + threadIdx.x % 4];
    }
    emulator::arrive_at(empty + i % 2, 0, Site::caller());
  }
}

// 5 planes of 7 rows of 36 floats; a box has 32 floats of 8 rows of 2 planes.
struct Tensor {
  alignas(16) std::array<float, 5 * 7 * 36> data;
  CUtensorMap map;

  CUresult encode(cuuint32_t box_rows = 8, cuuint64_t pitch = 36 * 4, int shift = 0) {
    const cuuint64_t sizes[] = {36, 7, 5}, pitches[] = {pitch, 7 * 36 * 4};
    const cuuint32_t box[] = {32, box_rows, 2}, steps[] = {1, 1, 1};
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result);
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function)(
        &map, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 3, data.data() + shift, sizes, pitches, box, steps,
        CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_NONE,
        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  }
  std::vector<float> sums() const {
    std::vector<float> result(kBoxWords);
    for (int i = 0; i < kBoxes; i++) {
      for (int word = 0; word < kBoxWords; word++) {
        const int x = i + word % 32, y = word / 32 % 8 - 1, z = i + word / 32 / 8;
        if (x < 36 && y >= 0 && z < 5) result[word] += data[(z * 7 + y) * 36 + x];
      }
    }
    return result;
  }
};

Tensor& tensor() {
  static Tensor own;
  for (size_t i = 0; i < own.data.size(); i++) own.data[i] = static_cast<float>(i * 37 % 101) - 50;
  cudaSetDevice(0);
  own.encode();
  return own;
}

constexpr size_t kEngineBytes = 2 * kBoxWords * 4 + 4 * 8;

std::string engine_fault(const Engine& how) {
  std::vector<float> out(kBoxWords);
  return fault([&] { run(1, 64, kEngineBytes, engine_kernel, tensor().map, out.data(), how); });
}

void test_copy_engine() {
  emulator::has_context() = false;
  Tensor& own = tensor();
  emulator::has_context() = false;
  expect(own.encode() == CUDA_ERROR_INVALID_CONTEXT, "a tensor map asks for a context");
  cudaSetDevice(0);
  expect(own.encode(257) != CUDA_SUCCESS && own.encode(8, 36 * 4 + 8) != CUDA_SUCCESS &&
             own.encode(8, 36 * 4, 1) != CUDA_SUCCESS && own.encode() == CUDA_SUCCESS,
         "a tensor map has rules");
  std::vector<float> out(kBoxWords);
  bool right = true, hasty = false, early = false;
  for (const Schedule schedule : {Schedule::kInOrder, Schedule::kRandomThreads, Schedule::kRandomWarps}) {
    for (int seed = 1; seed <= 5; seed++) {
      emulator::set_schedule(schedule, seed);
      run(3, 64, kEngineBytes, engine_kernel, own.map, out.data(), Engine());
      right &= out == own.sums();
      Engine wrong;
      wrong.waits = false;
      try {
        run(1, 64, kEngineBytes, engine_kernel, own.map, out.data(), wrong);
        hasty |= out != own.sums();
      } catch (const emulator::Error&) {
        hasty = true;
      }
      wrong = Engine();
      wrong.releases = false;
      try {
        run(1, 64, kEngineBytes, engine_kernel, own.map, out.data(), wrong);
        early |= out != own.sums();
      } catch (const emulator::Error&) {
        early = true;
      }
    }
  }
  emulator::set_schedule(Schedule::kInOrder);
  expect(right, "boxes are copied while others wait for them, zeros outside of the tensor, chunks permuted");
  expect(hasty, "what is read before it came shows");
  expect(early, "and what is overwritten before it was read");
  emulator::counters() = {};
  run(1, 64, kEngineBytes, engine_kernel, own.map, out.data(), Engine());
  expect(emulator::counters().copied_bytes == 9 * 7 * 128, "bytes that exist are counted");

  Engine wrong;
  wrong.more_bytes = 16;
  expect(contains(engine_fault(wrong), "deadlock") && contains(engine_fault(wrong), "mbarrier.try_wait at test_emul"),
         "bytes that do not come are waited for");
  wrong = Engine();
  wrong.more_bytes = -16;
  expect(!engine_fault(wrong).empty(), "bytes that nobody expects are found");
  wrong = Engine();
  wrong.fenced = false;
  expect(contains(engine_fault(wrong), "not fenced"), "a barrier that the engine may not see is named");
  wrong = Engine();
  wrong.exits_early = true;
  expect(!engine_fault(wrong).empty(), "copies that nobody waits for are found");
  wrong = Engine();
  wrong.more_arrivals = 1;
  expect(contains(engine_fault(wrong), "more arrivals"), "an arrival too many is named");
  wrong = Engine();
  wrong.overwrites = true;
  expect(contains(engine_fault(wrong), "where the barrier is"), "a barrier that was overwritten is named");
  wrong = Engine();
  wrong.shift = 128;
  expect(contains(engine_fault(wrong), "not aligned to 1024"), "a box must begin where its permutation does");
}

void test_running() {
  std::vector<int> index(128, -1);
  emulator::launch(nullptr, {2, 1, 1}, {8, 8, 1}, 0, [&] { index_kernel(index.data()); });
  expect(index[64 + 8 * 3 + 5] == 1305, "threads and blocks know their indices");

  std::vector<float> in(256, 1.f);
  for (const Schedule schedule : {Schedule::kInOrder, Schedule::kRandomThreads, Schedule::kRandomWarps}) {
    float out = 0;
    emulator::set_schedule(schedule, 3);
    run(1, 256, 32, sum_kernel, in.data(), &out, true);
    expect(out == 256, "a block sums by shuffles, shared memory and a barrier");
  }
  emulator::set_schedule(Schedule::kInOrder);

  std::vector<double> out(128);
  run(1, 32, 0, shuffle_kernel, out.data());
  bool right = true;
  for (int lane = 0; lane < 32; lane++) {
    right &= out[lane] == (lane % 8 < 5 ? lane + 3 : lane);
    right &= out[32 + lane] == (lane ^ 5) && out[64 + lane] == lane / 16 * 16 + 2;
    right &= out[96 + lane] == (lane % 8 < 3 ? lane : lane - 3);
  }
  expect(right, "shuffles respect their width");

  std::vector<unsigned> votes(48);
  run(1, 32, 0, vote_kernel, votes.data());
  right = true;
  for (int lane = 0; lane < 24; lane++) {
    unsigned same = 0;
    for (int l = lane % 5; l < 24; l += 5) same |= 1u << l;
    right &= votes[lane] == 0x492492u && votes[24 + lane] == same;
  }
  expect(right, "lanes vote and find their equals");
  expect(__umul64hi(~0ull, ~0ull) == ~1ull && __popc(0xf0u) == 4 && __ffs(8) == 4 && __ffs(0) == 0, "integer functions");

  std::vector<int> marks(64);
  run(1, 64, 0, early_exit_kernel, marks.data());
  expect(marks[39] == 1 && marks[40] == 0, "threads that exited do not hold up a barrier");

  float unwritten = 0;
  run(1, 1, 4, unwritten_kernel, &unwritten);
  expect(std::isnan(unwritten), "shared memory starts as NaNs");
}

void test_atomics() {
  bool right = true;
  int lost = 0;
  for (const Schedule schedule : {Schedule::kInOrder, Schedule::kRandomThreads, Schedule::kRandomWarps}) {
    for (int seed = 1; seed <= 5; seed++) {
      emulator::set_schedule(schedule, seed);
      std::vector<unsigned> places(65), taken(64), taken_blindly(64);
      unsigned least = ~0u, place = 0;
      run(1, 64, 0, claim_kernel, places.data(), taken.data(), &least, true);
      right &= taken == std::vector<unsigned>(64, 1) && least == 0 && places[64] == 0;
      run(1, 64, 0, claim_kernel, &place, taken_blindly.data(), &least, false);
      lost += place != 1;  // the first thread to come is not always the first in order
    }
  }
  emulator::set_schedule(Schedule::kInOrder);
  expect(right, "compare-and-swap gives each place to one thread, minimum and sum lose none");
  expect(lost > 0, "atomics come in another order in another schedule");

  int interleaved = 0;
  for (int seed = 1; seed <= 5; seed++) {
    emulator::set_schedule(Schedule::kRandomThreads, seed);
    std::vector<int> out(2);
    run(1, 64, 0, stale_kernel, out.data());
    interleaved += out[1] < 64;
  }
  emulator::set_schedule(Schedule::kInOrder);
  expect(interleaved == 5, "threads may run between a read and an atomic access");
}

void test_faults() {
  expect(contains(fault([] { run(1, 64, 0, half_barrier_kernel); }), "while others wait"),
         "two barriers for one are named");
  expect(contains(fault([] { run(1, 32, 0, lone_warp_function_kernel); }), "__syncwarp at test_emul"),
         "a warp function that some lanes do not reach is named");
  expect(contains(fault([] { run(1, 32, 0, lone_ballot_kernel); }), "__ballot_sync at test_emul"),
         "a ballot that some lanes do not reach is named");
  std::vector<int> out(32);
  expect(contains(fault([&] { run(1, 32, 0, exited_lane_kernel, out.data()); }), "exited"),
         "a shuffle with a lane that exited is named");
  expect(contains(fault([&] { run(1, 32, 0, outside_mask_kernel, out.data()); }), "takes no part"),
         "a shuffle from outside the mask is named");
  expect(contains(fault([&] { run(1, 1025, 0, early_exit_kernel, out.data()); }), "refused") &&
             contains(fault([&] { run(1, 32, 50000, early_exit_kernel, out.data()); }), "refused") &&
             contains(fault([&] { run(0, 32, 0, early_exit_kernel, out.data()); }), "refused"),
         "what a device would refuse is refused");
}

void test_schedules() {
  const auto order = [](Schedule schedule, int seed) {
    std::vector<int> starts;
    emulator::set_schedule(schedule, seed);
    run(4, 128, 0, order_kernel, &starts);
    emulator::set_schedule(Schedule::kInOrder);
    return starts;
  };
  const std::vector<int> plain = order(Schedule::kInOrder, 1);
  const std::vector<int> shuffled = order(Schedule::kRandomWarps, 1);
  expect(plain.size() == 16 && plain[0] == 0 && plain[15] == 3096, "in order is in order");
  expect(shuffled != plain && shuffled == order(Schedule::kRandomWarps, 1), "a seed is an order");
  expect(shuffled != order(Schedule::kRandomWarps, 2) && shuffled != order(Schedule::kRandomThreads, 1),
         "another seed or schedule is another order");

  std::vector<float> in(256, 1.f);
  int wrong = 0;
  for (int seed = 1; seed <= 20; seed++) {
    float out = 0;
    emulator::set_schedule(Schedule::kRandomWarps, seed);
    run(1, 256, 32, sum_kernel, in.data(), &out, false);
    wrong += out != 256;
  }
  emulator::set_schedule(Schedule::kInOrder);
  expect(wrong > 0, "random warp priorities expose a missing barrier");

  const uint64_t before = emulator::counters().blocks;
  emulator::set_last_blocks(3);
  std::vector<int> starts;
  run(1000, 32, 0, order_kernel, &starts);
  emulator::set_last_blocks(-1);
  expect(starts == std::vector<int>({997000, 998000, 999000}) && emulator::counters().blocks == before + 3,
         "the last blocks can be run alone");
}

void test_types() {
  // Every value of 16 bits survives; NumPy checks the roundings between them (test_emulator.py).
  bool same = true;
  for (int bits = 0; bits < 65536; bits++) {
    const __half half = {static_cast<uint16_t>(bits)};
    const __nv_bfloat16 bfloat = {static_cast<uint16_t>(bits)};
    const float a = __half2float(half), b = __bfloat162float(bfloat);
    same &= std::isnan(a) ? __float2half(a).bits == 0x7fff : __float2half(a).bits == bits;
    same &= std::isnan(b) ? __float2bfloat16(b).bits == 0x7fff : __float2bfloat16(b).bits == bits;
  }
  expect(same, "16-bit floats convert there and back");
  expect(__byte_perm(0x33221100, 0x77665544, 0x5410) == 0x55441100 && __byte_perm(0x1234, 0x5678, 0x3232) == 0,
         "bytes are taken from two registers");
}

// For test_emulator.py: float32 values on standard input, as float16 and bfloat16 bits on output.
void convert() {
  for (float value; std::fread(&value, sizeof(value), 1, stdin) == 1;) {
    const uint16_t bits[2] = {__float2half(value).bits, __float2bfloat16(value).bits};
    std::fwrite(bits, sizeof(bits), 1, stdout);
  }
}

int run_by_name(const std::string& name) {
  std::vector<float> out(64);
  if (name == "convert")
    convert();
  else if (name == "past_shared_memory")
    run(1, 32, 64, past_shared_memory_kernel);
  else if (name == "past_array")
    run(1, 65, 0, past_array_kernel, out.data());
  else if (name == "missing_barrier")
    run(1, 64, 8, sum_kernel, out.data(), out.data(), false);
  else if (name == "between_blocks")
    run(2, 32, 0, between_blocks_kernel, out.data());
  else if (name == "warp_race")
    run(1, 32, 128, warp_race_kernel, out.data(), false);
  else if (name == "unawaited_box") {
    std::vector<float> sums(kBoxWords);
    Engine wrong;
    wrong.waits = wrong.releases = false;
    run(1, 64, kEngineBytes, engine_kernel, tensor().map, sums.data(), wrong);
  } else if (name == "past_box_array") {
    std::vector<float> sums(kBoxWords), part(4 * 7 * 36);
    static Tensor own = tensor();
    void* memory = nullptr;
    if (posix_memalign(&memory, 16, part.size() * 4)) return 2;
    std::memcpy(memory, own.data.data(), part.size() * 4);
    emulator::TensorMap changed;
    std::memcpy(&changed, &own.map, sizeof(changed));
    changed.start = static_cast<unsigned char*>(memory);
    std::memcpy(&own.map, &changed, sizeof(changed));
    run(1, 64, kEngineBytes, engine_kernel, own.map, sums.data(), Engine());
  } else if (name == "plain_read") {
    std::vector<int> counts(2);
    run(1, 64, 0, plain_read_kernel, counts.data());
  } else if (name == "clean") {
    float sum = 0;
    std::vector<unsigned> places(65), taken(64);
    unsigned least = ~0u;
    emulator::set_schedule(Schedule::kRandomThreads);
    run(1, 64, 0, claim_kernel, places.data(), taken.data(), &least, true);
    cudaMemsetAsync(places.data(), 0, 4 * 64, nullptr);
    run(1, 32, 0, vote_kernel, places.data());
    std::vector<float> sums(kBoxWords);
    run(1, 64, kEngineBytes, engine_kernel, tensor().map, sums.data(), Engine());
    for (int i = 0; i < 2; i++) {  // launches follow each other
      run(1, 64, 8, sum_kernel, out.data(), &sum, true);
      run(2, 32, 0, atomic_kernel, out.data());
      run(1, 32, 128, warp_race_kernel, out.data(), true);
    }
  } else
    return 2;
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1) return run_by_name(arguments[1]);
  test_running();
  test_atomics();
  test_faults();
  test_schedules();
  test_tensor_cores();
  test_copy_engine();
  test_types();
  return failures > 0;
}
