// Whether a stream is being captured in a CUDA graph: an op that would wait for the device must not do so then.
#pragma once

struct CUstream_st;  // what a cudaStream_t points to

namespace dcgan_fast::cuda {

bool is_capturing(CUstream_st* stream);

}  // namespace dcgan_fast::cuda
