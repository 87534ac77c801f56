// Polyphase Winograd on the CPU: its geometry, and how its work is cut.
//
// A kernel of stride s falls apart into s * s phases (along each axis: the taps k with the same k mod s), each a stride-1
// correlation with 1 to 3 taps per axis. Output is made in tiles of 2 x 2 pixels by F(2, taps) along each axis: the tile's
// window of taps + 1 input pixels and the taps are transformed to taps + 1 points, multiplied point by point (which summed
// over channels is one matrix product per point, over all tiles), and transformed back. 2 taps: 9 products for 16, 3 taps:
// 16 for 36.
//
// up: each phase writes output pixels of its own (`parts`); their windows overlap, and so do the transforms of the windows.
// down: each phase reads input pixels of its own and all phases add up: one part, whose terms with the same taps are summed
// before the inverse transform.
//
// Toom-Cook with the points 0, 1, (-1,) infinity. With window d, taps g, outputs y and points v, u, m = v * u:
//   1 tap:  v = d0, d1                           u = g0, g0                                          y = m0, m1
//   2 taps: v = d0 - d1, d1, d2 - d1             u = g0, g0 + g1, g1                                 y = m0 + m1, m1 + m2
//   3 taps: v = d0 - d2, d1 + d2, d2 - d1, d3 - d1
//           u = g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2        y = m0 + m1 + m2, m1 - m2 + m3
// The weight gradient is the same with the roles changed, the pixels c of a tile of the coarse map being the taps:
//   1 tap:  u = c0, c1                           g = m0 + m1
//   2 taps: u = c0, c0 + c1, c1                  g = m0 + m1, m1 + m2
//   3 taps: u = c0, c0 + c1, c0 - c1, c1         g = m0 + (m1 + m2) / 2, (m1 - m2) / 2, (m1 + m2) / 2 + m3
//
// The last tile along an axis of odd length is half outside, and its last point is of no use: it serves y1 alone (and is c1
// itself). Products leave it out: of a 7 x 7 map 225 for 256 with 3 taps, 121 for 144 with 2.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "conv.h"

namespace dcgan_fast::cpu::winograd {

constexpr int64_t kTile = 2;
constexpr int kMostPoints = 4;

// The tiles of a map.
struct TileGrid {
  int64_t size[2];
  bool half[2];  // is the last one along the axis?

  int64_t per_image() const { return size[0] * size[1]; }
  // Products of all tiles of an image, for terms of so many taps.
  int64_t points(int taps_y, int taps_x) const {
    return ((taps_y + 1) * size[0] - half[0]) * ((taps_x + 1) * size[1] - half[1]);
  }
};

// Tiles of a batch that are worked on together, in an order in which those that need a point are neighbours: first those
// that are half along x alone, then whole ones, then half along y alone, then half along both.
class TileOrder {
 public:
  // Tiles [begin, begin + count), numbered image by image, row by row; `tile` has room for them.
  TileOrder(const TileGrid&, int64_t begin, int64_t count, int64_t* tile);

  struct Range {
    int64_t first, count;
  };
  Range all() const { return {0, ends_[3]}; }
  // Those that need a point which is the last along these axes.
  Range needing(bool last_y, bool last_x) const {
    const int64_t first = last_x ? ends_[0] : 0;
    return {first, (last_y ? ends_[1] : last_x ? ends_[2] : ends_[3]) - first};
  }
  const int64_t* numbers() const { return tile_; }

 private:
  const int64_t* tile_;
  int64_t ends_[4];
};

// The pixels of a tile along one axis: element e of tile t is pixel first + t * kTile * step + e * step. Pixels outside
// [0, size) are zero where they are read and skipped where they are written.
struct Window {
  int64_t first, step, size;

  int64_t pixel(int64_t tile, int64_t element) const { return first + (tile * kTile + element) * step; }
  bool contains(int64_t pixel) const { return pixel >= 0 && pixel < size; }
};

// One plane of a transform along one axis: element a + sign * element b.
struct Combination {
  int a, b, sign;
};

// A transform along one axis: of one phase, or of several whose windows overlap, in which planes that are equal or opposite
// are made once.
struct Axis {
  Window window;
  int elements;
  std::vector<Combination> planes;
};

// The planes of a map, those of axis[0] times those of axis[1].
struct Field {
  Axis axis[2];

  int64_t planes() const { return static_cast<int64_t>(axis[0].planes.size() * axis[1].planes.size()); }
};

// A phase along one axis.
struct Phase {
  int taps;
  int64_t kernel_first, kernel_step;     // tap t is element first + t * step of the kernel
  std::array<int, kMostPoints> plane;    // of the field's axis, for each point
  std::array<bool, kMostPoints> negate;  // is that plane minus the point?
};

struct Term {
  Phase phase[2];
  int field;

  int points() const { return (phase[0].taps + 1) * (phase[1].taps + 1); }
  bool same_taps(const Term& other) const {
    return phase[0].taps == other.phase[0].taps && phase[1].taps == other.phase[1].taps;
  }
  // The plane of point (i, j) of its field.
  int64_t plane(const Field& of, int i, int j) const {
    return phase[0].plane[i] * static_cast<int64_t>(of.axis[1].planes.size()) + phase[1].plane[j];
  }
};

// Transformed windows as products read them: [planes][tiles][depth]. Fields with the same planes lie side by side, so that
// one product sums over all of them.
struct Operand {
  int first_field, last_field;  // [first, last)
  int64_t planes, depth;        // depth: fields * channels
};

// Products that are summed before the inverse transform, or some of them.
struct Run {
  int part, operand;
  int term;                   // the first; the others have its taps and planes
  int terms;
  bool begins, ends;          // starts from zero; is followed by the inverse transform
  bool first, last;           // of the part's inverse transforms
  int64_t packed_before;      // packed floats per output channel of the stage's runs before this one
};

// What is transformed before its products are taken.
struct Stage {
  std::vector<Operand> operands;
  std::vector<Run> runs;
  int64_t packed_at;          // floats
  int64_t packed_per_column;  // floats per output channel
};

// down and up. Everything but `batch` follows from the shape without its batch: packed weights serve any batch.
struct Plan {
  int64_t batch;
  Grid in, out;
  TileGrid tiles;
  std::vector<Field> fields;
  std::vector<std::array<Window, 2>> outputs;  // of each part
  std::vector<Term> terms;
  std::vector<Stage> stages;
  int64_t block;    // tiles that are transformed and multiplied together, at most
  int64_t panels;   // of output channels
  int64_t columns;  // output channels, padded
  int64_t packed_floats;

  int64_t panel_width(int64_t panel) const;
  // Offset of the packed weights of a run, [points][depth][panel_width(panel)].
  int64_t packed_at(const Stage&, const Run&, int64_t panel) const;
};

Plan make_plan(const ConvShape&, Direction);

// The weight gradient: for each phase of the kernel its term and the field of the fine map, in make_plan's order of `down`.
struct GradientPlan {
  TileGrid tiles;
  std::vector<Field> fields;
  std::vector<Term> terms;
  int64_t coarse, fine;  // channels of a block, one of each term a task: fine a multiple of kGemmPanel, or all
  double seconds;        // predicted
};

// The cut hangs on the threads, which no bit of the gradient does.
GradientPlan make_gradient_plan(const ConvShape&, int64_t threads);

// The field of the coarse map that serves a term of the gradient: `term` says which of its planes each point is.
struct CoarseField {
  Field field;
  Term term;
};

CoarseField make_coarse_field(const ConvShape&, const Term&);

// What `down` or `up` takes, of all tiles.
struct Work {
  double multiplications;
  double transformed;  // floats written by transforms of windows and read by those of products
  double runs;         // of channels, that these floats are written in
  double weights;      // packed floats read
};

Work work_of(const ConvShape&, Direction);

// Bytes of L2 that a thread's blocks may fill.
int64_t cache_bytes();

}  // namespace dcgan_fast::cpu::winograd
