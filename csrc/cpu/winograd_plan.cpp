#include "winograd_plan.h"

#if defined(__linux__)
#include <unistd.h>
#endif

#include <algorithm>
#include <cmath>
#include <utility>

#include "gemm.h"
#include "integers.h"

namespace dcgan_fast::cpu::winograd {
namespace {

int64_t size(const Grid& grid, int axis) { return axis == 0 ? grid.height : grid.width; }

// ---------------------------------------------------------------- one axis

std::vector<Combination> window_points(int taps) {
  if (taps == 1) return {{0, 0, 0}, {1, 0, 0}};
  if (taps == 2) return {{0, 1, -1}, {1, 0, 0}, {2, 1, -1}};
  return {{0, 2, -1}, {1, 2, 1}, {2, 1, -1}, {3, 1, -1}};
}

std::vector<Combination> gradient_points(int taps) {
  if (taps == 1) return {{0, 0, 0}, {1, 0, 0}};
  if (taps == 2) return {{0, 0, 0}, {0, 1, 1}, {1, 0, 0}};
  return {{0, 0, 0}, {0, 1, 1}, {0, 1, -1}, {1, 0, 0}};
}

// Adds what the axis lacks of these points, `offset` elements from the axis's first, and notes where each one is.
void add_points(Axis& axis, const std::vector<Combination>& points, int offset, Phase& phase) {
  for (size_t i = 0; i < points.size(); ++i) {
    const Combination wanted{points[i].a + offset, points[i].sign == 0 ? 0 : points[i].b + offset, points[i].sign};
    const auto same = [&](const Combination& c) { return c.sign == wanted.sign && c.a == wanted.a && c.b == wanted.b; };
    const auto opposite = [&](const Combination& c) {
      return wanted.sign == -1 && c.sign == -1 && c.a == wanted.b && c.b == wanted.a;
    };
    auto found = std::find_if(axis.planes.begin(), axis.planes.end(), same);
    phase.negate[i] = false;
    if (found == axis.planes.end()) {
      found = std::find_if(axis.planes.begin(), axis.planes.end(), opposite);
      phase.negate[i] = found != axis.planes.end();
    }
    phase.plane[i] = static_cast<int>(found - axis.planes.begin());
    if (found == axis.planes.end()) axis.planes.push_back(wanted);
  }
}

// A phase of the kernel along one axis, its window and its outputs.
struct AxisPhase {
  Phase phase;
  Window window, output;
};

// down: fine pixel = stride * (coarse pixel + tap) + phase - padding.
AxisPhase down_phase(const ConvShape& s, int axis, int64_t q) {
  const int64_t stride = s.stride[axis];
  AxisPhase p{};
  p.phase.taps = static_cast<int>(ceil_div(s.kernel[axis] - q, stride));
  p.phase.kernel_first = q;
  p.phase.kernel_step = stride;
  p.window = {q - s.padding[axis], stride, size(s.fine, axis)};
  p.output = {0, 1, size(s.coarse, axis)};
  return p;
}

// up: fine pixel stride * u + q - padding = sum over taps of coarse pixel (u - tap): a correlation with the taps in reverse.
AxisPhase up_phase(const ConvShape& s, int axis, int64_t q) {
  const int64_t stride = s.stride[axis], shift = s.padding[axis] - q, first = ceil_div(shift, stride);
  AxisPhase p = down_phase(s, axis, q);
  p.phase.kernel_first = q + stride * (p.phase.taps - 1);
  p.phase.kernel_step = -stride;
  p.window = {first - (p.phase.taps - 1), 1, size(s.coarse, axis)};
  p.output = {stride * first - shift, stride, size(s.fine, axis)};
  return p;
}

// Pixels of a window of outputs that lie inside the map.
int64_t outputs_inside(const Window& output) {
  return std::max<int64_t>(0, floor_div(output.size - 1 - output.first, output.step) + 1);
}

// One axis for all these phases.
Axis join(std::vector<AxisPhase>& phases) {
  Axis axis{phases[0].window, 0, {}};
  for (const AxisPhase& p : phases) axis.window.first = std::min(axis.window.first, p.window.first);
  for (AxisPhase& p : phases) {
    const int offset = static_cast<int>((p.window.first - axis.window.first) / axis.window.step);
    add_points(axis, window_points(p.phase.taps), offset, p.phase);
    axis.elements = std::max(axis.elements, offset + p.phase.taps + 1);
  }
  return axis;
}

void cut_axis(TileGrid& tiles, int axis, int64_t pixels) {
  tiles.size[axis] = ceil_div(pixels, kTile);
  tiles.half[axis] = pixels % kTile != 0;
}

TileGrid coarse_tiles(const ConvShape& s) {
  TileGrid tiles{};
  for (int a = 0; a < 2; ++a) cut_axis(tiles, a, size(s.coarse, a));
  return tiles;
}

// ---------------------------------------------------------------- both axes

struct Phases {
  std::vector<AxisPhase> axis[2];

  Phases(const ConvShape& s, bool up) {
    for (int a = 0; a < 2; ++a) {
      for (int64_t q = 0; q < s.stride[a]; ++q) axis[a].push_back(up ? up_phase(s, a, q) : down_phase(s, a, q));
    }
  }

  template <typename F>
  void for_pairs(F&& f) const {
    for (const AxisPhase& y : axis[0]) {
      for (const AxisPhase& x : axis[1]) f(y, x);
    }
  }
};

// Terms with a field each, those with the same taps side by side.
void add_separate_terms(const Phases& phases, std::vector<Term>& terms, std::vector<Field>& fields) {
  std::vector<std::pair<Term, Field>> all;
  phases.for_pairs([&](const AxisPhase& y, const AxisPhase& x) {
    std::vector<AxisPhase> alone[2] = {{y}, {x}};
    const Field field{{join(alone[0]), join(alone[1])}};
    all.push_back({Term{{alone[0][0].phase, alone[1][0].phase}, 0}, field});
  });
  std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) {
    const Phase(&p)[2] = a.first.phase, (&q)[2] = b.first.phase;
    return std::pair(p[0].taps, p[1].taps) > std::pair(q[0].taps, q[1].taps);
  });
  for (auto& [term, field] : all) {
    term.field = static_cast<int>(fields.size());
    terms.push_back(term);
    fields.push_back(field);
  }
}

// ---------------------------------------------------------------- stages

void add_run(Stage& stage, const Run& run, int64_t packed_per_column) {
  stage.runs.push_back(run);
  stage.runs.back().packed_before = stage.packed_per_column;
  stage.packed_per_column += packed_per_column;
}

// Every phase is a part: one stage for all on a joined field, or one stage each on a field of its own.
void plan_up(const ConvShape& s, bool whole, Plan& plan) {
  Phases phases(s, true);
  if (whole) plan.fields.push_back({{join(phases.axis[0]), join(phases.axis[1])}});
  phases.for_pairs([&](const AxisPhase& y, const AxisPhase& x) {
    std::vector<AxisPhase> own[2] = {{y}, {x}};  // with the planes of the joined field, unless they get their own
    const int part = static_cast<int>(plan.outputs.size());
    if (!whole) plan.fields.push_back({{join(own[0]), join(own[1])}});
    const int field = static_cast<int>(plan.fields.size()) - 1;
    plan.terms.push_back({{own[0][0].phase, own[1][0].phase}, field});
    plan.outputs.push_back({y.output, x.output});
    if (part == 0 || !whole) {
      plan.stages.emplace_back();
      plan.stages.back().operands.push_back({field, field + 1, plan.fields[field].planes(), s.coarse.channels});
    }
    add_run(plan.stages.back(), {part, 0, part, 1, true, true, true, true}, plan.terms[part].points() * s.coarse.channels);
  });
  for (int a = 0; a < 2; ++a) {
    int64_t longest = 0;
    for (const AxisPhase& p : phases.axis[a]) longest = std::max(longest, outputs_inside(p.output));
    cut_axis(plan.tiles, a, longest);
  }
}

// One part: one stage for all terms, or one stage each.
void plan_down(const ConvShape& s, bool whole, Plan& plan) {
  add_separate_terms(Phases(s, false), plan.terms, plan.fields);
  plan.outputs.push_back({Window{0, 1, s.coarse.height}, Window{0, 1, s.coarse.width}});
  plan.tiles = coarse_tiles(s);
  const int count = static_cast<int>(plan.terms.size());
  const auto same = [&](int i, int j) { return plan.terms[i].same_taps(plan.terms[j]); };
  for (int begin = 0; begin < count;) {
    int end = begin + 1;
    while (whole && end < count && same(end, begin)) ++end;
    if (begin == 0 || !whole) plan.stages.emplace_back();
    Stage& stage = plan.stages.back();
    const int64_t points = plan.terms[begin].points(), depth = (end - begin) * s.fine.channels;
    stage.operands.push_back({begin, end, points, depth});
    const bool begins = begin == 0 || !same(begin, begin - 1), ends = end == count || !same(end, begin);
    add_run(stage,
            {0, static_cast<int>(stage.operands.size()) - 1, begin, end - begin, begins, ends, same(begin, 0), end == count},
            points * depth);
    begin = end;
  }
}

Plan plan_stages(const ConvShape& s, Direction direction, bool whole) {
  const bool up = direction == Direction::up;
  Plan plan{};
  plan.batch = s.batch;
  plan.in = up ? s.coarse : s.fine;
  plan.out = up ? s.fine : s.coarse;
  plan.columns = round_up(plan.out.channels, kGemmWidth);
  plan.panels = ceil_div(plan.columns, kGemmPanel);
  up ? plan_up(s, whole, plan) : plan_down(s, whole, plan);
  for (Stage& stage : plan.stages) {
    stage.packed_at = plan.packed_floats;
    plan.packed_floats += stage.packed_per_column * plan.columns;
  }
  return plan;
}

// Floats of a tile in a thread's buffers (winograd_kernels.cpp).
int64_t floats_per_tile(const Plan& plan) {
  int64_t windows = 0, products = 0;
  for (const Stage& stage : plan.stages) {
    int64_t of_stage = 0;
    for (const Operand& operand : stage.operands) of_stage += operand.planes * operand.depth;
    windows = std::max(windows, of_stage);
    for (const Run& run : stage.runs) {
      const int64_t panel = std::min(plan.columns, kGemmPanel);
      const int64_t live = (run.begins && run.ends ? panel : plan.columns) * plan.terms[run.term].points();
      const int64_t partial = run.first && run.last ? 0 : (plan.stages.size() > 1 ? plan.columns : panel) * kTile * kTile;
      products = std::max(products, live + partial);
    }
  }
  return windows + products;
}

// More rows than this no longer make the products faster.
constexpr int64_t kMostRows = 128;
// Fewer than this, and reading the packed weights costs more than transforming everything at once saves.
constexpr int64_t kFewRows = 48;

// One point of one tile in a block of a weight's gradient, on a core with AVX512 (as winograd_seconds): a fine window's is
// a sum of up to four pixels, a coarse tile's mostly one.
double point_seconds(int64_t coarse, int64_t fine) {
  const auto c = static_cast<double>(coarse), f = static_cast<double>(fine);
  return 2 * c * f / 180e9 + 0.5e-9 * f + 0.12e-9 * c + 12e-9;
}

int64_t points_of(const TileGrid& tiles, const Term& term) { return tiles.points(term.phase[0].taps, term.phase[1].taps); }

}  // namespace

TileOrder::TileOrder(const TileGrid& tiles, int64_t begin, int64_t count, int64_t* tile) : tile_(tile) {
  const auto class_of = [&](int64_t t) {
    const int64_t x = t % tiles.size[1], y = t / tiles.size[1] % tiles.size[0];
    const bool half_y = tiles.half[0] && y + 1 == tiles.size[0], half_x = tiles.half[1] && x + 1 == tiles.size[1];
    return half_y ? 2 + half_x : !half_x;
  };
  int64_t next[4] = {};
  for (int64_t t = begin; t < begin + count; ++t) ++next[class_of(t)];
  int64_t end = 0;
  for (int c = 0; c < 4; ++c) {
    const int64_t first = end;
    ends_[c] = end += next[c];
    next[c] = first;
  }
  for (int64_t t = begin; t < begin + count; ++t) tile[next[class_of(t)]++] = t;
}

int64_t cache_bytes() {
  static const int64_t bytes = [] {
    int64_t l2 = 0;
#ifdef _SC_LEVEL2_CACHE_SIZE
    l2 = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return std::clamp<int64_t>(l2, 256 << 10, 2 << 20) / 8 * 5;
  }();
  return bytes;
}

int64_t Plan::panel_width(int64_t panel) const { return std::min(kGemmPanel, columns - panel * kGemmPanel); }

int64_t Plan::packed_at(const Stage& stage, const Run& run, int64_t panel) const {
  return stage.packed_at + stage.packed_per_column * panel * kGemmPanel + run.packed_before * panel_width(panel);
}

Plan make_plan(const ConvShape& s, Direction direction) {
  const int64_t floats = cache_bytes() / static_cast<int64_t>(sizeof(float));
  Plan whole = plan_stages(s, direction, true), pieces = plan_stages(s, direction, false);
  whole.block = floats / floats_per_tile(whole);
  pieces.block = floats / floats_per_tile(pieces);
  Plan& chosen = whole.block >= std::min(kFewRows, pieces.block) ? whole : pieces;
  chosen.block = std::clamp<int64_t>(chosen.block, 1, kMostRows);
  if (chosen.block > kGemmRows) chosen.block = chosen.block / kGemmRows * kGemmRows;
  return std::move(chosen);
}

GradientPlan make_gradient_plan(const ConvShape& s, int64_t threads) {
  GradientPlan plan{coarse_tiles(s), {}, {}, 0, 0, 0};
  add_separate_terms(Phases(s, false), plan.terms, plan.fields);
  double points = 0;  // of all tiles
  for (const Term& term : plan.terms) points += static_cast<double>(s.batch * points_of(plan.tiles, term));
  // Blocks of 128 by 128 channels transform least; smaller ones give all threads something to do.
  constexpr int64_t kMostChannels = 128, kFewestCoarse = 16;
  for (int64_t fine = kMostChannels; fine >= kGemmPanel; fine /= 2) {
    for (int64_t coarse = kMostChannels; coarse >= kFewestCoarse; coarse /= 2) {
      const int64_t of_coarse = std::min(coarse, s.coarse.channels), of_fine = std::min(fine, s.fine.channels);
      const int64_t blocks = ceil_div(s.coarse.channels, coarse) * ceil_div(s.fine.channels, fine);
      const int64_t tasks = static_cast<int64_t>(plan.terms.size()) * blocks;
      const double rounds = static_cast<double>(ceil_div(tasks, threads)) / static_cast<double>(tasks);
      const double seconds = points * static_cast<double>(blocks) * rounds * point_seconds(of_coarse, of_fine);
      if (plan.coarse == 0 || seconds < plan.seconds) {
        plan.coarse = of_coarse, plan.fine = of_fine, plan.seconds = seconds;
      }
    }
  }
  return plan;
}

Work work_of(const ConvShape& s, Direction direction) {
  Work work{};
  const Plan plan = make_plan(s, direction);
  const auto tiles = static_cast<double>(s.batch * plan.tiles.per_image());
  for (const Stage& stage : plan.stages) {
    for (const Operand& operand : stage.operands) {
      work.runs += tiles * static_cast<double>(operand.planes);
      work.transformed += tiles * static_cast<double>(operand.planes * operand.depth);
    }
    for (const Run& run : stage.runs) {
      const auto points = static_cast<double>(plan.terms[run.term].points() * plan.columns);
      const auto products = static_cast<double>(s.batch * points_of(plan.tiles, plan.terms[run.term]) * plan.columns);
      work.multiplications += products * static_cast<double>(stage.operands[run.operand].depth);
      work.runs += tiles * static_cast<double>(plan.terms[run.term].points() * plan.panels);
      work.transformed += tiles * points;
    }
  }
  work.weights = static_cast<double>(plan.packed_floats) * std::ceil(tiles / static_cast<double>(plan.block));
  return work;
}

CoarseField make_coarse_field(const ConvShape& s, const Term& term) {
  CoarseField made{{{Axis{{0, 1, s.coarse.height}, kTile, {}}, Axis{{0, 1, s.coarse.width}, kTile, {}}}}, term};
  for (int a = 0; a < 2; ++a) add_points(made.field.axis[a], gradient_points(term.phase[a].taps), 0, made.term.phase[a]);
  return made;
}

}  // namespace dcgan_fast::cpu::winograd
