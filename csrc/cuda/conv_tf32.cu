#include "conv_launch.cuh"

template struct dcgan_fast::cuda::ConvKernels<dcgan_fast::cuda::Tf32Step>;
