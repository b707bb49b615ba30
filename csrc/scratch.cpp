#include "scratch.h"

#include <cstdlib>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace openwork {
namespace {

constexpr std::size_t huge_page = std::size_t{1} << 21;

struct Buffer {
  void* data = nullptr;
  std::size_t capacity = 0;
  ~Buffer() { std::free(data); }

  void* reserve(std::size_t bytes) {
    if (bytes <= capacity) return data;
    std::free(data);
    capacity = 0;
    bytes = (bytes + huge_page - 1) / huge_page * huge_page;
    data = std::aligned_alloc(huge_page, bytes);
    if (!data) throw std::bad_alloc();
#if defined(__linux__)
    madvise(data, bytes, MADV_HUGEPAGE);  // a hint: tiles are read all over, and small pages miss in the TLB
#endif
    capacity = bytes;
    return data;
  }
};

thread_local Buffer buffers[3];

}  // namespace

void* scratch_bytes(Scratch which, std::size_t bytes) { return buffers[static_cast<int>(which)].reserve(bytes); }

}  // namespace openwork
