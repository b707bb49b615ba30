// The activations a kernel can apply to its outputs while they are still in registers.
//
// Exact where the function is (none, relu) and within a few units in the last place elsewhere; the numbers below are minimax fits
// in relative error, made for these ranges. NaN goes through every function.
#pragma once
#include <type_traits>

#include "simd.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

// The order is that of openwork.kernels.linear.ACTIVATIONS.
enum class Activation : int { none, relu, gelu, gelu_tanh, silu };

// e^x = 2^n e^r, n = round(x / ln 2). Overflows to infinity from 88.4 on; smallest value 2^-126.
OPENWORK_INLINE Vec exponential(Vec x) {
  x = x < -87.3f ? broadcast(-87.3f) : x;
  x = x > 88.7f ? broadcast(88.7f) : x;
  const Vec rounder = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec n = (x * 1.44269504f + rounder) - rounder;
  const Vec r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  Vec p = broadcast(1.38358013e-3f);
  p = p * r + 8.37564506e-3f;
  p = p * r + 4.16682884e-2f;
  p = p * r + 0.166664109f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const IntVec bits = (__builtin_convertvector(n, IntVec) + 127) << 23;
  return p * (Vec)bits;
}

// Distribution function of the standard normal, 1/2 erfc(-x / sqrt 2), also relatively accurate in the lower tail:
// erfc(z) = e^(-z^2) t P(t) with t = 1 / (1 + 0.4 z), for z >= 0.
OPENWORK_INLINE Vec normal_cdf(Vec x) {
  const Vec z = (x < 0.0f ? -x : x) * 0.707106781f;
  const Vec t = 1.0f / (1.0f + 0.4f * z);
  Vec p = broadcast(-0.0244905021f);
  p = p * t + 0.17069631f;
  p = p * t + -0.435633985f;
  p = p * t + 0.464764333f;
  p = p * t + -0.21708188f;
  p = p * t + 0.23683408f;
  p = p * t + 0.141519245f;
  p = p * t + 0.212462512f;
  p = p * t + 0.225237068f;
  p = p * t + 0.225692834f;
  const Vec tail = 0.5f * exponential(-(z * z)) * t * p;
  return x < 0.0f ? tail : 1.0f - tail;
}

OPENWORK_INLINE Vec sigmoid_times(Vec x, Vec argument) { return x / (1.0f + exponential(-argument)); }

template <Activation activation>
OPENWORK_INLINE Vec apply(Vec x) {
  if constexpr (activation == Activation::relu) return x < 0.0f ? Vec{} : x;
  else if constexpr (activation == Activation::gelu) return x * normal_cdf(x);
  else if constexpr (activation == Activation::gelu_tanh) return sigmoid_times(x, 1.59576912f * (x + 0.044715f * x * x * x));
  else if constexpr (activation == Activation::silu) return sigmoid_times(x, x);
  else return x;
}

// Calls body with the activation as a compile-time constant.
template <class Body>
OPENWORK_INLINE void with(Activation activation, Body body) {
  switch (activation) {
    case Activation::relu: return body(std::integral_constant<Activation, Activation::relu>{});
    case Activation::gelu: return body(std::integral_constant<Activation, Activation::gelu>{});
    case Activation::gelu_tanh: return body(std::integral_constant<Activation, Activation::gelu_tanh>{});
    case Activation::silu: return body(std::integral_constant<Activation, Activation::silu>{});
    default: return body(std::integral_constant<Activation, Activation::none>{});
  }
}

}  // namespace
}  // namespace openwork::OPENWORK_LEVEL
