#include "conv_plan.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <atomic>

#include "switches.h"
#include "thin_conv.h"
#include "tile_blocking.h"
#include "tile_conv.h"

namespace dcgan_fast::cpu {
namespace {

// What the planner knows of an engine.
struct Candidate {
  const ConvEngine* engine;
  bool (*on)(at::ScalarType);  // switched on, and worth it on this machine?
  bool (*serves)(const ConvShape&, Direction);
  double (*seconds)(const ConvShape&, Direction);  // predicted, on as many threads as there are
};

const std::vector<Candidate>& candidates() {
  static const std::vector<Candidate> all = [] {
    const auto tile_seconds = [](const ConvShape& s, Direction d) {
      return tile_blocking(s, d, s.dtype == at::kFloat ? 3 : s.dtype == at::kHalf ? 2 : 1).seconds;
    };
    std::vector<Candidate> found;
    for (const ConvEngine* engine : tile_engines()) {  // the best first, the others for tests
      const auto best = [](at::ScalarType t) { return switches().amx && tiles_pay(t); };
      const auto never = [](at::ScalarType) { return false; };
      // sums of vdpbf16ps lose digits that parts of floats need
      const auto narrow = [](const ConvShape& s, Direction) { return s.dtype == at::kBFloat16; };
      const auto any = [](const ConvShape&, Direction) { return true; };
      const bool floats = engine->name != std::string_view("tiles (AVX512_BF16)");
      found.push_back({engine, found.empty() ? +best : +never, floats ? +any : +narrow, tile_seconds});
    }
    found.push_back({&thin_engine(), [](at::ScalarType) { return true; }, thin_serves, thin_cost});
    return found;
  }();
  return all;
}

// PyTorch's time, fitted to the layers of the DCGANs on two cores of a Sapphire Rapids (torch 2.13, channels_last): the
// multiplications at a steady rate, what each call does for each weight (reorders them, reduces their gradients), and the
// maps' bytes at 8 GB/s.
double aten_seconds(const ConvShape& s, Direction d) {
  const auto weights = static_cast<double>(s.fine.channels * s.coarse.channels * s.kernel[0] * s.kernel[1]);
  double flops = 2 * weights * static_cast<double>(s.batch * s.coarse.height * s.coarse.width);
  if (d == Direction::up && s.fine.channels < 16) flops *= 16.0 / static_cast<double>(s.fine.channels);
  const bool matrix_unit = tiles_pay(at::kFloat), wide = s.dtype == at::kFloat;
  const double rate = 150e9 * (wide ? 1 : matrix_unit ? 8 : 2);  // a core
  const double weight = wide ? 20e-9 : d == Direction::down ? 8e-9 : d == Direction::up ? 16e-9 : 40e-9;
  const auto values = static_cast<double>(s.batch * (s.fine.height * s.fine.width * s.fine.channels +
                                                    s.coarse.height * s.coarse.width * s.coarse.channels));
  const double bytes = values * (wide ? 4 : 2);
  return (flops / rate + weights * weight) / at::get_num_threads() + bytes / 8e9 + 20e-6;
}

std::atomic<const Candidate*> forced{nullptr};

}  // namespace

const ConvEngine* choose_engine(const ConvShape& s, Direction d) {
  if (s.dtype != at::kFloat && s.dtype != at::kBFloat16 && s.dtype != at::kHalf) return nullptr;
  if (const Candidate* only = forced) return only->serves(s, d) ? only->engine : nullptr;
  const ConvEngine* best = nullptr;
  double least = aten_seconds(s, d);
  for (const Candidate& c : candidates()) {
    if (!c.on(s.dtype) || !c.serves(s, d)) continue;
    if (const double seconds = c.seconds(s, d); seconds < least) {
      least = seconds;
      best = c.engine;
    }
  }
  return best;
}

const char* engine_name(const ConvShape& s, Direction d) {
  const ConvEngine* engine = choose_engine(s, d);
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
      forced = &c;
      return;
    }
  }
  TORCH_CHECK_VALUE(false, "no convolution engine '", name, "' runs on this machine");
}

}  // namespace dcgan_fast::cpu
