// Biases of patterns of rows and columns + activation: what is launched for a call, and how the work is cut.
#include <algorithm>
#include <initializer_list>
#include <numeric>
#include <type_traits>

#include "launch.cuh"
#include "plane_bias_act.cuh"

namespace dcgan_fast::cuda {
namespace {

constexpr int64_t kTargetBlocks = 512;  // images are taken together where there are more of them: as bn_act.cu's
constexpr int kLeastChunkBytes = 64;    // of a pixel, two sectors, where its channels are shared out
constexpr int kLeastChunk = 32;         // of single elements

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int element_bytes(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

int wide(const PlaneMaps& maps) { return kAccessBytes / element_bytes(maps.dtype); }

int64_t inner_of(const PlaneMaps& maps) { return maps.channels_last ? maps.channels : 1; }

// Rows after which an item begins again with a row, where items lie across pixels.
int64_t rows_of_items(const PlaneMaps& maps, int width) {
  return width / std::gcd(static_cast<int64_t>(width), maps.width * inner_of(maps));
}

// Elements that a thread moves at once: as many as 16 bytes hold, or 1. Items lie in the channels of a pixel, or across
// pixels of tiles that have all channels.
int item_width(const PlaneMaps& maps, std::initializer_list<const void*> pointers) {
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % kAccessBytes == 0; };
  if (!std::all_of(pointers.begin(), pointers.end(), aligned)) return 1;
  const int width = wide(maps);
  if (inner_of(maps) % width == 0) return width;
  const int64_t line = maps.width * inner_of(maps), least = rows_of_items(maps, width);
  return maps.height * line % width == 0 && least <= kTileRows && least * line <= kTileElements ? width : 1;
}

PlaneTiling make_tiling(const PlaneMaps& maps, int width) {
  const int64_t inner = inner_of(maps), height = maps.height;
  const bool across = inner % width != 0;
  const auto fits = [&](int64_t rows, int64_t chunk) { return rows * maps.width * chunk <= kTileElements; };
  PlaneTiling tiling = {};
  tiling.images = maps.channels_last ? maps.batch : maps.batch * maps.channels;
  tiling.inner = static_cast<int>(inner);
  int64_t chunk = inner;
  if (!across && !fits(height, inner)) {
    chunk = width > 1 ? kLeastChunkBytes / element_bytes(maps.dtype) : kLeastChunk;
    while (fits(height, 2 * chunk)) chunk *= 2;
    const int64_t most = kTileElements / (maps.width * width) * width;  // of one row
    chunk = std::min({chunk, most, inner});
  }
  const int64_t least = across ? rows_of_items(maps, width) : 1;
  const int64_t most_rows = std::min<int64_t>(kTileRows, kTileElements / (maps.width * chunk)) / least * least;
  tiling.row_tiles = static_cast<int>(divide_up(height, most_rows));
  tiling.rows = static_cast<int>(divide_up(divide_up(height, tiling.row_tiles), least) * least);
  tiling.row_tiles = static_cast<int>(divide_up(height, tiling.rows));
  tiling.rows = static_cast<int>(std::min<int64_t>(tiling.rows, height));
  tiling.chunk = static_cast<int>(chunk);
  tiling.chunks = static_cast<int>(divide_up(inner, chunk));
  tiling.group = 1;
  if (tiling.row_tiles == 1 && tiling.chunks == 1) {
    const int64_t most = kTileElements / (height * maps.width * inner);
    tiling.group = static_cast<int>(std::max<int64_t>(1, std::min(most, tiling.images / kTargetBlocks)));
  }
  return tiling;
}

bool has_elements(const PlaneMaps& maps) { return maps.batch * maps.channels * maps.height * maps.width > 0; }

template <typename T>
const char* forward(const PlaneBiasActForward& args, CUstream_st* stream) {
  const PlaneMaps& maps = args.maps;
  const int width = item_width(maps, {args.input, args.output, args.bias});
  const PlaneTiling tiling = make_tiling(maps, width);
  const auto run = [&](auto items, auto across, auto smooth) {
    return launch(plane_bias_act_forward<T, items(), across(), smooth()>, tiling.blocks(), kThreads,
                  sizeof(int) * (tiling.rows + maps.width), stream, args, tiling);
  };
  const auto with_kind = [&](auto items, auto across) {
    return is_smooth(args.activation) ? run(items, across, std::true_type()) : run(items, across, std::false_type());
  };
  constexpr std::integral_constant<int, kAccessBytes / sizeof(T)> many;
  constexpr std::integral_constant<int, 1> one;
  if (width == 1) return with_kind(one, std::false_type());
  return tiling.inner % width ? with_kind(many, std::true_type()) : with_kind(many, std::false_type());
}

template <typename T>
const char* backward(const PlaneBiasActBackward& args, CUstream_st* stream) {
  const PlaneMaps& maps = args.maps;
  const void* const output = args.activation == Activation::none ? nullptr : args.output;
  const int width = item_width(maps, {args.grad, output, args.grad_input});
  const PlaneTiling tiling = make_tiling(maps, width);
  const bool in_parts = tiling.row_tiles > 1;
  float* const sums = args.grad_bias && in_parts ? static_cast<float*>(args.workspace) : args.grad_bias;
  const int64_t room = divide_up(int64_t{tiling.group} * tiling.rows * maps.width * tiling.chunk, 4) * 4;
  const int words = SortedPatterns::words(tiling.rows, maps.row_patterns) +
                    SortedPatterns::words(static_cast<int>(maps.width), maps.column_patterns);
  const size_t bytes = sums ? sizeof(float) * room + sizeof(int) * words : 0;
  const auto run = [&](auto items, auto smooth) {
    return launch(plane_bias_act_backward<T, items(), smooth()>, tiling.blocks(), kThreads, bytes, stream, args, tiling,
                  sums);
  };
  const auto with_kind = [&](auto items) {
    return is_smooth(args.activation) ? run(items, std::true_type()) : run(items, std::false_type());
  };
  const char* error = width > 1 ? with_kind(std::integral_constant<int, kAccessBytes / sizeof(T)>())
                                : with_kind(std::integral_constant<int, 1>());
  if (error || !sums || !in_parts) return error;
  const int64_t biases = bias_count(maps, tiling);
  const float* const from = sums;
  return launch(plane_bias_act_finalise, divide_up(tiling.images * biases, kThreads), kThreads, 0, stream, from,
                args.grad_bias, tiling.images, biases, tiling.row_tiles);
}

const char* check(const PlaneMaps& maps) {
  if (maps.batch < 0 || maps.channels < 0 || maps.height < 0 || maps.width < 0) return "a size is negative";
  if (maps.width > kMostColumns) return "maps must be at most 1024 columns wide";
  if (maps.channels > INT32_MAX || maps.height > INT32_MAX) return "a size is beyond 2^31 - 1";
  for (const int64_t patterns : {maps.row_patterns, maps.column_patterns}) {
    if (patterns < 1 || patterns > kMostPatterns) return "there must be 1 to 64 patterns of rows and of columns";
  }
  if (maps.dtype < DType::kFloat32 || maps.dtype > DType::kFloat16) return "the type of 'input' is not supported";
  return nullptr;
}

const char* check(const PlaneMaps& maps, Activation activation) {
  if (const char* error = check(maps)) return error;
  if (activation < Activation::none || activation > Activation::sigmoid) return "unknown activation";
  if (has_elements(maps) && !(maps.rows && maps.columns)) return "'rows' or 'columns' is null";
  return nullptr;
}

template <typename Args, typename Run>
const char* with_type(const Args& args, const Run& run) {
  switch (args.maps.dtype) {
    case DType::kBFloat16:
      return run(__nv_bfloat16());
    case DType::kFloat16:
      return run(__half());
    default:
      return run(float());
  }
}

}  // namespace

size_t plane_bias_act_workspace_bytes(const PlaneMaps& maps) {
  int64_t sums = 0;
  if (!check(maps) && has_elements(maps)) {
    for (const int width : {1, item_width(maps, {})}) {
      const PlaneTiling tiling = make_tiling(maps, width);
      if (tiling.row_tiles > 1) sums = std::max(sums, tiling.images * tiling.row_tiles * bias_count(maps, tiling));
    }
  }
  return std::max<size_t>(kAccessBytes, sums * sizeof(float));
}

const char* launch_plane_bias_act_forward(const PlaneBiasActForward& args, CUstream_st* stream) {
  if (const char* error = check(args.maps, args.activation)) return error;
  if (!has_elements(args.maps)) return nullptr;
  if (!(args.input && args.output && args.bias)) return "'input', 'output' or 'bias' is null";
  return with_type(args, [&](auto type) { return forward<decltype(type)>(args, stream); });
}

const char* launch_plane_bias_act_backward(const PlaneBiasActBackward& args, CUstream_st* stream) {
  const PlaneMaps& maps = args.maps;
  if (const char* error = check(maps, args.activation)) return error;
  if (!has_elements(maps)) {
    const int64_t biases = maps.batch * maps.channels * maps.row_patterns * maps.column_patterns;
    return args.grad_bias && biases ? fill(args.grad_bias, 0, biases * sizeof(float), stream) : nullptr;
  }
  if (!args.grad || (args.activation != Activation::none && !args.output)) return "'grad' or 'output' is null";
  if (args.grad_bias && !args.workspace) return "the gradient of 'bias' needs 'workspace'";
  if (!args.grad_input && !args.grad_bias) return nullptr;
  return with_type(args, [&](auto type) { return backward<decltype(type)>(args, stream); });
}

}  // namespace dcgan_fast::cuda
