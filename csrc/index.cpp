#include "index.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "team.h"

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
               std::int64_t part_count, Address runs_, Address buckets_, Address parts_, int threads) {
  const auto* crow = at<const std::int32_t>(crow_);
  const auto* col = at<const std::int32_t>(col_);
  auto* runs = at<Run>(runs_);
  auto* buckets = at<std::int32_t>(buckets_);
  auto* parts = at<Part>(parts_);
  const std::int64_t blocks = std::max<std::int64_t>(1, (columns + block - 1) / block);
  std::vector<std::int32_t> position(crow, crow + rows);  // where each row goes on in the next block
  std::vector<std::vector<Run>> walks(part_count);
  const auto begin_of = [&](std::int64_t part) { return part == part_count ? rows : first_row(crow, rows, part, part_count); };

#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (std::int64_t part = 0; part < part_count; ++part) {
    const std::int64_t begin = begin_of(part), end = begin_of(part + 1);
    std::int32_t* bucket = buckets + part * blocks * bucket_count;
    std::vector<Run>& walk = walks[part];
    std::vector<Run> found;
    for (std::int64_t b = 0; b < blocks; ++b, bucket += bucket_count) {
      const std::int64_t edge = std::min(columns, (b + 1) * block);
      std::fill_n(bucket, bucket_count, 0);
      found.clear();
      for (std::int64_t row = begin; row < end; ++row) {
        const std::int32_t first = position[row];
        std::int32_t last = first;
        if (blocks == 1) last = crow[row + 1];
        while (last < crow[row + 1] && col[last] < edge) ++last;
        position[row] = last;
        if (last == first && b > 0) continue;
        found.push_back({static_cast<std::int32_t>(row), first, last - first});
        ++bucket[std::min(last - first, longest_unrolled + 1)];
      }
      // Sorted by length, rows in order among equals: each bucket has a place to go on at, only the last is mixed.
      const std::size_t before = walk.size();
      walk.resize(before + found.size());
      Run* next[bucket_count];
      next[0] = walk.data() + before;
      for (int i = 1; i < bucket_count; ++i) next[i] = next[i - 1] + bucket[i - 1];
      Run* const longest = next[bucket_count - 1];
      for (const Run& one : found) *next[std::min(one.length, longest_unrolled + 1)]++ = one;
      std::stable_sort(longest, walk.data() + walk.size(), [](const Run& x, const Run& y) { return x.length < y.length; });
    }
  }
  Run* run = runs;
  for (std::int64_t part = 0; part <= part_count; ++part) {
    const std::int64_t begin = begin_of(part);
    parts[part] = {static_cast<std::int32_t>(begin), static_cast<std::int32_t>(run - runs),
                   static_cast<std::int32_t>(crow[begin] + part * part_padding)};
    if (part < part_count) run = std::copy(walks[part].begin(), walks[part].end(), run);
  }
  std::fill(run, runs + rows * blocks + run_padding, Run{0, 0, 0});
}

void transpose(Address crow_, Address col_, std::int64_t rows, std::int64_t columns, Address transposed_crow,
               Address transposed_col, Address permutation_, int threads) {
  const auto* crow = at<const std::int32_t>(crow_);
  const auto* col = at<const std::int32_t>(col_);
  auto* start = at<std::int32_t>(transposed_crow);
  auto* row_of = at<std::int32_t>(transposed_col);
  auto* permutation = at<std::int32_t>(permutation_);
  // Each share counts its rows' nonzeros by column, and then knows where those of a column go: behind those of the shares before.
  std::vector<std::int64_t> first(threads + 1, rows);
  for (int i = 0; i < threads; ++i)
    first[i] = std::lower_bound(crow, crow + rows, static_cast<std::int32_t>(share_of(crow[rows], i, threads))) - crow;
  std::vector<std::vector<std::int32_t>> next(threads, std::vector<std::int32_t>(columns));
  in_team(threads, [&](int i) {
    for (std::int32_t e = crow[first[i]]; e < crow[first[i + 1]]; ++e) ++next[i][col[e]];
  });
  std::int32_t total = 0;
  for (std::int64_t k = 0; k < columns; ++k) {
    start[k] = total;
    for (auto& of_share : next) total += std::exchange(of_share[k], total);
  }
  start[columns] = total;
  in_team(threads, [&](int i) {
    for (std::int64_t row = first[i]; row < first[i + 1]; ++row)
      for (std::int32_t e = crow[row]; e < crow[row + 1]; ++e) {
        const std::int32_t to = next[i][col[e]]++;
        row_of[to] = static_cast<std::int32_t>(row);
        permutation[to] = e;
      }
  });
}

void put_in_order(Address runs_, Address parts_, std::int64_t part_count, Address col_, Address permutation_, Address ordered_col_,
                  Address ordered_permutation_, int threads) {
  auto* runs = at<Run>(runs_);
  const auto* parts = at<const Part>(parts_);
  const auto* col = at<const std::int32_t>(col_);
  const auto* permutation = at<const std::int32_t>(permutation_);
  auto* ordered_col = at<std::int32_t>(ordered_col_);
  auto* ordered_permutation = at<std::int32_t>(ordered_permutation_);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (std::int64_t part = 0; part < part_count; ++part) {
    std::int32_t to = static_cast<std::int32_t>(parts[part].word - part * part_padding);
    for (Run* run = runs + parts[part].run; run < runs + parts[part + 1].run; ++run) {
      std::copy_n(col + run->first, run->length, ordered_col + to);
      std::copy_n(permutation + run->first, run->length, ordered_permutation + to);
      run->first = to;
      to += run->length;
    }
  }
}

}  // namespace openwork
