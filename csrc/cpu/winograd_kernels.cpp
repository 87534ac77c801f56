// Polyphase Winograd: packing of weights, down and up. Compiled once per CPU capability (see capability.h).
//
// A task takes a block of tiles through everything while it is in L2: transform of the windows, products panel by panel of
// output channels, inverse transform of a panel with the epilogue. Packed weights are read once per block, front to back.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <iterator>
#include <vector>

#include "gemm.h"
#include "tasks.h"
#include "winograd.h"
#include "winograd_fields.h"
#include "winograd_kernels.h"
#include "winograd_plan.h"
#include "winograd_transforms.h"
#include "winograd_weight_grad.h"
#include "workspace.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {
namespace {

using winograd::Operand;
using winograd::Phase;
using winograd::Plan;
using winograd::Run;
using winograd::Stage;

constexpr int kTilePixels = kTile * kTile;
// Planes of points start this many floats apart beyond their size: at a power of two they would share the sets of a cache.
constexpr int64_t kSkew = 16;
// Packed weights of up to this many floats stay in L2 from block to block and need not be fetched.
constexpr int64_t kStayingFloats = 128 << 10;

template <typename F>
void dispatch_dtype(at::ScalarType dtype, F&& f) {
  AT_DISPATCH_SWITCH(dtype, "winograd", AT_DISPATCH_CASE(at::kFloat, [&] { f(scalar_t()); })
                                            AT_DISPATCH_CASE(at::kBFloat16, [&] { f(scalar_t()); })
                                                AT_DISPATCH_CASE(at::kHalf, [&] { f(scalar_t()); }));
}

// ---------------------------------------------------------------- weights

using V = at::vec::Vectorized<float>;

// All elements of the kernel for one input channel and a panel of output channels, [kernel][kGemmPanel].
template <typename T>
void gather_panel(const ConvShape& s, const T* w, const int64_t (&strides)[4], int64_t out_stride, int64_t channels,
                  int64_t width, float* panel) {
  for (int64_t y = 0; y < s.kernel[0]; ++y) {
    for (int64_t x = 0; x < s.kernel[1]; ++x, panel += kGemmPanel) {
      const T* const from = w + y * strides[2] + x * strides[3];
      for (int64_t n = 0; n < channels; ++n) panel[n] = static_cast<float>(from[n * out_stride]);
      for (int64_t n = channels; n < width; ++n) panel[n] = 0;
    }
  }
}

// The taps of one term for one input channel and a panel of output channels; point p goes to packed + p * plane. Points of
// which the windows' transform holds the opposite change sign here.
template <int taps_y, int taps_x>
void transform_panel(const Phase (&phase)[2], int64_t kernel_width, const float* panel, int64_t width, float* packed,
                     int64_t plane) {
  const V zero(0.0f);
  for (int64_t n = 0; n < width; n += V::size()) {
    V g[taps_y + 1][taps_x + 1];
#pragma GCC unroll 3
    for (int i = 0; i < taps_y; ++i) {
      const int64_t y = phase[0].kernel_first + i * phase[0].kernel_step;
#pragma GCC unroll 3
      for (int j = 0; j < taps_x; ++j) {
        const int64_t x = phase[1].kernel_first + j * phase[1].kernel_step;
        g[i][j] = V::loadu(panel + (y * kernel_width + x) * kGemmPanel + n);
      }
    }
    transform_2d<TapTransform, taps_y, taps_x, taps_x, taps_y + 1>(g);
#pragma GCC unroll 4
    for (int i = 0; i <= taps_y; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j <= taps_x; ++j) {
        const V u = phase[0].negate[i] != phase[1].negate[j] ? zero - g[i][j] : g[i][j];
        u.store(packed + (i * (taps_x + 1) + j) * plane + n);
      }
    }
  }
}

// All terms for input channel k.
void transform_kernel(const ConvShape& s, const Plan& plan, int64_t k, int64_t p, const float* panel, float* packed) {
  const int64_t width = plan.panel_width(p);
  for (const Stage& stage : plan.stages) {
    for (const Run& run : stage.runs) {
      const int64_t depth = stage.operands[run.operand].depth;
      for (int i = 0; i < run.terms; ++i) {
        const Term& term = plan.terms[run.term + i];
        float* const to = packed + plan.packed_at(stage, run, p) + (i * plan.in.channels + k) * width;
        dispatch_taps(term, [&](auto y, auto x) {
          transform_panel<y, x>(term.phase, s.kernel[1], panel, width, to, depth * width);
        });
      }
    }
  }
}

int64_t packed_bytes(const ConvShape& s, Direction direction) {
  return winograd::make_plan(s, direction).packed_floats * static_cast<int64_t>(sizeof(float));
}

void pack(const ConvShape& s, Direction direction, const WeightView& weight, void* packed) {
  const Plan plan = winograd::make_plan(s, direction);
  const bool up = direction == Direction::up;
  const int64_t in_stride = weight.strides[up ? 0 : 1], out_stride = weight.strides[up ? 1 : 0];
  constexpr int64_t kGrain = 16;
  dispatch_dtype(s.dtype, [&](auto t) {
    using T = decltype(t);
    at::parallel_for(0, plan.panels * plan.in.channels, kGrain, [&](int64_t begin, int64_t end) {
      std::vector<float> panel(s.kernel[0] * s.kernel[1] * kGemmPanel);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t p = i / plan.in.channels, k = i % plan.in.channels, n = p * kGemmPanel;
        gather_panel(s, static_cast<const T*>(weight.data) + k * in_stride + n * out_stride, weight.strides, out_stride,
                     std::min(kGemmPanel, plan.out.channels - n), plan.panel_width(p), panel.data());
        transform_kernel(s, plan, k, p, panel.data(), static_cast<float*>(packed));
      }
    });
  });
}

// ---------------------------------------------------------------- maps

// Work that one thread does in one go: a block of tiles, some of the parts, some of the panels.
struct Task {
  int64_t block, begin, tiles;
  int first_part, last_part;          // [first, last)
  int64_t first_panel, last_panel;

  int64_t shares() const { return (last_part - first_part) * (last_panel - first_panel); }
};

// Cuts the tiles into blocks and, where there are fewer of these than threads, the blocks by parts and panels.
std::vector<Task> make_tasks(const Plan& plan, BlockMoments* moments) {
  const int64_t groups = moments ? moments->groups : 1, threads = at::get_num_threads();
  const int64_t tiles = plan.batch / groups * plan.tiles.per_image();
  const auto parts = static_cast<int64_t>(plan.outputs.size());
  int64_t blocks = tiles == 0 ? 0 : (tiles + plan.block - 1) / plan.block;
  if (groups % threads != 0) blocks = (blocks + threads - 1) / threads * threads;  // as many for each
  int64_t rows = std::max<int64_t>(1, (tiles + blocks - 1) / std::max<int64_t>(1, blocks));
  if (rows > kGemmRows) rows = (rows + kGemmRows - 1) / kGemmRows * kGemmRows;
  blocks = (tiles + rows - 1) / rows;
  const bool few = groups * blocks < threads;
  const bool by_part = few && plan.stages.size() == plan.outputs.size();
  const int64_t pieces = by_part ? parts : 1;
  const int64_t splits = few ? std::clamp<int64_t>(threads / std::max<int64_t>(1, groups * blocks * pieces), 1, plan.panels) : 1;
  if (moments) {
    moments->resize(groups * blocks * parts, plan.out.channels);
    for (int64_t i = 0; i < groups * blocks * parts; ++i) moments->group[i] = i / (blocks * parts);
  }
  std::vector<Task> tasks;
  for (int64_t block = 0; block < groups * blocks; ++block) {
    const int64_t g = block / blocks, begin = block % blocks * rows, end = std::min(tiles, begin + rows);
    for (int64_t p = 0; p < pieces; ++p) {
      for (int64_t s = 0; s < splits; ++s) {
        tasks.push_back({block, g * tiles + begin, end - begin, static_cast<int>(p * parts / pieces),
                         static_cast<int>((p + 1) * parts / pieces), plan.panels * s / splits,
                         plan.panels * (s + 1) / splits});
      }
    }
  }
  return tasks;
}

// Where the pixels of each tile lie in the output map; -1 where a tile reaches over its edge. Returns how many lie inside.
int64_t find_outputs(const Plan& plan, const std::array<Window, 2>& window, const TileOrder& tiles,
                     int64_t (*pixels)[kTilePixels]) {
  int64_t inside = 0;
  for (int64_t t = 0; t < tiles.all().count; ++t) {
    const int64_t tile = tiles.numbers()[t], tile_x = tile % plan.tiles.size[1], row = tile / plan.tiles.size[1];
    const int64_t tile_y = row % plan.tiles.size[0], image = row / plan.tiles.size[0];
    for (int o = 0; o < kTilePixels; ++o) {
      const int64_t y = window[0].pixel(tile_y, o / kTile), x = window[1].pixel(tile_x, o % kTile);
      const bool in = window[0].contains(y) && window[1].contains(x);
      pixels[t][o] = in ? ((image * plan.out.height + y) * plan.out.width + x) * plan.out.channels : -1;
      inside += in;
    }
  }
  return inside;
}

// One panel of output channels of a block of tiles.
template <typename T>
struct Output {
  T* maps;                               // at the panel's first channel
  const int64_t (*pixels)[kTilePixels];  // [tiles]
  int64_t tiles, channels;
  const Epilogue* epilogue;
  const float *scale, *bias;  // of the panel, kGemmPanel long
  float *mean, *m2;           // of the panel; null: not wanted
};

// Inverse transform of the products [point][tile][kGemmPanel]. `partial` [tile][pixel][kGemmPanel] carries the sums of the
// runs of one part.
template <typename T, int taps_y, int taps_x>
void transform_outputs(const Output<T>& out, const float* products, int64_t plane, bool is_first, bool is_last,
                       float* partial) {
  const Vec<T> slope(out.epilogue->negative_slope);
  const Activation activation = out.epilogue->activation;
  RunningMoments<T> moments[kGemmPanel / lanes<T>];
  for (int64_t t = 0; t < out.tiles; ++t, products += kGemmPanel, partial += kTilePixels * kGemmPanel) {
    const int64_t(&pixels)[kTilePixels] = out.pixels[t];
    for_vectors<T>(out.channels, [&](int64_t c, auto count) {
      Vec<T> m[taps_y + 1][taps_x + 1];
#pragma GCC unroll 4
      for (int i = 0; i <= taps_y; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j <= taps_x; ++j) m[i][j] = load_acc<T>(products + (i * (taps_x + 1) + j) * plane + c);
      }
      transform_2d<OutputTransform, taps_y, taps_x, taps_x + 1, kTile>(m);
      const Vec<T> scale = load_acc<T>(out.scale + c), bias = load_acc<T>(out.bias + c);
#pragma GCC unroll 4
      for (int o = 0; o < kTilePixels; ++o) {
        Vec<T> z = m[o / kTile][o % kTile];
        float* const sum = partial + o * kGemmPanel + c;
        if (!is_first) z = z + load_acc<T>(sum);
        if (!is_last) {
          store_acc<T>(sum, z);
        } else if (pixels[o] >= 0) {
          const Vec<T> y = activate(activation, fmadd(z, scale, bias), slope);
          store_vec(out.maps + pixels[o] + c, y, count);
          if (!out.mean) continue;
          auto& of_channels = moments[c / lanes<T>];
          if (of_channels.count() == 0) of_channels = RunningMoments<T>(rounded<T>(y));  // no look ahead here: near enough
          of_channels.add(rounded<T>(y));
        }
      }
    });
  }
  if (!is_last || !out.mean) return;
  for_vectors<T>(out.channels, [&](int64_t c, auto count) { moments[c / lanes<T>].finish(out.mean + c, out.m2 + c, count); });
}

// What the products of a task fetch meanwhile: the weights that follow each, or of the maps what the task writes and the next
// one reads.
class Fetching {
 public:
  Fetching() = default;  // weights
  Fetching(Ahead written, Ahead read, int64_t products)
      : share_((written.bytes + read.bytes + products - 1) / products), maps_{written, read} {}

  // For a product that is followed by these weights.
  Ahead next(Ahead weights) {
    if (share_ == 0) return weights;
    Ahead& from = maps_[0].bytes > 0 ? maps_[0] : maps_[1];
    const Ahead taken{from.at, std::min(share_, from.bytes)};
    from = {static_cast<const char*>(from.at) + taken.bytes, from.bytes - taken.bytes};
    return taken;
  }

 private:
  int64_t share_ = 0;  // bytes for each product
  Ahead maps_[2];
};

// A thread's buffers.
template <typename T>
class Buffers {
 public:
  float *windows, *products, *partial, *scale, *bias;
  T* zeros;
  int64_t* order;

  explicit Buffers(const Plan& plan) : tiles_(plan.block) {
    int64_t windows_size = 0, points = 0;
    bool all_panels = false, several = false;
    for (const Stage& stage : plan.stages) {
      int64_t of_stage = 0;
      for (const Operand& operand : stage.operands) of_stage += size(operand);
      windows_size = std::max(windows_size, of_stage);
      for (const Run& run : stage.runs) {
        points = std::max<int64_t>(points, plan.terms[run.term].points());
        all_panels |= !run.begins || !run.ends;
        several |= !run.first || !run.last;
      }
    }
    // A panel's sums wait for the next stage while the others have theirs.
    const bool all_partial = several && plan.stages.size() > 1;
    products_of_panel_ = all_panels ? points * plane() : 0;
    partial_of_panel_ = all_partial ? tiles_ * kTilePixels * kGemmPanel : 0;
    const int64_t sizes[] = {windows_size, (all_panels ? plan.panels : 1) * points * plane(),
                             several ? (all_partial ? plan.panels : 1) * tiles_ * kTilePixels * kGemmPanel : 0, kGemmPanel,
                             kGemmPanel, plan.in.channels};
    float* zeros_start;
    float** const starts[] = {&windows, &products, &partial, &scale, &bias, &zeros_start};
    int64_t floats = 0;
    for (const int64_t size : sizes) floats += padded(size);
    constexpr int64_t kHugePage = 2 << 20;  // whole ones, so that the workspace is made of them
    const auto parts = static_cast<int64_t>(plan.outputs.size());
    const int64_t wanted = floats * sizeof(float) + tiles_ * (parts * sizeof(*pixels_) + sizeof(*order));
    auto* next = static_cast<float*>(workspace((wanted + kHugePage - 1) / kHugePage * kHugePage));
    for (size_t i = 0; i < std::size(sizes); ++i) {
      *starts[i] = next;
      next += padded(sizes[i]);
    }
    std::fill_n(zeros_start, plan.in.channels, 0.0f);
    zeros = reinterpret_cast<T*>(zeros_start);
    pixels_ = reinterpret_cast<int64_t(*)[kTilePixels]>(next);
    order = pixels_[parts * tiles_];
  }

  int64_t plane() const { return tiles_ * kGemmPanel + kSkew; }  // of products
  static int64_t row(const Operand& operand) { return padded(operand.depth); }
  int64_t plane(const Operand& operand) const { return tiles_ * row(operand) + kSkew; }
  int64_t size(const Operand& operand) const { return operand.planes * plane(operand); }
  int64_t (*pixels_of(int part) const)[kTilePixels] { return pixels_ + part * tiles_; }
  float* products_of(int64_t panel) const { return products + panel * products_of_panel_; }
  float* partial_of(int64_t panel) const { return partial + panel * partial_of_panel_; }

 private:
  static int64_t padded(int64_t floats) { return (floats + 15) / 16 * 16; }

  int64_t tiles_, products_of_panel_, partial_of_panel_;  // 0: one panel's place serves all
  int64_t (*pixels_)[kTilePixels];                        // [parts][tiles]
};

template <typename T>
class Convolution {
 public:
  Convolution(const Plan& plan, const void* in, const void* packed, void* out, const Epilogue& epilogue)
      : plan_(plan),
        in_(static_cast<const T*>(in)),
        packed_(static_cast<const float*>(packed)),
        out_(static_cast<T*>(out)),
        epilogue_(epilogue) {}

  void run() const {
    const std::vector<Task> tasks = make_tasks(plan_, epilogue_.moments);
    const auto count = static_cast<int64_t>(tasks.size());
    PoolWhole pool(epilogue_.pool, plan_.batch, plan_.tiles.per_image(), static_cast<int64_t>(plan_.outputs.size()) * plan_.panels);
    for_tasks(count, [&](auto take) {
      const Buffers<T> buffers(plan_);
      for (int64_t i; take(i);) {
        const TileOrder tiles(plan_.tiles, tasks[i].begin, tasks[i].tiles, buffers.order);
        for (int part = tasks[i].first_part; part < tasks[i].last_part; ++part) {
          const int64_t inside = find_outputs(plan_, plan_.outputs[part], tiles, buffers.pixels_of(part));
          if (epilogue_.moments && tasks[i].first_panel == 0) epilogue_.moments->count[moments_at(tasks[i], part)] = inside;
        }
        Fetching fetching = plan_.packed_floats > kStayingFloats ? Fetching() : fetching_of(tasks[i], tasks[std::min(i + 1, count - 1)]);
        for (const Stage& stage : plan_.stages) {
          if (stage.runs.front().part < tasks[i].first_part || stage.runs.back().part >= tasks[i].last_part) continue;
          transform(tiles, stage, buffers);
          multiply(tasks[i], tiles, stage, buffers, fetching);
        }
        pool.wrote(tasks[i].begin, tasks[i].begin + tasks[i].tiles, tasks[i].shares());
      }
    });
  }

 private:
  Fetching fetching_of(const Task& task, const Task& next) const {
    int64_t products = 0;
    for (const Stage& stage : plan_.stages) {
      for (const Run& run : stage.runs) products += plan_.terms[run.term].points() * (task.last_panel - task.first_panel);
    }
    return {region(plan_.out, out_, task), region(plan_.in, in_, next), products};
  }

  // The part of a map that belongs to a task's tiles, about.
  Ahead region(const Grid& map, const T* maps, const Task& task) const {
    const int64_t image = map.height * map.width * map.channels * static_cast<int64_t>(sizeof(T));
    const int64_t per_image = plan_.tiles.per_image();
    return {reinterpret_cast<const char*>(maps) + image * task.begin / per_image, image * task.tiles / per_image};
  }

  // A few tiles through all fields, then the next: what one field fetches of the map the others find in L1.
  void transform(const TileOrder& tiles, const Stage& stage, const Buffers<T>& buffers) const {
    struct Column {
      FieldTransform<T> transform;
      PlanePlaces to;
    };
    std::vector<Column> columns;
    float* to = buffers.windows;
    for (const Operand& operand : stage.operands) {
      for (int i = operand.first_field; i < operand.last_field; ++i) {
        columns.push_back({{plan_.fields[i], plan_.in, in_, plan_.in.channels, buffers.zeros},
                           {to + (i - operand.first_field) * plan_.in.channels, buffers.plane(operand), Buffers<T>::row(operand)}});
      }
      to += buffers.size(operand);
    }
    for (int64_t t = 0; t < tiles.all().count; ++t) {
      for (Column& column : columns) {
        column.transform.run(plan_.tiles, tiles.numbers() + t, 1, {column.to.data + t * column.to.row, column.to.plane, 0});
      }
    }
  }

  void multiply(const Task& task, const TileOrder& tiles, const Stage& stage, const Buffers<T>& buffers,
                Fetching& fetching) const {
    for (int64_t p = task.first_panel; p < task.last_panel; ++p) {
      for (const Run& run : stage.runs) {
        multiply(tiles, stage, run, p, buffers, fetching);
        if (run.ends) finish(task, run, p, buffers);
      }
    }
  }

  void multiply(const TileOrder& tiles, const Stage& stage, const Run& run, int64_t p, const Buffers<T>& buffers,
                Fetching& fetching) const {
    const Operand& operand = stage.operands[run.operand];
    const Term& term = plan_.terms[run.term];
    const float* windows = buffers.windows;
    for (int i = 0; i < run.operand; ++i) windows += buffers.size(stage.operands[i]);
    const int64_t width = plan_.panel_width(p);
    const float* weights = packed_ + plan_.packed_at(stage, run, p);
    float* to = buffers.products_of(p);
    for (int i = 0; i <= term.phase[0].taps; ++i) {
      for (int j = 0; j <= term.phase[1].taps; ++j) {
        const float* const from = windows + term.plane(plan_.fields[term.field], i, j) * buffers.plane(operand);
        const float* const next = weights + operand.depth * width;
        const int64_t bytes = operand.depth * width * static_cast<int64_t>(sizeof(float));
        const TileOrder::Range range = tiles.needing(i == term.phase[0].taps, j == term.phase[1].taps);
        gemm({range.count, width, operand.depth, from + range.first * Buffers<T>::row(operand), Buffers<T>::row(operand), 1,
              weights, to + range.first * kGemmPanel, !run.begins, fetching.next({next, bytes})});
        weights = next;
        to += buffers.plane();
      }
    }
  }

  int64_t moments_at(const Task& task, int part) const {
    return task.block * static_cast<int64_t>(plan_.outputs.size()) + part;
  }

  void finish(const Task& task, const Run& run, int64_t p, const Buffers<T>& buffers) const {
    const int64_t n = p * kGemmPanel, channels = std::min(kGemmPanel, plan_.out.channels - n);
    for (int64_t c = 0; c < channels; ++c) {
      buffers.scale[c] = epilogue_.scale ? epilogue_.scale[n + c] : 1.0f;
      buffers.bias[c] = epilogue_.bias ? epilogue_.bias[n + c] : 0.0f;
    }
    Output<T> out{out_ + n, buffers.pixels_of(run.part), task.tiles, channels, &epilogue_, buffers.scale, buffers.bias, nullptr, nullptr};
    if (BlockMoments* const moments = epilogue_.moments) {
      out.mean = moments->mean.data() + moments_at(task, run.part) * plan_.out.channels + n;
      out.m2 = moments->m2.data() + moments_at(task, run.part) * plan_.out.channels + n;
    }
    dispatch_taps(plan_.terms[run.term], [&](auto y, auto x) {
      transform_outputs<T, y, x>(out, buffers.products_of(p), buffers.plane(), run.first, run.last, buffers.partial_of(p));
    });
  }

  const Plan& plan_;
  const T* const in_;
  const float* const packed_;
  T* const out_;
  const Epilogue& epilogue_;
};

void convolve(const ConvShape& s, Direction direction, const void* in, const void* packed, void* out,
              const Epilogue& epilogue) {
  const Plan plan = winograd::make_plan(s, direction);
  dispatch_dtype(s.dtype, [&](auto t) { Convolution<decltype(t)>(plan, in, packed, out, epilogue).run(); });
}

void down(const ConvShape& s, const void* fine, const void* packed, void* coarse, const Epilogue& epilogue) {
  convolve(s, Direction::down, fine, packed, coarse, epilogue);
}

void up(const ConvShape& s, const void* coarse, const void* packed, void* fine, const Epilogue& epilogue) {
  convolve(s, Direction::up, coarse, packed, fine, epilogue);
}

}  // namespace

extern const ConvEngine winograd_engine{"winograd", winograd_serves, winograd_seconds, packed_bytes, pack, down, up, winograd_weight_grad};

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
