// Which rows of codes are the first of their kind: what the glue in ops/ hands to the kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "code_hash.h"

namespace dcgan_fast::cpu {

struct FirstOccurrence {
  Codes codes;     // fewer than 2^32 rows
  bool* keep;      // [rows], written: is no earlier row equal?
  int64_t* group;  // [rows], written: how many kinds appeared before this one's first; null: only `keep` is wanted
  std::function<int64_t*(int64_t groups)> make_counts;  // called once, where `group` is wanted: [groups], written: their rows
};

// Bytes moved per row of w words, the floor: 8w read, 8w written and 8w read again by partitions, 2 written and read to find
// them again, 4 (1 where keep alone is wanted) written and read as what the tables said, then the results, 1 and 8 written,
// and 8 a group: about 70 for 128 bits, 55 for keep alone. Tables and comparisons take longer than that: 7 ns a row of a core,
// of 18 (11) in all.
struct FirstOccurrenceKernels {
  size_t (*scratch_bytes)(const FirstOccurrence&);
  void (*run)(const FirstOccurrence&, void* scratch);
};

const FirstOccurrenceKernels& first_occurrence_kernels();

}  // namespace dcgan_fast::cpu
