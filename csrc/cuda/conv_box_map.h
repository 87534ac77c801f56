// Tensor maps, by which the copy engine finds a box of pixels or weights. Made on the host, by the driver.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "bn_act.h"

namespace dcgan_fast::cuda {

// Whether this process can make any: the driver is asked once.
bool has_box_maps();

// That of a dense tensor of `rank` sizes, innermost first, and of boxes in it whose lines have 128 bytes; of float32
// they are rounded to tf32. Returns null, or a static string that says what is wrong.
const char* make_box_map(CUtensorMap& map, const void* start, DType dtype, int rank, const int64_t* sizes,
                         const int64_t* box);

}  // namespace dcgan_fast::cuda
