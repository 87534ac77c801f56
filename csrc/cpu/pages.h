// Large blocks of memory for maps and scratch, straight from the system: freeing one really gives it back, which the C
// library's heap cannot promise.
#pragma once

#include <cstddef>

namespace dcgan_fast::cpu {

// Whole pages; from 2 MB on aligned to 2 MB and on huge pages where the system has them, so that the first pass over
// 32 MB takes 16 page faults and not 8,192. `purpose` is for the error when there is no memory left.
void* allocate_pages(size_t bytes, const char* purpose);

void free_pages(void* data, size_t bytes);  // as many as were asked for

}  // namespace dcgan_fast::cpu
