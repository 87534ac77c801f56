// Every op's schema, and the Python module `_C` for what is not a tensor op.
//
// Public ops decompose into `<op>_forward` and `<op>_backward` (see ops/autograd.h); a transposed convolution shares
// those of the plain one. `mean` and `rstd` are the statistics that backward needs, [stat_groups, C].
#include <pybind11/pybind11.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "cpu/capability.h"
#ifdef DCGAN_FAST_CUDA
#include "ops/bn_act_cuda.h"
#endif

#define BN_TENSORS                                                                       \
  "Tensor bn_weight, Tensor bn_bias, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
#define ACT "str activation, float negative_slope"
#define BN_OPTIONS "bool training, float momentum, float eps, int stat_groups"
#define CONV "int[2] stride, int[2] padding, "
#define CONV_TRANSPOSE CONV "int[2] output_padding, "
#define CONV_EITHER CONV_TRANSPOSE "bool transposed, "

TORCH_LIBRARY(dcgan_fast, m) {
  m.def("bn_act(Tensor input, " BN_TENSORS ACT ", " BN_OPTIONS ") -> Tensor");
  m.def("bn_act_forward(Tensor input, " BN_TENSORS ACT ", " BN_OPTIONS
        ") -> (Tensor output, Tensor mean, Tensor rstd)");
  m.def("bn_act_backward(Tensor grad, Tensor input, Tensor bn_weight, Tensor bn_bias, Tensor mean, Tensor rstd, " ACT
        ", bool training, int stat_groups, bool[3] output_mask)"
        " -> (Tensor grad_input, Tensor grad_bn_weight, Tensor grad_bn_bias)");

  m.def("conv_bn_act(Tensor input, Tensor weight, " BN_TENSORS CONV ACT ", " BN_OPTIONS ") -> Tensor");
  m.def("conv_transpose_bn_act(Tensor input, Tensor weight, " BN_TENSORS CONV_TRANSPOSE ACT ", " BN_OPTIONS
        ") -> Tensor");
  m.def("conv_bn_act_forward(Tensor input, Tensor weight, " BN_TENSORS CONV_EITHER ACT ", " BN_OPTIONS
        ", bool save) -> (Tensor output, Tensor conv_output, Tensor mean, Tensor rstd)");
  m.def("conv_bn_act_backward(Tensor grad, Tensor input, Tensor weight, Tensor conv_output, Tensor bn_weight, "
        "Tensor bn_bias, Tensor mean, Tensor rstd, " CONV_EITHER ACT
        ", bool training, int stat_groups, bool[4] output_mask)"
        " -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bn_weight, Tensor grad_bn_bias)");

  m.def("conv_act(Tensor input, Tensor weight, Tensor? bias, " CONV ACT ") -> Tensor");
  m.def("conv_transpose_act(Tensor input, Tensor weight, Tensor? bias, " CONV_TRANSPOSE ACT ") -> Tensor");
  m.def("conv_act_forward(Tensor input, Tensor weight, Tensor? bias, " CONV_EITHER ACT ") -> Tensor");
  m.def("conv_act_backward(Tensor grad, Tensor input, Tensor weight, Tensor output, " CONV_EITHER ACT
        ", bool[3] output_mask) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
}

// The halves are differentiated by the nodes in ops/; called directly with gradients wanted they say that they cannot.
TORCH_LIBRARY_IMPL(dcgan_fast, Autograd, m) {
  for (const char* op : {"bn_act_forward", "bn_act_backward", "conv_bn_act_forward", "conv_bn_act_backward",
                         "conv_act_forward", "conv_act_backward"}) {
    m.impl(op, torch::autograd::autogradNotImplementedFallback());
  }
}

PYBIND11_MODULE(_C, m) {
  m.def("cpu_capability", dcgan_fast::cpu::capability_name, "Which variant of the CPU kernels runs here.");
#ifdef DCGAN_FAST_CUDA
  m.attr("cuda_architectures") = DCGAN_FAST_CUDA_ARCHITECTURES;
#else
  m.attr("cuda_architectures") = "";
#endif
}
