#include <cuda_runtime.h>

#include "conv_box_map.h"

namespace dcgan_fast::cuda {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// By way of the runtime: a process without a GPU has no driver to be linked to.
Encode find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
#else
  const cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
  if (error != cudaSuccess) (void)cudaGetLastError();
  return error == cudaSuccess && found == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(function) : nullptr;
}

Encode encode() {
  static const Encode function = find_encode();
  return function;
}

CUtensorMapDataType type_of(DType dtype) {
  switch (dtype) {
    case DType::kBFloat16:
      return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case DType::kFloat16:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    default:
      return CU_TENSOR_MAP_DATA_TYPE_TFLOAT32;  // the engine rounds: products would cut
  }
}

}  // namespace

bool has_box_maps() { return encode() != nullptr; }

const char* make_box_map(CUtensorMap& map, const void* start, DType dtype, int rank, const int64_t* sizes,
                         const int64_t* box) {
  constexpr int kMostRank = 5;
  cuuint64_t dims[kMostRank], pitches[kMostRank];
  cuuint32_t box_dims[kMostRank], steps[kMostRank];
  cuuint64_t pitch = dtype == DType::kFloat32 ? 4 : 2;
  for (int d = 0; d < rank; d++) {
    dims[d] = static_cast<cuuint64_t>(sizes[d]);
    box_dims[d] = static_cast<cuuint32_t>(box[d]);
    steps[d] = 1;
    pitch *= dims[d];
    pitches[d] = pitch;  // of the next dimension; the last is not read
  }
  // A thread that has not called the runtime, as autograd's, has no context: to choose the device that is chosen gives
  // it one.
  int device = 0;
  if (!encode() || cudaGetDevice(&device) != cudaSuccess || cudaSetDevice(device) != cudaSuccess)
    return "no tensor map can be made";
  const CUresult result = encode()(&map, type_of(dtype), static_cast<cuuint32_t>(rank), const_cast<void*>(start), dims,
                                   pitches, box_dims, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                   CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? nullptr : "the driver refused a tensor map";
}

}  // namespace dcgan_fast::cuda
