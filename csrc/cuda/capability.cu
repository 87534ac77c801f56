#include "capability.h"

#include <cuda_runtime.h>

#include "conv_box_map.h"

namespace dcgan_fast::cuda {

bool has_warpgroups() {
#ifdef DCGAN_FAST_SM90A
  int device = 0, major = 0, minor = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess && major == 9 &&
         minor == 0;
#else
  return false;
#endif
}

bool has_boxes() { return has_warpgroups() && has_box_maps(); }

}  // namespace dcgan_fast::cuda
