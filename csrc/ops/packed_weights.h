// Weights in the order in which an engine reads them, packed once per version of the weight.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <memory>

#include "../cpu/conv.h"

namespace dcgan_fast {

// `weight` packed by `engine` for `direction` (down or up); the memory lives as long as the pointer.
//
// A packing is used again until the weight changes. Its version counter tells of every write that autograd sees; of the
// others (torch's fused Adam, `weight.data`, NumPy, another process) a fingerprint does: all bytes of a weight up to
// 16 KB, of a larger one 8 bytes from each of 64 equal parts, which costs 0.3 us in cache and some 10 us out of it.
// What it may miss is a write past autograd to less than a thirtieth of a large weight: see forget_packed_weight.
// Inference tensors, which have no version counter, are packed at each call.
//
// `keep`: for later calls. Not worth its memory in a pass whose gradient is taken next, which forgets it; a packing that
// is there serves such a pass too.
//
// `shape` may differ in batch and map sizes from call to call: a packing depends on its channels, kernel, stride,
// padding and dtype alone.
std::shared_ptr<const void> packed_weight(const at::Tensor& weight, const cpu::ConvShape& shape,
                                          cpu::Direction direction, const cpu::ConvEngine& engine, bool keep = true);

// The next call packs `weight` anew. To be called when its gradient has been computed: what follows is mostly a step of
// an optimiser, and not all of them tell. A loop that takes several gradients before it steps packs once more for each.
void forget_packed_weight(const at::Tensor& weight);

size_t packed_weight_bytes();   // held now
void release_packed_weights();  // forgets all; memory that a kernel reads lives until it is done

// Most bytes to hold (the least recently used go first); 0 turns the cache off.
void set_packed_weights_limit(size_t bytes);

}  // namespace dcgan_fast
