// The Python module openwork.kernels._native: one submodule per level this machine can run, all with the same functions.
#include "binding.h"
#include "bytes.h"
#include "index.h"
#include "positions.h"
#include "ranking.h"
#include "topology.h"

namespace nb = nanobind;

namespace openwork {
namespace {

struct Named {
  Level level;
  const char* name;
  bool supported;
};

// From plain to rich; the last supported one is the default.
void levels(Named (&all)[4]) {
  bool avx2 = false, avx512 = false, bf16 = false;
#if defined(OPENWORK_X86)
  __builtin_cpu_init();
  avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  bf16 = avx512 && __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512bf16");
#endif
  all[0] = {Level::portable, "portable", true};
  all[1] = {Level::avx2, "avx2", avx2};
  all[2] = {Level::avx512, "avx512", avx512};
  all[3] = {Level::avx512bf16, "avx512bf16", bf16};
}

}  // namespace
}  // namespace openwork

NB_MODULE(_native, m) {
  using namespace openwork;
  Named all[4];
  levels(all);
  nb::list names;
  for (const Named& one : all) {
    if (!one.supported) continue;
    names.append(one.name);
    nb::module_ level = m.def_submodule(one.name);
    for (const Binding* binding = Binding::first; binding; binding = binding->next) binding->define(level, one.level);
  }
  m.attr("levels") = nb::tuple(names);
  m.def("plan_runs", plan_runs, nb::call_guard<nb::gil_scoped_release>());
  m.def("transpose", transpose, nb::call_guard<nb::gil_scoped_release>());
  m.def("plan_transposed_runs", plan_transposed_runs, nb::call_guard<nb::gil_scoped_release>());
  m.def("count_below", count_below, nb::call_guard<nb::gil_scoped_release>());
  m.def("merge", merge, nb::call_guard<nb::gil_scoped_release>());
  m.def("sort", openwork::sort, nb::call_guard<nb::gil_scoped_release>());
  m.def("count_reached", count_reached, nb::call_guard<nb::gil_scoped_release>());
  m.def("carry", carry, nb::call_guard<nb::gil_scoped_release>());
  m.def("free_places", free_places, nb::call_guard<nb::gil_scoped_release>());
  m.def("set_bits", set_bits, nb::call_guard<nb::gil_scoped_release>());
  m.def("list_bits", list_bits, nb::call_guard<nb::gil_scoped_release>());
  m.def("rewire", rewire, nb::call_guard<nb::gil_scoped_release>());
  m.def("lay_flat_marked", lay_flat_marked, nb::call_guard<nb::gil_scoped_release>());
  m.def("cut_into_rows", cut_into_rows, nb::call_guard<nb::gil_scoped_release>());
  m.def("lay_flat", lay_flat, nb::call_guard<nb::gil_scoped_release>());
  m.def("is_topology", is_topology, nb::call_guard<nb::gil_scoped_release>());
  m.def("locate", locate, nb::call_guard<nb::gil_scoped_release>());
  m.def("keep_above", keep_above, nb::call_guard<nb::gil_scoped_release>());
  m.def("keep_largest", keep_largest, nb::call_guard<nb::gil_scoped_release>());
  m.def("same_bytes", same_bytes);  // mostly short: letting others run would take longer
  m.def("mark_farther_from_zero", mark_farther_from_zero, nb::call_guard<nb::gil_scoped_release>());
  m.def("mark_largest", mark_largest, nb::call_guard<nb::gil_scoped_release>());
}
