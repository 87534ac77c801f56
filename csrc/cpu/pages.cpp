#include "pages.h"

#include <c10/util/Exception.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

namespace dcgan_fast::cpu {

namespace {

constexpr size_t kHugePage = size_t{1} << 21;

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

size_t whole_pages(size_t bytes) {
  static const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return round_up(bytes, page);
}

}  // namespace

void* allocate_pages(size_t bytes, const char* purpose) {
  const size_t size = whole_pages(bytes);
  const bool huge = size >= kHugePage;
  const size_t mapped = huge ? size + kHugePage : size;  // room to align in
  void* const memory = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  TORCH_CHECK_WITH(OutOfMemoryError, memory != MAP_FAILED, "dcgan_fast: not enough memory for ", purpose, ": ", bytes,
                   " bytes more could not be allocated");
  if (!huge) return memory;
  auto* const begin = static_cast<char*>(memory);
  const auto address = reinterpret_cast<uintptr_t>(begin);
  char* const data = begin + (round_up(address, kHugePage) - address);
  if (data > begin) munmap(begin, data - begin);
  munmap(data + size, begin + mapped - (data + size));
#ifdef MADV_HUGEPAGE
  // Whole huge pages only, or the last would take up to 2 MB more than was asked for. A refusal costs only time.
  madvise(data, size / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  return data;
}

void free_pages(void* data, size_t bytes) {
  if (data) munmap(data, whole_pages(bytes));
}

}  // namespace dcgan_fast::cpu
