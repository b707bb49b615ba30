// Building the walk of a CSR matrix, and that of its transpose. Plain code: it runs once per topology, and gives the same
// for every number of threads.
#pragma once
#include "runs.h"

namespace openwork {

// Fills runs [rows * blocks + run_padding], buckets [part_count][blocks][bucket_count] and parts [part_count + 1], with
// blocks = max(1, ceil(columns / block)). The first block has a run for every row, also empty ones, so that every output is
// written; the others leave empty rows out. The CSR arrays must be valid: Python checks them before calling.
void plan_runs(Address crow, Address col, std::int64_t rows, std::int64_t columns, std::int64_t block,
               std::int64_t part_count, Address runs, Address buckets, Address parts, int threads);

// The same for the transposed matrix [columns, rows], blocks of whose columns are blocks of rows of the matrix given. Its nonzeros
// stand in the order in which the runs meet them: walked_col [kept] is the row of each, permutation [kept] its position in the
// matrix given.
void plan_transposed_runs(Address crow, Address col, std::int64_t rows, std::int64_t columns, std::int64_t block,
                          std::int64_t part_count, Address runs, Address buckets, Address parts, Address walked_col,
                          Address permutation, int threads);

// The CSR arrays of the transposed matrix, and for each of its nonzeros the position in the original order. Columns of a row may come
// in any order and more than once.
void transpose(Address crow, Address col, std::int64_t rows, std::int64_t columns, Address transposed_crow,
               Address transposed_col, Address permutation, int threads);

}  // namespace openwork
