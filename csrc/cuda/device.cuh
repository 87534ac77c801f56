// What every kernel of this project builds on: shared memory, 16-byte accesses, element types.
//
// The kernels are plain C++ plus CUDA's names, so that g++ compiles them unchanged for the emulator
// in tests/emulator, whose cuda_runtime.h stands in for NVIDIA's. The one place where the two differ
// is the declaration of dynamic shared memory, below.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "bn_act.h"

namespace dcgan_fast::cuda {

constexpr int kWarpSize = 32, kWarpgroupSize = 128;

// The block's dynamic shared memory, aligned as a warpgroup's operands are. A kernel has no other shared memory, so
// that the emulator can fence it, poison it and hand each block a fresh piece.
#ifdef __CUDACC__
__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(1024) unsigned char dynamic_shared_memory[];
  return dynamic_shared_memory;
}
#else
inline unsigned char* shared_memory() { return emulator::dynamic_shared_memory(); }
#endif

// N neighbouring elements, moved by one access of up to 16 bytes.
template <typename T, int N>
struct alignas(sizeof(T) * N) Vec {
  T at[N];
};

constexpr int kAccessBytes = 16;  // the widest access of a thread

template <int N, typename T>
__device__ inline Vec<T, N> load(const T* from) {
  return *reinterpret_cast<const Vec<T, N>*>(from);
}

template <int N, typename T>
__device__ inline void store(T* to, const Vec<T, N>& value) {
  *reinterpret_cast<Vec<T, N>*>(to) = value;
}

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline float to_float(__half value) { return __half2float(value); }

template <typename T>
__device__ T from_float(float value);
template <>
__device__ inline float from_float<float>(float value) {
  return value;
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16(value);
}
template <>
__device__ inline __half from_float<__half>(float value) {
  return __float2half(value);
}

// Element i of a parameter array whose type is known at run time only. Parameters are read once per
// block and channel: a branch there costs nothing, a template parameter would double the kernels.
__device__ inline float load_parameter(const void* array, int64_t i, DType dtype) {
  switch (dtype) {
    case DType::kBFloat16:
      return to_float(static_cast<const __nv_bfloat16*>(array)[i]);
    case DType::kFloat16:
      return to_float(static_cast<const __half*>(array)[i]);
    default:
      return static_cast<const float*>(array)[i];
  }
}

__device__ inline void store_parameter(void* array, int64_t i, DType dtype, float value) {
  switch (dtype) {
    case DType::kBFloat16:
      static_cast<__nv_bfloat16*>(array)[i] = from_float<__nv_bfloat16>(value);
      break;
    case DType::kFloat16:
      static_cast<__half*>(array)[i] = from_float<__half>(value);
      break;
    default:
      static_cast<float*>(array)[i] = value;
  }
}

}  // namespace dcgan_fast::cuda
