// Stands in for NVIDIA's cuda.h: tensor maps of the copy engine, as far as the kernels use them.
#pragma once

#include <cstdint>
#include <cstring>

#include "cuda_runtime.h"

enum CUresult { CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1, CUDA_ERROR_INVALID_CONTEXT = 201 };
using cuuint32_t = uint32_t;
using cuuint64_t = uint64_t;

struct alignas(64) CUtensorMap {
  cuuint64_t opaque[16];
};

enum CUtensorMapDataType {
  CU_TENSOR_MAP_DATA_TYPE_UINT16 = 1,
  CU_TENSOR_MAP_DATA_TYPE_FLOAT16 = 6,
  CU_TENSOR_MAP_DATA_TYPE_FLOAT32 = 7,
  CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 = 9,
  CU_TENSOR_MAP_DATA_TYPE_TFLOAT32 = 11,
};
enum CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE = 0 };
enum CUtensorMapSwizzle { CU_TENSOR_MAP_SWIZZLE_NONE = 0, CU_TENSOR_MAP_SWIZZLE_128B = 3 };
enum CUtensorMapL2promotion {
  CU_TENSOR_MAP_L2_PROMOTION_NONE = 0,
  CU_TENSOR_MAP_L2_PROMOTION_L2_128B = 2,
  CU_TENSOR_MAP_L2_PROMOTION_L2_256B = 3
};
enum CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE = 0 };

// The driver's rules, and those of the one form that is emulated: lines of 128 bytes, permuted, elements side by side.
inline CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* start,
                                       const cuuint64_t* sizes, const cuuint64_t* pitches, const cuuint32_t* box,
                                       const cuuint32_t* steps, CUtensorMapInterleave interleave,
                                       CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                                       CUtensorMapFloatOOBfill fill) {
  if (!emulator::has_context()) return CUDA_ERROR_INVALID_CONTEXT;
  const uint64_t bytes = type == CU_TENSOR_MAP_DATA_TYPE_FLOAT32 || type == CU_TENSOR_MAP_DATA_TYPE_TFLOAT32 ? 4 : 2;
  bool right = reinterpret_cast<uintptr_t>(map) % 64 == 0 && reinterpret_cast<uintptr_t>(start) % 16 == 0 &&
               rank >= 3 && rank <= emulator::TensorMap::kMostRank && interleave == CU_TENSOR_MAP_INTERLEAVE_NONE &&
               swizzle == CU_TENSOR_MAP_SWIZZLE_128B && fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE &&
               box[0] * bytes == 128;
  emulator::TensorMap own = {};
  static_assert(sizeof(own) <= sizeof(CUtensorMap));
  for (cuuint32_t d = 0; right && d < rank; d++) {
    const cuuint64_t pitch = d ? pitches[d - 1] : bytes;
    right = sizes[d] >= 1 && sizes[d] <= cuuint64_t{1} << 31 && box[d] >= 1 && box[d] <= 256 && steps[d] == 1 &&
            (d == 0 || (pitch % 16 == 0 && pitch < cuuint64_t{1} << 40));
    own.sizes[d] = static_cast<uint32_t>(sizes[d]);
    own.box[d] = static_cast<uint16_t>(box[d]);
    own.pitches[d] = pitch;
  }
  if (!right) return CUDA_ERROR_INVALID_VALUE;
  own.magic = emulator::TensorMap::kMagic;
  own.rank = static_cast<uint8_t>(rank);
  own.element_bytes = static_cast<uint8_t>(bytes);
  own.rounds = type == CU_TENSOR_MAP_DATA_TYPE_TFLOAT32;
  own.start = static_cast<const unsigned char*>(start);
  *map = {};
  std::memcpy(map, &own, sizeof(own));
  return CUDA_SUCCESS;
}

inline void* emulator::driver_function(const char* name) {
  const bool known = std::strcmp(name, "cuTensorMapEncodeTiled") == 0;
  return known ? reinterpret_cast<void*>(&cuTensorMapEncodeTiled) : nullptr;
}
