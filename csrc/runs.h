// The order in which a sparse matrix is walked: runs, sorted into buckets of equal length.
//
// The columns are cut into blocks small enough for an activation tile to stay in the first-level cache. The nonzeros of one row
// inside one block are a run: they are neighbours in CSR order, so a run is (row, first nonzero, length) and neither values
// nor columns are copied. Inside a block the runs are sorted by length, because then the loop over the nonzeros has a length the
// compiler knows and no exit for the processor to mispredict, which at high sparsity costs more than the row itself.
//
// The rows are cut into contiguous parts of about equal work, for the threads. Whatever the blocks and parts, the nonzeros of a
// row are met in ascending column order by one thread: results do not depend on either.
#pragma once
#include "kernel.h"

namespace openwork {

// Runs of 0 ... longest_unrolled nonzeros have a bucket each; the bucket after them holds the longer ones.
constexpr int longest_unrolled = 24;
constexpr int bucket_count = longest_unrolled + 2;

// Entries behind the last run that may be read (by prefetching) and hold zeros.
constexpr int run_padding = 16;

// Rows per unit of a part boundary: the unpacked rows of two parts then share no cache line.
constexpr int part_alignment = 16;

struct Run {
  std::int32_t row;
  std::int32_t first;   // position of its first nonzero in CSR order
  std::int32_t length;
};

// Room behind the words of each part in a weight stream (stream.h).
constexpr int part_padding = 16;

struct Part {
  std::int32_t row;   // its first row; the next part's first row ends it
  std::int32_t run;   // its first run
  std::int32_t word;  // its first word in a weight stream
};

struct Walk {
  const Run* runs;              // [parts][blocks][bucket][run]
  const std::int32_t* buckets;  // [parts][blocks][bucket_count] number of runs
  const Part* parts;            // [part_count + 1]
  std::int64_t part_count;
  std::int64_t block_count;
};

}  // namespace openwork
