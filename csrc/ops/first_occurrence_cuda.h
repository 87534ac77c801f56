// first_occurrence and first_of_each on CUDA tensors: the torch side of cuda/first_occurrence.cu.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace dcgan_fast {

// Of int64 [rows, words]. Waits once for the device, to learn the number of groups: an error while a CUDA graph is captured.
std::tuple<at::Tensor, at::Tensor, at::Tensor> first_occurrence_cuda(const at::Tensor& codes);

// Does not wait.
at::Tensor first_of_each_cuda(const at::Tensor& codes);

}  // namespace dcgan_fast
