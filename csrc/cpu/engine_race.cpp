#include "engine_race.h"

#include <algorithm>

#include "conv_plan.h"
#include "shape_memo.h"
#include "switches.h"

namespace dcgan_fast::cpu {
namespace {

constexpr int64_t kFirstRuns = 2;      // the first packs weights
constexpr int64_t kCallsBetween = 32;  // that the fastest has before another is tried
constexpr double kNewest = 0.5;        // weight of a run that took longer than those before
constexpr double kLongest = 2;         // times those before that it may count as: new pages, an interrupt

double joined(double before, double newest) {
  if (newest <= before) return newest;  // nothing makes a kernel faster than it is
  return (1 - kNewest) * before + kNewest * std::min(newest, kLongest * before);
}

}  // namespace

const ConvEngine* EngineRace::choose() {
  const std::lock_guard lock(mutex_);
  ++calls_;
  // in turns: what the first calls of a shape meet (memory that was never touched) is not one engine's alone
  const auto by_runs = [](auto& a, auto& b) { return a.runs < b.runs; };
  const auto least_run = std::min_element(runners_.begin(), runners_.end(), by_runs);
  if (least_run->runs < kFirstRuns) return least_run->engine;
  const auto stalest =
      std::min_element(runners_.begin(), runners_.end(), [](auto& a, auto& b) { return a.last < b.last; });
  if (calls_ % kCallsBetween == 0) return stalest->engine;
  return fastest_runner();
}

const ConvEngine* EngineRace::fastest() const {
  const std::lock_guard lock(mutex_);
  return fastest_runner();
}

const ConvEngine* EngineRace::fastest_runner() const {
  const auto by_time = [](auto& a, auto& b) { return a.seconds < b.seconds; };
  return std::min_element(runners_.begin(), runners_.end(), by_time)->engine;
}

void EngineRace::report(const ConvEngine* engine, double seconds) {
  const std::lock_guard lock(mutex_);
  for (Runner& r : runners_) {
    if (r.engine != engine) continue;
    r.seconds = r.runs == 0 ? seconds : joined(r.seconds, seconds);
    ++r.runs;
    r.last = calls_;
  }
}

std::shared_ptr<EngineRace> engine_race(const ConvShape& s, Direction d) {
  const Switches& on = switches();
  if (!on.adaptive) return nullptr;
  static ShapeMemo<std::shared_ptr<EngineRace>> memo;
  return memo(s, d, on.winograd + 2 * on.amx, [&]() -> std::shared_ptr<EngineRace> {
    const auto engines = engines_worth_a_try(s, d);
    return engines.size() < 2 ? nullptr : std::make_shared<EngineRace>(engines);
  });
}

}  // namespace dcgan_fast::cpu
