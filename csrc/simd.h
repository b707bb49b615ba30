// One vector of floats, as wide as the level has registers: 16 (AVX-512), 8 (AVX2) or 4 lanes (portable).
//
// Arithmetic is the plain operators of the compiler's vector types (+ * < ?:); `a * b + c` becomes a fused instruction where
// the level has one. Below is only what the operators cannot say: loads, partial loads, broadcasts and lane shuffles.
#pragma once
#include <cstring>
#include <utility>

#include "kernel.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define OPENWORK_UNROLL _Pragma("GCC unroll 64")
#define OPENWORK_INLINE inline __attribute__((always_inline))

namespace openwork::OPENWORK_LEVEL {
namespace {

#if defined(__AVX512F__)
constexpr int lanes = 16;
#elif defined(__AVX2__)
constexpr int lanes = 8;
#else
constexpr int lanes = 4;
#endif

typedef float Vec __attribute__((vector_size(lanes * 4), may_alias));
typedef float UnalignedVec __attribute__((vector_size(lanes * 4), may_alias, aligned(4)));
typedef std::int32_t IntVec __attribute__((vector_size(lanes * 4), may_alias));

OPENWORK_INLINE Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
OPENWORK_INLINE void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }

// For lines that are written whole and not read soon: they are not fetched first. `flush` before another thread reads them.
OPENWORK_INLINE void store_past_caches(float* p, Vec v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, (__m512)v);
#elif defined(__AVX2__)
  _mm256_stream_ps(p, (__m256)v);
#else
  store(p, v);
#endif
}
OPENWORK_INLINE void flush() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

OPENWORK_INLINE Vec load_unaligned(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
OPENWORK_INLINE void store_unaligned(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }

OPENWORK_INLINE Vec broadcast(float x) {
#if defined(__AVX512F__)
  return (Vec)_mm512_set1_ps(x);
#elif defined(__AVX2__)
  return (Vec)_mm256_set1_ps(x);
#else
  return Vec{x, x, x, x};
#endif
}

// The first n lanes (0 <= n); the others are zero. Reads nothing beyond p[n - 1].
OPENWORK_INLINE Vec load_first(const float* p, std::int64_t n) {
  if (n >= lanes) return load_unaligned(p);
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
#else
  Vec v{};
  for (std::int64_t i = 0; i < n; ++i) v[i] = p[i];
  return v;
#endif
}

// Lanes [begin, end); the others are zero. Reads nothing else.
OPENWORK_INLINE Vec load_between(const float* p, std::int64_t begin, std::int64_t end) {
  if (begin <= 0 && end >= lanes) return load_unaligned(p);
#if defined(__AVX512F__)
  const auto below = [](std::int64_t n) { return n <= 0 ? 0u : n >= lanes ? 0xffffu : (1u << n) - 1; };
  return (Vec)_mm512_maskz_loadu_ps(static_cast<__mmask16>(below(end) & ~below(begin)), p);
#elif defined(__AVX2__)
  const auto clipped = [](std::int64_t n) { return n < 0 ? 0 : n > lanes ? lanes : static_cast<std::int32_t>(n); };
  const IntVec lane = {0, 1, 2, 3, 4, 5, 6, 7};
  return (Vec)_mm256_maskload_ps(p, (__m256i)((lane >= clipped(begin)) & (lane < clipped(end))));
#else
  Vec v{};
  for (std::int64_t i = begin < 0 ? 0 : begin; i < end && i < lanes; ++i) v[i] = p[i];
  return v;
#endif
}

OPENWORK_INLINE void store_first(float* p, Vec v, std::int64_t n) {
  if (n >= lanes) return store_unaligned(p, v);
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
#else
  for (std::int64_t i = 0; i < n; ++i) p[i] = v[i];
#endif
}

OPENWORK_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }

// A shuffle of two vectors: lane i of the result is lane Pattern::from(i) of a and b side by side.
template <class Pattern, int... i>
OPENWORK_INLINE Vec shuffle(Vec a, Vec b, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(a, b, Pattern::from(i)...);
}
template <class Pattern>
OPENWORK_INLINE Vec shuffle(Vec a, Vec b) {
  return shuffle<Pattern>(a, b, std::make_integer_sequence<int, lanes>{});
}

// Lanes of the lower (upper) half of a and b in turn: a0 b0 a1 b1 ...
template <bool upper>
struct Interleave {
  static constexpr int from(int i) { return upper * lanes / 2 + i / 2 + i % 2 * lanes; }
};
// The same in every quarter of 128 bits by itself, in units of 1 or 2 lanes. These are cheaper.
template <bool upper, int unit>
struct InterleaveQuarters {
  static constexpr int from(int i) {
    const int place = i % 4 / unit;  // among the units of this quarter
    return i / 4 * 4 + upper * 2 + place / 2 * unit + place % 2 * lanes + i % unit;
  }
};
// Quarters [upper half of a, upper half of b] and [odd of a, odd of b], or with `second` false lower and even.
template <bool second>
struct HalvesOf {
  static constexpr int from(int i) { return (i < lanes / 2 ? 0 : lanes / 2) + second * lanes / 2 + i; }
};
template <bool second>
struct AlternatesOf {
  static constexpr int from(int i) { return i / 4 * 8 + second * 4 + i % 4; }
};

// rows[i][j] <- rows[j][i]: first 4 x 4 inside the quarters of 128 bits, then the quarters themselves.
OPENWORK_INLINE void transpose(Vec (&rows)[lanes]) {
  OPENWORK_UNROLL
  for (int i = 0; i < lanes; i += 4) {
    const Vec p = shuffle<InterleaveQuarters<false, 1>>(rows[i], rows[i + 1]);
    const Vec q = shuffle<InterleaveQuarters<true, 1>>(rows[i], rows[i + 1]);
    const Vec r = shuffle<InterleaveQuarters<false, 1>>(rows[i + 2], rows[i + 3]);
    const Vec s = shuffle<InterleaveQuarters<true, 1>>(rows[i + 2], rows[i + 3]);
    rows[i] = shuffle<InterleaveQuarters<false, 2>>(p, r);
    rows[i + 1] = shuffle<InterleaveQuarters<true, 2>>(p, r);
    rows[i + 2] = shuffle<InterleaveQuarters<false, 2>>(q, s);
    rows[i + 3] = shuffle<InterleaveQuarters<true, 2>>(q, s);
  }
  if constexpr (lanes == 8) {
    OPENWORK_UNROLL
    for (int i = 0; i < 4; ++i) {
      const Vec a = rows[i], b = rows[i + 4];
      rows[i] = shuffle<HalvesOf<false>>(a, b);
      rows[i + 4] = shuffle<HalvesOf<true>>(a, b);
    }
  } else if constexpr (lanes == 16) {
    OPENWORK_UNROLL
    for (int i = 0; i < 4; ++i) {
      const Vec a = rows[i], b = rows[i + 4], c = rows[i + 8], d = rows[i + 12];
      const Vec ab = shuffle<HalvesOf<false>>(a, b), ab2 = shuffle<HalvesOf<true>>(a, b);
      const Vec cd = shuffle<HalvesOf<false>>(c, d), cd2 = shuffle<HalvesOf<true>>(c, d);
      rows[i] = shuffle<AlternatesOf<false>>(ab, cd);
      rows[i + 4] = shuffle<AlternatesOf<true>>(ab, cd);
      rows[i + 8] = shuffle<AlternatesOf<false>>(ab2, cd2);
      rows[i + 12] = shuffle<AlternatesOf<true>>(ab2, cd2);
    }
  }
}

// Adds the upper half of the first `width` lanes onto the lower half, until `n` lanes are left.
template <int n, int width, int... i>
OPENWORK_INLINE Vec fold(Vec v, std::integer_sequence<int, i...> all) {
  if constexpr (width > n) {
    v += __builtin_shufflevector(v, v, ((i + width / 2) % lanes)...);
    return fold<n, width / 2>(v, all);
  } else {
    return v;
  }
}

// The sums of n vectors (a power of two, at most `lanes`), in the first n lanes of the result. Every vector is summed in the
// same order, upper half onto lower half, whatever n is and wherever it stands.
template <int n>
OPENWORK_INLINE Vec sums(Vec (&v)[n]) {
  if constexpr (n == lanes && lanes > 4) {
    // The same additions, paired so that the shuffles are the cheap ones: sums that are 4 apart, 8, 2, 1.
    OPENWORK_UNROLL
    for (int i = 0; i < n; ++i)
      if (!(i & 4)) v[i] = shuffle<HalvesOf<false>>(v[i], v[i + 4]) + shuffle<HalvesOf<true>>(v[i], v[i + 4]);
    if constexpr (lanes == 16) {
      OPENWORK_UNROLL
      for (int i = 0; i < 4; ++i)
        v[i] = shuffle<AlternatesOf<false>>(v[i], v[i + 8]) + shuffle<AlternatesOf<true>>(v[i], v[i + 8]);
    }
    OPENWORK_UNROLL
    for (int apart = 2; apart > 0; apart /= 2) {
      OPENWORK_UNROLL
      for (int i = 0; i < apart; ++i)
        v[i] = shuffle<InterleaveQuarters<false, 1>>(v[i], v[i + apart]) +
               shuffle<InterleaveQuarters<true, 1>>(v[i], v[i + apart]);
    }
    return v[0];
  } else {
    OPENWORK_UNROLL
    for (int half = n / 2; half > 0; half /= 2) {
      OPENWORK_UNROLL
      for (int i = 0; i < half; ++i)
        v[i] = shuffle<Interleave<false>>(v[i], v[i + half]) + shuffle<Interleave<true>>(v[i], v[i + half]);
    }
    return fold<n, lanes>(v[0], std::make_integer_sequence<int, lanes>{});
  }
}

}  // namespace
}  // namespace openwork::OPENWORK_LEVEL
