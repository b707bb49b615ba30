// Plain code in parallel: n items in as many contiguous shares as there are threads. What a share does must not depend on how many
// there are.
#pragma once
#include <cstdint>

namespace openwork {

// The first item of share `i`; share i + 1 begins where share i ends.
constexpr std::int64_t share_of(std::int64_t n, int i, int shares) { return n * i / shares; }

// Calls body(share) for every share, each on a thread of its own.
template <class Body>
void in_team(int shares, Body body) {
#pragma omp parallel for num_threads(shares) schedule(static, 1) if (shares > 1)
  for (int share = 0; share < shares; ++share) body(share);
}

}  // namespace openwork
