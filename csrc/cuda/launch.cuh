// Launching a kernel from plain C++: no <<<>>>, which only nvcc understands. And filling memory.
#pragma once

#include "device.cuh"

namespace dcgan_fast::cuda {

// CUDA's words for what went wrong, or null. The error is also taken off the runtime's books, so that nobody else reports
// it again.
inline const char* words_of(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  (void)cudaGetLastError();
  return cudaGetErrorString(error);
}

// Puts `kernel` on `stream`. Returns null, or what went wrong.
template <typename... Parameters>
const char* launch(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes, CUstream_st* stream,
                   const Parameters&... arguments) {
  constexpr size_t kSharedBytes = 48 << 10;  // what a block may have without asking
  if (blocks > INT32_MAX) return "the input needs more than 2^31 - 1 blocks";
  cudaError_t error = cudaSuccess;
  if (shared_bytes > kSharedBytes) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, kernel, arguments...);
  return words_of(error);
}

// Sets every byte of `bytes` to `value`, as launch() does.
inline const char* fill(void* target, unsigned char value, size_t bytes, CUstream_st* stream) {
  return words_of(cudaMemsetAsync(target, value, bytes, stream));
}

}  // namespace dcgan_fast::cuda
