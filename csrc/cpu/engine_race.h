// Which engine is fastest for a shape now, on a machine whose neighbours come and go: told by the calls themselves.
//
// A model of the machine alone is wrong there. On a busy host the matrix unit gives a third of its rate for minutes,
// fused multiply-adds lose a tenth, and no measurement of a few milliseconds foretells what that makes of an engine.
#pragma once

#include <chrono>
#include <exception>
#include <memory>
#include <mutex>
#include <vector>

#include "conv.h"

namespace dcgan_fast::cpu {

// The engines of one shape and direction. Each runs twice, then the fastest; every so often another has its turn again.
class EngineRace {
 public:
  explicit EngineRace(const std::vector<const ConvEngine*>& engines) {
    for (const ConvEngine* engine : engines) runners_.push_back({engine});
  }

  const ConvEngine* choose();         // whose turn it is
  const ConvEngine* fastest() const;  // so far
  void report(const ConvEngine* engine, double seconds);

 private:
  struct Runner {
    const ConvEngine* engine;
    double seconds = 0;  // of its last runs
    int64_t runs = 0, last = 0;
  };

  const ConvEngine* fastest_runner() const;

  mutable std::mutex mutex_;
  std::vector<Runner> runners_;
  int64_t calls_ = 0;
};

// The race for a shape; null unless switches().adaptive, and where fewer than two engines may win.
std::shared_ptr<EngineRace> engine_race(const ConvShape&, Direction);

// Tells the race how long an engine took, from here to the end of the scope.
class EngineTimer {
 public:
  EngineTimer(const ConvEngine& engine, const ConvShape& s, Direction d)
      : engine_(&engine), race_(engine_race(s, d)), begin_(std::chrono::steady_clock::now()) {}
  ~EngineTimer() {
    if (race_ && std::uncaught_exceptions() == 0)
      race_->report(engine_, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count());
  }
  EngineTimer(const EngineTimer&) = delete;
  EngineTimer& operator=(const EngineTimer&) = delete;

 private:
  const ConvEngine* engine_;
  std::shared_ptr<EngineRace> race_;
  std::chrono::steady_clock::time_point begin_;
};

}  // namespace dcgan_fast::cpu
