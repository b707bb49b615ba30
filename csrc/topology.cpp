#include "topology.h"

#include <algorithm>
#include <vector>

#include "team.h"

namespace openwork {
namespace {

// The first row of share `i`, so that all have about the same number of nonzeros.
std::int64_t row_of_share(const std::int32_t* crow, std::int64_t rows, int i, int shares) {
  if (i == shares) return rows;
  return std::lower_bound(crow, crow + rows, share_of(crow[rows], i, shares)) - crow;
}

std::int64_t marked(const bool* marks, std::int64_t begin, std::int64_t end) {
  std::int64_t count = 0;
  for (std::int64_t e = begin; e < end; ++e) count += marks[e];
  return count;
}

}  // namespace

void cut_into_rows(Address positions_, std::int64_t kept, std::int64_t rows, std::int64_t columns, Address crow_,
                   Address col_, int threads) {
  const auto* position = at<const std::int64_t>(positions_);
  auto* crow = at<std::int32_t>(crow_);
  auto* col = at<std::int32_t>(col_);
  in_team(threads, [=](int share) {
    std::int64_t row = share_of(rows, share, threads);
    const std::int64_t last = share_of(rows, share + 1, threads);
    std::int64_t e = std::lower_bound(position, position + kept, row * columns) - position;
    for (; row < last; ++row) {
      crow[row] = static_cast<std::int32_t>(e);
      const std::int64_t begin = row * columns, end = begin + columns;
      for (; e < kept && position[e] < end; ++e) col[e] = static_cast<std::int32_t>(static_cast<std::uint64_t>(position[e]) - begin);
    }
    if (share == threads - 1) crow[rows] = static_cast<std::int32_t>(e);
  });
}

void lay_flat(Address crow_, Address col_, std::int64_t rows, std::int64_t columns, std::int64_t kept, Address positions_, int threads) {
  const auto* crow = at<const std::int32_t>(crow_);
  const auto* col = at<const std::int32_t>(col_);
  auto* position = at<std::int64_t>(positions_);
  in_team(threads, [=](int share) {
    for (std::int64_t row = share_of(rows, share, threads); row < share_of(rows, share + 1, threads); ++row)
      for (std::int64_t e = std::max(crow[row], 0), end = std::min<std::int64_t>(crow[row + 1], kept); e < end; ++e)
        position[e] = row * columns + col[e];
  });
}

void lay_flat_marked(Address crow_, Address col_, std::int64_t rows, std::int64_t columns, Address marks_, Address positions_, int threads) {
  const auto* crow = at<const std::int32_t>(crow_);
  const auto* col = at<const std::int32_t>(col_);
  const auto* marks = at<const bool>(marks_);
  auto* positions = at<std::int64_t>(positions_);
  std::vector<std::int64_t> before(threads + 1);
  const auto first = [=](int share) { return row_of_share(crow, rows, share, threads); };
  in_team(threads, [&](int share) { before[share + 1] = marked(marks, crow[first(share)], crow[first(share + 1)]); });
  for (int share = 0; share < threads; ++share) before[share + 1] += before[share];
  in_team(threads, [&](int share) {
    std::int64_t to = before[share];
    const std::int64_t end = before[share + 1];
    for (std::int64_t row = first(share); row < first(share + 1); ++row)
      for (std::int64_t e = crow[row]; e < crow[row + 1] && to < end; ++e) {
        positions[to] = row * columns + col[e];  // written again by the next one unless this is marked
        to += marks[e];
      }
  });
}

void rewire(Address crow_, Address col_, std::int64_t rows, std::int64_t columns, Address stays_, Address grown_, std::int64_t grown_count,
            Address new_crow_, Address new_col_, Address origin_, int threads) {
  const auto* crow = at<const std::int32_t>(crow_);
  const auto* col = at<const std::int32_t>(col_);
  const auto* stays = at<const bool>(stays_);
  const auto* grown = at<const std::int64_t>(grown_);
  auto* new_crow = at<std::int32_t>(new_crow_);
  auto* new_col = at<std::int32_t>(new_col_);
  auto* origin = at<std::int32_t>(origin_);
  std::vector<std::int64_t> staying(threads + 1);
  const auto first = [=](int share) { return row_of_share(crow, rows, share, threads); };
  in_team(threads, [&](int share) { staying[share + 1] = marked(stays, crow[first(share)], crow[first(share + 1)]); });
  for (int share = 0; share < threads; ++share) staying[share + 1] += staying[share];
  in_team(threads, [&](int share) {
    std::int64_t row = first(share);
    const std::int64_t end_row = first(share + 1);
    const auto before = [=](std::int64_t row) { return std::lower_bound(grown, grown + grown_count, row * columns) - grown; };
    std::int64_t j = before(row), to = staying[share] + j;
    const std::int64_t full = staying[share + 1] + before(end_row);
    for (; row < end_row; ++row) {
      new_crow[row] = static_cast<std::int32_t>(to);
      const std::int64_t begin = row * columns, end = crow[row + 1];
      std::int64_t e = crow[row], j_end = j;
      while (j_end < grown_count && grown[j_end] < begin + columns) ++j_end;
      // Which list moves on is a coin toss for the processor: it is computed, not branched on. A place that was left and is grown
      // again is met in both: first as one that leaves, so that the grown one knows where it came from.
      std::int32_t last = -1;  // the old column met last
      while (e < end && j < j_end) {
        const std::int32_t old = col[e], fresh = static_cast<std::int32_t>(grown[j] - begin);
        const bool is_old = old <= fresh, known = is_old | (last == fresh);
        new_col[to] = std::min(old, fresh);
        origin[to] = static_cast<std::int32_t>(e - !is_old) | -static_cast<std::int32_t>(!known);
        last = is_old ? old : last;
        to += !is_old | stays[e];
        e += is_old;
        j += !is_old;
      }
      for (; j < j_end; ++j, ++to) {
        new_col[to] = static_cast<std::int32_t>(grown[j] - begin);
        origin[to] = static_cast<std::int32_t>(last == new_col[to] ? e - 1 : -1);
      }
      for (; e < end && to < full; ++e) {
        new_col[to] = col[e];
        origin[to] = static_cast<std::int32_t>(e);
        to += stays[e];
      }
    }
    if (share == threads - 1) new_crow[rows] = static_cast<std::int32_t>(to);
  });
}

bool is_topology(Address crow_, Address col_, std::int64_t rows, std::int64_t columns, std::int64_t kept, int threads) {
  const auto* crow = at<const std::int32_t>(crow_);
  const auto* col = at<const std::int32_t>(col_);
  if (crow[0] != 0 || crow[rows] != kept) return false;
  // First the pointers alone: no column is read through one that is out of range.
  bool falls = false;
  for (std::int64_t row = 0; row < rows; ++row) falls |= crow[row + 1] < crow[row];
  if (falls) return false;
  std::vector<char> wrong(threads);
  in_team(threads, [&](int share) {
    bool odd = false;
    for (std::int64_t row = share_of(rows, share, threads); row < share_of(rows, share + 1, threads); ++row) {
      std::int64_t before = -1;
      for (std::int64_t e = crow[row]; e < crow[row + 1]; ++e) {
        odd |= col[e] <= before;
        before = col[e];
      }
      odd |= before >= columns;
    }
    wrong[share] = odd;
  });
  return std::count(wrong.begin(), wrong.end(), true) == 0;
}

}  // namespace openwork
