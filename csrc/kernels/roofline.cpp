// What this machine can do at most, at this level: multiply and add, read, and hand data from one thread to another. Kernels are
// judged by the share they reach.
#include "simd.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

// Independent sums, enough to cover the latency of a multiplication and an addition on every pipe.
constexpr int chains = 12;

// Vectors read in one step.
constexpr int reads = 8;

}  // namespace

// Every thread makes `count` multiply-adds of floats (a multiple of 192), all in registers. sums [threads * 16] become 2.
KERNEL(most_multiply_adds, std::int64_t count, Address sums, int threads) {
#pragma omp parallel for schedule(static, 1) num_threads(threads)
  for (int thread = 0; thread < threads; ++thread) {
    Vec sum[chains], half = broadcast(0.5f), one = broadcast(1.0f);
    OPENWORK_UNROLL
    for (int i = 0; i < chains; ++i) sum[i] = broadcast(static_cast<float>(i));
    for (std::int64_t done = 0; done < count; done += chains * lanes) {
      OPENWORK_UNROLL
      for (int i = 0; i < chains; ++i) sum[i] = sum[i] * half + one;
    }
    Vec all{};
    OPENWORK_UNROLL
    for (int i = 0; i < chains; ++i) all += sum[i] * broadcast(1.0f / chains);
    for (int i = 0; i < 16; i += lanes) store_unaligned(at<float>(sums) + thread * 16 + i, all);
  }
}

// Every thread reads its share of x [threads][count] `times` over (count a multiple of 128); sums [threads * 16] are what it read.
KERNEL(most_reads, Address x, std::int64_t count, std::int64_t times, Address sums, int threads) {
#pragma omp parallel for schedule(static, 1) num_threads(threads)
  for (int thread = 0; thread < threads; ++thread) {
    const float* share = at<const float>(x) + thread * count;
    Vec sum[reads]{};
    for (std::int64_t time = 0; time < times; ++time) {
      asm volatile("" : "+r"(share) : : "memory");  // read again, do not remember
      for (std::int64_t i = 0; i < count; i += reads * lanes) {
        OPENWORK_UNROLL
        for (int j = 0; j < reads; ++j) sum[j] += load_unaligned(share + i + j * lanes);
      }
    }
    Vec all{};
    OPENWORK_UNROLL
    for (int j = 0; j < reads; ++j) all += sum[j];
    float* to = at<float>(sums) + thread * 16;
    for (int i = 0; i < 16; ++i) to[i] = i < lanes ? all[i] : 0.0f;
  }
}

// A line of memory goes back and forth between two threads `count` times: each waits for the other's number and writes the next.
// lines [64] are integers that begin as zeros. Does nothing where the runtime grants one thread only.
KERNEL(most_handovers, Address lines, std::int64_t count) {
#pragma omp parallel num_threads(2)
  {
    int* team = at<int>(lines) + 32;
    const int self = __atomic_fetch_add(team, 1, __ATOMIC_RELAXED);
#pragma omp barrier
    if (*team == 2) {
      std::int64_t* line = at<std::int64_t>(lines);
      for (std::int64_t turn = self; turn < 2 * count; turn += 2) {
        while (__atomic_load_n(line, __ATOMIC_ACQUIRE) != turn) {
        }
        __atomic_store_n(line, turn + 1, __ATOMIC_RELEASE);
      }
    }
  }
}

}  // namespace openwork::OPENWORK_LEVEL
