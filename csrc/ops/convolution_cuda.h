// The convolution on CUDA tensors: the torch side of cuda/conv.cu.
#pragma once

#include "convolution.h"

namespace dcgan_fast {

// Why the kernels refuse this convolution (maps or a weight of too many elements), or null: they serve it.
const char* conv_cuda_refusal(const Convolution&, const Tensor& weight, at::IntArrayRef fine, at::IntArrayRef coarse);

// What multiplies maps of this type, as the switches stand: for explain().
const char* conv_cuda_name(at::ScalarType);

// in -> out of `sizes` by the plain convolution (!up) or the transposed one (up), channels_last; both maps have an element.
Tensor conv_cuda(const Convolution&, bool up, const Tensor& in, const Tensor& weight, at::IntArrayRef sizes,
                 const ConvFinish& finish);

// The gradient of a weight, channels_last, of the two maps.
Tensor conv_weight_grad_cuda(const Convolution&, const Tensor& weight, const Tensor& fine, const Tensor& coarse);

}  // namespace dcgan_fast
