// Densities of Gaussian Parzen windows: what is launched for a call.
#include "parzen.cuh"

#include <algorithm>

#include "launch.cuh"

namespace dcgan_fast::cuda {
namespace {

// Two blocks for each SM of the largest devices; the samples are shared out to so many whatever the device, so that results
// are the same bits on all.
constexpr int64_t kWantedBlocks = 264;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Where everything lies in the workspace.
struct Layout {
  ParzenLaunch launch = {};
  size_t bytes = 0;

  explicit Layout(const ParzenWindows& args) {
    constexpr int64_t kRows = ParzenShape::kRows, kColumns = ParzenShape::kColumns;
    constexpr int64_t kFloats = kAccessBytes / sizeof(float);
    launch.args = args;
    launch.padded = divide_up(args.features, kFloats) * kFloats;
    launch.tiles = divide_up(args.count, kColumns);
    const int64_t row_tiles = std::max<int64_t>(1, divide_up(args.rows, kRows));
    launch.splits = static_cast<int>(std::min(divide_up(kWantedBlocks, row_tiles), launch.tiles));
    launch.half_squares = take<double>(args.rows);
    launch.half_squares_of_samples = take<float>(launch.tiles * kColumns);
    launch.x = take<float>(args.rows * launch.padded);
    launch.y = take<float>(args.count * launch.padded);
    launch.parts = take<float>(args.rows * launch.parts_of_row() * (1 + args.sigmas));
  }

 private:
  template <typename T>
  T* take(int64_t elements) {
    auto* const at = reinterpret_cast<T*>(static_cast<unsigned char*>(launch.args.workspace) + bytes);
    bytes += divide_up(elements * static_cast<int64_t>(sizeof(T)), 256) * 256;
    return at;
  }
};

template <class Step>
const char* products(const ParzenLaunch& call, CUstream_st* stream) {
  const int64_t blocks = divide_up(call.args.rows, ParzenShape::kRows) * call.splits;
  const size_t shared = pipeline_bytes<Step, ParzenShape>() + parzen_rows_bytes(static_cast<int>(call.args.sigmas));
  return launch(parzen_products<Step>, blocks, ParzenShape::kThreads, shared, stream, call);
}

const char* check(const ParzenWindows& args) {
  if (args.rows < 0) return "a size is negative";
  if (args.count < 1 || args.features < 1) return "there must be samples and features";
  if (args.sigmas < 1 || args.sigmas > kMostSigmas) return "there must be 1 to 32 sigmas";
  if (!args.bad_row || !args.workspace) return "'bad_row' or 'workspace' is null";
  if (!args.samples || !args.centre) return "an input is null";
  if (args.rows > 0 && !(args.data && args.log_sums)) return "'data' or 'log_sums' is null";
  return nullptr;
}

}  // namespace

size_t parzen_workspace_bytes(int64_t count, int64_t rows, int64_t features, int64_t sigmas) {
  ParzenWindows sizes = {};
  sizes.count = count, sizes.rows = rows, sizes.features = features, sizes.sigmas = sigmas;
  return Layout(sizes).bytes;
}

const char* launch_parzen(const ParzenWindows& args, CUstream_st* stream) {
  if (const char* error = check(args)) return error;
  if (const char* error = fill(args.bad_row, 0xff, sizeof(*args.bad_row), stream)) return error;
  const ParzenLaunch call = Layout(args).launch;
  const int64_t centred = call.tiles * ParzenShape::kColumns + args.rows;
  if (const char* error = launch(parzen_centre, divide_up(centred, kWarps), kThreads, 0, stream, call)) return error;
  if (args.rows == 0) return nullptr;
  const char* error = args.precision == Precision::kTf32     ? products<Tf32Step>(call, stream)
                      : args.precision == Precision::kTf32x3 ? products<Tf32x3Step>(call, stream)
                                                             : products<FmaStep>(call, stream);
  if (error) return error;
  return launch(parzen_finish, divide_up(args.rows * args.sigmas, kThreads), kThreads, 0, stream, call);
}

}  // namespace dcgan_fast::cuda
