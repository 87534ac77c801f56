// first_occurrence and first_of_each for other ops.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace dcgan_fast {

std::tuple<at::Tensor, at::Tensor, at::Tensor> first_occurrence(const at::Tensor& codes);  // keep, group, counts
at::Tensor first_of_each(const at::Tensor& codes);

}  // namespace dcgan_fast
