// Batch normalisation + activation: what is launched for a call, and how the work is cut.
#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <type_traits>

#include "bn_act.cuh"
#include "launch.cuh"

namespace dcgan_fast::cuda {
namespace {

// Enough blocks to fill the largest GPU of today about once (132 SMs x 4), and few enough that the
// finalise kernels have little to combine. A constant, not the device's number of SMs: results do not
// depend on where they are computed.
constexpr int64_t kTargetBlocks = 512;

// Lanes along the channels: 8 x 16 bytes fill a memory line; single elements take a whole warp.
constexpr int kWideLanes = 8;
constexpr int kNarrowLanes = kWarpSize;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t group_values(const BnActShape& shape) { return shape.batch / shape.stat_groups * shape.spatial; }

int element_bytes(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// The same memory, described so that the widest accesses apply: one channel is a plane a group, and
// planes of one element are rows.
BnActShape canonical(BnActShape shape) {
  if (shape.channels == 1) {
    shape.spatial = group_values(shape);
    shape.batch = shape.stat_groups;
    shape.channels_last = false;
  } else if (shape.spatial == 1) {
    shape.channels_last = true;
  }
  return shape;
}

// Elements a thread can move at once (of a canonical shape): as many as 16 bytes hold, or 1.
int vector_width(const BnActShape& shape, std::initializer_list<const void*> pointers) {
  const int wide = kAccessBytes / element_bytes(shape.dtype);
  const int64_t contiguous = shape.channels_last ? shape.channels : shape.spatial;
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % kAccessBytes == 0; };
  const bool fits = contiguous % wide == 0 && std::all_of(pointers.begin(), pointers.end(), aligned);
  return fits ? wide : 1;
}

Tiling make_tiling(const BnActShape& shape, int width) {
  Tiling tiling = {};
  int64_t rows = kThreads;
  if (shape.channels_last) {
    const int64_t vectors = shape.channels / width;
    const int widest = width > 1 ? kWideLanes : kNarrowLanes;
    for (tiling.lanes = 1; tiling.lanes < widest && tiling.lanes < vectors;) tiling.lanes *= 2;
    rows = kThreads / tiling.lanes;
    tiling.channel_blocks = ceil_div(vectors, tiling.lanes);
    tiling.group_items = group_values(shape);
    tiling.values_per_item = 1;
    tiling.step_offset = rows * shape.channels;
  } else {
    tiling.lanes = 1;
    tiling.channel_blocks = shape.channels;
    tiling.group_items = group_values(shape) / width;
    tiling.values_per_item = width;
    if (shape.spatial > 0) {
      const int64_t images = rows * width / shape.spatial;
      tiling.step_position = rows * width % shape.spatial;
      tiling.step_offset = images * shape.channels * shape.spatial + tiling.step_position;
    }
  }
  const int64_t one_pass = rows * kUnroll;  // items that a block's threads have in flight together
  const int64_t others = tiling.channel_blocks * shape.stat_groups;
  const int64_t wanted = std::max<int64_t>(1, kTargetBlocks / others);
  const int64_t passes = ceil_div(ceil_div(tiling.group_items, wanted), one_pass);
  tiling.tile_items = std::max<int64_t>(1, passes) * one_pass;
  tiling.tiles = std::max<int64_t>(1, ceil_div(tiling.group_items, tiling.tile_items));
  return tiling;
}

// Calls run(integral_constant<int, V>, bool_constant<channels last>).
template <typename T, typename Run>
const char* with_layout(const BnActShape& shape, int width, const Run& run) {
  constexpr std::integral_constant<int, kAccessBytes / sizeof(T)> wide;
  constexpr std::integral_constant<int, 1> narrow;
  if (shape.channels_last) {
    return width > 1 ? run(wide, std::true_type()) : run(narrow, std::true_type());
  }
  return width > 1 ? run(wide, std::false_type()) : run(narrow, std::false_type());
}

template <typename T, typename Run>
const char* with_layout_and_kind(const BnActShape& shape, int width, Activation kind, const Run& run) {
  return with_layout<T>(shape, width, [&](auto vector, auto last) {
    return is_smooth(kind) ? run(vector, last, std::true_type()) : run(vector, last, std::false_type());
  });
}

size_t table_bytes(int rows, int columns) { return sizeof(float) * rows * columns; }

size_t scratch_bytes(int columns, size_t value_bytes) { return value_bytes * kWarps * columns; }

// The channels of a block: lanes * K, with K the width channels last and 1 in planes.
int columns_of(const BnActShape& shape, const Tiling& tiling, int width) {
  return tiling.lanes * (shape.channels_last ? width : 1);
}

int64_t finalise_blocks(const BnActShape& shape) { return ceil_div(shape.channels, kFinaliseLanes); }

const char* finalise(const BnActForward& args, const Tiling& tiling, const TileMoments& moments, CUstream_st* stream) {
  const size_t bytes = kFinaliseLanes * sizeof(double) + scratch_bytes(kFinaliseLanes, sizeof(Sums<double, 1, 1>));
  return launch(bn_act_finalise, finalise_blocks(args.shape), kThreads, bytes, stream, args, tiling, moments);
}

template <typename T>
const char* statistics(const BnActForward& args, CUstream_st* stream) {
  const BnActShape& shape = args.shape;
  const int width = vector_width(shape, {args.x});
  const Tiling tiling = make_tiling(shape, width);
  const int columns = columns_of(shape, tiling, width);
  const char* error = with_layout<T>(shape, width, [&](auto vector, auto last) {
    return launch(bn_act_statistics<T, vector(), last()>, tiling.blocks(shape), kThreads,
                  scratch_bytes(columns, sizeof(Moments<1>)), stream, args, tiling);
  });
  if (error) return error;
  const float2* partials = static_cast<const float2*>(args.workspace);
  return finalise(args, tiling, {partials, nullptr, per_group(args, tiling), tiling.tiles}, stream);
}

template <typename T>
const char* forward(const BnActForward& args, CUstream_st* stream) {
  const BnActShape& shape = args.shape;
  if (args.training) {
    const TileMoments given = {static_cast<const float2*>(args.tile_moments), args.tile_counts, nullptr, args.tiles};
    const char* error = given.at ? finalise(args, make_tiling(shape, 1), given, stream) : statistics<T>(args, stream);
    if (error) return error;
  }
  const int width = vector_width(shape, {args.x, args.y});
  const Tiling tiling = make_tiling(shape, width);
  const size_t bytes = table_bytes(kAffineRows, columns_of(shape, tiling, width));
  return with_layout_and_kind<T>(shape, width, args.activation, [&](auto vector, auto last, auto smooth) {
    return launch(bn_act_apply<T, vector(), last(), smooth()>, tiling.blocks(shape), kThreads, bytes, stream, args,
                  tiling);
  });
}

template <typename T>
const char* backward_sums(const BnActBackward& args, int width, const Tiling& tiling, CUstream_st* stream) {
  const int columns = columns_of(args.shape, tiling, width);
  const size_t bytes = table_bytes(kAffineRows, columns) + scratch_bytes(columns, sizeof(Sums<float, 2, 1>));
  return with_layout_and_kind<T>(args.shape, width, args.activation, [&](auto vector, auto last, auto smooth) {
    return launch(bn_act_backward_sums<T, vector(), last(), smooth()>, tiling.blocks(args.shape), kThreads, bytes, stream,
                  args, tiling);
  });
}

template <typename T>
const char* backward(const BnActBackward& args, CUstream_st* stream) {
  const BnActShape& shape = args.shape;
  const int sums_width = vector_width(shape, {args.x, args.dy});
  const Tiling sums_tiling = make_tiling(shape, sums_width);
  if (args.dweight || args.dbias || (args.dx && args.training)) {
    const bool given = args.tile_sums;
    if (const char* error = given ? nullptr : backward_sums<T>(args, sums_width, sums_tiling, stream)) return error;
    const TileSums sums = given ? TileSums{static_cast<const float2*>(args.tile_sums), args.tiles}
                                : TileSums{static_cast<const float2*>(args.workspace), sums_tiling.tiles};
    const char* error = launch(bn_act_backward_finalise, finalise_blocks(shape), kThreads,
                               scratch_bytes(kFinaliseLanes, sizeof(Sums<double, 2, 1>)), stream, args, sums_tiling, sums);
    if (error) return error;
  }
  if (!args.dx) return nullptr;
  const int width = vector_width(shape, {args.x, args.dy, args.dx});
  const Tiling tiling = make_tiling(shape, width);
  const size_t bytes = table_bytes(kBackwardApplyRows, columns_of(shape, tiling, width));
  return with_layout_and_kind<T>(shape, width, args.activation, [&](auto vector, auto last, auto smooth) {
    return launch(bn_act_backward_apply<T, vector(), last(), smooth()>, tiling.blocks(shape), kThreads, bytes, stream,
                  args, tiling, sums_tiling);
  });
}

bool known(DType dtype) { return dtype == DType::kFloat32 || dtype == DType::kBFloat16 || dtype == DType::kFloat16; }

const char* check_shape(const BnActShape& shape) {
  if (shape.batch < 0 || shape.channels < 0 || shape.spatial < 0) return "a size is negative";
  if (shape.stat_groups < 1) return "'stat_groups' must be at least 1";
  if (shape.batch % shape.stat_groups) return "'stat_groups' must divide the batch";
  if (!known(shape.dtype)) return "the type of 'input' is not supported";
  if (shape.param_dtype != shape.dtype && shape.param_dtype != DType::kFloat32)
    return "parameters must be float32 or of the type of 'input'";
  return nullptr;
}

const char* check_activation(Activation kind) {
  return kind >= Activation::none && kind <= Activation::sigmoid ? nullptr : "unknown activation";
}

bool has_elements(const BnActShape& shape) { return group_values(shape) * shape.channels > 0; }

const char* check(const BnActForward& args) {
  if (const char* error = check_shape(args.shape)) return error;
  if (const char* error = check_activation(args.activation)) return error;
  if (!(args.eps >= 0)) return "'eps' must be at least 0";
  if (!args.running_mean != !args.running_var) return "'running_mean' and 'running_var' must be given together";
  if (!args.training && !args.running_mean) return "eval mode needs running statistics";
  if (args.training && !(args.mean && args.rstd && args.workspace))
    return "training needs 'mean', 'rstd' and 'workspace'";
  if (!args.tile_moments != !args.tile_counts) return "'tile_moments' and 'tile_counts' must be given together";
  if (args.tile_moments && args.tiles < 1) return "'tiles' must be at least 1";
  if (has_elements(args.shape) && !(args.x && args.y)) return "'x' or 'y' is null";
  return nullptr;
}

const char* check(const BnActBackward& args) {
  if (const char* error = check_shape(args.shape)) return error;
  if (const char* error = check_activation(args.activation)) return error;
  if (!(args.mean && args.rstd && args.workspace)) return "backward needs 'mean', 'rstd' and 'workspace'";
  if (args.tile_sums && args.tiles < 1) return "'tiles' must be at least 1";
  if (has_elements(args.shape) && !(args.x && args.dy)) return "'x' or 'dy' is null";
  return nullptr;
}

template <typename Args, typename Run>
const char* with_type(const Args& args, const Run& run) {
  switch (args.shape.dtype) {
    case DType::kBFloat16:
      return run(__nv_bfloat16());
    case DType::kFloat16:
      return run(__half());
    default:
      return run(float());
  }
}

}  // namespace

size_t bn_act_workspace_bytes(const BnActShape& shape) {
  if (check_shape(shape) || shape.channels == 0) return kAccessBytes;
  const BnActShape memory = canonical(shape);
  int64_t tiles = 0;
  for (const int width : {1, vector_width(memory, {})}) {
    tiles = std::max(tiles, make_tiling(memory, width).tiles);
  }
  const int64_t pairs = memory.stat_groups * memory.channels * (tiles + 1);  // + 1: per_group()
  return std::max<size_t>(kAccessBytes, pairs * sizeof(float2));
}

const char* launch_bn_act_forward(const BnActForward& args, CUstream_st* stream) {
  if (const char* error = check(args)) return error;
  if (args.shape.channels == 0) return nullptr;
  BnActForward call = args;
  call.shape = canonical(args.shape);
  return with_type(call, [&](auto type) { return forward<decltype(type)>(call, stream); });
}

const char* launch_bn_act_backward(const BnActBackward& args, CUstream_st* stream) {
  if (const char* error = check(args)) return error;
  if (args.shape.channels == 0) return nullptr;
  BnActBackward call = args;
  call.shape = canonical(args.shape);
  return with_type(call, [&](auto type) { return backward<decltype(type)>(call, stream); });
}

}  // namespace dcgan_fast::cuda
