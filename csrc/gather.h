// Vectors put together from several places of the activations, and the weights that go with them.
//
// With few samples a nonzero does not fill a vector, so a vector holds several: at `width` samples, lanes / width nonzeros of
// one row side by side, each with the `width` inputs of its column, which lie next to each other. Loads and inserts take fewer
// cycles than the gather instruction, on every processor that has one.
#pragma once
#include "simd.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

typedef double TwoPairs __attribute__((vector_size(16), may_alias));

template <int n>
struct Floats {
  typedef float Vector __attribute__((vector_size(n * 4), may_alias));
};

template <int n>
using Lanes = typename Floats<n>::Vector;

template <int n, int... i>
OPENWORK_INLINE Lanes<2 * n> side_by_side(Lanes<n> a, Lanes<n> b, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(a, b, i...);
}
template <int n>
OPENWORK_INLINE Lanes<2 * n> side_by_side(Lanes<n> a, Lanes<n> b) {
#if defined(__AVX512F__)
  if constexpr (n == 8) return (Lanes<16>)_mm512_insertf32x8(_mm512_castps256_ps512((__m256)a), (__m256)b, 1);
#endif
#if defined(__AVX2__)
  if constexpr (n == 4) return (Lanes<8>)_mm256_insertf128_ps(_mm256_castps128_ps256((__m128)a), (__m128)b, 1);
#endif
  return side_by_side<n>(a, b, std::make_integer_sequence<int, 2 * n>{});
}

// The columns of `count` neighbouring nonzeros.
template <int count, class Column>
struct Columns {
  Column column[count];
  OPENWORK_INLINE explicit Columns(const Column* p) { std::memcpy(column, p, sizeof column); }
  OPENWORK_INLINE std::size_t operator[](int i) const { return column[i]; }
};

#if defined(__x86_64__)
// Four narrow ones come in one load, because loads are what limits these kernels.
template <int count>
struct Columns<count, std::uint16_t> {
  std::uint64_t four[count / 4];

  OPENWORK_INLINE explicit Columns(const std::uint16_t* p) : Columns(p, std::make_integer_sequence<int, count / 4>{}) {}
  OPENWORK_INLINE std::size_t operator[](int i) const { return static_cast<std::uint16_t>(four[i / 4] >> 16 * (i % 4)); }

 private:
  template <int... i>
  OPENWORK_INLINE Columns(const std::uint16_t* p, std::integer_sequence<int, i...>) : four{load_four(p + 4 * i)...} {}

  static OPENWORK_INLINE std::uint64_t load_four(const std::uint16_t* p) {
    std::uint64_t word;
    std::memcpy(&word, p, sizeof word);
    asm("" : "+r"(word));  // or the compiler loads each by itself again
    return word;
  }
};
#endif

// n lanes of inputs [column][width], for the n / width nonzeros from `first` on.
template <int n, int width, class Columns>
OPENWORK_INLINE Lanes<n> gather(const float* x, const Columns& column, int first) {
  using Vector = Lanes<n>;
  if constexpr (n <= width) {
    typedef Vector Unaligned __attribute__((aligned(4)));
    return *reinterpret_cast<const Unaligned*>(x + width * column[first]);
  } else if constexpr (n == 4 && width == 1) {
    return Vector{x[column[first]], x[column[first + 1]], x[column[first + 2]], x[column[first + 3]]};
  } else if constexpr (n == 4) {
    double one, other;  // pairs of floats that are only moved
    std::memcpy(&one, x + 2 * column[first], sizeof one);
    std::memcpy(&other, x + 2 * column[first + 1], sizeof other);
    return (Vector)TwoPairs{one, other};
  } else {
    const auto a = gather<n / 2, width>(x, column, first), b = gather<n / 2, width>(x, column, first + n / 2 / width);
    return side_by_side<n / 2>(a, b);
  }
}

}  // namespace
}  // namespace openwork::OPENWORK_LEVEL
