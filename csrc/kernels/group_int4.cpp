// Groups of 16 inputs in codes of 4 bits: 8 bytes of codes where bfloat16 has 32. The codes of a group are a word of 64 bits, the even
// ones in its lower half and the odd ones in its upper half: copied over a vector, every lane shifts its own down. A look-up then
// says what number a code stands for: itself, or one of 16 floats.
#include "code_groups.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

// How far lane i of vector v shifts its half of the codes down.
template <int... i>
OPENWORK_INLINE IntVec shifts(int v, std::integer_sequence<int, i...>) {
  return IntVec{4 * ((v * lanes + i) / 2)...};
}

struct Nibbles {
  const std::uint64_t* word;  // [groups]
  const float* number;        // [16], by code
  bool whole;                 // the numbers are the codes

  OPENWORK_INLINE void decode(std::int64_t g, Vec (&to)[vectors]) const {
    typedef std::uint64_t Words __attribute__((vector_size(lanes * 4), may_alias));
    const auto words = (IntVec)(Words{} + word[g]);
    const std::make_integer_sequence<int, lanes> all;
#if defined(__AVX512F__)
    const __m512i shifted = _mm512_maskz_srlv_epi32(0xffff, (__m512i)words, (__m512i)shifts(0, all));
    to[0] = (Vec)_mm512_maskz_permutexvar_ps(0xffff, shifted, (__m512)load_unaligned(number));  // sees the lowest four bits only
#else
    OPENWORK_UNROLL
    for (int v = 0; v < vectors; ++v) {
      const IntVec code = (words >> shifts(v, all)) & 15;
      if (whole) {
        to[v] = __builtin_convertvector(code, Vec);
      } else {
        OPENWORK_UNROLL
        for (int i = 0; i < lanes; ++i) to[v][i] = number[code[i]];
      }
    }
#endif
  }
  OPENWORK_INLINE void fetch(std::int64_t g) const { prefetch(word + g); }
};

}  // namespace

// x [batch][inputs], y [batch][outputs]; codes as above; scales and zeros float16 (0), bfloat16 (1) or float32 (2); bias may be 0.
KERNEL(group_int4_linear, Address x, Address y, std::int64_t batch, std::int64_t inputs, std::int64_t outputs, Address columns,
       Address codes, Address scales, Address zeros, Address ends, bool wide, int statistic, Address numbers, bool whole, Address bias,
       int activation, int threads) {
  const Job job{at<const float>(x), at<float>(y), batch, inputs, outputs, at<const float>(bias),
                static_cast<Activation>(activation), threads};
  run_groups(job, Nibbles{at<const std::uint64_t>(codes), at<const float>(numbers), whole}, columns, scales, zeros, ends, wide,
             statistic);
}

}  // namespace openwork::OPENWORK_LEVEL
