#include "index.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "team.h"

namespace openwork {
namespace {

// What a row costs besides its nonzeros (loading and storing its outputs), in nonzeros.
constexpr std::int64_t row_cost = 2;

// First row of part `part`: the first multiple of part_alignment that has at least its share of the work before it.
std::int64_t first_row(const std::int32_t* crow, std::int64_t rows, std::int64_t part, std::int64_t part_count) {
  if (part == part_count) return rows;
  const std::int64_t total = crow[rows] + row_cost * rows;
  std::int64_t low = 0, high = (rows + part_alignment - 1) / part_alignment;
  while (low < high) {
    const std::int64_t middle = (low + high) / 2, row = std::min(rows, middle * part_alignment);
    if ((crow[row] + row_cost * row) * part_count >= total * part) high = middle;
    else low = middle + 1;
  }
  return std::min(rows, low * part_alignment);
}

// The walk of a matrix of which is known how long the run of every row in every block is: lengths [blocks][rows].
// lie(block, met, first, last) is called for the runs of one block of a part, which know their row and length, blocks in order, and
// says where their nonzeros lie; `met` nonzeros have been met in the parts and blocks before.
template <class Lie>
void lay_out(const std::int32_t* crow, const std::int32_t* lengths, std::int64_t rows, std::int64_t blocks, std::int64_t part_count,
             Run* runs, std::int32_t* buckets, Part* parts, int threads, Lie lie) {
  std::vector<std::int64_t> count(part_count);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (std::int64_t part = 0; part < part_count; ++part) {
    const std::int64_t begin = first_row(crow, rows, part, part_count), end = first_row(crow, rows, part + 1, part_count);
    std::int32_t* bucket = buckets + part * blocks * bucket_count;
    for (std::int64_t b = 0; b < blocks; ++b, bucket += bucket_count) {
      std::fill_n(bucket, bucket_count, 0);
      for (const std::int32_t* length = lengths + b * rows + begin; length < lengths + b * rows + end; ++length)
        ++bucket[std::min(*length, longest_unrolled + 1)];
      if (b > 0) bucket[0] = 0;
      for (int i = 0; i < bucket_count; ++i) count[part] += bucket[i];
    }
  }
  std::int64_t run = 0;
  for (std::int64_t part = 0; part <= part_count; ++part) {
    const std::int64_t begin = first_row(crow, rows, part, part_count);
    parts[part] = {static_cast<std::int32_t>(begin), static_cast<std::int32_t>(run),
                   static_cast<std::int32_t>(crow[begin] + part * part_padding)};
    if (part < part_count) run += count[part];
  }
  std::fill(runs + run, runs + rows * blocks + run_padding, Run{0, 0, 0});
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (std::int64_t part = 0; part < part_count; ++part) {
    const std::int32_t* bucket = buckets + part * blocks * bucket_count;
    Run* first = runs + parts[part].run;
    std::int32_t met = crow[parts[part].row];
    for (std::int64_t b = 0; b < blocks; ++b, bucket += bucket_count) {
      // Sorted by length, rows in order among equals: each bucket has a place to go on at, only the last is mixed.
      Run *next[bucket_count], *last = first;
      for (int i = 0; i < bucket_count; last += bucket[i++]) next[i] = last;
      Run* const longest = next[bucket_count - 1];
      for (std::int32_t row = parts[part].row; row < parts[part + 1].row; ++row)
        if (const std::int32_t length = lengths[b * rows + row]; length > 0 || b == 0)
          *next[std::min(length, longest_unrolled + 1)]++ = {row, 0, length};
      std::stable_sort(longest, last, [](const Run& x, const Run& y) { return x.length < y.length; });
      lie(b, met, first, last);
      for (; first < last; ++first) met += first->length;
    }
  }
}

std::int64_t block_count(std::int64_t columns, std::int64_t block) { return std::max<std::int64_t>(1, (columns + block - 1) / block); }

}  // namespace

void plan_runs(Address crow_, Address col_, std::int64_t rows, std::int64_t columns, std::int64_t block,
               std::int64_t part_count, Address runs, Address buckets, Address parts, int threads) {
  const auto* crow = at<const std::int32_t>(crow_);
  const auto* col = at<const std::int32_t>(col_);
  const std::int64_t blocks = block_count(columns, block);
  const auto lengths = std::make_unique_for_overwrite<std::int32_t[]>(blocks * rows);
  in_team(threads, [&](int share) {
    for (std::int64_t row = share_of(rows, share, threads); row < share_of(rows, share + 1, threads); ++row) {
      std::int32_t first = crow[row];
      const std::int32_t end = crow[row + 1];
      for (std::int64_t b = 0; b + 1 < blocks; ++b) {
        std::int32_t last = first;
        while (last < end && col[last] < (b + 1) * block) ++last;
        lengths[b * rows + row] = last - first;
        first = last;
      }
      lengths[(blocks - 1) * rows + row] = end - first;
    }
  });
  std::vector<std::int32_t> position(crow, crow + rows);  // where each row goes on in the next block
  lay_out(crow, lengths.get(), rows, blocks, part_count, at<Run>(runs), at<std::int32_t>(buckets), at<Part>(parts), threads,
          [&](std::int64_t, std::int32_t, Run* first, const Run* last) {
            for (; first < last; ++first) first->first = std::exchange(position[first->row], position[first->row] + first->length);
          });
}

void plan_transposed_runs(Address crow_, Address col_, std::int64_t rows, std::int64_t columns, std::int64_t block,
                          std::int64_t part_count, Address runs, Address buckets, Address parts, Address walked_col_,
                          Address permutation_, int threads) {
  const auto* crow = at<const std::int32_t>(crow_);
  const auto* col = at<const std::int32_t>(col_);
  auto* walked_col = at<std::int32_t>(walked_col_);
  auto* permutation = at<std::int32_t>(permutation_);
  // The rows of a block hold the runs of all columns in it, so a block by itself is small enough for the caches. Where there are
  // fewer blocks than threads, each is cut into slices of rows, which are counted by themselves.
  const std::int64_t blocks = block_count(rows, block), cuts = (threads + blocks - 1) / blocks, slices = blocks * cuts;
  std::vector<std::int64_t> edge(slices + 1, rows);
  for (std::int64_t b = 0; b < blocks; ++b) {
    const std::int64_t begin = b * block, end = std::min(rows, begin + block);
    for (std::int64_t cut = 0; cut < cuts; ++cut) {
      const std::int64_t before = crow[begin] + std::int64_t{crow[end] - crow[begin]} * cut / cuts;
      edge[b * cuts + cut] = std::lower_bound(crow + begin, crow + end, before) - crow;
    }
  }
  const auto next = std::make_unique_for_overwrite<std::int32_t[]>(slices * columns);  // of each column in each slice
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (std::int64_t slice = 0; slice < slices; ++slice) {
    std::int32_t* count = next.get() + slice * columns;
    std::fill_n(count, columns, 0);
    for (std::int32_t e = crow[edge[slice]]; e < crow[edge[slice + 1]]; ++e) ++count[col[e]];
  }
  const auto lengths = std::make_unique_for_overwrite<std::int32_t[]>(blocks * columns);
  std::vector<std::int32_t> start(columns + 1);  // row pointers of the transposed matrix
  for (std::int64_t b = 0; b < blocks; ++b) {
    std::int32_t* length = lengths.get() + b * columns;
    std::copy_n(next.get() + b * cuts * columns, columns, length);
    for (std::int64_t slice = b * cuts + 1; slice < (b + 1) * cuts; ++slice)
      for (std::int64_t k = 0; k < columns; ++k) length[k] += next[slice * columns + k];
    for (std::int64_t k = 0; k < columns; ++k) start[k + 1] += length[k];
  }
  for (std::int64_t k = 0; k < columns; ++k) start[k + 1] += start[k];
  lay_out(start.data(), lengths.get(), columns, blocks, part_count, at<Run>(runs), at<std::int32_t>(buckets), at<Part>(parts), threads,
          [&](std::int64_t b, std::int32_t to, Run* first, const Run* last) {
            for (; first < last; ++first) {
              first->first = to;
              for (std::int64_t slice = b * cuts; slice < (b + 1) * cuts; ++slice)
                to += std::exchange(next[slice * columns + first->row], to);
            }
          });
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (std::int64_t slice = 0; slice < slices; ++slice) {
    std::int32_t* place = next.get() + slice * columns;
    for (std::int64_t row = edge[slice]; row < edge[slice + 1]; ++row)
      for (std::int32_t e = crow[row]; e < crow[row + 1]; ++e) {
        const std::int32_t to = place[col[e]]++;
        walked_col[to] = static_cast<std::int32_t>(row);
        permutation[to] = e;
      }
  }
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

}  // namespace openwork
