// Compiled for sm_90a alone (_build/kernels.py), as conv_sm90a.cu.
#include "conv_boxes_launch.cuh"
#include "conv_pack_weights.cuh"

namespace dcgan_fast::cuda {

template struct BoxKernels<float>;

const char* launch_pack_weights(const float* weight, float* packed, int64_t coarse, int64_t taps, int64_t fine,
                                CUstream_st* stream) {
  const PackLaunch call{weight,
                        packed,
                        static_cast<int>(coarse),
                        static_cast<int>(taps),
                        static_cast<int>(fine),
                        static_cast<int>((fine + kPackSide - 1) / kPackSide)};
  return launch(conv_pack_weights, call.blocks(), kPackThreads, kPackBytes, stream, call);
}

}  // namespace dcgan_fast::cuda
