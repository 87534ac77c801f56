// What the torch sides of the CUDA kernels share. No CUDA header of torch is included: streams and devices are reached
// through the device-generic guards of c10, so these files compile against a CPU build of torch too and run on any build
// that has a CUDA backend.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "../checks.h"
#include "../cuda/bn_act.h"

namespace dcgan_fast {

inline CUstream_st* current_stream(const c10::Device& device) {
  if (device.is_cpu()) return nullptr;  // the emulator's (device.h)
  const c10::impl::VirtualGuardImpl backend(device.type());
  return static_cast<CUstream_st*>(backend.getStream(device).native_handle());
}

inline cuda::DType cuda_dtype(const char* op, at::ScalarType type) {
  switch (type) {
    case at::kFloat: return cuda::DType::kFloat32;
    case at::kBFloat16: return cuda::DType::kBFloat16;
    case at::kHalf: return cuda::DType::kFloat16;
    default: TORCH_CHECK_NOT_IMPLEMENTED(false, op, "(): no CUDA kernel serves ", type);
  }
}

inline at::Tensor cuda_workspace(size_t bytes, const at::Tensor& like) {
  return at::empty({static_cast<int64_t>(bytes)}, at::TensorOptions(like.device()).dtype(at::kByte));
}

inline void check_launch(const char* op, const char* error) { TORCH_CHECK(!error, op, "(): ", error); }

// A vector as the kernels read it: contiguous, of one dtype with the others of its call.
inline at::Tensor cuda_parameter(const at::Tensor& vector, at::ScalarType type) { return vector.to(type).contiguous(); }

}  // namespace dcgan_fast
