// Few samples for kernels that read inputs in units of several: filled up with zeros to whole units, and computed a few at a time.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "scratch.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

struct Padded {
  const float* x;  // [batch][inputs]
  std::int64_t batch, inputs, stride;  // floats from one sample to the next, once they are filled up
  float* packed;   // where that is done; null if the inputs are whole units

  // For the thread that begins a parallel region, before it does.
  static Padded of(const float* x, std::int64_t batch, std::int64_t inputs, std::int64_t unit) {
    const std::int64_t stride = (inputs + unit - 1) / unit * unit;
    return {x, batch, inputs, stride, inputs == stride ? nullptr : scratch<float>(Scratch::shared, batch * stride)};
  }

  // Inside the parallel region, by all threads.
  void fill() const {
    if (!packed) return;
#pragma omp for schedule(static)
    for (std::int64_t sample = 0; sample < batch; ++sample) {
      float* to = packed + sample * stride;
      std::memset(to + inputs, 0, static_cast<std::size_t>(stride - inputs) * sizeof(float));
      if (inputs)  // without any, x may be null, which memcpy does not take
        std::memcpy(to, x + sample * inputs, static_cast<std::size_t>(inputs) * sizeof(float));
    }
  }

  const float* sample(std::int64_t s) const { return (packed ? packed : x) + s * stride; }
};

// step(std::integral_constant<int, samples>{}, first sample) for all of the batch, in portions of 8 (if `most` says so), 4, 2 and 1.
template <int most, class Step>
OPENWORK_INLINE void in_portions(std::int64_t batch, Step step) {
  std::int64_t s = 0;
  const auto portions = [&](auto samples) __attribute__((always_inline)) {
    for (; s + samples <= batch; s += samples) step(samples, s);
  };
  if constexpr (most >= 8) portions(std::integral_constant<int, 8>{});
  if constexpr (most >= 4) portions(std::integral_constant<int, 4>{});
  portions(std::integral_constant<int, 2>{});
  portions(std::integral_constant<int, 1>{});
}

}  // namespace
}  // namespace openwork::OPENWORK_LEVEL
