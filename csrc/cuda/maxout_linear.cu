// Maxout units: what is launched for a call.
#include "maxout_linear.cuh"

#include "launch.cuh"

namespace dcgan_fast::cuda {
namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class Step, int kPieces>
const char* run(const MaxoutLinear& args, CUstream_st* stream) {
  using Shape = MaxoutShape<kPieces>;
  constexpr int64_t kChunk = kAccessBytes / sizeof(typename Step::T);
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % kAccessBytes == 0; };
  const bool by_chunks = args.in % kChunk == 0 && aligned(args.input) && aligned(args.weight);
  const int64_t blocks = divide_up(args.rows, Shape::kRows) * divide_up(args.out, kUnitsOfBlock);
  return launch(by_chunks ? maxout_linear<Step, kPieces, true> : maxout_linear<Step, kPieces, false>, blocks,
                Shape::kThreads, pipeline_bytes<Step, Shape>(), stream, args);
}

template <class Step>
const char* run(const MaxoutLinear& args, CUstream_st* stream) {
  switch (args.pieces) {
    case 2: return run<Step, 2>(args, stream);
    case 3: return run<Step, 3>(args, stream);
    case 4: return run<Step, 4>(args, stream);
    case 5: return run<Step, 5>(args, stream);
    default: return "there must be 2 to 5 pieces";
  }
}

const char* check(const MaxoutLinear& args) {
  if (args.rows < 0) return "a size is negative";
  if (args.in < 1 || args.out < 1) return "there must be inputs and outputs";
  if (args.pieces < kLeastPieces || args.pieces > kMostPieces) return "there must be 2 to 5 pieces";
  if (args.rows > 0 && !(args.input && args.weight && args.output)) return "'input', 'weight' or 'output' is null";
  return nullptr;
}

}  // namespace

const char* launch_maxout_linear(const MaxoutLinear& args, CUstream_st* stream) {
  if (const char* error = check(args)) return error;
  if (args.rows == 0) return nullptr;
  switch (args.dtype) {
    case DType::kFloat32:
      return args.precision == Precision::kTf32 ? run<Tf32Step>(args, stream) : run<Tf32x3Step>(args, stream);
    case DType::kBFloat16: return run<HalfStep<__nv_bfloat16>>(args, stream);
    case DType::kFloat16: return run<HalfStep<__half>>(args, stream);
    default: return "the type of 'input' is not supported";
  }
}

}  // namespace dcgan_fast::cuda
