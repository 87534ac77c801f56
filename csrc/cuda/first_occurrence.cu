// Which rows of codes are the first of their kind: what is launched for a call.
#include "first_occurrence.cuh"

#include "launch.cuh"

namespace dcgan_fast::cuda {
namespace {

constexpr size_t kScratchBytes = kWarps * sizeof(uint32_t);

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t row_blocks(int64_t rows) { return ceil_div(rows, kThreads); }
int64_t tiles_of(int64_t rows) { return ceil_div(rows, kTileRows); }

// The counts of tiles follow the links.
uint32_t* links_of(void* links) { return static_cast<uint32_t*>(links); }
uint32_t* tiles_at(void* links, int64_t rows) { return links_of(links) + rows; }

template <int W>
const char* insert(const FirstOccurrence& args, CUstream_st* stream) {
  const auto kernel = args.links ? first_occurrence_insert<W, true> : first_occurrence_insert<W, false>;
  return launch(kernel, row_blocks(args.rows), kThreads, 0, stream, args);
}

const char* insert_rows(const FirstOccurrence& args, CUstream_st* stream) {
  if (args.words == 1) return insert<1>(args, stream);
  if (args.words == 2 && reinterpret_cast<uintptr_t>(args.codes) % kAccessBytes == 0) return insert<2>(args, stream);
  return insert<0>(args, stream);
}

const char* check_rows(int64_t rows) {
  if (rows < 0) return "a size is negative";
  if (rows > kMostRows) return "there must be at most 2^31 - 1 rows";
  return nullptr;
}

const char* check(const FirstOccurrence& args) {
  if (const char* error = check_rows(args.rows)) return error;
  if (args.words < 1) return "there must be at least one word";
  if (!args.links != !args.groups) return "'links' and 'groups' must be given together";
  if (args.rows > 0 && !(args.codes && args.keep && args.table)) return "'codes', 'keep' or 'table' is null";
  return nullptr;
}

}  // namespace

size_t first_occurrence_table_bytes(int64_t rows) { return sizeof(Slot) * kSlotsPerRow * rows; }

size_t first_occurrence_link_bytes(int64_t rows) { return sizeof(uint32_t) * (rows + tiles_of(rows)); }

const char* launch_first_occurrence(const FirstOccurrence& args, CUstream_st* stream) {
  if (const char* error = check(args)) return error;
  if (args.rows == 0) return args.groups ? fill(args.groups, 0, sizeof(*args.groups), stream) : nullptr;
  if (const char* error = fill(args.table, 0xff, first_occurrence_table_bytes(args.rows), stream)) return error;
  const char* error = args.links ? fill(args.links, 0xff, sizeof(uint32_t) * args.rows, stream)
                                 : fill(args.keep, true, args.rows, stream);
  if (error) return error;
  error = insert_rows(args, stream);
  if (error || !args.links) return error;
  const int64_t tiles = tiles_of(args.rows);
  uint32_t* const at = tiles_at(args.links, args.rows);
  const uint32_t* const links = links_of(args.links);
  error = launch(first_occurrence_count, tiles, kThreads, kScratchBytes, stream, links, args.keep, args.rows, at);
  if (error) return error;
  return launch(first_occurrence_scan, 1, kThreads, kScratchBytes, stream, at, tiles, args.groups);
}

const char* launch_group_numbers(const GroupNumbers& args, CUstream_st* stream) {
  if (const char* error = check_rows(args.rows)) return error;
  if (args.rows == 0) return nullptr;
  if (!(args.links && args.group && args.counts)) return "'links', 'group' or 'counts' is null";
  uint32_t* const links = links_of(args.links);
  const uint32_t* const tiles = tiles_at(args.links, args.rows);
  const char* error = launch(first_occurrence_number, tiles_of(args.rows), kThreads, kScratchBytes, stream, links, tiles,
                             args.rows, args.counts);
  if (error) return error;
  return launch(first_occurrence_group, row_blocks(args.rows), kThreads, 0, stream,
                static_cast<const uint32_t*>(links), args.rows, args.group, args.counts);
}

}  // namespace dcgan_fast::cuda
