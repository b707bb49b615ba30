// Buffers that kernels use while they run, kept by each thread between calls.
#pragma once
#include <cstddef>
#include <cstdint>

namespace openwork {

// Independent buffers of each thread: one it uses alone, two it shares with the team it leads (activations, weights).
enum class Scratch { own, shared, weights };

// At least `bytes` bytes, aligned to a cache line, contents undefined. Valid until the same thread asks for the same buffer again.
// It only grows, to the need of the largest layer, and is freed when the thread ends. Throws std::bad_alloc.
void* scratch_bytes(Scratch which, std::size_t bytes);

template <class T>
T* scratch(Scratch which, std::int64_t count) {
  return static_cast<T*>(scratch_bytes(which, static_cast<std::size_t>(count) * sizeof(T)));
}

}  // namespace openwork
