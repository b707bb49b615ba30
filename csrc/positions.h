// Sorted positions: where one list stands in another, and both as one. Plain code for the updates of a topology, the same for every
// number of threads. Every list is int64, ascending; Python checks what comes from outside before calling.
#pragma once
#include "kernel.h"

namespace openwork {

// counts[j] = how many of positions [n] lie below bounds[j], or with `or_at` below or at it.
void count_below(Address positions, std::int64_t n, Address bounds, std::int64_t m, bool or_at, Address counts, int threads);

// index[j] = where wanted[j] stands in positions [n], n > 0, and found[j] (bool) whether it does; in range in any case.
void locate(Address positions, std::int64_t n, Address wanted, std::int64_t m, Address index, Address found, int threads);

// carried[j] = items[origin[j]], or zero where that (int32) is negative; items of 2, 4 or 8 bytes.
void carry(Address items, std::int64_t bytes, Address origin, std::int64_t m, Address carried, int threads);

// places [m]: the free places of the given ranks (int64, ascending), among those that are not taken [n].
void free_places(Address taken, std::int64_t n, Address ranks, std::int64_t m, Address places, int threads);

// merged [n + m]: both lists in order.
void merge(Address one, std::int64_t n, Address other, std::int64_t m, Address merged, int threads);

// sorted [n]: the numbers [n], none negative, in order.
void sort(Address numbers, std::int64_t n, Address sorted, int threads);

// counts[j] = how many of the ends [n] (double, never falling, the last positive) are not above points[j] (double, none negative).
void count_reached(Address ends, std::int64_t n, Address points, std::int64_t m, Address counts, int threads);

// Sets the bits of the numbers [n], in any order; returns how many were not set before.
std::int64_t set_bits(Address bits, Address numbers, std::int64_t n);

// The numbers of the bits that are set, in order: as many as there are.
void list_bits(Address bits, std::int64_t words, Address numbers, int threads);

}  // namespace openwork
