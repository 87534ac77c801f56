// Which rows of codes are the first of their kind, on CUDA: the launchers.
//
// As bn_act.h: no torch header, no allocation, no synchronisation, no state. Results are a function of the codes alone:
// threads race for places in a table, but what is read from it in the end does not depend on who won. How many groups
// there are is known on the device only, so `counts` can be allocated when launch_first_occurrence() is done and
// `*groups` has been read back; then launch_group_numbers() does the rest.
#pragma once

#include <cstddef>
#include <cstdint>

struct CUstream_st;  // what a cudaStream_t points to

namespace dcgan_fast::cuda {

constexpr int64_t kMostRows = INT32_MAX;  // a link (first_occurrence.cuh) has 32 bits, one of which tells what it is

struct FirstOccurrence {
  const uint64_t* codes;  // [rows, words]
  int64_t rows;           // 0 to kMostRows
  int64_t words;          // at least 1
  uint64_t seed[2];       // of the hash: any; results do not depend on it
  bool* keep;             // [rows], written: is no earlier row equal?
  void* table;            // first_occurrence_table_bytes(rows) bytes, 8-byte aligned; uninitialised, free again afterwards
  void* links;            // first_occurrence_link_bytes(rows) bytes, 8-byte aligned; for launch_group_numbers(); null:
                          // `keep` alone is wanted
  int64_t* groups;        // [1], written: how many kinds there are; null if `links` is
};

struct GroupNumbers {
  int64_t rows;     // that of launch_first_occurrence()
  void* links;      // as it left them; of no use afterwards
  int64_t* group;   // [rows], written: how many kinds appeared before this row's first
  int64_t* counts;  // [groups], written: rows of each group
};

// Workspace: 16 bytes a row, and 4 more where groups are wanted. 100 million rows take 2 GB.
size_t first_occurrence_table_bytes(int64_t rows);
size_t first_occurrence_link_bytes(int64_t rows);

// Null, or a static string that says what is wrong (see bn_act.h).
const char* launch_first_occurrence(const FirstOccurrence& args, CUstream_st* stream);
const char* launch_group_numbers(const GroupNumbers& args, CUstream_st* stream);

}  // namespace dcgan_fast::cuda
