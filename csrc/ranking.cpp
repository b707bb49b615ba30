#include "ranking.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <memory>
#include <type_traits>

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
Threshold<Bits> threshold_of(const Float* scores, std::int64_t n, std::int64_t k) {
  constexpr int shift = 8 * sizeof(Float) - digit_bits;
  std::uint32_t counts[2][bins] = {};  // in turns, because neighbours are alike often and one count would wait for the last
  for (std::int64_t i = 0; i + 1 < n; i += 2) {
    ++counts[0][key(scores[i]) >> shift];
    ++counts[1][key(scores[i + 1]) >> shift];
  }
  if (n % 2) ++counts[0][key(scores[n - 1]) >> shift];
  const auto in = [&](std::int64_t bin) { return static_cast<std::int64_t>(counts[0][bin]) + counts[1][bin]; };
  std::int64_t bin = bins - 1, above = 0;  // above: scores in higher bins
  while (above + in(bin) < k) above += in(bin--);

  const auto keys = std::make_unique_for_overwrite<Bits[]>(in(bin) + 1);
  std::int64_t found = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const Bits one = key(scores[i]);
    keys[found] = one;
    found += static_cast<std::int64_t>(one >> shift) == bin;
  }
  Bits* const last = keys.get() + (k - above - 1);
  std::nth_element(keys.get(), last, keys.get() + found, std::greater<>{});
  const Bits least = *last;
  return {least, k - above - std::count_if(keys.get(), last, [least](Bits one) { return one > least; })};
}

template <class Float>
void mark(const Float* scores, std::int64_t n, std::int64_t k, bool* chosen) {
  if (k <= 0 || k >= n) return void(std::fill_n(chosen, n, k > 0));
  auto [least, ties] = threshold_of(scores, n, k);
  for (std::int64_t i = 0; i < n; ++i) {
    const auto one = key(scores[i]);
    const bool tied = one == least;
    chosen[i] = (one > least) | (tied & (ties > 0));
    ties -= tied;
  }
}

}  // namespace

void mark_largest(Address scores, bool wide, std::int64_t n, std::int64_t k, Address chosen) {
  if (wide) mark(at<const double>(scores), n, k, at<bool>(chosen));
  else mark(at<const float>(scores), n, k, at<bool>(chosen));
}

float keep_largest(Address places_, Address scores_, std::int64_t n, std::int64_t k) {
  auto* places = at<std::int64_t>(places_);
  auto* scores = at<float>(scores_);
  auto [least, ties] = threshold_of(scores, n, k);
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
