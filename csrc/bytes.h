// Whether two stretches of memory hold the same bytes.
#pragma once
#include <cstdint>
#include <cstring>

namespace openwork {

inline bool same_bytes(std::uintptr_t a, std::uintptr_t b, std::int64_t size) {
  return size == 0 ||
         std::memcmp(reinterpret_cast<const void*>(a), reinterpret_cast<const void*>(b), static_cast<std::size_t>(size)) == 0;
}

}  // namespace openwork
