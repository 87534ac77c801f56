// Polyphase Winograd: the gradient of the weight. Compiled once per CPU capability (see capability.h).
//
// A tap's gradient is the sum over coarse pixels of coarse[i] * fine[i + tap]: the correlation of `down`, with tiles of the
// coarse map as its taps. A task owns a block of the gradient (a phase of the kernel, so many coarse and so many fine
// channels) and walks over all tiles; what it sums stays in L2, and the order of the sums does not depend on the threads.
#include "winograd_weight_grad.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "gemm.h"
#include "integers.h"
#include "tasks.h"
#include "winograd_fields.h"
#include "winograd_plan.h"
#include "winograd_transforms.h"
#include "workspace.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {
namespace {

using winograd::CoarseField;
using winograd::GradientPlan;
using winograd::Phase;

constexpr int64_t kSkew = 16;  // see winograd_kernels.cpp

int64_t padded(int64_t channels) { return round_up(channels, kGemmWidth); }

// How the gradient is cut, and the sizes that follow.
struct Cut {
  int64_t coarse, fine;  // channels of a block
  int64_t tiles;         // that are transformed and multiplied together

  int64_t panels() const { return ceil_div(fine, kGemmPanel); }
  int64_t fine_panel() const { return tiles * kGemmPanel; }
  int64_t fine_plane() const { return panels() * fine_panel() + kSkew; }
  int64_t coarse_plane() const { return tiles * padded(coarse) + kSkew; }
  int64_t sums_panel() const { return coarse * kGemmPanel; }
  int64_t sums_plane() const { return panels() * sums_panel() + kSkew; }
};

// Measured: more tiles at once, whose sums go less often to L2 and back, push these out of it.
constexpr int64_t kTiles = 64;

template <typename T>
class WeightGradient {
 public:
  WeightGradient(const ConvShape& s, const void* fine, const void* coarse, const MutableWeightView& weight)
      : s_(s),
        plan_(winograd::make_gradient_plan(s, at::get_num_threads())),
        cut_{plan_.coarse, plan_.fine, kTiles},
        fine_(static_cast<const T*>(fine)),
        coarse_(static_cast<const T*>(coarse)),
        weight_(weight) {}

  void run() const {
    const auto terms = static_cast<int64_t>(plan_.terms.size());
    const int64_t coarse_blocks = ceil_div(s_.coarse.channels, cut_.coarse), fine_blocks = ceil_div(s_.fine.channels, cut_.fine);
    for_tasks(terms * coarse_blocks * fine_blocks, [&](auto take) {
      for (int64_t i; take(i);) {
        const int64_t c = i / fine_blocks % coarse_blocks * cut_.coarse, f = i % fine_blocks * cut_.fine;
        sum(Block{plan_.terms[i / (coarse_blocks * fine_blocks)], c, std::min(cut_.coarse, s_.coarse.channels - c), f,
                  std::min(cut_.fine, s_.fine.channels - f)});
      }
    }, /*one_queue=*/true);
  }

 private:
  struct Block {
    const Term& term;
    int64_t first_coarse, coarse, first_fine, fine;

    int64_t panels() const { return ceil_div(fine, kGemmPanel); }
    int64_t channels(int64_t panel) const { return std::min(kGemmPanel, fine - panel * kGemmPanel); }
  };

  void sum(const Block& block) const {
    const CoarseField coarse_field = winograd::make_coarse_field(s_, block.term);
    const int64_t zeros_size = padded(std::max(block.coarse, block.fine)), points = block.term.points();
    const int64_t fine_size = points * cut_.fine_plane(), coarse_size = coarse_field.field.planes() * cut_.coarse_plane();
    const int64_t sums_size = points * cut_.sums_plane();
    auto* const fine = static_cast<float*>(workspace((fine_size + coarse_size + sums_size + zeros_size) * sizeof(float)));
    float *const coarse = fine + fine_size, *const sums = coarse + coarse_size, *const zeros_start = sums + sums_size;
    const T* const zeros = reinterpret_cast<T*>(zeros_start);
    std::fill_n(zeros_start, zeros_size, 0.0f);
    const int64_t all = s_.batch * plan_.tiles.per_image();
    std::memset(fine, 0, fine_size * sizeof(float));  // columns that pad a panel stay zero
    std::memset(sums, 0, sums_size * sizeof(float));
    int64_t order[kTiles];
    for (int64_t t = 0; t < all; t += cut_.tiles) {
      const TileOrder tiles(plan_.tiles, t, std::min(cut_.tiles, all - t), order);
      FieldTransform<T>(coarse_field.field, s_.coarse, coarse_ + block.first_coarse, block.coarse, zeros)
          .run(plan_.tiles, tiles.numbers(), tiles.all().count, {coarse, cut_.coarse_plane(), padded(cut_.coarse)});
      transform_fine(block, tiles, fine, zeros);
      const int64_t next = t + cut_.tiles, products = points * block.panels();
      Fetching fetching(pixels_of(s_.coarse, coarse_ + block.first_coarse, block.coarse, next, std::min(next + cut_.tiles, all)),
                        pixels_of(s_.fine, fine_ + block.first_fine, block.fine, next, std::min(next + cut_.tiles, all)), products);
      multiply(block, coarse_field, tiles, fine, coarse, sums, fetching);
    }
    finish(block, sums);
  }

  // What products fetch meanwhile: of both maps what the next tiles read, each half of them one.
  class Fetching {
   public:
    Fetching(const Ahead& coarse, const Ahead& fine, int64_t products)
        : maps_{coarse, fine}, shares_{ceil_div(2 * coarse.rows, products), ceil_div(2 * fine.rows, products)},
          products_(products) {}

    Ahead next() {
      const int map = 2 * done_++ < products_ ? 0 : 1;
      Ahead& from = maps_[map];
      const int64_t rows = std::min(shares_[map], from.rows);
      const void* const at = from.at;
      from.at = static_cast<const char*>(at) + rows * from.pitch;
      from.rows -= rows;
      if (from.bytes == from.pitch) return {at, rows * from.bytes};  // all channels: one run of memory
      return {at, rows > 0 ? from.bytes : 0, rows, from.pitch};
    }

   private:
    Ahead maps_[2];
    const int64_t shares_[2];  // rows for each product
    const int64_t products_;
    int64_t done_ = 0;
  };

  // Of so many channels the pixels that belong to tiles [begin, end), about.
  Ahead pixels_of(const Grid& map, const T* maps, int64_t channels, int64_t begin, int64_t end) const {
    const int64_t image = map.height * map.width, per_image = plan_.tiles.per_image();
    const int64_t first = begin * image / per_image, rows = std::max<int64_t>(0, end - begin) * image / per_image;
    constexpr auto bytes = static_cast<int64_t>(sizeof(T));
    return {reinterpret_cast<const char*>(maps) + first * map.channels * bytes, channels * bytes, rows, map.channels * bytes};
  }

  const Field& field(const Block& block) const { return plan_.fields[block.term.field]; }

  void transform_fine(const Block& block, const TileOrder& tiles, float* fine, const T* zeros) const {
    for (int64_t p = 0; p < block.panels(); ++p) {
      const int64_t channels = block.channels(p);
      FieldTransform<T>(field(block), s_.fine, fine_ + block.first_fine + p * kGemmPanel, channels, zeros)
          .run(plan_.tiles, tiles.numbers(), tiles.all().count,
               {fine + p * cut_.fine_panel(), cut_.fine_plane(), padded(channels)});
    }
  }

  void multiply(const Block& block, const CoarseField& coarse_field, const TileOrder& tiles, const float* fine,
                const float* coarse, float* sums, Fetching& fetching) const {
    for (int y = 0; y <= block.term.phase[0].taps; ++y) {
      for (int x = 0; x <= block.term.phase[1].taps; ++x, sums += cut_.sums_plane()) {
        const float* const a = coarse + coarse_field.term.plane(coarse_field.field, y, x) * cut_.coarse_plane();
        const float* const b = fine + block.term.plane(field(block), y, x) * cut_.fine_plane();
        const auto [first, count] = tiles.needing(y == block.term.phase[0].taps, x == block.term.phase[1].taps);
        for (int64_t p = 0; p < block.panels(); ++p) {
          const int64_t columns = padded(block.channels(p));
          gemm({block.coarse, columns, count, a + first * padded(cut_.coarse), 1, padded(cut_.coarse),
                b + p * cut_.fine_panel() + first * columns, sums + p * cut_.sums_panel(), true, fetching.next()});
        }
      }
    }
  }

  void finish(const Block& block, const float* sums) const {
    dispatch_taps(block.term, [&](auto y, auto x) {
      for (int64_t p = 0; p < block.panels(); ++p) {
        for (int64_t c = 0; c < block.coarse; ++c) {
          finish_row<y, x>(block.term.phase, sums + p * cut_.sums_panel() + c * kGemmPanel,
                           static_cast<T*>(weight_.data) + (block.first_coarse + c) * weight_.strides[0] +
                               (block.first_fine + p * kGemmPanel) * weight_.strides[1],
                           block.channels(p));
        }
      }
    });
  }

  // One coarse channel by a panel of fine channels.
  template <int taps_y, int taps_x>
  void finish_row(const Phase (&phase)[2], const float* sums, T* gradient, int64_t channels) const {
    for_vectors<T>(channels, [&](int64_t n, auto count) {
      Vec<T> m[taps_y + 1][taps_x + 1];
#pragma GCC unroll 4
      for (int i = 0; i <= taps_y; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j <= taps_x; ++j) m[i][j] = load_acc<T>(sums + (i * (taps_x + 1) + j) * cut_.sums_plane() + n);
      }
      transform_2d<WeightGradientTransform, taps_y, taps_x, taps_x + 1, taps_y>(m);
#pragma GCC unroll 3
      for (int i = 0; i < taps_y; ++i) {
        T* const row = gradient + n * weight_.strides[1] + (phase[0].kernel_first + i * phase[0].kernel_step) * weight_.strides[2];
#pragma GCC unroll 3
        for (int j = 0; j < taps_x; ++j) {
          store_strided(row + (phase[1].kernel_first + j * phase[1].kernel_step) * weight_.strides[3], weight_.strides[1],
                        m[i][j], count);
        }
      }
    });
  }

  template <typename Count>
  static void store_strided(T* p, int64_t stride, const Vec<T>& v, Count count) {
    if (stride == 1) return store_vec(p, v, count);
    alignas(64) T buffer[lanes<T>];
    store_vec(buffer, v);
    int n = lanes<T>;
    if constexpr (std::is_same_v<Count, First>) n = count.n;
    for (int i = 0; i < n; ++i) p[i * stride] = buffer[i];
  }

  const ConvShape& s_;
  const GradientPlan plan_;
  const Cut cut_;
  const T* const fine_;
  const T* const coarse_;
  const MutableWeightView weight_;
};

}  // namespace

void winograd_weight_grad(const ConvShape& s, const void* fine, const void* coarse, const MutableWeightView& weight) {
  AT_DISPATCH_SWITCH(s.dtype, "winograd_weight_grad",
                     AT_DISPATCH_CASE(at::kFloat, [&] { WeightGradient<scalar_t>(s, fine, coarse, weight).run(); })
                         AT_DISPATCH_CASE(at::kBFloat16, [&] { WeightGradient<scalar_t>(s, fine, coarse, weight).run(); })
                             AT_DISPATCH_CASE(at::kHalf, [&] { WeightGradient<scalar_t>(s, fine, coarse, weight).run(); }));
}

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
