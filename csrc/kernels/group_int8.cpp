// Groups of 16 inputs in codes of 8 bits: 16 bytes of codes where bfloat16 has 32.
#include "code_groups.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

struct Bytes {
  const std::uint8_t* code;  // [groups][16]

  OPENWORK_INLINE void decode(std::int64_t g, Vec (&to)[vectors]) const {
    const std::uint8_t* from = code + g * group_inputs;
#if defined(__AVX512F__)
    const __m128i quarter = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    to[0] = (Vec)_mm512_cvtepi32_ps(_mm512_maskz_cvtepu8_epi32(0xffff, quarter));
#else
    typedef std::uint8_t Quarter __attribute__((vector_size(lanes), may_alias));
    OPENWORK_UNROLL
    for (int v = 0; v < vectors; ++v) {
      Quarter quarter;
      std::memcpy(&quarter, from + v * lanes, sizeof quarter);
      to[v] = __builtin_convertvector(__builtin_convertvector(quarter, IntVec), Vec);
    }
#endif
  }
  OPENWORK_INLINE void fetch(std::int64_t g) const { prefetch(code + g * group_inputs); }
};

}  // namespace

// As group_int4_linear; codes uint8 [groups][16].
KERNEL(group_int8_linear, Address x, Address y, std::int64_t batch, std::int64_t inputs, std::int64_t outputs, Address columns,
       Address codes, Address scales, Address zeros, Address ends, bool wide, int statistic, Address bias, int activation,
       int threads) {
  const Job job{at<const float>(x), at<float>(y), batch, inputs, outputs, at<const float>(bias),
                static_cast<Activation>(activation), threads};
  run_groups(job, Bytes{at<const std::uint8_t>(codes)}, columns, scales, zeros, ends, wide, statistic);
}

}  // namespace openwork::OPENWORK_LEVEL
