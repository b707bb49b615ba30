// Sorted positions: where one list stands in another, both as one, and CSR to positions and back. Plain code for the updates of
// a topology, the same for every number of threads. Every list is int64, ascending; Python checks what comes from outside before
// calling.
#pragma once
#include "kernel.h"

namespace openwork {

// counts[j] = how many of positions [n] lie below bounds[j], or with `or_at` below or at it.
void count_below(Address positions, std::int64_t n, Address bounds, std::int64_t m, bool or_at, Address counts, int threads);

// index[j] = where wanted[j] stands in positions [n], n > 0, and found[j] (bool) whether it does; in range in any case.
void locate(Address positions, std::int64_t n, Address wanted, std::int64_t m, Address index, Address found, int threads);

// carried[j] = items[index[j]] where found[j] (bool), else zero; items of 2, 4 or 8 bytes.
void carry(Address items, std::int64_t bytes, Address index, Address found, std::int64_t m, Address carried, int threads);

// merged [n + m]: both lists in order.
void merge(Address one, std::int64_t n, Address other, std::int64_t m, Address merged, int threads);

// sorted [n]: the numbers [n], none negative, in order.
void sort(Address numbers, std::int64_t n, Address sorted, int threads);

// counts[j] = how many of the ends [n] (double, never falling, the last positive) are not above points[j] (double, none negative).
void count_reached(Address ends, std::int64_t n, Address points, std::int64_t m, Address counts, int threads);

// crow [rows + 1] and col [kept] of flat row-major positions, which lie in range.
void cut_into_rows(Address positions, std::int64_t kept, std::int64_t rows, std::int64_t columns, Address crow, Address col);

// The inverse of cut_into_rows. Pointers that are none leave positions unwritten and nothing else.
void lay_flat(Address crow, Address col, std::int64_t rows, std::int64_t columns, std::int64_t kept, Address positions);

// Whether crow [rows + 1], col [kept] is a CSR topology: from 0 to kept, never falling, columns in range and ascending in a row.
bool is_topology(Address crow, Address col, std::int64_t rows, std::int64_t columns, std::int64_t kept);

}  // namespace openwork
