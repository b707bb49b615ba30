// The weight stream: the nonzeros in the order of the walk, one 64-bit word each.
//
// The lower half is the value, the upper half says where the inputs of its column are. A word is one load where an index and a
// value would be two, and the stream is read from front to back. Values live elsewhere, in CSR order, so the stream is woven anew
// in every call (a small part of the product) unless the caller keeps one.
#pragma once
#include "walk.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

using Word = std::uint64_t;

// A word holds column * offset_unit bytes: the distance between features in the narrowest tile. Wider tiles scale it, which the
// address arithmetic of the processor does for nothing.
constexpr int offset_unit = 64;

template <int width>
OPENWORK_INLINE const float* input_of(Word word, const float* x) {
  return reinterpret_cast<const float*>(reinterpret_cast<const char*>(x) + (word >> 32) * (width * 4 / offset_unit));
}

OPENWORK_INLINE float value_of(Word word) {
  const auto bits = static_cast<std::uint32_t>(word);
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Words of a whole stream. Weaving writes whole vectors, so every part has room for one more behind its last word.
OPENWORK_INLINE std::int64_t stream_length(std::int64_t kept, std::int64_t part_count) {
  return kept + part_count * part_padding;
}

struct Weave {
  const std::int32_t* column;       // in CSR order of the walked matrix
  const float* value;               // [kept], in the same order, or
  const std::int32_t* permutation;  // if not null, nonzero e has value[permutation[e]]
  std::int64_t kept;
  const std::int32_t* place = nullptr;  // if not null, the inputs of column k are place[k] units from the start, instead of k

  OPENWORK_INLINE std::uint32_t offset_at(std::int64_t e) const {
    return static_cast<std::uint32_t>(place ? place[column[e]] : column[e]) * offset_unit;
  }

  OPENWORK_INLINE float value_at(std::int64_t e) const { return permutation ? value[permutation[e]] : value[e]; }

  void part(const Walk& walk, std::int64_t part, Word* words) const {
    Word* word = words + walk.parts[part].word;
    for (const Run *run = walk.runs + walk.parts[part].run, *end = walk.runs + walk.parts[part + 1].run; run < end; ++run) {
      std::int32_t u = 0;
      for (; !place && !permutation && u < run->length && run->first + u + lanes <= kept; u += lanes) {
        const std::int64_t e = run->first + u;
        const Vec offset = (Vec)((IntVec)load_unaligned(reinterpret_cast<const float*>(column + e)) * offset_unit);
        const Vec weight = load_unaligned(value + e);
        auto* to = reinterpret_cast<float*>(word + u);
        store_unaligned(to, shuffle<Interleave<false>>(weight, offset));
        store_unaligned(to + lanes, shuffle<Interleave<true>>(weight, offset));
      }
      for (; u < run->length; ++u) {
        const float weight = value_at(run->first + u);
        std::uint32_t bits;
        std::memcpy(&bits, &weight, sizeof bits);
        word[u] = static_cast<Word>(offset_at(run->first + u)) << 32 | bits;
      }
      word += run->length;
    }
  }
};

}  // namespace
}  // namespace openwork::OPENWORK_LEVEL
