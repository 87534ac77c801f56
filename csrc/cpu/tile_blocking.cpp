#include "tile_blocking.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "integers.h"
#include "shape_memo.h"

namespace dcgan_fast::cpu {
namespace {

// Nanoseconds on a core of a Sapphire Rapids Xeon (AMX, 2 MB of L2), for one operand of 32 x 32 values in 1, 2 or 3 parts.
// Only their ratios matter to the choice of a blocking.
constexpr double kMultiply[] = {0, 30, 65, 125};     // A times B, both in L2; the matrix unit alone takes 19, 56, 112
constexpr double kPack[] = {0, 160, 350, 450};       // of a map, from memory: 4 to 14 ns a row
constexpr double kReload = 90;                       // sums of one block to a tile register and back
constexpr double kFinish = 600;                      // one block of the output: activation, rounding, write to memory
constexpr double kStream = 0.04;                     // a byte of packed weights that comes from beyond L2
constexpr double kTask = 2000;                       // begin a task
// What the packed windows, the sums and the weights in use may hold of L2, the rest being the maps' on their way through.
constexpr int64_t kCacheBytes = 1400 * 1024;
constexpr double kOverflow = 1.6;  // a product whose operands come from beyond L2

constexpr int64_t kBlock = 32;
constexpr int64_t kStripPatches = 16;  // tile_patches.h: WindowLayout

int64_t blocks_of(int64_t channels) { return ceil_div(channels, kBlock); }

struct Extent {
  int64_t patches, window, step, taps, out;  // taps: of all output pixels of a patch, without those a single patch leaves out
};

Extent extent(Direction d, int64_t fine, int64_t coarse, int64_t kernel, int64_t stride, int64_t padding, int64_t patch) {
  Extent e{};
  if (d == Direction::up) {
    e.out = patch * stride;
    e.patches = ceil_div(fine, e.out);
    e.window = patch + ceil_div(kernel - 1, stride);
    e.step = patch;
    for (int64_t k = 0; k < kernel; ++k) {  // not all of e.out, which of a long stride hardly anything meets
      for (int64_t o = ((k - padding) % stride + stride) % stride; o < e.out; o += stride) {
        const int64_t i = o + padding - k;
        if (e.patches > 1 || (i >= 0 && i / stride < coarse)) ++e.taps;
      }
    }
  } else {
    e.out = patch;
    e.patches = ceil_div(coarse, patch);
    e.window = (patch - 1) * stride + kernel;
    e.step = patch * stride;
    for (int64_t o = 0; o < patch; ++o) {
      for (int64_t k = 0; k < kernel; ++k) {
        const int64_t i = o * stride + k - padding;
        if (e.patches > 1 || (i >= 0 && i < fine)) ++e.taps;
      }
    }
  }
  return e;
}

double waves(int64_t tasks, int64_t threads) { return static_cast<double>(ceil_div(tasks, threads)); }

struct Candidate {
  int64_t window, out, taps, blocks;  // pixels of a patch, operand pairs of a patch, blocks of 32 patches
  double packed;                      // pixels of the windows of 32 patches as they are packed, over 32
  bool strips;
};

double map_seconds(const ConvShape& s, Direction d, const Candidate& c, int64_t out_panel, int64_t in_panel, int parts,
                   int64_t threads) {
  const int64_t in = blocks_of(d == Direction::up ? s.coarse.channels : s.fine.channels),
                out = blocks_of(d == Direction::up ? s.fine.channels : s.coarse.channels);
  const int64_t op = std::min(out_panel / kBlock, out), ip = std::min(in_panel / kBlock, in);
  const int64_t panels = ceil_div(out, op), chunks = ceil_div(in, ip);
  const int64_t operand = parts * 2048, windows = static_cast<int64_t>(static_cast<double>(ip * operand) * c.packed),
                sums = (chunks > 1 ? c.out : pixels_at_once(c.strips, c.out, parts)) * op * kBlock * kBlock * 4, weights = op * ip * s.kernel[0] * s.kernel[1] * operand;
  double ns = kTask + kPack[parts] * c.packed * static_cast<double>(in) + kFinish * static_cast<double>(c.out * op);
  const bool fits = windows + sums + std::min<int64_t>(weights, 512 * 1024) <= kCacheBytes;
  ns += kMultiply[parts] * (fits ? 1 : kOverflow) * static_cast<double>(c.taps * in * op);
  ns += kReload * static_cast<double>(c.out * op * chunks);
  const bool stay = windows + sums + weights * chunks <= kCacheBytes;  // the weights, from one block to a thread's next
  ns += kStream * static_cast<double>(weights * chunks) / (stay ? std::max(1.0, static_cast<double>(c.blocks / threads)) : 1);
  return 1e-9 * ns * waves(panels * c.blocks, threads);
}

double weight_seconds(const ConvShape& s, const Candidate& c, int64_t coarse_panel, int64_t fine_panel, int parts,
                      int64_t threads) {
  const int64_t coarse = blocks_of(s.coarse.channels), fine = blocks_of(s.fine.channels);
  const int64_t cp = std::min(coarse_panel / kBlock, coarse), fp = std::min(fine_panel / kBlock, fine);
  const int64_t tasks = ceil_div(coarse, cp) * ceil_div(fine, fp), taps = s.kernel[0] * s.kernel[1];
  const int64_t operand = parts * 2048, bytes = (fp * c.window + cp * c.out) * operand + taps * cp * fp * kBlock * kBlock * 4;
  double ns = kPack[parts] * static_cast<double>(c.window * fp) + 1.5 * kPack[parts] * static_cast<double>(c.out * cp);
  ns += kMultiply[parts] * (bytes <= kCacheBytes ? 1 : kOverflow) * static_cast<double>(c.taps * cp * fp);
  ns += kReload * static_cast<double>(taps * cp * fp);
  ns = ns * static_cast<double>(c.blocks) + kTask + kFinish * static_cast<double>(taps * cp * fp);
  return 1e-9 * ns * waves(tasks, threads);
}

std::vector<int64_t> sizes(int64_t largest, int64_t from) {  // from, 2 from, ... and largest
  std::vector<int64_t> out;
  for (int64_t n = from; n < largest; n *= 2) out.push_back(n);
  out.push_back(largest);
  return out;
}

TileBlocking search(const ConvShape& s, Direction d, int parts) {
  const int64_t threads = at::get_num_threads();
  const bool up = d == Direction::up;
  const int64_t out_channels = kBlock * blocks_of(up ? s.fine.channels : s.coarse.channels),
                in_channels = kBlock * blocks_of(up ? s.coarse.channels : s.fine.channels);
  const int64_t rows = up ? ceil_div(s.fine.height, s.stride[0]) : s.coarse.height,
                columns = up ? ceil_div(s.fine.width, s.stride[1]) : s.coarse.width;
  TileBlocking best{{1, 1}, kBlock, kBlock, std::numeric_limits<double>::infinity()};
  for (const int64_t h : sizes(std::min<int64_t>(rows, 16), 1)) {
    const Extent y = extent(d, s.fine.height, s.coarse.height, s.kernel[0], s.stride[0], s.padding[0], h);
    for (const int64_t w : sizes(std::min<int64_t>(columns, 16), 1)) {
      const Extent x = extent(d, s.fine.width, s.coarse.width, s.kernel[1], s.stride[1], s.padding[1], w);
      const int64_t patches = s.batch * y.patches * x.patches;
      const bool strips = x.patches % kStripPatches == 0;
      const double columns = strips ? static_cast<double>((kStripPatches - 1) * x.step + x.window) / kStripPatches
                                    : static_cast<double>(x.window);
      const Candidate c{y.window * x.window, y.out * x.out, y.taps * x.taps, ceil_div(patches, kBlock),
                        static_cast<double>(y.window) * columns, strips};
      for (const int64_t out : sizes(std::min<int64_t>(out_channels, 512), kBlock)) {
        for (const int64_t in : sizes(std::min<int64_t>(in_channels, 512), kBlock)) {
          const double seconds = d == Direction::weight_grad ? weight_seconds(s, c, out, in, parts, threads)
                                                             : map_seconds(s, d, c, out, in, parts, threads);
          if (seconds < best.seconds) best = {{h, w}, out, in, seconds};
        }
      }
    }
  }
  return best;
}

}  // namespace

TileBlocking tile_blocking(const ConvShape& s, Direction d, int parts) {
  static ShapeMemo<TileBlocking> memo;
  return memo(s, d, parts, [&] { return search(s, d, parts); });
}

}  // namespace dcgan_fast::cpu
