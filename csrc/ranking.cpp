#include "ranking.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <memory>
#include <type_traits>
#include <vector>

#include "team.h"

namespace openwork {
namespace {

// The first digit of a key sorts scores into bins; few enough that two counts of them stay in the first-level cache.
constexpr int digit_bits = 11;
constexpr std::int64_t bins = 1 << digit_bits;

// A number as an unsigned integer of the same order.
template <class Float, class Bits = std::conditional_t<sizeof(Float) == 4, std::uint32_t, std::uint64_t>>
Bits key(Float x) {
  constexpr Bits sign = Bits{1} << (8 * sizeof(Float) - 1);
  x = x == x ? x + Float{0} : -std::numeric_limits<Float>::infinity();  // + 0 makes -0 a 0
  const Bits bits = std::bit_cast<Bits>(x);
  return bits ^ (-(bits >> (8 * sizeof(Float) - 1)) | sign);  // all bits of what is negative, the sign of the rest
}

// The key of the k-th largest score, 0 < k <= n, and how many of the scores that have it belong to the k largest.
template <class Bits>
struct Threshold {
  Bits key;
  std::int64_t ties;
};

template <class Float, class Bits = decltype(key(Float{}))>
Threshold<Bits> threshold_of(const Float* scores, std::int64_t n, std::int64_t k, int threads) {
  constexpr int shift = 8 * sizeof(Float) - digit_bits;
  std::vector<std::int64_t> counts(threads * bins);
  in_team(threads, [&](int share) {
    std::uint32_t count[2][bins] = {};  // in turns, because neighbours are alike often and one count would wait for the last
    std::int64_t i = share_of(n, share, threads);
    const std::int64_t end = share_of(n, share + 1, threads);
    for (; i + 1 < end; i += 2) {
      ++count[0][key(scores[i]) >> shift];
      ++count[1][key(scores[i + 1]) >> shift];
    }
    if (i < end) ++count[0][key(scores[i]) >> shift];
    for (std::int64_t bin = 0; bin < bins; ++bin) counts[share * bins + bin] = std::int64_t{count[0][bin]} + count[1][bin];
  });
  const auto in = [&](std::int64_t bin, int shares) {
    std::int64_t sum = 0;
    for (int share = 0; share < shares; ++share) sum += counts[share * bins + bin];
    return sum;
  };
  std::int64_t bin = bins - 1, above = 0;  // above: scores in higher bins
  for (std::int64_t here; above + (here = in(bin, threads)) < k; --bin) above += here;

  const std::int64_t found = in(bin, threads);
  const auto keys = std::make_unique_for_overwrite<Bits[]>(found + 1);
  in_team(threads, [&](int share) {
    std::int64_t at = in(bin, share);
    const std::int64_t full = in(bin, share + 1);
    for (std::int64_t i = share_of(n, share, threads); at < full; ++i) {
      const Bits one = key(scores[i]);
      keys[at] = one;
      at += static_cast<std::int64_t>(one >> shift) == bin;
    }
  });
  Bits* const last = keys.get() + (k - above - 1);
  std::nth_element(keys.get(), last, keys.get() + found, std::greater<>{});
  const Bits least = *last;
  return {least, k - above - std::count_if(keys.get(), last, [least](Bits one) { return one > least; })};
}

template <class Float>
void mark(const Float* scores, std::int64_t n, std::int64_t k, bool* chosen, int threads) {
  if (k <= 0 || k >= n) return void(std::fill_n(chosen, n, k > 0));
  const auto [least, places] = threshold_of(scores, n, k, threads);
  std::vector<std::int64_t> tied(threads + 1);  // up to each share
  in_team(threads, [&, least = least](int share) {
    std::int64_t count = 0;
    for (std::int64_t i = share_of(n, share, threads); i < share_of(n, share + 1, threads); ++i) {
      const auto one = key(scores[i]);
      chosen[i] = one > least;
      count += one == least;
    }
    tied[share + 1] = count;
  });
  for (int share = 0; share < threads; ++share) {  // ties to the first; they are few, or found at once
    std::int64_t left = std::min(tied[share + 1], places - tied[share]);
    for (std::int64_t i = share_of(n, share, threads); left > 0; ++i)
      if (key(scores[i]) == least) chosen[i] = true, --left;
    tied[share + 1] += tied[share];
  }
}

}  // namespace

void mark_largest(Address scores, bool wide, std::int64_t n, std::int64_t k, Address chosen, int threads) {
  if (wide) mark(at<const double>(scores), n, k, at<bool>(chosen), threads);
  else mark(at<const float>(scores), n, k, at<bool>(chosen), threads);
}

float keep_largest(Address places_, Address scores_, std::int64_t n, std::int64_t k, int threads) {
  auto* places = at<std::int64_t>(places_);
  auto* scores = at<float>(scores_);
  auto [least, ties] = threshold_of(scores, n, k, threads);
  float threshold = std::numeric_limits<float>::infinity();
  std::int64_t kept = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const float score = scores[i];
    const auto one = key(score);
    const bool tied = one == least, stays = (one > least) | (tied & (ties > 0));
    ties -= tied;
    threshold = tied ? score : threshold;
    places[kept] = places[i];
    scores[kept] = score;
    kept += stays;
  }
  return threshold;
}

}  // namespace openwork
