// Memory of feature maps and of weights' gradients, kept between calls.
//
// A DCGAN's maps are 4 to 34 MB. The C library gives such blocks back to the system when a tensor dies, so the first
// write of the next one meets a page fault per 4 KB: 20 ms and more for 34 MB on the development machine, where writing
// them takes 1.3. A pool keeps the pages.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>

#include <cstddef>

namespace dcgan_fast {

// at::empty, on the CPU with memory from the pool. The tensor is an ordinary one: its storage resizes, moves to shared
// memory and outlives the pool's release.
at::Tensor empty_maps(at::IntArrayRef sizes, const at::TensorOptions& options, at::MemoryFormat format);

// at::empty_like: of the same strides.
at::Tensor empty_maps_like(const at::Tensor& maps);

// The pool itself. Blocks of 64 KB and more come from it, smaller ones from the C library.
c10::Allocator& map_pool();

size_t free_map_bytes();    // held by the pool and used by no tensor
void release_free_maps();   // gives them back to the system

// Most bytes that stay in the pool unused (default: a quarter of the machine's memory); 0 turns the pool off.
size_t map_pool_limit();
void set_map_pool_limit(size_t bytes);

}  // namespace dcgan_fast
