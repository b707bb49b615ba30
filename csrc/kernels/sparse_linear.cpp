// Y = activation(X W^T + bias) with a sparse W in CSR: the forward kernel, and on the transposed matrix the one for dX = dY W.
//
// Each output row of a tile is a handful of vector accumulators; each nonzero costs one word of the weight stream, a broadcast,
// and as many aligned loads and fused multiply-adds as there are accumulators. The inputs that one block of columns needs stay
// in the first-level cache while all rows pass over it. An output is one chain of multiply-adds in ascending column order, so
// neither threads nor tiles nor blocks change its bits.
#include "scratch.h"
#include "stream.h"
#include "tiles.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

// How far the weight stream (in words) and the outputs (in runs, which jump about because they are sorted) are fetched early.
constexpr int words_ahead = 256;
constexpr int words_per_line = 8;
constexpr int outputs_ahead = 4;

// One run onto one strip of `vectors` registers; n nonzeros, or run->length if n = -1. `first`: the block that starts the sum.
template <int vectors, int width, bool first, int n>
OPENWORK_INLINE void multiply_run(const Run* run, const Word* word, const float* x, float* y) {
  if (n == 0 && !first) return;
  const std::int32_t length = n >= 0 ? n : run->length;
  float* out = y + static_cast<std::size_t>(run->row) * width;
  for (int u = 0; u < length; u += words_per_line) prefetch(word + words_ahead + u);
  const float* later = y + static_cast<std::size_t>(run[outputs_ahead].row) * width;
  OPENWORK_UNROLL
  for (int j = 0; j < vectors * lanes; j += 16) prefetch(later + j);

  Vec sum[vectors];
  OPENWORK_UNROLL
  for (int j = 0; j < vectors; ++j) sum[j] = first ? Vec{} : load(out + j * lanes);
  const auto add = [&](std::int32_t u) __attribute__((always_inline)) {
    Word both = word[u];
    asm("" : "+r"(both));  // one load of the word, not one of each half: loads are what limits this loop
    const float* in = input_of<width>(both, x);
    const Vec weight = broadcast(value_of(both));
    OPENWORK_UNROLL
    for (int j = 0; j < vectors; ++j) sum[j] = weight * load(in + j * lanes) + sum[j];
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
  for (int j = 0; j < vectors; ++j) store(out + j * lanes, sum[j]);
}

// One part of the rows for one tile: y (overwritten) = W x.
template <int width>
void multiply(const Walk& walk, const Word* words, std::int64_t part, const float* x, float* y) {
  constexpr int vectors = width / lanes <= 8 ? width / lanes : 8;  // more would not fit in the registers of the small levels
  constexpr int strip = vectors * lanes;
  const Run* run = walk.runs + walk.parts[part].run;
  const Word* word = words + walk.parts[part].word;
  const std::int32_t* bucket = walk.buckets + part * walk.block_count * bucket_count;
  for (std::int64_t block = 0; block < walk.block_count; ++block, bucket += bucket_count) {
    const Run* first_run = run;
    const Word* first_word = word;
    for (int s = 0; s < width; s += strip) {
      run = first_run;
      word = first_word;
      if (block == 0)
        walk_block(run, bucket, [&](auto n, const Run* r) __attribute__((always_inline)) {
          multiply_run<vectors, width, true, n>(r, word, x + s, y + s);
          word += n >= 0 ? static_cast<int>(n) : r->length;
        });
      else
        walk_block(run, bucket, [&](auto n, const Run* r) __attribute__((always_inline)) {
          multiply_run<vectors, width, false, n>(r, word, x + s, y + s);
          word += n >= 0 ? static_cast<int>(n) : r->length;
        });
    }
  }
}

void multiply(const Walk& walk, const Word* words, std::int64_t part, const float* x, float* y, std::int64_t width) {
  if (width == 64) multiply<64>(walk, words, part, x, y);
  else if (width == 32) multiply<32>(walk, words, part, x, y);
  else multiply<16>(walk, words, part, x, y);
}

// A whole call: inputs and outputs are row-major [batch][features], or tiles [batch / 64][features][64].
struct Job {
  const float* x;
  float* y;
  std::int64_t batch, inputs, outputs;
  const float* bias;
  Activation activation;
  bool tiled;

  std::int64_t samples(std::int64_t tile) const { return smaller(tile_width, batch - tile * tile_width); }
  std::int64_t width(std::int64_t tile) const { return tiled ? tile_width : width_for(samples(tile)); }
  const float* input(std::int64_t tile) const { return x + tile * tile_width * inputs; }
  float* output(std::int64_t tile) const { return y + tile * tile_width * outputs; }

  void pack_features(std::int64_t tile, std::int64_t begin, std::int64_t end, float* to) const {
    pack(input(tile), inputs, samples(tile), begin, end, to, width(tile));
  }
  void deliver(std::int64_t tile, std::int64_t begin, std::int64_t end, float* from) const {
    with(activation, [&](auto a) {
      if (tiled) finish<a>(from, tile_width, bias, begin, end);
      else unpack<a>(from, width(tile), bias, begin, end, output(tile), outputs, samples(tile));
    });
  }
};

// A tile alone: one thread does all parts, in buffers of its own.
void whole_tile(const Job& job, const Walk& walk, const Word* words, std::int64_t tile) {
  const std::int64_t width = job.width(tile);
  const float* in = job.input(tile);
  float* out = job.output(tile);
  if (!job.tiled) {
    float* packed = scratch<float>(Scratch::own, (job.inputs + job.outputs) * width);
    job.pack_features(tile, 0, job.inputs, packed);
    in = packed;
    out = packed + job.inputs * width;
  }
  for (std::int64_t part = 0; part < walk.part_count; ++part) multiply(walk, words, part, in, out, width);
  job.deliver(tile, 0, job.outputs, out);
}

// Features packed as one piece of work.
constexpr std::int64_t pack_piece = 64;

}  // namespace

// tiled: x and y are tiles (aligned to 64 bytes) rather than row-major. bias may be 0.
// The weights are either `words`, woven before, or `values` [kept], which are woven first; permutation as in `Weave`.
KERNEL(sparse_linear, Address x, Address y, std::int64_t batch, std::int64_t inputs, std::int64_t outputs, Address words_,
       Address values, Address permutation, Address bias, int activation, Address column, std::int64_t kept, Address runs,
       Address buckets, Address parts, std::int64_t part_count, std::int64_t block_count, bool tiled, int threads) {
  const Walk walk{at<const Run>(runs), at<const std::int32_t>(buckets), at<const Part>(parts), part_count, block_count};
  const Job job{at<const float>(x), at<float>(y), batch, inputs, outputs, at<const float>(bias),
                static_cast<Activation>(activation), tiled};
  Word* woven = words_ ? nullptr : scratch<Word>(Scratch::weights, stream_length(kept, part_count));
  const Word* words = words_ ? at<const Word>(words_) : woven;
  const Weave weave{at<const std::int32_t>(column), at<const float>(values), at<const std::int32_t>(permutation), kept};

  // As many tiles as can be dealt out evenly go whole to one thread each; the team shares each of the others by rows.
  const std::int64_t tiles = (batch + tile_width - 1) / tile_width;
  const std::int64_t alone = tiles - tiles % threads, together = tiles - alone;
  const std::int64_t pieces = tiled ? 0 : (inputs + pack_piece - 1) / pack_piece;
  const std::int64_t stride = (inputs + outputs) * tile_width;
  float* shared = tiled || !together ? nullptr : scratch<float>(Scratch::shared, together * stride);

#pragma omp parallel num_threads(threads)
  {
    if (woven) {
#pragma omp for schedule(static) nowait
      for (std::int64_t part = 0; part < part_count; ++part) weave.part(walk, part, woven);
    }
#pragma omp for schedule(static)
    for (std::int64_t i = 0; i < together * pieces; ++i) {
      const std::int64_t tile = i / pieces, begin = i % pieces * pack_piece;
      job.pack_features(alone + tile, begin, smaller(inputs, begin + pack_piece), shared + tile * stride);
    }

#pragma omp for schedule(dynamic, 1) nowait
    for (std::int64_t tile = 0; tile < alone; ++tile) whole_tile(job, walk, words, tile);

#pragma omp for schedule(dynamic, 1)
    for (std::int64_t i = 0; i < together * part_count; ++i) {
      const std::int64_t tile = i % together, part = i / together;
      const std::int64_t width = job.width(alone + tile);
      const float* in = tiled ? job.input(alone + tile) : shared + tile * stride;
      float* out = tiled ? job.output(alone + tile) : shared + tile * stride + inputs * width;
      multiply(walk, words, part, in, out, width);
      job.deliver(alone + tile, walk.parts[part].row, walk.parts[part + 1].row, out);
    }
  }
}

// The weight stream of `values` [kept], as sparse_linear reads it: words [stream_length].
KERNEL(weave_stream, Address values, Address words, Address column, std::int64_t kept, Address runs, Address buckets,
       Address parts, std::int64_t part_count, std::int64_t block_count) {
  const Walk walk{at<const Run>(runs), at<const std::int32_t>(buckets), at<const Part>(parts), part_count, block_count};
  const Weave weave{at<const std::int32_t>(column), at<const float>(values), nullptr, kept};
  for (std::int64_t part = 0; part < part_count; ++part) weave.part(walk, part, at<Word>(words));
}

}  // namespace openwork::OPENWORK_LEVEL
