// What every page in kernels/ begins with: the KERNEL macro, which turns one function into one function per level.
//
// A page is compiled once per instruction set level, with OPENWORK_LEVEL naming the level. There, KERNEL(name, arguments)
// is the head of a plain function `openwork_<level>_<name>`. The page is compiled once more with OPENWORK_BINDINGS, where the
// same head declares the function of every level and registers them with the Python module; the body is parsed and dropped.
//
// Pages must not use anything of the standard library that becomes machine code (containers, algorithms): such code would be
// compiled with the instructions of one level and might be linked into another. Fixed-width integers and type traits are fine.
#pragma once
#include <cstddef>
#include <cstdint>

namespace openwork {

// Tensors cross from Python as addresses. Python has checked dtype, shape, contiguity and device.
using Address = std::uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace openwork

#define OPENWORK_PASTE_(level, name) openwork_##level##_##name
#define OPENWORK_PASTE(level, name) OPENWORK_PASTE_(level, name)
#define OPENWORK_HIDDEN extern "C" __attribute__((visibility("hidden")))

#if !defined(OPENWORK_BINDINGS)

#define KERNEL(name, ...)                                                        \
  OPENWORK_HIDDEN void OPENWORK_PASTE(OPENWORK_LEVEL, name)(__VA_ARGS__);       \
  void OPENWORK_PASTE(OPENWORK_LEVEL, name)(__VA_ARGS__)
#define KERNEL_AVX512BF16(name, ...) KERNEL(name, __VA_ARGS__)

#else

#include "binding.h"

#if defined(OPENWORK_X86)
#define KERNEL(name, ...)                                                                                  \
  OPENWORK_HIDDEN void openwork_portable_##name(__VA_ARGS__);                                             \
  OPENWORK_HIDDEN void openwork_avx2_##name(__VA_ARGS__);                                                 \
  OPENWORK_HIDDEN void openwork_avx512_##name(__VA_ARGS__);                                               \
  static const ::openwork::Binding binding_##name([](::nanobind::module_& m, ::openwork::Level level) {    \
    ::openwork::define(m, #name, level == ::openwork::Level::portable ? openwork_portable_##name           \
                                 : level == ::openwork::Level::avx2   ? openwork_avx2_##name               \
                                                                      : openwork_avx512_##name);           \
  });                                                                                                      \
  [[maybe_unused]] static void unused_##name(__VA_ARGS__)
#else
#define KERNEL(name, ...)                                                                        \
  OPENWORK_HIDDEN void openwork_portable_##name(__VA_ARGS__);                                   \
  static const ::openwork::Binding binding_##name([](::nanobind::module_& m, ::openwork::Level) { \
    ::openwork::define(m, #name, openwork_portable_##name);                                      \
  });                                                                                            \
  [[maybe_unused]] static void unused_##name(__VA_ARGS__)
#endif

// For pages in kernels/avx512bf16/: bound at that level only, absent elsewhere.
#define KERNEL_AVX512BF16(name, ...)                                                                    \
  OPENWORK_HIDDEN void openwork_avx512bf16_##name(__VA_ARGS__);                                         \
  static const ::openwork::Binding binding_##name([](::nanobind::module_& m, ::openwork::Level level) {  \
    if (level == ::openwork::Level::avx512bf16) ::openwork::define(m, #name, openwork_avx512bf16_##name); \
  });                                                                                                   \
  [[maybe_unused]] static void unused_##name(__VA_ARGS__)

#endif
