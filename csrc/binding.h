// How kernels reach Python: each page registers itself, the module defines what is registered once per level.
#pragma once
#include <nanobind/nanobind.h>

namespace openwork {

enum class Level { portable, avx2, avx512, avx512bf16 };

// A page's entry in the list of all kernels; the list is built while the library is loaded.
struct Binding {
  using Define = void (*)(nanobind::module_&, Level);
  explicit Binding(Define define) : define(define), next(first) { first = this; }
  Define define;
  const Binding* next;
  inline static const Binding* first = nullptr;
};

// Kernels run without the interpreter lock: they touch only the buffers they are given.
template <class... Arguments>
void define(nanobind::module_& m, const char* name, void (*kernel)(Arguments...)) {
  m.def(name, kernel, nanobind::call_guard<nanobind::gil_scoped_release>());
}

}  // namespace openwork
