// The k largest of a list of numbers, exactly. Plain code for the updates of a topology, the same for every
// number of threads.
#pragma once
#include "kernel.h"

namespace openwork {

// chosen [n] (bool): the k largest scores [n] (float, or double if `wide`), ties to the first. NaN counts as minus infinity.
void mark_largest(Address scores, bool wide, std::int64_t n, std::int64_t k, Address chosen, int threads);

// chosen [n] (bool): all values [n] but the `drop` of those that are not negative and the `drop_negative` of the `negative` others that
// are closest to zero, ties to the first. No value is NaN.
void mark_farther_from_zero(Address values, bool wide, std::int64_t n, std::int64_t negative, std::int64_t drop,
                            std::int64_t drop_negative, Address chosen, int threads);

// Moves the k largest of scores [n] and their places to the front, in the order they stand in, ties to the first; 0 < k <= n.
// Returns the smallest of them. No score is NaN.
float keep_largest(Address places, Address scores, std::int64_t n, std::int64_t k, int threads);

// Moves those of scores [n] that are above the threshold and their places to the front, in the order they stand in. Returns how many.
std::int64_t keep_above(Address places, Address scores, std::int64_t n, float threshold);

}  // namespace openwork
