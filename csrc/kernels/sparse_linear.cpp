// Y = activation(X W^T + bias) with a sparse W in CSR: the forward kernel, and on the transposed matrix the one for dX = dY W.
#include "feature_tile.h"
#include "layer.h"

namespace openwork::OPENWORK_LEVEL {

// tiled_x, tiled_y: x and y are tiles (aligned to 64 bytes) rather than row-major. bias may be 0.
// The weights are either `words`, woven before, or `values` [kept], which are woven first; with a permutation, column and
// permutation stand in the order of the walk.
KERNEL(sparse_linear, Address x, Address y, std::int64_t batch, std::int64_t inputs, std::int64_t outputs, Address words,
       Address values, Address permutation, Address bias, int activation, Address column, std::int64_t kept, Address runs,
       Address buckets, Address parts, std::int64_t part_count, std::int64_t block_count, bool tiled_x, bool tiled_y,
       int threads) {
  const Walk walk{at<const Run>(runs), at<const std::int32_t>(buckets), at<const Part>(parts), part_count, block_count};
  const Layer layer{at<const float>(x), at<float>(y), batch, inputs, outputs, at<const float>(bias),
                    static_cast<Activation>(activation), &walk.parts->row, part_count, sizeof(Part) / sizeof(std::int32_t),
                    tiled_x, tiled_y};
  const auto product = [&walk](auto width, std::int64_t part, const Word* words, const float* in, float* out) {
    multiply(FeatureTile<width>{}, walk, words, part, in, out);
  };
  if (words)
    return run_layer(layer, Shares::of(layer.tiles(), part_count, threads), threads, product,
                     [words] { return at<const Word>(words); });
  const Weave weave{at<const std::int32_t>(column), at<const float>(values), at<const std::int32_t>(permutation), kept};
  const Woven woven = Woven::of(kept, Shares::of(layer.tiles(), part_count, threads, kept));
  run_layer(layer, woven.shares, threads, product, [&] {
    return woven.in_thread([&](std::int64_t part, Word* to) {
      if (permutation) weave.ordered_part(walk, part, to);
      else weave.part(walk, part, to);
    });
  });
}

// The weight stream of `values` [kept], as sparse_linear reads it: words [stream_length].
KERNEL(weave_stream, Address values, Address words, Address column, std::int64_t kept, Address runs, Address buckets,
       Address parts, std::int64_t part_count, std::int64_t block_count) {
  const Walk walk{at<const Run>(runs), at<const std::int32_t>(buckets), at<const Part>(parts), part_count, block_count};
  const Weave weave{at<const std::int32_t>(column), at<const float>(values), nullptr, kept};
  for (std::int64_t part = 0; part < part_count; ++part) weave.part(walk, part, at<Word>(words));
}

}  // namespace openwork::OPENWORK_LEVEL
