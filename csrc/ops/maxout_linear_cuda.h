// maxout_linear on CUDA tensors: the torch side of cuda/maxout_linear.cu.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace dcgan_fast {

// Whether a kernel serves so many pieces; where none does PyTorch's product and maximum do.
bool maxout_linear_cuda_serves(int64_t pieces);

// The largest pieces [rows, out] and which they are, uint8 [rows, out]. `input` [rows, in], `weight` [out, pieces, in] and
// `bias` [out, pieces] are of one dtype: float32, bfloat16 or float16.
std::tuple<at::Tensor, at::Tensor> maxout_linear_cuda(const at::Tensor& input, const at::Tensor& weight,
                                                      const std::optional<at::Tensor>& bias);

}  // namespace dcgan_fast
