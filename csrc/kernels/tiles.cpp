// Between PyTorch's [batch][features] and feature-major tiles [ceil(batch / 64)][features][64], for chains of sparse layers that
// stay in tiles and pay the conversion only at their ends.
#include "tiles.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

template <class Convert>
void for_pieces(std::int64_t batch, std::int64_t features, int threads, Convert convert) {
  const std::int64_t tiles = (batch + tile_width - 1) / tile_width, pieces = (features + feature_piece - 1) / feature_piece;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (std::int64_t i = 0; i < tiles * pieces; ++i) {
    const std::int64_t tile = i / pieces, begin = i % pieces * feature_piece;
    convert(tile, smaller(tile_width, batch - tile * tile_width), begin, smaller(features, begin + feature_piece));
  }
}

}  // namespace

KERNEL(pack_tiles, Address x, std::int64_t batch, std::int64_t features, Address tiles, int threads) {
  for_pieces(batch, features, threads, [&](std::int64_t tile, std::int64_t samples, std::int64_t begin, std::int64_t end) {
    const std::int64_t offset = tile * tile_width * features;
    pack(at<const float>(x) + offset, features, samples, begin, end, at<float>(tiles) + offset, tile_width);
  });
}

KERNEL(unpack_tiles, Address tiles, std::int64_t batch, std::int64_t features, Address x, int threads) {
  for_pieces(batch, features, threads, [&](std::int64_t tile, std::int64_t samples, std::int64_t begin, std::int64_t end) {
    const std::int64_t offset = tile * tile_width * features;
    unpack<Activation::none>(at<const float>(tiles) + offset, tile_width, nullptr, begin, end, at<float>(x) + offset, features,
                             samples);
  });
}

}  // namespace openwork::OPENWORK_LEVEL
