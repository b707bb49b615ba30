// Y = activation(X W^T + bias) with a sparse W in CSR: the forward kernel, and on the transposed matrix the one for dX = dY W.
//
// One loop (multiply.h) on feature-major tiles (tiles.h), which are packed and unpacked on the way.
#include "multiply.h"
#include "scratch.h"
#include "tiles.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

// A feature-major tile. Wide ones are taken in strips, as the small levels have few registers.
template <int width>
struct FeatureTile {
  static constexpr int vectors = width / lanes <= 8 ? width / lanes : 8, strips = width / (vectors * lanes);
  static constexpr int vectors_per_line = 16 / lanes, pitch = width;
  static constexpr int at(int strip, int j) { return (strip * vectors + j) * lanes; }
  OPENWORK_INLINE static const float* input(Word word, const float* x) { return input_of<width>(word, x); }
};

void multiply(const Walk& walk, const Word* words, std::int64_t part, const float* x, float* y, std::int64_t width) {
  if (width == 64) multiply(FeatureTile<64>{}, walk, words, part, x, y);
  else if (width == 32) multiply(FeatureTile<32>{}, walk, words, part, x, y);
  else multiply(FeatureTile<16>{}, walk, words, part, x, y);
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
