// Pairs of codes that differ in few bits: what the glue in ops/ hands to the kernel.
#pragma once

#include <cstdint>
#include <vector>

#include "code_hash.h"

namespace dcgan_fast::cpu {

// Bits are shared out to radius + 1 parts: codes that differ in `radius` bits agree in one part at least, so it is enough to
// compare those that lie in one bucket of some part.
struct NearDuplicates {
  Codes codes;                // all different, bucket after bucket of one part
  const uint32_t* number;     // [rows], of each code
  const uint32_t* bucket_end;  // [rows], of the bucket that the row lies in
  const uint64_t* earlier;    // [parts, words], bits of the parts before this one: who agrees in one of them was found there
  int64_t parts;
  int radius;
};

// Pairs of numbers, the smaller one in the high half, in no order. A comparison of 128 bits takes a nanosecond of a core, the
// squares of the buckets' sizes say how many there are.
struct NearDuplicatesKernels {
  std::vector<uint64_t> (*find)(const NearDuplicates&);
  int (*distance)(const uint64_t* a, const uint64_t* b, int64_t words);
};

const NearDuplicatesKernels& near_duplicates_kernels();

}  // namespace dcgan_fast::cpu
