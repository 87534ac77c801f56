#include "capture.h"

#include <cuda_runtime.h>

namespace dcgan_fast::cuda {

bool is_capturing(CUstream_st* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(stream, &status) == cudaSuccess) return status != cudaStreamCaptureStatusNone;
  (void)cudaGetLastError();  // the legacy stream, while another is captured: it cannot be itself
  return false;
}

}  // namespace dcgan_fast::cuda
