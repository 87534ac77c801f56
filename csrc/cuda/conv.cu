// Convolution: how the work of a call is cut, and what is launched.
#include <algorithm>

#include "conv.h"
#include "conv_boxes_launch.cuh"
#include "conv_warpgroup.cuh"

namespace dcgan_fast::cuda {

extern template struct ConvKernels<HalfStep<__nv_bfloat16>>;
extern template struct ConvKernels<HalfStep<__half>>;
extern template struct ConvKernels<Tf32Step>;
extern template struct ConvKernels<Tf32x3Step>;
extern template struct ConvKernels<FmaStep>;
#ifdef DCGAN_FAST_SM90A
extern template struct WarpgroupKernels<__nv_bfloat16>;
extern template struct WarpgroupKernels<__half>;
extern template struct BoxKernels<__nv_bfloat16>;
extern template struct BoxKernels<__half>;
extern template struct BoxKernels<float>;
extern template struct BoxGradKernels<__nv_bfloat16>;
extern template struct BoxGradKernels<__half>;
#endif

namespace {

// Blocks that fill the largest GPU of today twice (132 SMs), or once with wide tiles of warpgroups, of which one keeps
// an SM busy: where tiles are fewer, their depth is split. A constant, not the device's number of SMs: results do not
// depend on how many there are.
constexpr int64_t kTargetBlocks = 264;
int64_t target_blocks(bool warpgroups, bool wide) { return warpgroups && wide ? kTargetBlocks / 2 : kTargetBlocks; }
// Tiles of 256 columns that keep an H200 as busy as twice as many of 128.
[[maybe_unused]] constexpr int64_t kBlocksForWidest = 116;
constexpr int64_t kLeastSteps = 8;  // of a part of the depth: below, putting sums aside costs more than it gains
constexpr int64_t kMostIndex = INT32_MAX - 1024;  // a last tile counts on past what exists
constexpr const char* kMisaligned = "maps and weights must be aligned to 16 bytes";
constexpr const char* kNoTiles = "this shape has no tiles that lie within a channel";

bool is_strict(const ConvShape& s) { return s.dtype == DType::kFloat32 && s.precision != Precision::kTf32; }

// Whether products of warpgroups may serve.
bool by_warpgroups(const ConvShape& s) {
#ifdef DCGAN_FAST_SM90A
  return s.warpgroups && s.dtype != DType::kFloat32;
#else
  return false;
#endif
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int element_bytes(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }
int chunk(DType dtype) { return kAccessBytes / element_bytes(dtype); }
int stage_depth(DType dtype) { return kStageDepthBytes / element_bytes(dtype); }
[[maybe_unused]] constexpr int kWarpgroupLine = 128;  // bytes of K in a stage
constexpr int kWarpgroupDepth = 64;                   // of 16-bit elements
[[maybe_unused]] constexpr int64_t kLargeSharedBytes = 226 << 10;  // of one or two blocks, on devices of sm_90a

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % kAccessBytes == 0; }

int64_t pixels(const ConvGrid& grid) { return grid.height * grid.width; }
int64_t taps(const ConvShape& shape) { return shape.kernel[0] * shape.kernel[1]; }

// Every pixel of one map meets every pixel of the other once: one coarse pixel, or rather none but channels. What a
// generator begins with and a discriminator ends with.
bool is_dense(const ConvShape& s) {
  return pixels(s.coarse) == 1 && !s.padding[0] && !s.padding[1] && s.kernel[0] == s.fine.height &&
         s.kernel[1] == s.fine.width;
}

// The same memory as a shape that wastes nothing: of a dense layer the fine pixels are channels.
ConvShape canonical(ConvShape s) {
  if (is_dense(s)) {
    s.fine = {1, 1, pixels(s.fine) * s.fine.channels};
    for (int axis = 0; axis < 2; axis++) s.kernel[axis] = s.stride[axis] = 1;
  }
  return s;
}

ConvAxis axis_of(const ConvShape& s, bool vertical, bool up) {
  const int64_t fine = vertical ? s.fine.height : s.fine.width, coarse = vertical ? s.coarse.height : s.coarse.width;
  const int axis = vertical ? 0 : 1;
  return {static_cast<int>(up ? coarse : fine), static_cast<int>(up ? fine : coarse), static_cast<int>(s.kernel[axis]),
          static_cast<int>(s.stride[axis]), static_cast<int>(s.padding[axis])};
}

// How a call of launch_conv() is cut, of a canonical shape.
struct ForwardPlan {
  ConvLaunch call;
  bool warpgroups, wide;
  int64_t blocks;  // without the parts of the depth
  size_t bytes;    // of the partial sums
};

ForwardPlan plan_forward(const ConvShape& s, Direction direction, int64_t groups) {
  const bool up = direction == Direction::kUp;
  const ConvGrid &in = up ? s.coarse : s.fine, &out = up ? s.fine : s.coarse;
  ForwardPlan plan = {};
  ConvLaunch& call = plan.call;
  call.y = axis_of(s, true, up);
  call.x = axis_of(s, false, up);
  call.in_channels = static_cast<int>(in.channels);
  call.out_channels = static_cast<int>(out.channels);
  call.group_images = static_cast<int>(s.batch / groups);
  const bool weight_by_chunks = s.fine.channels % chunk(s.dtype) == 0;
  const int64_t taps_y = ceil_div(s.kernel[0], up ? s.stride[0] : 1);
  const int64_t taps_x = ceil_div(s.kernel[1], up ? s.stride[1] : 1);
  call.access = in.channels % chunk(s.dtype) == 0 && std::max(taps_y, taps_x) <= kMostTaps
                    ? weight_by_chunks ? Access::kChunks : Access::kWeightElements
                : up && weight_by_chunks          ? Access::kPixelElements
                                                  : Access::kElements;
  call.phases_y = up ? call.y.stride : 1;
  call.phases_x = up ? call.x.stride : 1;
  call.most_points_y = static_cast<int>(ceil_div(call.y.output, call.phases_y));
  call.most_points_x = static_cast<int>(ceil_div(call.x.output, call.phases_x));
  for (const int less_x : {0, 1}) {
    const int64_t width = std::max(1, call.most_points_x - less_x);
    call.by_width[less_x] = Divisor::of(width);
    for (const int less_y : {0, 1})
      call.by_points[less_y][less_x] = Divisor::of(std::max(1, call.most_points_y - less_y) * width);
  }
  plan.warpgroups = by_warpgroups(s) && call.access == Access::kChunks && in.channels % kWarpgroupDepth == 0;
  plan.wide = !is_strict(s) && call.access == Access::kChunks && out.channels > kNarrowColumns;
  const int64_t columns = plan.wide ? kWideColumns : kNarrowColumns;
  const int64_t rows = static_cast<int64_t>(call.group_images) * call.most_points_y * call.most_points_x;
  call.tiles = static_cast<int>(ceil_div(rows, kBlockRows));
  call.column_tiles = static_cast<int>(ceil_div(out.channels, columns));
  plan.blocks = groups * call.tiles * call.phases() * call.column_tiles;
  const int64_t phase_taps = taps_y * taps_x;
  const int64_t depth = plan.warpgroups ? kWarpgroupDepth : stage_depth(s.dtype);
  const bool pixels_by_chunks = call.access == Access::kChunks || call.access == Access::kWeightElements;
  const int64_t steps =
      pixels_by_chunks ? phase_taps * ceil_div(in.channels, depth) : ceil_div(phase_taps * in.channels, depth);
  const int64_t wanted = plan.blocks ? target_blocks(plan.warpgroups, plan.wide) / plan.blocks : 1;
  call.splits = static_cast<int>(std::max<int64_t>(1, std::min(wanted, steps / kLeastSteps)));
  if (call.splits > 1) plan.bytes = sizeof(float) * plan.blocks * call.splits * kBlockRows * columns;
  return plan;
}

#ifdef DCGAN_FAST_SM90A
// How a call is cut into tiles that the copy engine fills (conv_boxes.cuh).
struct BoxPlan {
  BoxLaunch call;
  int columns;     // of a tile; 0: the shape is not for that
  int64_t blocks;  // without the parts of the depth
  size_t bytes;    // of the partial sums, and behind them of the packed weight, if it is packed
  size_t packed_bytes;
  int64_t pixels[5], pixel_box[5], weights[3], weight_box[3];  // of the tensor maps
};

// The box of lattice points with the fewest tiles, the longest lines first, whose lines and images it divides.
void choose_box(BoxLaunch& call, int height, int width) {
  int64_t fewest = INT64_MAX;
  for (int points_x = std::min(width, kBoxRows); points_x > 0; points_x--) {
    if (width % points_x) continue;
    for (int points_y = std::min(height, kBoxRows / points_x); points_y > 0; points_y--) {
      if (height % points_y) continue;
      const int images = std::min(call.conv.group_images, kBoxRows / (points_x * points_y));
      const int64_t tiles = int64_t{width / points_x} * (height / points_y) * ceil_div(call.conv.group_images, images);
      if (tiles >= fewest) continue;
      fewest = tiles;
      call.images = images;
      call.points_y = points_y;
      call.points_x = points_x;
    }
  }
  call.tiles_y = height / call.points_y;
  call.tiles_x = width / call.points_x;
  call.by_points = Divisor::of(call.points_y * call.points_x);
  call.by_width = Divisor::of(call.points_x);
  call.conv.tiles = static_cast<int>(fewest);
}

// A dense map's sizes, innermost first, where pixels that are a step apart are neighbours.
void view_map(int64_t (&sizes)[5], const ConvGrid& grid, int64_t batch, int64_t step_y, int64_t step_x) {
  const int64_t view[] = {step_x * grid.channels, grid.width / step_x, step_y, grid.height / step_y, batch};
  std::copy_n(view, 5, sizes);
}

// Whether the stride divides the fine map: then all phases, or parts of a stride, are of one size. And the channels of a
// stride can be counted.
bool has_equal_phases(const ConvShape& s) {
  return s.fine.height % s.stride[0] == 0 && s.fine.width % s.stride[1] == 0 &&
         s.stride[1] * s.fine.channels <= kMostIndex;
}

// As many stages as fit: in all of an SM's memory where there is a block for it, else in half.
int stages_of(int64_t columns, bool alone) {
  const int64_t bytes = columns == 256              ? box_bytes<256>(1)
                        : columns == kWideColumns ? box_bytes<kWideColumns>(1)
                                                  : box_bytes<kNarrowColumns>(1);
  return static_cast<int>((alone ? kLargeSharedBytes : kLargeSharedBytes / 2) / bytes);
}

BoxPlan plan_boxes(const ConvShape& s, Direction direction, int64_t groups) {
  BoxPlan plan = {};
  const bool up = direction == Direction::kUp, tf32 = s.dtype == DType::kFloat32;
  if (!s.boxes || s.batch == 0 || is_strict(s)) return plan;
  const ForwardPlan forward = plan_forward(s, direction, groups);
  const int64_t depth = kWarpgroupLine / element_bytes(s.dtype);
  if (forward.call.access != Access::kChunks || forward.call.in_channels % depth) return plan;
  if (!has_equal_phases(s)) return plan;
  BoxLaunch& call = plan.call;
  call.conv = forward.call;
  ConvLaunch& conv = call.conv;
  choose_box(call, conv.most_points_y, conv.most_points_x);
  const int64_t rows = static_cast<int64_t>(conv.group_images) * conv.most_points_y * conv.most_points_x;
  if (3 * int64_t{conv.tiles} > 4 * ceil_div(rows, kBoxRows)) return plan;  // boxes waste too much
  const auto blocks = [&](int64_t columns) {
    return groups * conv.tiles * conv.phases() * ceil_div(conv.out_channels, columns);
  };
  const bool widest = !tf32 && 2 * blocks(256) == blocks(kWideColumns) && blocks(256) >= kBlocksForWidest;
  plan.columns = widest ? 256 : forward.wide ? kWideColumns : kNarrowColumns;
  plan.blocks = blocks(plan.columns);
  conv.column_tiles = static_cast<int>(ceil_div(conv.out_channels, plan.columns));
  const int64_t taps_y = ceil_div(s.kernel[0], conv.phases_y), taps_x = ceil_div(s.kernel[1], conv.phases_x);
  const int64_t steps = taps_y * taps_x * (conv.in_channels / depth);
  const int64_t wanted = widest ? 1 : target_blocks(true, forward.wide) / plan.blocks;
  conv.splits = static_cast<int>(std::max<int64_t>(1, std::min(wanted, steps / kLeastSteps)));
  if (conv.splits > 1) plan.bytes = sizeof(float) * plan.blocks * conv.splits * kBoxRows * plan.columns;
  const bool packed = tf32 && up;
  if (packed) plan.packed_bytes = sizeof(float) * s.fine.channels * taps(s) * s.coarse.channels;
  call.stages = stages_of(plan.columns, widest || plan.blocks * conv.splits <= kTargetBlocks / 2);
  view_map(plan.pixels, up ? s.coarse : s.fine, s.batch, up ? 1 : s.stride[0], up ? 1 : s.stride[1]);
  const int64_t pixel_box[] = {depth, call.points_x, 1, call.points_y, call.images};
  const int64_t weights[] = {packed ? s.coarse.channels : s.fine.channels, taps(s),
                             packed ? s.fine.channels : s.coarse.channels};
  const int64_t weight_box[] = {depth, 1, up && !packed ? depth : plan.columns};
  std::copy_n(pixel_box, 5, plan.pixel_box);
  std::copy_n(weights, 3, plan.weights);
  std::copy_n(weight_box, 3, plan.weight_box);
  return plan;
}
#endif

// How a call is cut where a block makes its part of the output from a patch of the input (conv_thin.cuh).
struct ThinPlan {
  ThinLaunch call;
  int64_t blocks;  // of one image; 0: the shape is not for that
};

// The most output pixels that `patch` input pixels make, whatever their place: the others reach no further than these.
int thin_outputs(const ConvAxis& axis, int patch) { return patch * axis.stride - axis.kernel + 1; }

ThinPlan plan_thin(const ConvShape& s) {
  ThinPlan plan = {};
  if (s.coarse.channels % chunk(s.dtype) || taps(s) * s.fine.channels > kNarrowColumns || taps(s) == 1) return plan;
  ThinLaunch& call = plan.call;
  call.in_channels = static_cast<int>(s.coarse.channels);
  call.out_channels = static_cast<int>(s.fine.channels);
  call.weight_by_chunks = taps(s) * s.fine.channels % chunk(s.dtype) == 0;
  call.y.conv = axis_of(s, true, true);
  call.x.conv = axis_of(s, false, true);
  for (int patch = 1; patch <= kBlockRows; patch++) {  // the fewest blocks
    ThinAxis y = call.y, x = call.x;
    y.patch = patch;
    x.patch = kBlockRows / patch;
    y.outputs = std::min(thin_outputs(y.conv, y.patch), y.conv.output);
    x.outputs = std::min(thin_outputs(x.conv, x.patch), x.conv.output);
    if (y.outputs < 1 || x.outputs < 1) continue;
    for (ThinAxis* axis : {&y, &x}) {
      axis->by_stride = Divisor::of(axis->conv.stride);
      axis->by_outputs = Divisor::of(axis->outputs);
      axis->by_patch = Divisor::of(axis->patch);
    }
    y.tiles = static_cast<int>(ceil_div(y.conv.output, y.outputs));
    x.tiles = static_cast<int>(ceil_div(x.conv.output, x.outputs));
    const int64_t blocks = static_cast<int64_t>(y.tiles) * x.tiles;
    if (plan.blocks && blocks >= plan.blocks) continue;
    plan.blocks = blocks;
    call.y = y;
    call.x = x;
  }
  return plan;
}

struct WeightGradPlan {
  WeightGradLaunch call;
  bool warpgroups, wide;
  size_t bytes;
};

WeightGradPlan plan_weight_grad(const ConvShape& s) {
  WeightGradPlan plan = {};
  WeightGradLaunch& call = plan.call;
  call.y = axis_of(s, true, false);
  call.x = axis_of(s, false, false);
  call.fine_channels = static_cast<int>(s.fine.channels);
  call.coarse_channels = static_cast<int>(s.coarse.channels);
  call.pixels = static_cast<int>(s.batch * pixels(s.coarse));
  call.coarse_by_chunks = s.coarse.channels % chunk(s.dtype) == 0;
  call.fine_by_chunks = s.fine.channels % chunk(s.dtype) == 0;
  call.merged = !call.fine_by_chunks && s.fine.channels < kNarrowColumns / 2;
  const int64_t columns = s.fine.channels * (call.merged ? taps(s) : 1);
  const bool by_chunks = call.coarse_by_chunks && call.fine_by_chunks;
  plan.wide = !is_strict(s) && by_chunks && columns > kNarrowColumns;
  const int64_t block_columns = plan.wide ? kWideColumns : kNarrowColumns;
  call.row_tiles = static_cast<int>(ceil_div(s.coarse.channels, kBlockRows));
  call.column_tiles = static_cast<int>(ceil_div(columns, block_columns));
  plan.warpgroups = by_warpgroups(s) && by_chunks;
  const int64_t depth = plan.warpgroups ? kWarpgroupDepth : stage_depth(s.dtype);
  const int64_t steps = ceil_div(call.pixels, depth);
  const int64_t most = std::min<int64_t>(target_blocks(plan.warpgroups, plan.wide) / call.tiles(), steps / kLeastSteps);
  const int64_t wanted = std::max<int64_t>(1, most);
  call.split_pixels = static_cast<int>(std::max<int64_t>(1, ceil_div(steps, wanted)) * depth);
  call.splits = static_cast<int>(std::max<int64_t>(1, ceil_div(call.pixels, call.split_pixels)));
  if (call.splits > 1)
    plan.bytes = sizeof(float) * static_cast<int64_t>(call.tiles()) * call.splits * kBlockRows * block_columns;
  return plan;
}

#ifdef DCGAN_FAST_SM90A
// The same in stages that the copy engine fills (conv_boxes_weight_grad.cuh).
struct BoxGradPlan {
  BoxGradLaunch call;
  bool serves, wide;
  size_t bytes;
  int64_t coarse[5], fine[5], box[5];  // of the tensor maps
};

// The largest power of two that divides n, or `most`.
int largest_power(int n, int most) { return std::min(n & -n, most); }

BoxGradPlan plan_gradient_boxes(const ConvShape& s) {
  BoxGradPlan plan = {};
  if (!s.boxes || !has_equal_phases(s)) return plan;
  const WeightGradPlan general = plan_weight_grad(s);
  if (!general.warpgroups) return plan;
  BoxGradLaunch& call = plan.call;
  call.grad = general.call;
  call.points_x = largest_power(static_cast<int>(s.coarse.width), kWarpgroupDepth);
  call.points_y = largest_power(static_cast<int>(s.coarse.height), kWarpgroupDepth / call.points_x);
  call.images = kWarpgroupDepth / (call.points_x * call.points_y);
  call.boxes_x = static_cast<int>(s.coarse.width / call.points_x);
  call.boxes_y = static_cast<int>(s.coarse.height / call.points_y);
  call.boxes = static_cast<int>(call.boxes_x * call.boxes_y * ceil_div(s.batch, call.images));
  plan.serves = call.boxes > 0 && 3 * int64_t{call.boxes} <= 4 * ceil_div(call.grad.pixels, kWarpgroupDepth);
  plan.wide = general.wide;
  const int64_t columns = plan.wide ? kWideColumns : kNarrowColumns;
  const int64_t tiles = call.grad.tiles();
  const int64_t most = std::min<int64_t>(target_blocks(true, plan.wide) / tiles, call.boxes / kLeastSteps);
  call.split_boxes = static_cast<int>(ceil_div(call.boxes, std::max<int64_t>(1, most)));
  call.grad.splits = static_cast<int>(std::max<int64_t>(1, ceil_div(call.boxes, std::max(1, call.split_boxes))));
  if (call.grad.splits > 1) plan.bytes = sizeof(float) * tiles * call.grad.splits * kBoxRows * columns;
  call.stages = stages_of(columns, tiles * call.grad.splits <= kTargetBlocks / 2);
  view_map(plan.coarse, s.coarse, s.batch, 1, 1);
  view_map(plan.fine, s.fine, s.batch, s.stride[0], s.stride[1]);
  const int64_t box[] = {kWarpgroupDepth, call.points_x, 1, call.points_y, call.images};
  std::copy_n(box, 5, plan.box);
  return plan;
}
#endif

// How the kernels that read maps of a few channels take them (image_patch.cuh): in runs of so many coarse pixels.
constexpr int kMostImageChannels = 8;
constexpr size_t kMostSharedBytes = 99 << 10;  // of a block, on every device from sm_80 on
constexpr int64_t kImageBlocks = 396;          // three of 4 warps on each of 132 SMs, which share the runs evenly

ImagePatch plan_patch(const ConvShape& s, int run) {
  const auto to_chunk = [](int64_t bytes) { return ceil_div(bytes, kAccessBytes) * kAccessBytes; };
  ImagePatch patch = {};
  patch.y = axis_of(s, true, false);
  patch.x = axis_of(s, false, false);
  patch.channels = static_cast<int>(s.fine.channels);
  patch.run = run;
  patch.runs = static_cast<int>(ceil_div(pixels(s.coarse), run));
  patch.by_runs = Divisor::of(patch.runs);
  patch.by_width = Divisor::of(s.coarse.width);
  const int64_t width = s.coarse.width, pixel_bytes = s.fine.channels * element_bytes(s.dtype);
  const int64_t aligned_lines = run % width == 0 ? run / width : width % run == 0 ? 1 : (run + width - 2) / width + 1;
  const int64_t rows = (std::min(aligned_lines, s.coarse.height) - 1) * s.stride[0] + s.kernel[0];
  const int64_t left = to_chunk(s.padding[1] * pixel_bytes);
  const int64_t reach = (width - 1) * s.stride[1] - s.padding[1] + s.kernel[1];
  // A word of two elements may begin at the last that is met.
  const int64_t pitch = to_chunk(left + std::max(s.fine.width, reach) * pixel_bytes + element_bytes(s.dtype));
  if (s.fine.channels > kMostImageChannels || rows * pitch > static_cast<int64_t>(kMostSharedBytes)) return {};
  patch.rows = static_cast<int>(rows);
  patch.left = static_cast<int>(left);
  patch.pitch = static_cast<int>(pitch);
  patch.by_chunks = s.fine.width * s.fine.channels % chunk(s.dtype) == 0;
  return patch;
}

// Going down; no column tiles where the shape is not for that. `direct` as ConvImageLaunch has it.
ConvImageLaunch plan_image(const ConvShape& s, int64_t groups, bool direct) {
  ConvImageLaunch call = {};
  call.patch = plan_patch(s, ImageBlock::kRows);
  if (!call.patch.rows) return call;
  if (s.kernel[0] * s.kernel[1] * s.fine.channels * element_bytes(s.dtype) > static_cast<int64_t>(kMostSharedBytes))
    return call;
  if (ConvImageMemory(call, element_bytes(s.dtype)).bytes > static_cast<int>(kMostSharedBytes)) return call;
  call.direct = direct;
  call.out_channels = static_cast<int>(s.coarse.channels);
  call.group_images = static_cast<int>(s.batch / groups);
  call.column_tiles = static_cast<int>(ceil_div(s.coarse.channels, ImageBlock::kColumns));
  call.runs = static_cast<int>(s.batch * call.patch.runs);
  // As many as an SM's registers have room for.
  const int64_t blocks = is_strict(s) || !direct ? kTargetBlocks : kImageBlocks;
  call.parts = static_cast<int>(std::min<int64_t>(call.runs, std::max<int64_t>(1, blocks / call.column_tiles)));
  return call;
}

// No tiles where the shape is not for that.
ImageGradLaunch plan_image_weight_grad(const ConvShape& s) {
  ImageGradLaunch call = {};
  call.patch = plan_patch(s, kImageGradWarps * stage_depth(s.dtype));
  if (!call.patch.rows || s.coarse.channels % chunk(s.dtype)) return call;
  if (ImageGradMemory(call).bytes > static_cast<int>(kMostSharedBytes)) return call;
  call.coarse_channels = static_cast<int>(s.coarse.channels);
  call.row_tiles = static_cast<int>(ceil_div(s.coarse.channels, ImageGradTile::kRows));
  call.column_tiles = static_cast<int>(ceil_div(taps(s) * s.fine.channels, ImageGradTile::kColumns));
  call.runs = static_cast<int>(s.batch * call.patch.runs);
  call.parts = static_cast<int>(std::min<int64_t>(call.runs, std::max<int64_t>(1, kTargetBlocks / call.tiles())));
  return call;
}

size_t partial_bytes(const ImageGradLaunch& call) {
  return sizeof(float) * call.tiles() * call.parts * ImageGradTile::kRows * ImageGradTile::kColumns;
}

// Calls run(step), of the type that multiplies such a shape.
template <typename Run>
const char* with_step(const ConvShape& shape, const Run& run) {
  switch (shape.dtype) {
    case DType::kBFloat16:
      return run(HalfStep<__nv_bfloat16>());
    case DType::kFloat16:
      return run(HalfStep<__half>());
    default:
      break;
  }
  switch (shape.precision) {
    case Precision::kTf32:
      return run(Tf32Step());
    case Precision::kTf32x3:
      return run(Tf32x3Step());
    default:
      return run(FmaStep());
  }
}

// Calls run(T), of a shape whose elements have 16 bits.
template <typename Run>
const char* with_half(const ConvShape& shape, const Run& run) {
  return shape.dtype == DType::kBFloat16 ? run(__nv_bfloat16()) : run(__half());
}

// Pixels that a kernel of the coarse grid's size reaches at most; every fine pixel in it or not.
const char* check_shape(const ConvShape& s) {
  if (s.batch < 0) return "a size is negative";
  for (const ConvGrid& grid : {s.fine, s.coarse}) {
    if (grid.height < 1 || grid.width < 1 || grid.channels < 1) return "a map is empty";
    if (std::max(grid.height, grid.width) > (1 << 24)) return "a map is longer than 2^24 pixels";
    if (s.batch * pixels(grid) > kMostIndex) return "the maps have about 2^31 pixels or more";
    if (grid.channels > kMostIndex / 4) return "a pixel has about 2^29 channels or more";
    if (grid.channels * taps(s) > kMostIndex) return "the weight has about 2^31 taps of a channel or more";
  }
  for (int axis = 0; axis < 2; axis++) {
    if (s.kernel[axis] < 1 || s.stride[axis] < 1 || s.padding[axis] < 0) return "kernel, stride or padding";
    if (std::max({s.kernel[axis], s.stride[axis], s.padding[axis]}) > (1 << 24)) return "kernel, stride or padding";
  }
  for (const bool vertical : {true, false}) {
    const ConvAxis a = axis_of(s, vertical, false);
    if ((a.output - 1) * static_cast<int64_t>(a.stride) + a.kernel > a.input + 2 * static_cast<int64_t>(a.padding)) {
      return "the grids do not fit the kernel, stride and padding";
    }
  }
  if (s.dtype != DType::kFloat32 && s.dtype != DType::kBFloat16 && s.dtype != DType::kFloat16)
    return "the type of 'input' is not supported";
  return nullptr;
}

const char* check(const ConvForward& args) {
  if (const char* error = check_shape(args.shape)) return error;
  if (args.stat_groups < 1 || args.shape.batch % args.stat_groups) return "'stat_groups' must divide the batch";
  if (!(args.eps >= 0)) return "'eps' must be at least 0";
  if (!args.tile_moments != !args.tile_counts) return "'tile_moments' and 'tile_counts' must be given together";
  if (args.tile_moments && conv_tiles(args.shape, args.direction, args.stat_groups) == 0) return kNoTiles;
  const bool changes = args.mean || args.var || args.bn_weight || args.bias || args.activation != Activation::none;
  if ((args.tile_moments || args.sums.x) && changes)
    return "statistics and sums are of what has no affine map and no activation";
  if (args.sums.x) {
    if (!(args.sums.mean && args.sums.rstd && args.sums.tile_sums)) return "sums need 'mean', 'rstd' and 'tile_sums'";
    if (args.tile_moments) return "either statistics or sums";
    if (is_smooth(args.sums.activation)) return "sums are of none, relu or leaky_relu";
    if (conv_tiles(args.shape, args.direction, args.stat_groups) == 0) return kNoTiles;
    if (!aligned(args.sums.x)) return kMisaligned;
  }
  if (args.param_dtype != args.shape.dtype && args.param_dtype != DType::kFloat32)
    return "parameters must be float32 or of the type of 'input'";
  if (args.shape.batch && !(args.input && args.weight && args.output)) return "a map or the weight is null";
  return nullptr;
}

}  // namespace

const char* conv_refusal(const ConvShape& shape) { return check_shape(shape); }

size_t conv_workspace_bytes(const ConvShape& shape, Direction direction, int64_t stat_groups) {
  if (check_shape(shape) || stat_groups < 1) return kAccessBytes;
#ifdef DCGAN_FAST_SM90A
  if (const BoxPlan boxes = plan_boxes(canonical(shape), direction, stat_groups); boxes.columns)
    return std::max<size_t>(kAccessBytes, boxes.bytes + boxes.packed_bytes);
#endif
  return std::max<size_t>(kAccessBytes, plan_forward(canonical(shape), direction, stat_groups).bytes);
}

size_t conv_weight_grad_workspace_bytes(const ConvShape& shape) {
  if (check_shape(shape)) return kAccessBytes;
  if (const ImageGradLaunch image = plan_image_weight_grad(canonical(shape)); image.tiles())
    return std::max<size_t>(kAccessBytes, partial_bytes(image));
#ifdef DCGAN_FAST_SM90A
  if (const BoxGradPlan boxes = plan_gradient_boxes(canonical(shape)); boxes.serves)
    return std::max<size_t>(kAccessBytes, boxes.bytes);
#endif
  return std::max<size_t>(kAccessBytes, plan_weight_grad(canonical(shape)).bytes);
}

int64_t conv_tiles(const ConvShape& shape, Direction direction, int64_t stat_groups) {
  if (check_shape(shape) || stat_groups < 1) return 0;
  if (direction == Direction::kUp && is_dense(shape) && pixels(shape.fine) > 1) return 0;  // a channel is many columns
  if (direction == Direction::kDown) {
    if (const ConvImageLaunch image = plan_image(canonical(shape), stat_groups, false); image.column_tiles)
      return static_cast<int64_t>(image.group_images) * image.patch.runs;
  }
#ifdef DCGAN_FAST_SM90A
  if (const BoxPlan boxes = plan_boxes(canonical(shape), direction, stat_groups); boxes.columns)
    return boxes.call.conv.tiles * boxes.call.conv.phases();
#endif
  const ForwardPlan plan = plan_forward(canonical(shape), direction, stat_groups);
  return plan.call.tiles * plan.call.phases();
}

bool conv_sums_pay(const ConvShape& shape, Direction direction) {
  return direction == Direction::kUp || check_shape(shape) || !plan_image(canonical(shape), 1, false).column_tiles;
}

const char* launch_conv(const ConvForward& args, CUstream_st* stream) {
  if (const char* error = check(args)) return error;
  if (args.shape.batch == 0) return nullptr;
  const ConvShape shape = canonical(args.shape);
  ForwardPlan plan = plan_forward(shape, args.direction, args.stat_groups);
  ConvLaunch& call = plan.call;
  if (plan.bytes && !args.workspace) return "'workspace' is null";
  if (!aligned(args.input) || !aligned(args.weight) || !aligned(args.output)) return kMisaligned;
  call.input = args.input;
  call.weight = args.weight;
  call.partials = static_cast<float*>(args.workspace);
  Finish& finish = call.finish;
  finish.output = args.output;
  finish.channels = call.out_channels;
  finish.parameter_channels = args.direction == Direction::kUp ? args.shape.fine.channels : args.shape.coarse.channels;
  finish.by_chunks = call.out_channels % chunk(shape.dtype) == 0;
  finish.mean = args.mean;
  finish.var = args.var;
  finish.bn_weight = args.bn_weight;
  finish.bias = args.bias;
  finish.param_dtype = args.param_dtype;
  finish.eps = static_cast<float>(args.eps);
  finish.activation = args.activation;
  finish.negative_slope = args.negative_slope;
  finish.moments = static_cast<float2*>(args.tile_moments);
  finish.counts = args.tile_counts;
  finish.tiles = call.tiles * call.phases();
  finish.sums = args.sums;
  if (args.direction == Direction::kUp && !finish.moments && !finish.sums.x) {
    if (ThinPlan thin = plan_thin(shape); thin.blocks) {
      thin.call.input = args.input;
      thin.call.weight = args.weight;
      thin.call.finish = finish;
      return with_step(shape, [&](auto step) {
        return ConvKernels<decltype(step)>::thin(thin.call, thin.blocks * shape.batch, stream);
      });
    }
  }
  if (args.direction == Direction::kDown) {
    const bool direct = finish.by_chunks && !finish.moments && !finish.sums.x && !is_smooth(finish.activation);
    if (ConvImageLaunch image = plan_image(shape, args.stat_groups, direct); image.column_tiles) {
      image.input = args.input;
      image.weight = args.weight;
      image.finish = finish;
      image.finish.tiles = static_cast<int64_t>(image.group_images) * image.patch.runs;
      return with_step(shape, [&](auto step) { return ConvKernels<decltype(step)>::image(image, stream); });
    }
  }
#ifdef DCGAN_FAST_SM90A
  if (BoxPlan boxes = plan_boxes(shape, args.direction, args.stat_groups); boxes.columns) {
    if (boxes.bytes + boxes.packed_bytes && !args.workspace) return "'workspace' is null";
    boxes.call.conv.input = call.input;
    boxes.call.conv.weight = call.weight;
    boxes.call.conv.partials = call.partials;
    boxes.call.conv.finish = finish;
    boxes.call.conv.finish.tiles = boxes.call.conv.tiles * boxes.call.conv.phases();
    const void* weight = args.weight;
    if (boxes.packed_bytes) {
      float* const packed = reinterpret_cast<float*>(static_cast<char*>(args.workspace) + boxes.bytes);
      const char* error = launch_pack_weights(static_cast<const float*>(args.weight), packed, shape.coarse.channels,
                                              taps(shape), shape.fine.channels, stream);
      if (error) return error;
      weight = packed;
    }
    const char* error = make_box_map(boxes.call.pixels, args.input, shape.dtype, 5, boxes.pixels, boxes.pixel_box);
    if (!error) error = make_box_map(boxes.call.weights, weight, shape.dtype, 3, boxes.weights, boxes.weight_box);
    if (error) return error;
    const auto run = [&](auto type) {
      return BoxKernels<decltype(type)>::forward(boxes.call, args.direction, boxes.columns, boxes.blocks, stream);
    };
    return shape.dtype == DType::kFloat32 ? run(float()) : with_half(shape, run);
  }
  if (plan.warpgroups) {
    return with_half(shape, [&](auto type) {
      return WarpgroupKernels<decltype(type)>::forward(call, args.direction, plan.wide, plan.blocks, stream);
    });
  }
#endif
  return with_step(shape, [&](auto step) {
    return ConvKernels<decltype(step)>::forward(call, args.direction, plan.wide, plan.blocks, stream);
  });
}

const char* launch_conv_weight_grad(const ConvWeightGrad& args, CUstream_st* stream) {
  if (const char* error = check_shape(args.shape)) return error;
  const ConvShape shape = canonical(args.shape);
  if (!args.grad || (shape.batch && !(args.fine && args.coarse))) return "a map or the gradient is null";
  if (ImageGradLaunch image = plan_image_weight_grad(shape); image.tiles()) {
    if (!args.workspace) return "'workspace' is null";
    if (!aligned(args.fine) || !aligned(args.coarse) || !aligned(args.grad)) return kMisaligned;
    image.fine = args.fine;
    image.coarse = args.coarse;
    image.grad = args.grad;
    image.partials = static_cast<float*>(args.workspace);
    return with_step(shape, [&](auto step) { return ConvKernels<decltype(step)>::image_weight_grad(image, stream); });
  }
  WeightGradPlan plan = plan_weight_grad(shape);
  WeightGradLaunch& call = plan.call;
  if (plan.bytes && !args.workspace) return "'workspace' is null";
  if (!aligned(args.fine) || !aligned(args.coarse) || !aligned(args.grad)) return kMisaligned;
  call.fine = args.fine;
  call.coarse = args.coarse;
  call.partials = static_cast<float*>(args.workspace);
  call.finish.output = args.grad;
  call.finish.channels = call.fine_channels * (call.merged ? call.taps() : 1);
  call.finish.parameter_channels = call.finish.channels;
  call.finish.by_chunks = call.finish.channels % chunk(shape.dtype) == 0;
#ifdef DCGAN_FAST_SM90A
  if (BoxGradPlan boxes = plan_gradient_boxes(shape); boxes.serves) {
    if (boxes.bytes && !args.workspace) return "'workspace' is null";
    boxes.call.grad.partials = call.partials;
    boxes.call.grad.finish = call.finish;
    const char* error = make_box_map(boxes.call.coarse, args.coarse, shape.dtype, 5, boxes.coarse, boxes.box);
    if (!error) error = make_box_map(boxes.call.fine, args.fine, shape.dtype, 5, boxes.fine, boxes.box);
    if (error) return error;
    return with_half(shape, [&](auto type) {
      return BoxGradKernels<decltype(type)>::weight_grad(boxes.call, boxes.wide, stream);
    });
  }
  if (plan.warpgroups) {
    return with_half(shape, [&](auto type) {
      return WarpgroupKernels<decltype(type)>::weight_grad(call, plan.wide, stream);
    });
  }
#endif
  return with_step(shape, [&](auto step) { return ConvKernels<decltype(step)>::weight_grad(call, plan.wide, stream); });
}

}  // namespace dcgan_fast::cuda
