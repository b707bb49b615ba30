// Weights as kernels for few samples store them: float32, or bfloat16 or int8 where fewer bytes are worth more than the last bits.
// Products and sums are float32 whatever they are; the sum of a row of int8 is multiplied by the scale of the row.
#pragma once
#include "simd.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

// The upper 16 bits of a float32.
struct BFloat16 {
  std::uint16_t bits;
};

// A whole number, to be multiplied by the scale of its row.
struct Int8 {
  std::int8_t number;
};

typedef std::int8_t QuarterWords __attribute__((vector_size(lanes), may_alias));
typedef std::uint16_t HalfWords __attribute__((vector_size(lanes * 2), may_alias));

// `lanes` weights.
OPENWORK_INLINE Vec weights(const float* p) { return load_unaligned(p); }
OPENWORK_INLINE Vec weights(const BFloat16* p) {
#if defined(__AVX512F__)
  const __mmask16 all = 0xffff;
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return (Vec)_mm512_maskz_slli_epi32(all, _mm512_maskz_cvtepu16_epi32(all, half), 16);
#else
  HalfWords half;
  std::memcpy(&half, p, sizeof half);
  return (Vec)(__builtin_convertvector(half, IntVec) << 16);
#endif
}
OPENWORK_INLINE Vec weights(const Int8* p) {
#if defined(__AVX512F__)
  const __m128i quarter = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return (Vec)_mm512_cvtepi32_ps(_mm512_maskz_cvtepi8_epi32(0xffff, quarter));
#else
  QuarterWords quarter;
  std::memcpy(&quarter, p, sizeof quarter);
  return __builtin_convertvector(__builtin_convertvector(quarter, IntVec), Vec);
#endif
}

// An IEEE half. Only finite ones arrive here.
struct Half {
  std::uint16_t bits;
};

OPENWORK_INLINE Vec weights(const Half* p) {
#if defined(__AVX512F__)
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return (Vec)_mm512_maskz_cvtph_ps(0xffff, half);
#else
  HalfWords half;
  std::memcpy(&half, p, sizeof half);
  const IntVec wide = __builtin_convertvector(half, IntVec);
  const IntVec size = (wide & 0x7fff) << 13;
  const Vec normal = (Vec)(size + (112 << 23));            // another bias of the exponent
  const Vec tiny = (Vec)(size + (113 << 23)) - 0x1p-14f;   // exponent 0: a fixed point number below 2^-14
  const IntVec absolute = (wide & 0x7c00) == 0 ? (IntVec)tiny : (IntVec)normal;
  return (Vec)(absolute | (wide & 0x8000) << 16);
#endif
}

OPENWORK_INLINE float weight(const float* p) { return *p; }
OPENWORK_INLINE float weight(const BFloat16* p) {
  const std::uint32_t bits = std::uint32_t{p->bits} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

OPENWORK_INLINE float weight(const Int8* p) { return p->number; }

// The order is that of openwork.kernels.inference.WEIGHT_DTYPES.
enum class Precision : int { float32, bfloat16, int8 };

// Calls body with a value of the type of the weights.
template <class Body>
OPENWORK_INLINE void with_weight(int precision, Body body) {
  if (precision == static_cast<int>(Precision::bfloat16)) body(BFloat16{});
  else if (precision == static_cast<int>(Precision::int8)) body(Int8{});
  else body(float{});
}

// Calls body with a value of the type of the columns (16 or 32 bits) and one of the weights.
template <class Body>
OPENWORK_INLINE void with_types(bool wide_columns, int precision, Body body) {
  with_weight(precision, [&](auto weight) {
    if (wide_columns) body(std::int32_t{}, weight);
    else body(std::uint16_t{}, weight);
  });
}

}  // namespace
}  // namespace openwork::OPENWORK_LEVEL
