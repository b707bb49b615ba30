// Contiguous shares of the work for the threads of a team.
#pragma once
#include "kernel.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

// The first of `count` items that belongs to `share` of `shares`, so that all get about the same weight. Item i weighs
// end[i + 1] - end[i], and a little for itself; share `shares` begins at `count`.
inline std::int64_t share_begin(const std::int64_t* end, std::int64_t count, std::int64_t item_weight, int share, int shares) {
  const std::int64_t target = (end[count] + count * item_weight) * share / shares;
  std::int64_t low = 0, high = count;
  while (low < high) {
    const std::int64_t middle = (low + high) / 2;
    if (end[middle] + middle * item_weight < target) low = middle + 1;
    else high = middle;
  }
  return low;
}

}  // namespace
}  // namespace openwork::OPENWORK_LEVEL
