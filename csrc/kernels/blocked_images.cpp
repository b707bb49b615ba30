// Images in blocks: [images][channels][height][width] as PyTorch has them to [16 images][height][channels][width][image], and back.
//
// In blocks a vector is one pixel of 16 images, which is what convolutions of batches compute with (grouped.h). Images that the last block
// does not have are zeros on the way in and dropped on the way out.
#include "planes.h"

namespace openwork::OPENWORK_LEVEL {
namespace {

// Calls body(row of a channel of the first image of a block, the same blocked, images in the block) for every one.
template <class Plain, class Body>
void for_rows(Plain* plain, float* blocked, std::int64_t images, std::int64_t channels, std::int64_t height, std::int64_t width,
              int threads, Body body) {
  const std::int64_t blocks = (images + pixel_vector - 1) / pixel_vector;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t i = 0; i < blocks * channels; ++i) {
    const std::int64_t block = i / channels, channel = i % channels;
    for (std::int64_t row = 0; row < height; ++row)
      body(plain + ((block * pixel_vector * channels + channel) * height + row) * width,
           blocked + ((block * height + row) * channels + channel) * width * pixel_vector, smaller(pixel_vector, images - block * pixel_vector));
  }
}

}  // namespace

KERNEL(block_images, Address x, Address y, std::int64_t images, std::int64_t channels, std::int64_t height, std::int64_t width, int threads) {
  const std::int64_t apart = channels * height * width;
  for_rows(at<const float>(x), at<float>(y), images, channels, height, width, threads,
           [&](const float* from, float* to, std::int64_t count) { pack(from, apart, count, 0, width, to, pixel_vector); });
}

KERNEL(unblock_images, Address x, Address y, std::int64_t images, std::int64_t channels, std::int64_t height, std::int64_t width,
       int threads) {
  const std::int64_t apart = channels * height * width;
  for_rows(at<float>(y), at<float>(x), images, channels, height, width, threads, [&](float* to, const float* from, std::int64_t count) {
    unpack<Activation::none>(from, pixel_vector, nullptr, 0, width, to, apart, count);
  });
}

}  // namespace openwork::OPENWORK_LEVEL
