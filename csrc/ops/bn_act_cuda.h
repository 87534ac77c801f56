// bn_act on CUDA tensors: the torch side of cuda/bn_act.cu.
#pragma once

#include "bn_act.h"

namespace dcgan_fast {

// As bn_act_run and bn_act_run_backward, for CUDA maps of at least one element.
std::tuple<Tensor, Tensor> bn_act_run_cuda(const BnActOptions&, const Tensor& input, const BnTensors&, Tensor& output,
                                           const MapStatistics* statistics);

std::tuple<Tensor, Tensor, Tensor> bn_act_run_backward_cuda(const BnActOptions&, const Tensor& grad,
                                                            const Tensor& input, const Tensor& weight,
                                                            const Tensor& bias, const Tensor& mean, const Tensor& rstd,
                                                            std::array<bool, 3> mask, bool overwrite_grad,
                                                            const Tensor& tile_sums);

}  // namespace dcgan_fast
