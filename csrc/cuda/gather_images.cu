// A batch of images out of a data set of bytes: what is launched for a call.
#include "gather_images.cuh"

#include "launch.cuh"

namespace dcgan_fast::cuda {
namespace {

template <int V>
const char* gather(const GatherImages& args, CUstream_st* stream) {
  constexpr int64_t kBlock = int64_t{V} * kThreads * kGatherPasses;
  const int64_t values = args.channels * args.height * args.width, blocks = (values + kBlock - 1) / kBlock;
  const auto kernel = args.channels_last ? gather_images<V, true> : gather_images<V, false>;
  return launch(kernel, args.batch * blocks, kThreads, 0, stream, args, static_cast<int>(blocks));
}

const char* check(const GatherImages& args) {
  if (args.count < 0 || args.batch < 0) return "a size is negative";
  if (args.channels < 1 || args.height < 1 || args.width < 1) return "images must have at least one value";
  // what a block adds to the last place must not wrap around 32 bits
  if (args.channels > INT32_MAX / args.height || args.channels * args.height > INT32_MAX / args.width)
    return "an image must have less than 2^31 values";
  if (!(args.divisor > 0)) return "'divisor' must be positive";
  if (args.batch > 0 && !(args.images && args.rows && args.output)) return "'images', 'rows' or 'output' is null";
  return nullptr;
}

}  // namespace

const char* launch_gather_images(const GatherImages& args, CUstream_st* stream) {
  if (const char* error = check(args)) return error;
  if (args.batch == 0) return nullptr;
  const bool wide = args.channels * args.height * args.width % 4 == 0 &&
                    reinterpret_cast<uintptr_t>(args.output) % kAccessBytes == 0;
  return wide ? gather<4>(args, stream) : gather<1>(args, stream);
}

}  // namespace dcgan_fast::cuda
