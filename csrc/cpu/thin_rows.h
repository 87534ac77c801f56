// The fine map as the `thin` engine reads it: padded rows, and the runs of values around coarse pixels.
#pragma once

#include <bit>
#include <cstring>
#include <vector>

#include "epilogue.h"
#include "thin_products.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {

inline int64_t run_of(const ConvShape& s) { return s.kernel[1] * s.fine.channels; }
inline int64_t depth_of(const ConvShape& s) { return s.kernel[0] * run_of(s); }
inline int64_t coarse_pixels(const ConvShape& s) { return s.batch * s.coarse.height * s.coarse.width; }

// K as columns, in panels: each row of the kernel has a slot for its run, and no slot straddles two panels.
struct Runs {
  int64_t slot, per_panel, panels;

  Runs(const ConvShape& s, int64_t multiple)
      : slot(round_up(run_of(s), multiple)), per_panel(kPanel / slot), panels(ceil_div(s.kernel[0], per_panel)) {}
  int64_t column(int64_t k) const { return k / per_panel * kPanel + k % per_panel * slot; }
};

// Bytes that may be read and written past the end of a run, a row or a line: whole vectors are moved.
constexpr int64_t kSlackBytes = 128;
template <typename E>
constexpr int64_t kSlack = kSlackBytes / sizeof(E);

// Units of work (pixels or rows), in blocks that do not straddle groups of images.
struct Blocks {
  int64_t per_group, size, blocks_per_group, count;

  Blocks(int64_t units, int64_t groups, int64_t preferred, int64_t multiple) : per_group(units / groups) {
    constexpr int64_t kEnough = 64;  // blocks, for as many threads
    size = std::clamp(round_up(ceil_div(units, kEnough), multiple), multiple, std::max(preferred, multiple));
    blocks_per_group = ceil_div(per_group, size);
    count = groups * blocks_per_group;
  }
  int64_t group(int64_t block) const { return block / blocks_per_group; }
  int64_t begin(int64_t block) const { return group(block) * per_group + block % blocks_per_group * size; }
  int64_t end(int64_t block) const { return std::min(begin(block) + size, (group(block) + 1) * per_group); }
};

// Where a coarse pixel of the batch lies.
struct Place {
  int64_t image, y, x;

  Place(const ConvShape& s, int64_t pixel)
      : image(pixel / s.coarse.width / s.coarse.height), y(pixel / s.coarse.width % s.coarse.height),
        x(pixel % s.coarse.width) {}
};

// Rows of the fine map with zeros for the padding, as elements of the products. The last ones asked for are kept: going
// down the map, each is made once.
template <typename T, typename E>
class FineRows {
 public:
  FineRows(const ConvShape& s, const void* map)
      : s_(s), map_(static_cast<const T*>(map)), slots_(std::bit_ceil(static_cast<uint64_t>(s.kernel[0]))),
        tags_(slots_, -1) {
    const int64_t width = (s.coarse.width - 1) * s.stride[1] + s.kernel[1];
    pixels_ = std::clamp<int64_t>(width - s.padding[1], 0, s.fine.width);
    row_ = width * s.fine.channels + kSlack<E>;
    rows_ = scratch<E>(kFineRows, (slots_ + 1) * row_);
    std::fill(rows_, rows_ + (slots_ + 1) * row_, E(0));
  }

  // The row under row k of the kernel, beginning under the first coarse pixel of the row.
  const E* operator()(const Place& at, int64_t k) {
    const int64_t y = at.y * s_.stride[0] - s_.padding[0] + k;
    if (y < 0 || y >= s_.fine.height) return zeros();
    const int64_t tag = at.image * s_.fine.height + y, slot = tag & (slots_ - 1);
    E* row = rows_ + slot * row_;
    if (tags_[slot] != tag) {
      const T* from = map_ + tag * s_.fine.width * s_.fine.channels;
      convert(from, pixels_ * s_.fine.channels, row + s_.padding[1] * s_.fine.channels);
      tags_[slot] = tag;
    }
    return row;
  }
  const E* zeros() const { return rows_ + slots_ * row_; }

 private:
  static void convert(const T* from, int64_t n, E* to) {
    if constexpr (std::is_same_v<T, E>) {
      std::copy(from, from + n, to);
    } else {
      for_vectors<T>(n, [&](int64_t i, auto count) { store_acc<T>(to + i, load_vec(from + i, count), count); });
    }
  }

  const ConvShape& s_;
  const T* const map_;
  const int64_t slots_;  // neighbouring rows have neighbouring slots, so that the rows of one kernel do not meet
  std::vector<int64_t> tags_;
  int64_t pixels_, row_;
  E* rows_;
};

// Runs of `n` neighbouring pixels, `bytes` long: from every `step` bytes to every `pitch` bytes. Two moves of kMove bytes
// overlap where one is too short, so that nothing is written that is not of the run.
template <int kMove>
void copy_runs(const char* from, int64_t step, int64_t bytes, int64_t n, char* to, int64_t pitch) {
  if (bytes <= 2 * kMove) {
    const int64_t second = bytes - kMove;
    for (int64_t i = 0; i < n; ++i, from += step, to += pitch) {
      std::memcpy(to, from, kMove);
      std::memcpy(to + second, from + second, kMove);
    }
  } else {
    for (int64_t i = 0; i < n; ++i) std::memcpy(to + i * pitch, from + i * step, bytes);
  }
}

inline void copy_runs(const char* from, int64_t step, int64_t bytes, int64_t n, char* to, int64_t pitch) {
  if (bytes < 4) return copy_runs<2>(from, step, bytes, n, to, pitch);
  if (bytes < 8) return copy_runs<4>(from, step, bytes, n, to, pitch);
  if (bytes < 16) return copy_runs<8>(from, step, bytes, n, to, pitch);
  if (bytes < 32) return copy_runs<16>(from, step, bytes, n, to, pitch);
  if (bytes < 64) return copy_runs<32>(from, step, bytes, n, to, pitch);
  copy_runs<64>(from, step, bytes, n, to, pitch);
}

// Of the K values around each of the coarse pixels [begin, end) of the batch those under rows [k_begin, k_end) of the kernel:
// one run after the other, in rows of `pitch`.
template <typename T, typename E>
void im2col(const ConvShape& s, FineRows<T, E>& rows, int64_t begin, int64_t end, int64_t k_begin, int64_t k_end,
            int64_t pitch, E* to) {
  constexpr auto kBytes = static_cast<int64_t>(sizeof(E));
  const int64_t run = run_of(s), step = s.stride[1] * s.fine.channels;
  for (int64_t pixel = begin; pixel < end;) {
    const Place at(s, pixel);
    const int64_t n = std::min(s.coarse.width - at.x, end - pixel);
    for (int64_t k = k_begin; k < k_end; ++k) {
      copy_runs(reinterpret_cast<const char*>(rows(at, k) + at.x * step), step * kBytes, run * kBytes, n,
                reinterpret_cast<char*>(to + (k - k_begin) * run), pitch * kBytes);
    }
    to += n * pitch;
    pixel += n;
  }
}

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
