#include "conv_plan.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "engine_race.h"
#include "shape_memo.h"
#include "switches.h"
#include "thin_conv.h"
#include "tile_conv.h"
#include "winograd.h"

namespace dcgan_fast::cpu {
namespace {

// An engine, and when it may be chosen.
struct Candidate {
  const ConvEngine* engine;
  bool (*on)(at::ScalarType);  // switched on, and worth it on this machine?
  int64_t least_terms = 0;     // of a sum of floats
};

// Two halves hold 22 bits of a float. Sums of this many terms PyTorch rounds no better; in shorter ones that would be seen.
constexpr int64_t kManyTerms = 96;

const std::vector<Candidate>& candidates() {
  static const std::vector<Candidate> all = [] {
    const auto never = [](at::ScalarType) { return false; };
    std::vector<Candidate> found;
    for (const TileEngine& tiles : tile_engines()) {
      const auto on = [](at::ScalarType t) { return switches().amx && tiles_pay(t); };
      found.push_back({tiles.engine, tiles.pays ? +on : +never, tiles.halves ? kManyTerms : 0});
    }
    found.push_back({&winograd_engine(), [](at::ScalarType) { return switches().winograd.load(); }});
    const auto thin = thin_engines();
    if (thin.size() > 1) found.push_back({thin.front(), [](at::ScalarType) { return switches().amx.load(); }});
    found.push_back({thin.back(), [](at::ScalarType) { return true; }});
    return found;
  }();
  return all;
}

int64_t terms(const ConvShape& s, Direction d) {
  const int64_t taps = s.kernel[0] * s.kernel[1];
  if (d == Direction::down) return s.fine.channels * taps;
  if (d == Direction::up) return s.coarse.channels * std::max<int64_t>(1, taps / (s.stride[0] * s.stride[1]));
  return s.batch * s.coarse.height * s.coarse.width;
}

// PyTorch's operations a second on a core. 16-bit products that the machine has no instruction for are emulated:
// measured on an AVX512 machine without vdpbf16ps.
double aten_rate(at::ScalarType dtype, Direction d) {
  if (dtype == at::kFloat) return 150e9;
  if (tiles_pay(at::kFloat)) return 1200e9;
  if (tiles_pay(dtype)) return 300e9;
  if (dtype == at::kBFloat16) return 30e9;
  return d == Direction::down ? 14e9 : 2e9;
}

// PyTorch's time, fitted to the layers of the DCGANs on two cores of a Sapphire Rapids (torch 2.13, channels_last): the
// multiplications at a steady rate, what each call does for each weight (reorders them, reduces their gradients), and the
// maps' bytes at 8 GB/s.
double aten_seconds(const ConvShape& s, Direction d) {
  const auto weights = static_cast<double>(s.fine.channels * s.coarse.channels * s.kernel[0] * s.kernel[1]);
  double flops = 2 * weights * static_cast<double>(s.batch * s.coarse.height * s.coarse.width);
  if (d == Direction::up && s.fine.channels < 16) flops *= 16.0 / static_cast<double>(s.fine.channels);
  const bool wide = s.dtype == at::kFloat;
  const double weight = wide ? 20e-9 : d == Direction::down ? 8e-9 : d == Direction::up ? 16e-9 : 40e-9;
  const auto values = static_cast<double>(s.batch * (s.fine.height * s.fine.width * s.fine.channels +
                                                    s.coarse.height * s.coarse.width * s.coarse.channels));
  const double bytes = values * (wide ? 4 : 2);
  return (flops / aten_rate(s.dtype, d) + weights * weight) / at::get_num_threads() + bytes / 8e9 + 20e-6;
}

std::atomic<const ConvEngine*> forced{nullptr};

}  // namespace

std::vector<const ConvEngine*> engines_worth_a_try(const ConvShape& s, Direction d) {
  constexpr double kWorthATry = 4;  // times the least: a matrix unit's neighbours may take two thirds of it
  std::vector<std::pair<double, const ConvEngine*>> all;
  for (const Candidate& c : candidates()) {
    if (!c.on(s.dtype) || !c.engine->serves(s, d) || (s.dtype == at::kFloat && terms(s, d) < c.least_terms)) continue;
    all.emplace_back(c.engine->seconds(s, d), c.engine);
  }
  std::stable_sort(all.begin(), all.end(), [](auto& a, auto& b) { return a.first < b.first; });
  std::vector<const ConvEngine*> found;
  if (all.empty() || all.front().first >= aten_seconds(s, d)) return found;
  for (const auto& [seconds, engine] : all) {
    if (seconds <= kWorthATry * all.front().first) found.push_back(engine);
  }
  return found;
}

const ConvEngine* choose_engine(const ConvShape& s, Direction d) {
  if (s.dtype != at::kFloat && s.dtype != at::kBFloat16 && s.dtype != at::kHalf) return nullptr;
  if (const ConvEngine* only = forced) return only->serves(s, d) ? only : nullptr;
  if (const auto race = engine_race(s, d)) return race->choose();
  static ShapeMemo<const ConvEngine*> memo;
  return memo(s, d, switches().winograd + 2 * switches().amx, [&] {
    const auto found = engines_worth_a_try(s, d);
    return found.empty() ? nullptr : found.front();
  });
}

const char* engine_name(const ConvShape& s, Direction d) {
  const auto race = forced ? nullptr : engine_race(s, d);
  const ConvEngine* engine = race ? race->fastest() : choose_engine(s, d);
  return engine ? engine->name : "ATen";
}

std::vector<std::string> engine_names() {
  std::vector<std::string> names;
  for (const Candidate& c : candidates()) names.emplace_back(c.engine->name);
  return names;
}

void force_engine(std::string_view name) {
  if (name.empty()) {
    forced = nullptr;
    return;
  }
  for (const Candidate& c : candidates()) {
    if (name == c.engine->name) {
      forced = c.engine;
      return;
    }
  }
  TORCH_CHECK_VALUE(false, "no convolution engine '", name, "' runs on this machine");
}

}  // namespace dcgan_fast::cpu
