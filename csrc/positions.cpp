#include "positions.h"

#include <algorithm>
#include <memory>

namespace openwork {

void count_below(Address positions_, std::int64_t n, Address bounds_, std::int64_t m, bool or_at, Address counts_) {
  const auto* position = at<const std::int64_t>(positions_);
  const auto* bounds = at<const std::int64_t>(bounds_);
  auto* counts = at<std::int64_t>(counts_);
  std::int64_t i = 0;
  for (std::int64_t j = 0; j < m; ++j) {
    const std::int64_t bound = bounds[j] + or_at;
    while (i < n && position[i] < bound) ++i;
    counts[j] = i;
  }
}

void locate(Address positions_, std::int64_t n, Address wanted_, std::int64_t m, Address index_, Address found_) {
  const auto* position = at<const std::int64_t>(positions_);
  const auto* wanted = at<const std::int64_t>(wanted_);
  auto* index = at<std::int64_t>(index_);
  auto* found = at<bool>(found_);
  std::int64_t i = 0;
  for (std::int64_t j = 0; j < m; ++j) {
    while (i + 1 < n && position[i] < wanted[j]) ++i;
    index[j] = i;
    found[j] = position[i] == wanted[j];
  }
}

void merge(Address one_, std::int64_t n, Address other_, std::int64_t m, Address merged_) {
  const auto *one = at<const std::int64_t>(one_), *other = at<const std::int64_t>(other_);
  auto* merged = at<std::int64_t>(merged_);
  const auto *one_end = one + n, *other_end = other + m;
  // Which list is next is a coin toss for the processor: it is computed, not branched on.
  while (one < one_end && other < other_end) {
    const std::int64_t a = *one, b = *other;
    const bool second = b < a;
    *merged++ = second ? b : a;
    other += second;
    one += !second;
  }
  merged = std::copy(one, one_end, merged);
  std::copy(other, other_end, merged);
}

void sort(Address numbers_, std::int64_t n, Address sorted_) {
  const auto* numbers = at<const std::int64_t>(numbers_);
  auto* sorted = at<std::int64_t>(sorted_);
  std::copy_n(numbers, n, sorted);
  if (n < 1000) return std::sort(sorted, sorted + n);
  // By one digit after the other, the last first, each time keeping the order found.
  constexpr int digit_bits = 11;
  constexpr std::int64_t digits = 1 << digit_bits;
  const std::int64_t most = *std::max_element(numbers, numbers + n);
  const auto spare = std::make_unique_for_overwrite<std::int64_t[]>(n);
  std::int64_t *from = sorted, *to = spare.get();
  for (int shift = 0; shift < 63 && most >> shift; shift += digit_bits) {
    std::int64_t next[digits + 1] = {};
    for (std::int64_t i = 0; i < n; ++i) ++next[(from[i] >> shift & (digits - 1)) + 1];
    for (std::int64_t d = 0; d < digits; ++d) next[d + 1] += next[d];
    for (std::int64_t i = 0; i < n; ++i) to[next[from[i] >> shift & (digits - 1)]++] = from[i];
    std::swap(from, to);
  }
  if (from != sorted) std::copy_n(from, n, sorted);
}

void cut_into_rows(Address positions_, std::int64_t kept, std::int64_t rows, std::int64_t columns, Address crow_,
                   Address col_) {
  const auto* position = at<const std::int64_t>(positions_);
  auto* crow = at<std::int32_t>(crow_);
  auto* col = at<std::int32_t>(col_);
  std::int64_t e = 0;
  for (std::int64_t row = 0; row < rows; ++row) {
    crow[row] = static_cast<std::int32_t>(e);
    const std::int64_t begin = row * columns, end = begin + columns;
    for (; e < kept && position[e] < end; ++e) col[e] = static_cast<std::int32_t>(static_cast<std::uint64_t>(position[e]) - begin);
  }
  crow[rows] = static_cast<std::int32_t>(e);
}

void lay_flat(Address crow_, Address col_, std::int64_t rows, std::int64_t columns, std::int64_t kept, Address positions_) {
  const auto* crow = at<const std::int32_t>(crow_);
  const auto* col = at<const std::int32_t>(col_);
  auto* position = at<std::int64_t>(positions_);
  for (std::int64_t row = 0; row < rows; ++row)
    for (std::int64_t e = std::max(crow[row], 0), end = std::min<std::int64_t>(crow[row + 1], kept); e < end; ++e)
      position[e] = row * columns + col[e];
}

bool is_topology(Address crow_, Address col_, std::int64_t rows, std::int64_t columns, std::int64_t kept) {
  const auto* crow = at<const std::int32_t>(crow_);
  const auto* col = at<const std::int32_t>(col_);
  if (crow[0] != 0 || crow[rows] != kept) return false;
  // First the pointers alone: no column is read through one that is out of range.
  bool falls = false;
  for (std::int64_t row = 0; row < rows; ++row) falls |= crow[row + 1] < crow[row];
  if (falls) return false;
  bool wrong = false;
  for (std::int64_t row = 0; row < rows; ++row) {
    std::int64_t before = -1;
    for (std::int64_t e = crow[row]; e < crow[row + 1]; ++e) {
      wrong |= col[e] <= before;
      before = col[e];
    }
    wrong |= before >= columns;
  }
  return !wrong;
}

}  // namespace openwork
