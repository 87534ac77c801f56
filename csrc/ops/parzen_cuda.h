// parzen_log_likelihood on CUDA tensors: the torch side of cuda/parzen.cu.
#pragma once

#include <ATen/core/Tensor.h>

namespace dcgan_fast {

// What cpu/parzen.h computes, less the offset, and the first row that is no number, samples counted before data: -1 where there is none.
// While a CUDA graph is captured nothing can be read back, and it is always -1.
struct ParzenOnCuda {
  at::Tensor log_sums;  // float64 [sigmas, rows]
  int64_t bad_row;
};

// float32 [count, features] and [rows, features]; `inverse_variance` and `offset` float64 [sigmas] on the CPU.
ParzenOnCuda parzen_cuda(const at::Tensor& samples, const at::Tensor& data, const at::Tensor& inverse_variance,
                         const at::Tensor& offset);

}  // namespace dcgan_fast
