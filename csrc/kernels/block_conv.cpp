// Y = activation(conv(X, W) + bias + carried) where `height` consecutive output channels share one list of taps; see planes.h and bands.h.
//
// The inputs of a tap are loaded once for all of them: with four channels and more the multiply-adds, not the loads, are the limit.
#include "bands.h"
#include "groups.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

template <int height>
struct Blocks {
  static constexpr std::int64_t row_alignment = height;
  const std::int32_t* parts;   // [part_count + 1] first rows, multiples of the height except the last
  std::int64_t part_count;
  const std::int32_t* place;   // [entries], in vectors
  const float* weight;         // [entries][height]
  const std::int32_t* first;   // [blocks][groups] first entry, and the end of all
  std::int64_t block_count, group_count;

  // `vectors` vectors of a group's rows, from `from` on.
  template <int vectors>
  OPENWORK_INLINE void add(std::int64_t block, std::int64_t group, const float* in, float* out, std::int64_t pitch) const {
    const std::int32_t* range = first + block * group_count + group;
    if (range[0] == range[1] && block > 0) return;
    Sums<height, vectors> sums;
    OPENWORK_UNROLL
    for (int r = 0; r < height; ++r) {
      OPENWORK_UNROLL
      for (int j = 0; j < vectors; ++j) sums.row[r][j] = block == 0 ? Vec{} : load(out + r * pitch + j * lanes);
    }
    const float* w = weight + static_cast<std::size_t>(range[0]) * height;
    for (std::int32_t e = range[0]; e < range[1]; ++e, w += height) {
      prefetch(w + weights_ahead);
      sums.template add<(1u << height) - 1>(in + static_cast<std::size_t>(place[e]) * pixel_vector, w);
    }
    OPENWORK_UNROLL
    for (int r = 0; r < height; ++r) {
      OPENWORK_UNROLL
      for (int j = 0; j < vectors; ++j) store(out + r * pitch + j * lanes, sums.row[r][j]);
    }
  }

  template <int count>
  void multiply(const PixelTile<count>& tile, std::int64_t part, const float* in, float* out) const {
    constexpr int all = count * pixel_vector / lanes, at_once = accumulators / height < all ? accumulators / height : all;
    const std::int64_t begin = parts[part] / height, end = (parts[part + 1] + height - 1) / height;
    for (std::int64_t block = 0; block < block_count; ++block)
      for (std::int64_t group = begin; group < end; ++group) {
        float* to = out + group * height * tile.pitch;
        int v = 0;
        for (; v + at_once <= all; v += at_once) add<at_once>(block, group, in + v * lanes, to + v * lanes, tile.pitch);
        if constexpr (all % at_once > 0) add<all % at_once>(block, group, in + v * lanes, to + v * lanes, tile.pitch);
      }
  }
};

}  // namespace

// x, y, bias and carried as in `Images`; x is aligned to 64 bytes where it is read as it is. height: 2, 4 or 8.
KERNEL(block_conv, Address x, Address y, std::int64_t images, Address geometry, Address bias, Address carried, int activation,
       bool x_blocked, bool y_blocked, Address parts, std::int64_t part_count, Address place, Address weight, Address first,
       std::int64_t block_count, std::int64_t group_count, int height, int threads) {
  const Geometry g = dealt(*at<const Geometry>(geometry), images, threads);
  const auto go = [&](auto number) {
    using Weights = Blocks<decltype(number)::value>;
    const Weights weights{at<const std::int32_t>(parts), part_count, at<const std::int32_t>(place), at<const float>(weight),
                          at<const std::int32_t>(first), block_count, group_count};
    with_planes(g, [&](auto planes) {
      const Images all = Images::of(x, y, bias, carried, activation, x_blocked, y_blocked, images, g);
      run(Job<decltype(planes), Weights>(all, planes, weights), [] {}, threads);
    });
  };
  if (height == 8) go(std::integral_constant<int, 8>{});
  else if (height == 4) go(std::integral_constant<int, 4>{});
  else go(std::integral_constant<int, 2>{});
}

// Where the inputs of each matrix column are, in vectors: what a block_conv wants for each of its entries.
KERNEL(tap_places, Address geometry, Address places) {
  with_planes(*at<const Geometry>(geometry), [&](auto planes) { place_taps(planes, at<std::int32_t>(places)); });
}

}  // namespace openwork::OPENWORK_LEVEL
