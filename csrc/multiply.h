// One part of a sparse matrix times one tile of inputs: the loop at the heart of the linear and the convolution kernel.
//
// Each output row of a tile is a handful of vector accumulators; each nonzero costs one word of the weight stream, a broadcast,
// and as many aligned loads and fused multiply-adds as there are accumulators. The inputs that one block of columns needs stay
// in the first-level cache while all rows pass over it. An output is one chain of multiply-adds in ascending column order, so
// neither threads nor tiles nor blocks change its bits.
//
// What a tile is, the kernels say with a type:
//
//   vectors         accumulators of one strip
//   strips          strips that make up the tile, each a pass over the rows of a block
//   at(strip, j)    where vector j of a strip is, in floats from the start of a row of the tile
//   input(word, x)  the inputs that a word of the stream points to
//   pitch           floats between the rows of outputs
#pragma once
#include "stream.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

// How far the weight stream (in words) and the outputs (in runs, which jump about because they are sorted) are fetched early.
constexpr int words_ahead = 256;
constexpr int words_per_line = 8;
constexpr int outputs_ahead = 4;

// One run onto one strip; n nonzeros, or run->length if n = -1. `first`: the block that starts the sum.
template <bool first, int n, class Tile>
OPENWORK_INLINE void multiply_run(const Tile& tile, int strip, const Run* run, const Word* word, const float* x, float* y) {
  if (n == 0 && !first) return;
  constexpr int vectors = Tile::vectors;
  const std::int32_t length = n >= 0 ? n : run->length;
  float* out = y + static_cast<std::size_t>(run->row) * tile.pitch;
  for (int u = 0; u < length; u += words_per_line) prefetch(word + words_ahead + u);
  const float* later = y + static_cast<std::size_t>(run[outputs_ahead].row) * tile.pitch;
  OPENWORK_UNROLL
  for (int j = 0; j < vectors; j += Tile::vectors_per_line) prefetch(later + Tile::at(strip, j));

  Vec sum[vectors];
  OPENWORK_UNROLL
  for (int j = 0; j < vectors; ++j) sum[j] = first ? Vec{} : load(out + Tile::at(strip, j));
  const auto add = [&](std::int32_t u) __attribute__((always_inline)) {
    Word both = word[u];
    asm("" : "+r"(both));  // one load of the word, not one of each half: loads are what limits this loop
    const float* in = Tile::input(both, x);
    const Vec weight = broadcast(value_of(both));
    OPENWORK_UNROLL
    for (int j = 0; j < vectors; ++j) sum[j] = weight * load(in + Tile::at(strip, j)) + sum[j];
  };
  if constexpr (n >= 0) {
    OPENWORK_UNROLL
    for (int u = 0; u < n; ++u) add(u);
  } else {
    std::int32_t u = 0;
    for (; u + 4 <= length; u += 4) {
      add(u);
      add(u + 1);
      add(u + 2);
      add(u + 3);
    }
    for (; u < length; ++u) add(u);
  }
  OPENWORK_UNROLL
  for (int j = 0; j < vectors; ++j) store(out + Tile::at(strip, j), sum[j]);
}

// The rows of one part: y (overwritten) = W x.
template <class Tile>
void multiply(const Tile& tile, const Walk& walk, const Word* words, std::int64_t part, const float* x, float* y) {
  const Run* run = walk.runs + walk.parts[part].run;
  const Word* word = words + walk.parts[part].word;
  const std::int32_t* bucket = walk.buckets + part * walk.block_count * bucket_count;
  for (std::int64_t block = 0; block < walk.block_count; ++block, bucket += bucket_count) {
    const Run* first_run = run;
    const Word* first_word = word;
    for (int strip = 0; strip < Tile::strips; ++strip) {
      run = first_run;
      word = first_word;
      if (block == 0)
        walk_block(run, bucket, [&](auto n, const Run* r) __attribute__((always_inline)) {
          multiply_run<true, n>(tile, strip, r, word, x, y);
          word += n >= 0 ? static_cast<int>(n) : r->length;
        });
      else
        walk_block(run, bucket, [&](auto n, const Run* r) __attribute__((always_inline)) {
          multiply_run<false, n>(tile, strip, r, word, x, y);
          word += n >= 0 ? static_cast<int>(n) : r->length;
        });
    }
  }
}

}  // namespace
}  // namespace openwork::OPENWORK_LEVEL
