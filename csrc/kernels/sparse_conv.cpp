// Y = activation(conv(X, W) + bias + carried) with a sparse W, and dX from dY with the same weights; see planes.h and bands.h.
#include "bands.h"
#include "multiply.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

// Weights in the order of a walk.
struct Walked {
  static constexpr std::int64_t row_alignment = 1;
  Walk walk;
  const Word* words;
  std::int64_t part_count;

  template <class Tile>
  OPENWORK_INLINE void multiply(const Tile& tile, std::int64_t part, const float* in, float* out) const {
    OPENWORK_LEVEL::multiply(tile, walk, words, part, in, out);
  }
};

}  // namespace

// x, y, bias and carried as in `Images`; x is aligned to 64 bytes where it is read as it is. The rows of the matrix are (output channel,
// its phases), its columns (input channel, taps). Words woven before, or values [kept] that are woven first; permutation as in `Weave`.
KERNEL(sparse_conv, Address x, Address y, std::int64_t images, Address geometry, Address words_, Address values, Address permutation,
       Address bias, Address carried, int activation, bool x_blocked, bool y_blocked, Address column, std::int64_t kept, Address runs,
       Address buckets, Address parts, std::int64_t part_count, std::int64_t block_count, int threads) {
  const Walk walk{at<const Run>(runs), at<const std::int32_t>(buckets), at<const Part>(parts), part_count, block_count};
  const Geometry g = dealt(*at<const Geometry>(geometry), images, threads);
  const std::int64_t length = stream_length(kept, part_count);
  Word* woven = words_ ? nullptr : scratch<Word>(Scratch::weights, length + (g.matrix_columns() + 1) / 2);
  auto* places = woven ? reinterpret_cast<std::int32_t*>(woven + length) : nullptr;
  const Weave weave{at<const std::int32_t>(column), at<const float>(values), at<const std::int32_t>(permutation), kept, places};
  with_planes(g, [&](auto planes) {
    if (woven) place_taps(planes, places);
    const Job<decltype(planes), Walked> job(Images::of(x, y, bias, carried, activation, x_blocked, y_blocked, images, g), planes,
                                            Walked{walk, words_ ? at<const Word>(words_) : woven, part_count});
    const auto weave_parts = [&] {
      if (!woven) return;
#pragma omp for schedule(static)
      for (std::int64_t part = 0; part < part_count; ++part) weave.part(walk, part, woven);
    };
    run(job, weave_parts, threads);
  });
}

// The weight stream of `values` [kept] for one geometry, as sparse_conv reads it: words [stream_length]. places: one for each
// matrix column, overwritten.
KERNEL(weave_conv, Address geometry, Address values, Address words, Address places_, Address column, std::int64_t kept, Address runs,
       Address buckets, Address parts, std::int64_t part_count, std::int64_t block_count) {
  const Walk walk{at<const Run>(runs), at<const std::int32_t>(buckets), at<const Part>(parts), part_count, block_count};
  auto* places = at<std::int32_t>(places_);
  with_planes(*at<const Geometry>(geometry), [&](auto planes) { place_taps(planes, places); });
  const Weave weave{at<const std::int32_t>(column), at<const float>(values), nullptr, kept, places};
  for (std::int64_t part = 0; part < part_count; ++part) weave.part(walk, part, at<Word>(words));
}

}  // namespace openwork::OPENWORK_LEVEL
