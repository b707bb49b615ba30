// Walking one part of a sparse matrix, block by block and bucket by bucket; see runs.h for the order.
#pragma once
#include <type_traits>

#include "runs.h"
#include "simd.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

template <int n>
using Count = std::integral_constant<int, n>;

// A bucket of runs that all have n nonzeros; n = -1: their own length each.
template <int n, class Visit>
OPENWORK_INLINE void walk_bucket(const Run*& run, std::int32_t count, Visit visit) {
  for (const Run* end = run + count; run < end; ++run) visit(Count<n>{}, run);
}

template <class Visit, int... n>
OPENWORK_INLINE void walk_block(const Run*& run, const std::int32_t* bucket, Visit visit, std::integer_sequence<int, n...>) {
  (walk_bucket<n>(run, bucket[n], visit), ...);
  walk_bucket<-1>(run, bucket[longest_unrolled + 1], visit);
}

// Calls visit(Count<n>, run) for every run of the part in one block. run[1] ... run[run_padding] may be read.
template <class Visit>
OPENWORK_INLINE void walk_block(const Run*& run, const std::int32_t* bucket, Visit visit) {
  walk_block(run, bucket, visit, std::make_integer_sequence<int, longest_unrolled + 1>{});
}

}  // namespace
}  // namespace openwork::OPENWORK_LEVEL
