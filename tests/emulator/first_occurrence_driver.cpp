// Calls the first_occurrence launchers, compiled for the emulator.
#include "../../csrc/cuda/first_occurrence.h"

#include "driver.h"

namespace {

using namespace dcgan_fast::cuda;
using emulator::answer;
using emulator::Array;
using emulator::Request;

// Both launchers, and the first one for `keep` alone where `groups` is not set.
void find(const Request& request) {
  const int64_t rows = request.integer("rows"), words = request.integer("words");
  const bool wanted = request.flag("groups");
  Array codes(rows * words * sizeof(uint64_t), request.integer("misaligned_words") * sizeof(uint64_t));
  codes.receive();
  const Array keep(rows), found(sizeof(int64_t)), links(first_occurrence_link_bytes(rows));
  FirstOccurrence args = {};
  {
    const Array table(first_occurrence_table_bytes(rows));  // gone before the second
    args.codes = static_cast<const uint64_t*>(codes.data());
    args.rows = rows;
    args.words = words;
    args.seed[0] = static_cast<uint64_t>(request.integer("seed_first"));
    args.seed[1] = static_cast<uint64_t>(request.integer("seed_rest"));
    args.keep = static_cast<bool*>(keep.data());
    args.table = table.data();
    args.links = wanted ? links.data() : nullptr;
    args.groups = wanted ? static_cast<int64_t*>(found.data()) : nullptr;
    if (const char* error = launch_first_occurrence(args, nullptr)) return answer(error);
  }
  const int64_t groups = wanted ? *args.groups : 0;
  const Array group(wanted ? rows * sizeof(int64_t) : 0), counts(groups * sizeof(int64_t));
  if (wanted) {
    const GroupNumbers numbers{rows, links.data(), static_cast<int64_t*>(group.data()),
                               static_cast<int64_t*>(counts.data())};
    if (const char* error = launch_group_numbers(numbers, nullptr)) return answer(error);
  }
  answer(nullptr);
  keep.send();
  std::cout.write(reinterpret_cast<const char*>(&groups), sizeof(groups));
  group.send();
  counts.send();
}

// The launchers' answer to sizes that no memory could hold.
void rules(const Request& request) {
  FirstOccurrence args = {};
  int64_t groups;
  args.rows = request.integer("rows");
  args.words = request.integer("words");
  args.groups = request.flag("groups") ? &groups : nullptr;
  const char* error = launch_first_occurrence(args, nullptr);
  answer(error ? error : launch_group_numbers({args.rows, nullptr, nullptr, nullptr}, nullptr));
}

}  // namespace

int main() { return emulator::serve<Request>({{"find", find}, {"rules", rules}}); }
