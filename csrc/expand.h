// Packed weights spread over the lanes that a bitmask names: as many weights as bits, in order, zero elsewhere.
#pragma once
#include "weight.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

// Columns that one mask covers.
constexpr int mask_bits = 16;

// The weights of `lanes` columns, and which columns have one.
struct Expanded {
  Vec weight;
#if defined(__AVX512F__)
  __mmask16 present;
#else
  IntVec present;  // all bits of the lanes that have one
#endif
};

#if defined(__AVX512F__)

OPENWORK_INLINE Expanded expand(Vec packed, std::uint32_t mask) {
  // The instruction waits for the old value of its destination although it overwrites all of it; clearing that costs nothing.
  Vec weight;
  const auto present = static_cast<__mmask16>(mask);
  asm("vpxor %x0, %x0, %x0\n\tvexpandps %1, %0%{%2%}%{z%}" : "=&x"(weight) : "v"(packed), "Yk"(present));
  return {weight, present};
}

// sum + weight * x where there is a weight, sum elsewhere, whatever x is there.
OPENWORK_INLINE Vec add_product(const Expanded& e, Vec x, Vec sum) {
  return (Vec)_mm512_mask3_fmadd_ps((__m512)e.weight, (__m512)x, (__m512)sum, e.present);
}

#else

#if defined(__AVX2__)

// For every byte, which of the packed weights each lane takes: one for each bit below its own.
struct Places {
  std::uint8_t of[256][8];
  constexpr Places() : of{} {
    for (int mask = 0; mask < 256; ++mask)
      for (int lane = 0, next = 0; lane < 8; ++lane) {
        of[mask][lane] = static_cast<std::uint8_t>(next & 7);
        next += mask >> lane & 1;
      }
  }
};
constexpr Places places;

OPENWORK_INLINE Expanded expand(Vec packed, std::uint32_t mask) {
  const IntVec bits = {1, 2, 4, 8, 16, 32, 64, 128};
  const __m256i place = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(places.of[mask])));
  const IntVec present = (bits & static_cast<std::int32_t>(mask)) != 0;
  return {(Vec)((IntVec)_mm256_permutevar8x32_ps((__m256)packed, place) & present), present};
}

#else

OPENWORK_INLINE Expanded expand(Vec packed, std::uint32_t mask) {
  Expanded e = {};
  for (int lane = 0, next = 0; lane < lanes; ++lane)
    if (mask >> lane & 1) {
      e.weight[lane] = packed[next++];
      e.present[lane] = -1;
    }
  return e;
}

#endif

OPENWORK_INLINE Vec add_product(const Expanded& e, Vec x, Vec sum) { return e.weight * (Vec)((IntVec)x & e.present) + sum; }

#endif

}  // namespace
}  // namespace openwork::OPENWORK_LEVEL
