// The codes seen so far, and which of a batch are new: what the glue in ops/ hands to the kernels.
#pragma once

#include <cstdint>

#include "code_hash.h"

namespace dcgan_fast::cpu {

// An open-addressing table over `codes`. A slot holds the number of a code + 1 in as many bits as slots are counted with, and
// bits of its hash above them; 0 where it is free. Slots are by the hash of this process and never saved.
struct DedupIndex {
  uint32_t* table;  // [slots]
  int64_t slots;    // a power of two, at least twice the codes, at most 2^32
  uint64_t* codes;  // [capacity, words], of which `count` are seen, in order of their first appearance
  int64_t count, words;
};

// Fills the table, all zeros, anew. Each code costs a cache miss, several of which are under way at a time.
void dedup_index_fill(const DedupIndex&);

// Keeps those rows of a batch that are neither seen nor repeated in it: `keep` comes in as true for the first of each code
// in the batch, and goes out as what is new. New codes are appended in order. Returns how many there are then; there must
// be room for all rows. Two cache misses a row that is new or seen before, none for other repetitions.
int64_t dedup_index_add(const DedupIndex&, const Codes& batch, bool* keep);

}  // namespace dcgan_fast::cpu
