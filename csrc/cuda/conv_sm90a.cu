// Compiled for sm_90a alone (_build/kernels.py): no other device has these instructions.
#include "conv_warpgroup.cuh"

template struct dcgan_fast::cuda::WarpgroupKernels<__nv_bfloat16>;
template struct dcgan_fast::cuda::WarpgroupKernels<__half>;
