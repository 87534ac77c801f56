#include "conv_launch.cuh"

template struct dcgan_fast::cuda::ConvKernels<dcgan_fast::cuda::HalfStep<__nv_bfloat16>>;
