// What the current device can do beyond sm_80, for the glue: no header of CUDA.
#pragma once

namespace dcgan_fast::cuda {

// It multiplies by warpgroups (wgmma: sm_90), and this build has the code.
bool has_warpgroups();

// That, and tiles may be filled by the copy engine (TMA): the driver makes tensor maps.
bool has_boxes();

}  // namespace dcgan_fast::cuda
