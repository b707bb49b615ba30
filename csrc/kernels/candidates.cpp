// Which scores of one tile are above a threshold, in order: the inner loop of a search for the largest of very many.
#include "simd.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

constexpr std::int64_t at_once = 4096;  // copied into the first-level cache, where what is taken can be struck out
constexpr float infinity = __builtin_inff();

struct Found {
  std::int64_t* places;
  float* scores;
  std::int64_t count;
};

OPENWORK_INLINE bool finite(float x) { return x - x == 0.0f; }

// Appends (place, score) of the scores [n] above the threshold; n is a multiple of the lanes.
OPENWORK_INLINE void collect(const float* scores, std::int64_t n, std::int64_t place, float threshold, Found& found) {
#if defined(__AVX512F__)
  const __m512 least = _mm512_set1_ps(threshold);
  const __m512i low = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0), high = _mm512_set_epi64(15, 14, 13, 12, 11, 10, 9, 8);
  for (std::int64_t i = 0; i < n; i += 16) {
    const __m512 v = _mm512_load_ps(scores + i);
    const __mmask16 above = _mm512_cmp_ps_mask(v, least, _CMP_GT_OQ);
    if (!above) continue;
    const __m512i base = _mm512_set1_epi64(place + i);
    const int first = __builtin_popcount(above & 0xff);
    // Whole registers are written, what is behind the last candidate is overwritten by the next.
    _mm512_storeu_ps(found.scores + found.count, _mm512_maskz_compress_ps(above, v));
    _mm512_storeu_si512(found.places + found.count, _mm512_add_epi64(base, _mm512_maskz_compress_epi64(above & 0xff, low)));
    _mm512_storeu_si512(found.places + found.count + first,
                        _mm512_add_epi64(base, _mm512_maskz_compress_epi64(above >> 8, high)));
    found.count += __builtin_popcount(above);
  }
#else
  for (std::int64_t i = 0; i < n; ++i) {
    found.places[found.count] = place + i;
    found.scores[found.count] = scores[i];
    found.count += scores[i] > threshold;
  }
#endif
}

}  // namespace
}  // namespace openwork::OPENWORK_LEVEL

// Scores [n] of the places `first` ... are looked through, but for those taken [taken_count], int64 ascending within them.
// `places` and `scores_found` have room for n + 16 more entries behind the first state[0], which is the count and moves on;
// state[1] becomes 1 if a score, taken or not, is NaN or infinite.
KERNEL(candidates, openwork::Address scores_, std::int64_t n, std::int64_t first, openwork::Address taken_,
       std::int64_t taken_count, float threshold, openwork::Address places, openwork::Address scores_found,
       openwork::Address state_) {
  using namespace openwork;
  using namespace openwork::OPENWORK_LEVEL;
  const auto* scores = at<const float>(scores_);
  const auto* taken = at<const std::int64_t>(taken_);
  auto* state = at<std::int64_t>(state_);
  Found found{at<std::int64_t>(places), at<float>(scores_found), state[0]};
  alignas(64) float block[at_once];
  Vec odd{};  // becomes NaN in a lane that has met NaN or infinity
  std::int64_t t = 0;
  for (std::int64_t begin = 0; begin < n; begin += at_once) {
    const std::int64_t size = n - begin < at_once ? n - begin : at_once, whole = size / lanes * lanes;
    for (std::int64_t i = 0; i < whole; i += lanes) {
      const Vec v = load_unaligned(scores + begin + i);
      odd += v - v;
      store(block + i, v);
    }
    const std::int64_t padded = (size + lanes - 1) / lanes * lanes;
    for (std::int64_t i = whole; i < padded; ++i) {
      block[i] = i < size ? scores[begin + i] : -infinity;
      if (i < size && !finite(block[i])) state[1] = 1;
    }
    for (; t < taken_count && taken[t] - first < begin + size; ++t) block[taken[t] - first - begin] = -infinity;
    collect(block, padded, first + begin, threshold, found);
  }
  for (int i = 0; i < lanes; ++i)
    if (odd[i] != 0.0f) state[1] = 1;
  state[0] = found.count;
}
