// Which scores of one tile may be among the k largest, in order: the inner loop of a search for the largest of very many.
//
// Every candidate is counted in a histogram. As soon as k of them are in a bin or above it, nothing below that bin is a candidate any
// more. The bound rises while a tile is looked through, so few are remembered that will not stay.
#include "scratch.h"
#include "simd.h"
#include "tiles.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

constexpr std::int64_t at_once = 4096;  // copied into the first-level cache, where what is taken can be struck out
constexpr std::int64_t overhang = 16;   // entries behind the last candidate that may be written
constexpr int most_shares = 64;
constexpr float infinity = __builtin_inff();

// The first bits of a number, as an integer of the same order, are its bin: sign, exponent and three bits of the mantissa.
constexpr int bin_bits = 12, bins = 1 << bin_bits;
constexpr std::uint32_t sign = 1u << 31;

OPENWORK_INLINE std::uint32_t bin_of(float score) {
  std::uint32_t bits;
  score += 0.0f;  // makes -0 a 0
  __builtin_memcpy(&bits, &score, sizeof bits);
  return (bits ^ (-(bits >> 31) | sign)) >> (32 - bin_bits);
}

// A number below a bin, the largest but around zero, which processors may not tell from numbers that are too small to be normal;
// minus infinity below the lowest bin that holds any.
OPENWORK_INLINE float below_bin(std::uint32_t bin) {
  const std::uint32_t key = (bin << (32 - bin_bits)) - 1, bits = key & sign ? key ^ sign : ~key;
  float score;
  __builtin_memcpy(&score, &bits, sizeof score);
  if (score != score) return -infinity;
  return score < __FLT_MIN__ && score > -__FLT_MIN__ ? -__FLT_MIN__ : score;
}

// What k of the scores counted are above, or `threshold` if that is more.
OPENWORK_INLINE float risen(float threshold, const std::int32_t* histogram, std::int64_t k) {
  std::int64_t above = 0;
  for (std::uint32_t bin = bins - 1; bin > 0; --bin)
    if ((above += histogram[bin]) >= k) {
      const float bound = below_bin(bin);
      return bound > threshold ? bound : threshold;
    }
  return threshold;
}

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

// Looks through scores [begin, end); true if one of them is NaN or infinite.
bool look_through(const float* scores, std::int64_t begin, std::int64_t end, std::int64_t first, const std::int64_t* taken,
                  const std::int64_t* taken_end, std::int64_t k, float threshold, std::int32_t* histogram, Found& found) {
  alignas(64) float block[at_once];
  Vec sum{};  // becomes NaN in a lane that has met NaN or infinity
  bool odd = false;
  std::int64_t fresh = 0;  // candidates since the bound has risen
  for (const std::int64_t* high = taken_end; taken < high;) {  // skip those before
    const std::int64_t* middle = taken + (high - taken) / 2;
    if (*middle < first + begin) taken = middle + 1;
    else high = middle;
  }
  for (; begin < end; begin += at_once) {
    const std::int64_t size = smaller(at_once, end - begin), whole = size / lanes * lanes;
    for (std::int64_t i = 0; i < whole; i += lanes) {
      const Vec v = load_unaligned(scores + begin + i);
      sum += v - v;
      store(block + i, v);
    }
    const std::int64_t padded = (size + lanes - 1) / lanes * lanes;
    for (std::int64_t i = whole; i < padded; ++i) {
      block[i] = i < size ? scores[begin + i] : -infinity;
      odd |= i < size && !finite(block[i]);
    }
    for (; taken < taken_end && *taken - first < begin + size; ++taken) block[*taken - first - begin] = -infinity;
    const std::int64_t before = found.count;
    collect(block, padded, first + begin, threshold, found);
    for (std::int64_t i = before; i < found.count; ++i) ++histogram[bin_of(found.scores[i])];
    fresh += found.count - before;
    if (fresh <= k / 16) continue;
    threshold = risen(threshold, histogram, k);
    fresh = 0;
  }
  for (int i = 0; i < lanes; ++i) odd |= sum[i] != 0.0f;
  return odd;
}

}  // namespace
}  // namespace openwork::OPENWORK_LEVEL

// Scores [n] of the places `first` ... are looked through, but for those taken [taken_count], int64 ascending within them.
// `places` and `scores_found` have room for n + 16 more entries for each thread behind the first state[0], which is the count and
// moves on; state[1] becomes 1 if a score, taken or not, is NaN or infinite. Candidates are above the threshold (float, minus infinity
// at first) and counted in the histogram [4096] (int32); both move on.
KERNEL(candidates, openwork::Address scores_, std::int64_t n, std::int64_t first, openwork::Address taken_,
       std::int64_t taken_count, std::int64_t k, openwork::Address threshold_, openwork::Address histogram_, openwork::Address places_,
       openwork::Address scores_found, openwork::Address state_, int threads) {
  using namespace openwork;
  using namespace openwork::OPENWORK_LEVEL;
  const auto* scores = at<const float>(scores_);
  const auto* taken = at<const std::int64_t>(taken_);
  auto* state = at<std::int64_t>(state_);
  auto* threshold = at<float>(threshold_);
  auto* histogram = at<std::int32_t>(histogram_);
  auto* places = at<std::int64_t>(places_) + state[0];
  auto* kept = at<float>(scores_found) + state[0];
  // Every share of the blocks appends to a stretch of its own; then the stretches close up.
  const std::int64_t blocks = (n + at_once - 1) / at_once;
  const int shares = threads < most_shares ? threads : most_shares;
  Found found[most_shares];
  bool odd[most_shares];
  auto* const counts = scratch<std::int32_t>(Scratch::shared, shares * bins);  // what is known, and what a share finds
#pragma omp parallel for num_threads(shares) schedule(static, 1)
  for (int share = 0; share < shares; ++share) {
    const std::int64_t begin = blocks * share / shares * at_once, end = smaller(n, blocks * (share + 1) / shares * at_once);
    const std::int64_t room = begin + share * overhang;
    found[share] = {places + room, kept + room, 0};
    std::int32_t* count = counts + share * bins;
    for (int bin = 0; bin < bins; ++bin) count[bin] = histogram[bin];
    odd[share] = look_through(scores, begin, end, first, taken, taken + taken_count, k, *threshold, count, found[share]);
  }
  std::int64_t count = 0;
  for (int share = 0; share < shares; ++share) {
    const Found& more = found[share];
    if (more.places != places + count) {
      __builtin_memmove(places + count, more.places, more.count * sizeof(std::int64_t));
      __builtin_memmove(kept + count, more.scores, more.count * sizeof(float));
    }
    count += more.count;
    if (odd[share]) state[1] = 1;
  }
  for (int bin = 0; bin < bins; ++bin) {
    std::int32_t all = (1 - shares) * histogram[bin];
    for (int share = 0; share < shares; ++share) all += counts[share * bins + bin];
    histogram[bin] = all;
  }
  state[0] += count;
  *threshold = risen(*threshold, histogram, k);
}
