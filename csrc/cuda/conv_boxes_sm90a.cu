// Compiled for sm_90a alone (_build/kernels.py), as conv_sm90a.cu.
#include "conv_boxes_launch.cuh"

template struct dcgan_fast::cuda::BoxKernels<__nv_bfloat16>;
template struct dcgan_fast::cuda::BoxKernels<__half>;
