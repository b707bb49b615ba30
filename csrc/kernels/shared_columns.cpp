// Y = activation(X W^T + bias) for unstructured W at moderate sparsity: four rows together, their columns grouped by which of
// the four have them.
//
// A column that several of the four rows keep is loaded once for all of them; at 50 % that is 2.1 rows a load. Each of the 15
// patterns has a loop of its own, in which rows and weights are known to the compiler.
#include "groups.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

constexpr int rows = 4, patterns = (1 << rows) - 1;

struct SharedColumns {
  const std::int32_t* column;  // [entries], in each [block][group] sorted by pattern
  const float* weight;         // of each entry as many as its pattern has rows
  const std::int32_t* first;   // [blocks][groups][patterns] first entry, and the end of all
  const std::int32_t* start;   // [blocks][groups] first weight
  std::int64_t block_count, group_count;
};

template <unsigned pattern, int width, int vectors>
OPENWORK_INLINE void add_pattern(Sums<rows, vectors>& sums, const std::int32_t* column, const std::int32_t* first,
                                 const float*& weight, const float* x) {
  for (std::int32_t e = first[pattern - 1]; e < first[pattern]; ++e) {
    prefetch(weight + weights_ahead);
    sums.template add<pattern>(input_at<width>(x, column[e]), weight);
    weight += __builtin_popcount(pattern);
  }
}

template <int width, int vectors, int... pattern>
OPENWORK_INLINE void add_patterns(Sums<rows, vectors>& sums, const std::int32_t* column, const std::int32_t* first,
                                  const float* weight, const float* x, std::integer_sequence<int, pattern...>) {
  (add_pattern<pattern + 1, width>(sums, column, first, weight, x), ...);
}

template <int width>
void multiply(const SharedColumns& w, std::int64_t begin, std::int64_t end, const float* x, float* y) {
  constexpr int vectors = strip_vectors<rows, width>;
  for (std::int64_t block = 0; block < w.block_count; ++block)
    for (std::int64_t group = begin; group < end; ++group) {
      const std::int64_t place = block * w.group_count + group;
      for (int s = 0; s < width; s += vectors * lanes) {
        float* out = y + group * rows * width + s;
        Sums<rows, vectors> sums;
        sums.template begin<width>(out, block == 0);
        add_patterns<width>(sums, w.column, w.first + place * patterns, w.weight + w.start[place], x + s,
                            std::make_integer_sequence<int, patterns>{});
        sums.template end<width>(out);
      }
    }
}

}  // namespace

KERNEL(shared_columns, Address x, Address y, std::int64_t batch, std::int64_t inputs, std::int64_t outputs, Address bias,
       int activation, Address parts, std::int64_t part_count, int threads, Address column, Address weight, Address first,
       Address start, std::int64_t block_count, std::int64_t group_count) {
  const Layer layer{at<const float>(x), at<float>(y), batch, inputs, outputs, at<const float>(bias),
                    static_cast<Activation>(activation), at<const std::int32_t>(parts), part_count};
  const SharedColumns w{at<const std::int32_t>(column), at<const float>(weight), at<const std::int32_t>(first),
                        at<const std::int32_t>(start), block_count, group_count};
  run_layer(layer, threads, [&](auto width, std::int64_t part, const float* in, float* out) {
    multiply<width>(w, layer.parts[part] / rows, (layer.parts[part + 1] + rows - 1) / rows, in, out);
  });
}

}  // namespace openwork::OPENWORK_LEVEL
