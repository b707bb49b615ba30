#include "scratch.h"

#include <cstdlib>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace openwork {
namespace {

// Buffers of a good part of a large page get large ones; for less it would mostly stand empty. openwork/kernels/scratch.py
// predicts what is taken.
constexpr std::size_t huge_page = std::size_t{1} << 21, small_unit = std::size_t{1} << 16, worth_huge = huge_page / 4;

struct Buffer {
  void* data = nullptr;
  std::size_t capacity = 0;
  ~Buffer() { std::free(data); }

  void* reserve(std::size_t bytes) {
    if (bytes <= capacity) return data;
    std::free(data);
    capacity = 0;
    const bool huge = bytes >= worth_huge;
    const std::size_t unit = huge ? huge_page : small_unit;
    bytes = (bytes + unit - 1) / unit * unit;
    data = std::aligned_alloc(unit, bytes);
    if (!data) throw std::bad_alloc();
#if defined(__linux__)
    if (huge) madvise(data, bytes, MADV_HUGEPAGE);  // a hint: tiles are read all over, and small pages miss in the TLB
#endif
    capacity = bytes;
    return data;
  }
};

thread_local Buffer buffers[3];

}  // namespace

void* scratch_bytes(Scratch which, std::size_t bytes) { return buffers[static_cast<int>(which)].reserve(bytes); }

}  // namespace openwork
