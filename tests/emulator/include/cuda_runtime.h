// Stands in for NVIDIA's cuda_runtime.h when a .cu file is compiled by g++ for the emulator: CUDA's
// keywords, built-in variables, warp functions and the few runtime calls that launchers use.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "../emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

// --- vector types and built-in variables ---

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(8) float2 {
  float x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }

namespace emulator {
// Constants to a kernel, read from the thread that runs: no macros, whose names are members elsewhere.
template <const Index& (*kIndex)()>
struct BuiltIn {
  struct X {
    operator unsigned() const { return kIndex().x; }
  } x;
  struct Y {
    operator unsigned() const { return kIndex().y; }
  } y;
  struct Z {
    operator unsigned() const { return kIndex().z; }
  } z;
};
}  // namespace emulator

inline constexpr emulator::BuiltIn<emulator::thread_index> threadIdx{};
inline constexpr emulator::BuiltIn<emulator::block_index> blockIdx{};
inline constexpr emulator::BuiltIn<emulator::block_size> blockDim{};
inline constexpr emulator::BuiltIn<emulator::grid_size> gridDim{};

// --- device functions ---

template <typename T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}

inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Byte i of the result is that of (high, low) which the selector's hexadecimal digit i names, 0 to 7.
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t both = static_cast<uint64_t>(high) << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; i++) {
    result |= static_cast<unsigned>(both >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  }
  return result;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }  // the lowest bit's place, from 1
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}

inline void __syncthreads(emulator::Site site = emulator::Site::caller()) { emulator::barrier(site); }

inline void __syncwarp(unsigned mask = ~0u, emulator::Site site = emulator::Site::caller()) {
  emulator::sync_warp(mask, site);
}

namespace emulator {
template <typename T>
T shuffle(const char* name, unsigned mask, T value, int source, Site site) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = exchange(name, mask, bits, source, site);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
}  // namespace emulator

// Past the end of its segment of `width` lanes, a lane gets its own value back.
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   emulator::Site site = emulator::Site::caller()) {
  const int lane = emulator::lane(), source = lane + static_cast<int>(delta);
  const bool inside = source / width == lane / width;
  return emulator::shuffle("__shfl_down_sync", mask, value, inside ? source : lane, site);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 emulator::Site site = emulator::Site::caller()) {
  const int lane = emulator::lane(), source = lane - static_cast<int>(delta);
  const bool inside = source >= lane / width * width;
  return emulator::shuffle("__shfl_up_sync", mask, value, inside ? source : lane, site);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, emulator::Site site = emulator::Site::caller()) {
  const int lane = emulator::lane(), source = lane ^ bits;
  const bool inside = source / width <= lane / width;
  return emulator::shuffle("__shfl_xor_sync", mask, value, inside ? source : lane, site);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, emulator::Site site = emulator::Site::caller()) {
  const int base = emulator::lane() / width * width;
  return emulator::shuffle("__shfl_sync", mask, value, base + (source & (width - 1)), site);
}

// The lanes of `mask` whose predicate holds.
inline unsigned __ballot_sync(unsigned mask, int predicate, emulator::Site site = emulator::Site::caller()) {
  uint64_t values[32];
  emulator::gather("__ballot_sync", mask, predicate != 0, values, site);
  unsigned lanes = 0;
  for (int l = 0; l < 32; l++) lanes |= static_cast<unsigned>(values[l]) << l;
  return lanes;
}

// The lanes of `mask` that have the same value.
template <typename T>
unsigned __match_any_sync(unsigned mask, T value, emulator::Site site = emulator::Site::caller()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  uint64_t values[32], own = 0;
  std::memcpy(&own, &value, sizeof(T));
  emulator::gather("__match_any_sync", mask, own, values, site);
  unsigned lanes = 0;
  for (int l = 0; l < 32; l++) lanes |= static_cast<unsigned>(values[l] == own) << l;
  return lanes & mask;
}

// Atomic, and ordering nothing, as on the device. All return what was there.
template <typename T>
T atomicCAS(T* target, T expected, T desired) {
  emulator::before_atomic();
  __atomic_compare_exchange(target, &expected, &desired, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}

namespace emulator {
template <typename T, typename F>
T update(T* target, const F& updated) {
  before_atomic();
  T old, next;
  __atomic_load(target, &old, __ATOMIC_RELAXED);
  do {
    next = updated(old);
  } while (!__atomic_compare_exchange(target, &old, &next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}
}  // namespace emulator

template <typename T>
T atomicAdd(T* target, T value) {
  return emulator::update(target, [value](T old) { return old + value; });
}

template <typename T>
T atomicMin(T* target, T value) {
  return emulator::update(target, [value](T old) { return std::min(old, value); });
}

// --- the runtime ---

#define CUDART_VERSION 13000

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid configuration argument";
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

struct CUstream_st;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  CUstream_st* stream = nullptr;
};

// A device that has all the instructions of csrc/cuda/ptx.cuh.
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor = 75, cudaDevAttrComputeCapabilityMinor = 76 };
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 9 : 0;
  return cudaSuccess;
}

// A thread of the host has no context until it chose a device: the driver's functions refuse it until then.
namespace emulator {
inline bool& has_context() {
  static thread_local bool has = false;
  return has;
}
}  // namespace emulator
inline cudaError_t cudaSetDevice(int) {
  emulator::has_context() = true;
  return cudaSuccess;
}

enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess = 0, cudaDriverEntryPointSymbolNotFound = 1 };
constexpr unsigned long long cudaEnableDefault = 0;
namespace emulator {
inline void* driver_function(const char* name);  // cuda.h
}
inline cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                                    cudaDriverEntryPointQueryResult* result) {
  *function = emulator::driver_function(name);
  *result = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int bytes) {
  return emulator::allow_shared_memory(reinterpret_cast<const void*>(kernel), bytes) ? cudaSuccess
                                                                                     : cudaErrorInvalidConfiguration;
}

// At once, as the kernels: what a stream promises is that it comes in turn.
inline cudaError_t cudaMemsetAsync(void* target, int byte, size_t bytes, CUstream_st*) {
  std::memset(target, byte, bytes);
  return cudaSuccess;
}

enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone = 0, cudaStreamCaptureStatusActive = 1 };
inline cudaError_t cudaStreamIsCapturing(CUstream_st*, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

// Runs the kernel to its end before it returns: one legal behaviour of a stream.
template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const std::tuple<std::remove_const_t<Parameters>...> copies(arguments...);
  const dim3 &grid = config->gridDim, &block = config->blockDim;
  const bool ran = emulator::launch(reinterpret_cast<const void*>(kernel), {grid.x, grid.y, grid.z},
                                    {block.x, block.y, block.z}, config->dynamicSmemBytes,
                                    [&] { std::apply(kernel, copies); });
  return ran ? cudaSuccess : cudaErrorInvalidConfiguration;
}

#include "cuda.h"
