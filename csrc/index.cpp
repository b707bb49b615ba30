#include "index.h"

#include <algorithm>
#include <vector>

namespace openwork {
namespace {

// What a row costs besides its nonzeros (loading and storing its outputs), in nonzeros.
constexpr std::int64_t row_cost = 2;

// First row of part `part`: the first multiple of part_alignment that has at least its share of the work before it.
std::int64_t first_row(const std::int32_t* crow, std::int64_t rows, std::int64_t part, std::int64_t part_count) {
  const std::int64_t total = crow[rows] + row_cost * rows;
  std::int64_t low = 0, high = (rows + part_alignment - 1) / part_alignment;
  while (low < high) {
    const std::int64_t middle = (low + high) / 2, row = std::min(rows, middle * part_alignment);
    if ((crow[row] + row_cost * row) * part_count >= total * part) high = middle;
    else low = middle + 1;
  }
  return std::min(rows, low * part_alignment);
}

}  // namespace

void plan_runs(Address crow_, Address col_, std::int64_t rows, std::int64_t columns, std::int64_t block,
               std::int64_t part_count, Address runs_, Address buckets_, Address parts_) {
  const auto* crow = at<const std::int32_t>(crow_);
  const auto* col = at<const std::int32_t>(col_);
  auto* run = at<Run>(runs_);
  auto* bucket = at<std::int32_t>(buckets_);
  auto* parts = at<Part>(parts_);
  const std::int64_t blocks = std::max<std::int64_t>(1, (columns + block - 1) / block);
  std::int64_t run_count = 0;
  std::vector<std::int32_t> position(crow, crow + rows);  // where each row goes on in the next block
  std::vector<Run> found;

  for (std::int64_t part = 0; part < part_count; ++part) {
    const std::int64_t begin = first_row(crow, rows, part, part_count);
    const std::int64_t end = part + 1 == part_count ? rows : first_row(crow, rows, part + 1, part_count);
    parts[part] = {static_cast<std::int32_t>(begin), static_cast<std::int32_t>(run_count),
                   static_cast<std::int32_t>(crow[begin] + part * part_padding)};
    for (std::int64_t b = 0; b < blocks; ++b, bucket += bucket_count) {
      const std::int64_t edge = std::min(columns, (b + 1) * block);
      std::fill_n(bucket, bucket_count, 0);
      found.clear();
      for (std::int64_t row = begin; row < end; ++row) {
        const std::int32_t first = position[row];
        std::int32_t last = first;
        while (last < crow[row + 1] && col[last] < edge) ++last;
        position[row] = last;
        if (last == first && b > 0) continue;
        found.push_back({static_cast<std::int32_t>(row), first, last - first});
        ++bucket[std::min(last - first, longest_unrolled + 1)];
      }
      // Sorted by length, rows in order among equals: each bucket has a place to go on at, only the last is mixed.
      Run* next[bucket_count];
      next[0] = run + run_count;
      for (int i = 1; i < bucket_count; ++i) next[i] = next[i - 1] + bucket[i - 1];
      Run* const longest = next[bucket_count - 1];
      for (const Run& one : found) *next[std::min(one.length, longest_unrolled + 1)]++ = one;
      run_count += static_cast<std::int64_t>(found.size());
      std::stable_sort(longest, run + run_count, [](const Run& x, const Run& y) { return x.length < y.length; });
    }
  }
  parts[part_count] = {static_cast<std::int32_t>(rows), static_cast<std::int32_t>(run_count),
                       static_cast<std::int32_t>(crow[rows] + part_count * part_padding)};
  std::fill_n(run + run_count, rows * blocks + run_padding - run_count, Run{0, 0, 0});
}

void transpose(Address crow_, Address col_, std::int64_t rows, std::int64_t columns, Address transposed_crow,
               Address transposed_col, Address permutation_) {
  const auto* crow = at<const std::int32_t>(crow_);
  const auto* col = at<const std::int32_t>(col_);
  auto* start = at<std::int32_t>(transposed_crow);
  auto* row_of = at<std::int32_t>(transposed_col);
  auto* permutation = at<std::int32_t>(permutation_);
  std::fill_n(start, columns + 1, 0);
  for (std::int32_t e = 0; e < crow[rows]; ++e) ++start[col[e] + 1];
  for (std::int64_t k = 0; k < columns; ++k) start[k + 1] += start[k];
  std::vector<std::int32_t> next(start, start + columns);
  for (std::int64_t row = 0; row < rows; ++row)
    for (std::int32_t e = crow[row]; e < crow[row + 1]; ++e) {
      const std::int32_t to = next[col[e]]++;
      row_of[to] = static_cast<std::int32_t>(row);
      permutation[to] = e;
    }
}

}  // namespace openwork
