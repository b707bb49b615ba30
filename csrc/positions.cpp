#include "positions.h"

#include <algorithm>
#include <bit>
#include <memory>
#include <utility>
#include <vector>

#include "team.h"

namespace openwork {

namespace {

// Of the numbers 0 ... n - 1 and bounds [m], both in order: put(j, i) says that the first i numbers are below bound j. Which list moves
// on is a coin toss for the processor: it is computed, not branched on.
template <class Below, class Put>
void meet(std::int64_t n, const std::int64_t* bounds, std::int64_t m, int threads, Below below, Put put) {
  in_team(threads, [&](int share) {
    std::int64_t j = share_of(m, share, threads);
    const std::int64_t end = share_of(m, share + 1, threads);
    if (j == end) return;
    std::int64_t i = 0;
    for (std::int64_t high = n; i < high;) {
      const std::int64_t middle = (i + high) / 2;
      if (below(middle, bounds[j])) i = middle + 1;
      else high = middle;
    }
    while (i < n && j < end) {
      const bool behind = below(i, bounds[j]);
      put(j, i);
      i += behind;
      j += !behind;
    }
    for (; j < end; ++j) put(j, n);
  });
}

// How many of one [n] are among the first `both` of one and other [m] merged, ties to one.
std::int64_t taken_of_one(const std::int64_t* one, std::int64_t n, const std::int64_t* other, std::int64_t m, std::int64_t both) {
  std::int64_t low = std::max<std::int64_t>(0, both - m), high = std::min(n, both);
  while (low < high) {
    const std::int64_t middle = (low + high) / 2;
    if (one[middle] <= other[both - middle - 1]) low = middle + 1;
    else high = middle;
  }
  return low;
}

}  // namespace

void count_below(Address positions, std::int64_t n, Address bounds, std::int64_t m, bool or_at, Address counts_, int threads) {
  const auto* position = at<const std::int64_t>(positions);
  auto* counts = at<std::int64_t>(counts_);
  const auto put = [counts](std::int64_t j, std::int64_t i) { counts[j] = i; };
  const auto below = [=](std::int64_t i, std::int64_t bound) { return position[i] < bound + or_at; };
  meet(n, at<const std::int64_t>(bounds), m, threads, below, put);
}

void free_places(Address taken_, std::int64_t n, Address ranks_, std::int64_t m, Address places_, int threads) {
  const auto* taken = at<const std::int64_t>(taken_);
  const auto* ranks = at<const std::int64_t>(ranks_);
  auto* places = at<std::int64_t>(places_);
  // Free place number r is r plus the taken places before it; taken[i] - i free places precede taken[i].
  meet(n, ranks, m, threads, [=](std::int64_t i, std::int64_t rank) { return taken[i] - i <= rank; },
       [=](std::int64_t j, std::int64_t i) { places[j] = ranks[j] + i; });
}

void locate(Address positions, std::int64_t n, Address wanted_, std::int64_t m, Address index_, Address found_, int threads) {
  const auto* position = at<const std::int64_t>(positions);
  const auto* wanted = at<const std::int64_t>(wanted_);
  auto* index = at<std::int64_t>(index_);
  auto* found = at<bool>(found_);
  const auto below = [=](std::int64_t i, std::int64_t bound) { return position[i] < bound; };
  meet(n, wanted, m, threads, below, [=](std::int64_t j, std::int64_t i) {
    index[j] = i < n ? i : n - 1;
    found[j] = i < n && position[i] == wanted[j];
  });
}

void carry(Address items_, std::int64_t bytes, Address origin_, std::int64_t m, Address carried_, int threads) {
  const auto* origin = at<const std::int32_t>(origin_);
  const auto of = [&](auto item) {
    const auto* items = at<const decltype(item)>(items_);
    auto* carried = at<decltype(item)>(carried_);
    in_team(threads, [=](int share) {
      for (std::int64_t j = share_of(m, share, threads); j < share_of(m, share + 1, threads); ++j) {
        const std::int32_t none = origin[j] >> 31;  // all bits, or none of them: which it is cannot be guessed
        carried[j] = items[origin[j] & ~none] & static_cast<decltype(item)>(~std::int64_t{none});
      }
    });
  };
  if (bytes == 2) of(std::uint16_t{});
  else if (bytes == 4) of(std::uint32_t{});
  else of(std::uint64_t{});
}

void merge(Address one_, std::int64_t n, Address other_, std::int64_t m, Address merged_, int threads) {
  const auto *one = at<const std::int64_t>(one_), *other = at<const std::int64_t>(other_);
  auto* merged = at<std::int64_t>(merged_);
  in_team(threads, [=](int share) {
    const std::int64_t begin = share_of(n + m, share, threads), end = share_of(n + m, share + 1, threads);
    std::int64_t i = taken_of_one(one, n, other, m, begin), j = begin - i, at = begin;
    const std::int64_t i_end = taken_of_one(one, n, other, m, end), j_end = end - i_end;
    while (i < i_end && j < j_end) {
      const std::int64_t a = one[i], b = other[j];
      const bool second = b < a;  // computed, not branched on
      merged[at++] = second ? b : a;
      j += second;
      i += !second;
    }
    std::copy(other + j, other + j_end, std::copy(one + i, one + i_end, merged + at));
  });
}

void sort(Address numbers_, std::int64_t n, Address sorted_, int threads) {
  const auto* numbers = at<const std::int64_t>(numbers_);
  auto* sorted = at<std::int64_t>(sorted_);
  std::copy_n(numbers, n, sorted);
  if (n < 1000) return std::sort(sorted, sorted + n);
  // By one digit after the other, the last first, each time keeping the order found. Of equal digits the shares' come in order.
  constexpr int digit_bits = 11;
  constexpr std::int64_t digits = 1 << digit_bits;
  const std::int64_t most = *std::max_element(numbers, numbers + n);
  const auto spare = std::make_unique_for_overwrite<std::int64_t[]>(n);
  std::int64_t *from = sorted, *to = spare.get();
  std::vector<std::int64_t> next(threads * digits);
  for (int shift = 0; shift < 63 && most >> shift; shift += digit_bits) {
    const auto digit = [shift](std::int64_t number) { return number >> shift & (digits - 1); };
    in_team(threads, [&](int share) {
      std::int64_t* count = next.data() + share * digits;
      std::fill_n(count, digits, 0);
      for (std::int64_t i = share_of(n, share, threads); i < share_of(n, share + 1, threads); ++i) ++count[digit(from[i])];
    });
    std::int64_t before = 0;
    for (std::int64_t d = 0; d < digits; ++d)
      for (int share = 0; share < threads; ++share) before += std::exchange(next[share * digits + d], before);
    in_team(threads, [&](int share) {
      std::int64_t* place = next.data() + share * digits;
      for (std::int64_t i = share_of(n, share, threads); i < share_of(n, share + 1, threads); ++i) to[place[digit(from[i])]++] = from[i];
    });
    std::swap(from, to);
  }
  if (from != sorted) std::copy_n(from, n, sorted);
}

std::int64_t set_bits(Address bits_, Address numbers_, std::int64_t n) {
  auto* bits = at<std::uint64_t>(bits_);
  const auto* numbers = at<const std::int64_t>(numbers_);
  std::int64_t fresh = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint64_t bit = std::uint64_t{1} << (numbers[i] & 63), word = bits[numbers[i] >> 6];
    fresh += !(word & bit);
    bits[numbers[i] >> 6] = word | bit;
  }
  return fresh;
}

void list_bits(Address bits_, std::int64_t words, Address numbers_, int threads) {
  const auto* bits = at<const std::uint64_t>(bits_);
  auto* numbers = at<std::int64_t>(numbers_);
  std::vector<std::int64_t> before(threads + 1);
  in_team(threads, [&](int share) {
    for (std::int64_t w = share_of(words, share, threads); w < share_of(words, share + 1, threads); ++w)
      before[share + 1] += std::popcount(bits[w]);
  });
  for (int share = 0; share < threads; ++share) before[share + 1] += before[share];
  in_team(threads, [&](int share) {
    std::int64_t* next = numbers + before[share];
    for (std::int64_t w = share_of(words, share, threads); w < share_of(words, share + 1, threads); ++w)
      for (std::uint64_t word = bits[w]; word; word &= word - 1) *next++ = w * 64 + std::countr_zero(word);
  });
}

void count_reached(Address ends_, std::int64_t n, Address points_, std::int64_t m, Address counts_, int threads) {
  const auto* ends = at<const double>(ends_);
  const auto* points = at<const double>(points_);
  auto* counts = at<std::int64_t>(counts_);
  // A table of where equal slices of the whole begin: from there it is a step or two.
  const std::int64_t slices = 2 * n;
  const double scale = static_cast<double>(slices) / ends[n - 1];
  std::vector<std::int64_t> first(slices + 1);
  std::int64_t at = 0;
  for (std::int64_t slice = 0; slice <= slices; ++slice) {
    // A slice earlier, lest rounding has put a point into the next.
    while (at < n && ends[at] * scale < static_cast<double>(slice - 1)) ++at;
    first[slice] = at;
  }
  in_team(threads, [&](int share) {
    for (std::int64_t i = share_of(m, share, threads); i < share_of(m, share + 1, threads); ++i) {
      std::int64_t one = first[static_cast<std::int64_t>(std::min(points[i] * scale, static_cast<double>(slices)))];
      while (one < n && ends[one] <= points[i]) ++one;
      counts[i] = one;
    }
  });
}

}  // namespace openwork
