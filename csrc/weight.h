// Weights as kernels for few samples store them: float32, or bfloat16 where half the bytes are worth more than the last bits.
// Either way products and sums are float32.
#pragma once
#include "simd.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

// The upper 16 bits of a float32.
struct BFloat16 {
  std::uint16_t bits;
};

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

// Calls body with a value of the type of the columns (16 or 32 bits) and one of the weights (float32 or bfloat16).
template <class Body>
OPENWORK_INLINE void with_types(bool wide_columns, bool bfloat16, Body body) {
  if (wide_columns) {
    if (bfloat16) body(std::int32_t{}, BFloat16{});
    else body(std::int32_t{}, float{});
  } else {
    if (bfloat16) body(std::uint16_t{}, BFloat16{});
    else body(std::uint16_t{}, float{});
  }
}

}  // namespace
}  // namespace openwork::OPENWORK_LEVEL
