// CSR topologies: positions to rows and back, proving one, and one update of one. Plain code, the same for every number of threads.
#pragma once
#include "kernel.h"

namespace openwork {

// crow [rows + 1] and col [kept] of flat row-major positions, int64. Of positions that are not ascending or out of range it becomes
// no topology, see is_topology.
void cut_into_rows(Address positions, std::int64_t kept, std::int64_t rows, std::int64_t columns, Address crow, Address col, int threads);

// The inverse of cut_into_rows. Pointers that are none leave positions unwritten and nothing else.
void lay_flat(Address crow, Address col, std::int64_t rows, std::int64_t columns, std::int64_t kept, Address positions, int threads);

// The positions of those nonzeros alone that are marked (bool [kept]); there is room for as many.
void lay_flat_marked(Address crow, Address col, std::int64_t rows, std::int64_t columns, Address marks, Address positions, int threads);

// The topology with the nonzeros that stay (bool [kept]) and those grown (flat positions, ascending, none of a nonzero that stays): its
// new_crow [rows + 1] and new_col, and where each of its nonzeros was among the old ones, int32, -1 if it was not.
void rewire(Address crow, Address col, std::int64_t rows, std::int64_t columns, Address stays, Address grown, std::int64_t grown_count,
            Address new_crow, Address new_col, Address origin, int threads);

// Whether crow [rows + 1], col [kept] is a CSR topology: from 0 to kept, never falling, columns in range and ascending in a row.
bool is_topology(Address crow, Address col, std::int64_t rows, std::int64_t columns, std::int64_t kept, int threads);

}  // namespace openwork
