#include "ranking.h"

#include <algorithm>
#include <bit>
#include <functional>
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

template <class Float>
std::int64_t bin_of(Float x) {
  return key(x) >> (8 * sizeof(Float) - digit_bits);
}

// How many scores of each share are in each bin.
class Histogram {
 public:
  template <class Float>
  Histogram(const Float* scores, std::int64_t n, int threads) : shares_(threads), counts_(threads * bins) {
    in_team(threads, [&](int share) {
      std::uint32_t count[2][bins] = {};  // in turns, because neighbours are alike often and one count would wait for the last
      std::int64_t i = share_of(n, share, threads);
      const std::int64_t end = share_of(n, share + 1, threads);
      for (; i + 1 < end; i += 2) {
        ++count[0][bin_of(scores[i])];
        ++count[1][bin_of(scores[i + 1])];
      }
      if (i < end) ++count[0][bin_of(scores[i])];
      for (std::int64_t bin = 0; bin < bins; ++bin) counts_[share * bins + bin] = std::int64_t{count[0][bin]} + count[1][bin];
    });
  }

  // Scores of the first `shares` shares in a bin; of all.
  std::int64_t in(std::int64_t bin, int shares) const {
    std::int64_t sum = 0;
    for (int share = 0; share < shares; ++share) sum += counts_[share * bins + bin];
    return sum;
  }
  std::int64_t in(std::int64_t bin) const { return in(bin, shares_); }

 private:
  int shares_;
  std::vector<std::int64_t> counts_;
};

// The bin of the k-th largest score, 0 < k <= n, and how many of the k largest are in it.
struct Bound {
  std::int64_t bin, inside;
};

Bound bound_of(const Histogram& histogram, std::int64_t k) {
  for (std::int64_t bin = bins - 1;; --bin) {
    const std::int64_t here = histogram.in(bin);
    if (k <= here) return {bin, k};
    k -= here;
  }
}

// The places of the scores of one bin, in order: every share appends to a stretch of its own, with room for one more.
class Inside {
 public:
  Inside(const Histogram& histogram, std::int64_t bin, int threads) : bin_(bin), count_(histogram.in(bin)) {
    for (int share = 0; share <= threads; ++share) begin_.push_back(histogram.in(bin, share) + share);
    places_ = std::make_unique_for_overwrite<std::int64_t[]>(begin_[threads]);
  }
  std::int64_t* begin(int share) { return places_.get() + begin_[share]; }
  std::int64_t bin() const { return bin_; }

  // Sets chosen[place] of the first `count` in the order `before`, ties to the first place.
  template <class Float, class Before>
  void settle(const Float* scores, std::int64_t count, Before before, bool* chosen, bool value) {
    if (count == 0) return;
    std::vector<decltype(key(Float{}))> keys;
    keys.reserve(count_);
    each([&](std::int64_t place) { keys.push_back(key(scores[place])); });
    std::nth_element(keys.begin(), keys.begin() + (count - 1), keys.end(), before);
    const auto least = keys[count - 1];
    std::int64_t ties = count - std::count_if(keys.begin(), keys.begin() + (count - 1), [&](auto one) { return before(one, least); });
    each([&](std::int64_t place) {
      const auto one = key(scores[place]);
      if (before(one, least) || (one == least && ties-- > 0)) chosen[place] = value;
    });
  }

 private:
  template <class Visit>
  void each(Visit visit) const {
    for (std::size_t share = 0; share + 1 < begin_.size(); ++share)
      for (std::int64_t i = begin_[share]; i + 1 < begin_[share + 1]; ++i) visit(places_[i]);
  }
  std::int64_t bin_, count_;
  std::vector<std::int64_t> begin_;
  std::unique_ptr<std::int64_t[]> places_;
};

// The key of the k-th largest score, 0 < k <= n, and how many of the scores that have it belong to the k largest.
template <class Bits>
struct Threshold {
  Bits key;
  std::int64_t ties;
};

template <class Float, class Bits = decltype(key(Float{}))>
Threshold<Bits> threshold_of(const Float* scores, std::int64_t n, std::int64_t k, int threads) {
  const Histogram histogram(scores, n, threads);
  const auto [bin, inside] = bound_of(histogram, k);
  const std::int64_t found = histogram.in(bin);
  const auto keys = std::make_unique_for_overwrite<Bits[]>(found + 1);
  in_team(threads, [&, bin = bin](int share) {
    std::int64_t at = histogram.in(bin, share);
    const std::int64_t full = histogram.in(bin, share + 1);
    for (std::int64_t i = share_of(n, share, threads); at < full; ++i) {
      keys[at] = key(scores[i]);
      at += bin_of(scores[i]) == bin;
    }
  });
  Bits* const last = keys.get() + (inside - 1);
  std::nth_element(keys.get(), last, keys.get() + found, std::greater<>{});
  const Bits least = *last;
  return {least, inside - std::count_if(keys.get(), last, [least](Bits one) { return one > least; })};
}

template <class Float>
void mark(const Float* scores, std::int64_t n, std::int64_t k, bool* chosen, int threads) {
  if (k <= 0 || k >= n) return void(std::fill_n(chosen, n, k > 0));
  const Histogram histogram(scores, n, threads);
  const Bound bound = bound_of(histogram, k);
  Inside inside(histogram, bound.bin, threads);
  in_team(threads, [&, at_bound = bound.bin](int share) {
    std::int64_t* next = inside.begin(share);
    for (std::int64_t i = share_of(n, share, threads); i < share_of(n, share + 1, threads); ++i) {
      const std::int64_t bin = bin_of(scores[i]);
      chosen[i] = bin > at_bound;
      *next = i;
      next += bin == at_bound;
    }
  });
  inside.settle(scores, bound.inside, std::greater<>{}, chosen, true);
}

// The bins of zero and of what is closest to it from below.
constexpr std::int64_t zero = bins / 2, below_zero = zero - 1;

template <class Float>
void mark_farther(const Float* values, std::int64_t n, std::int64_t negative, std::int64_t drop, std::int64_t drop_negative,
                  bool* chosen, int threads) {
  const Histogram histogram(values, n, threads);
  // The last of those that are not negative to go is the (negative + drop)-th smallest; in its bin go those that are not farther.
  Bound above{zero, 0}, below{below_zero, 0};
  if (drop > 0) {
    above = bound_of(histogram, n - negative - drop + 1);
    above.inside = histogram.in(above.bin) - above.inside + 1;
  }
  if (drop_negative > 0) below = bound_of(histogram, n - negative + drop_negative);
  Inside at_above(histogram, above.bin, threads), at_below(histogram, below.bin, threads);
  in_team(threads, [&](int share) {
    std::int64_t *next_above = at_above.begin(share), *next_below = at_below.begin(share);
    for (std::int64_t i = share_of(n, share, threads); i < share_of(n, share + 1, threads); ++i) {
      const std::int64_t bin = bin_of(values[i]);
      chosen[i] = (bin >= above.bin) | (bin <= below.bin);
      *next_above = *next_below = i;
      next_above += bin == above.bin;
      next_below += bin == below.bin;
    }
  });
  at_above.settle(values, above.inside, std::less<>{}, chosen, false);
  at_below.settle(values, below.inside, std::greater<>{}, chosen, false);
}

}  // namespace

void mark_largest(Address scores, bool wide, std::int64_t n, std::int64_t k, Address chosen, int threads) {
  if (wide) mark(at<const double>(scores), n, k, at<bool>(chosen), threads);
  else mark(at<const float>(scores), n, k, at<bool>(chosen), threads);
}

void mark_farther_from_zero(Address values, bool wide, std::int64_t n, std::int64_t negative, std::int64_t drop,
                            std::int64_t drop_negative, Address chosen, int threads) {
  if (wide) mark_farther(at<const double>(values), n, negative, drop, drop_negative, at<bool>(chosen), threads);
  else mark_farther(at<const float>(values), n, negative, drop, drop_negative, at<bool>(chosen), threads);
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

std::int64_t keep_above(Address places_, Address scores_, std::int64_t n, float threshold) {
  auto* places = at<std::int64_t>(places_);
  auto* scores = at<float>(scores_);
  std::int64_t kept = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const float score = scores[i];
    places[kept] = places[i];
    scores[kept] = score;
    kept += score > threshold;
  }
  return kept;
}

}  // namespace openwork
