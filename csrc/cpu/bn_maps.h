// How the kernels of batch normalisation walk a batch of maps, and what they know of each channel.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "activations.h"
#include "bn_act.h"
#include "vec_loops.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {

// Statistics read a chunk twice (mean, then squared deviations): it must stay in L2 between the two.
constexpr int64_t kChunkBytes = 128 * 1024;
// Rows of more bytes than this are cut into panels of so many.
constexpr int64_t kWideRow = 8 * 1024, kPanelBytes = 4 * 1024, kPanelChunkBytes = 512 * 1024;
// Rows that share one load of the per-channel parameters and one visit to the accumulators.
constexpr int64_t kRows = 8;

// ---------------------------------------------------------------- per-channel parameters

// The arguments of BnActForward or BnActBackward with their types, and what follows from them per channel.
// z = (x - mean) * scale + bias with scale = weight * rstd; grad_input = dz * scale + (x - mean) * slope_x + offset.
template <typename T>
struct Parameters {
  using A = Acc<T>;
  const A *weight, *bias;
  A* mean;  // read only in backward
  A* rstd;
  std::vector<A> scale, slope_x, offset;  // [groups, C]

  template <typename Args>
  Parameters(const Maps& m, const Args& args)
      : weight(static_cast<const A*>(args.weight)),
        bias(static_cast<const A*>(args.bias)),
        mean(static_cast<A*>(const_cast<void*>(args.mean))),
        rstd(static_cast<A*>(const_cast<void*>(args.rstd))),
        scale(m.groups * m.channels) {}
};

// The parameters of one vector of elements: of neighbouring channels (loaded), or of one channel (broadcast).
template <typename T, bool channels_last, typename Count>
VEC_INLINE Vec<T> parameter(const Acc<T>* p, Count count) {
  if constexpr (channels_last) return load_acc<T>(p, count);
  return Vec<T>(*p);
}

template <typename T>
struct Affine {
  Vec<T> mean, scale, bias;

  template <bool channels_last, typename Count>
  static VEC_INLINE Affine at(const Parameters<T>& p, int64_t gc, int64_t c, Count count) {
    return {parameter<T, channels_last>(p.mean + gc, count), parameter<T, channels_last>(p.scale.data() + gc, count),
            parameter<T, channels_last>(p.bias + c, count)};
  }
  // Forward and backward must round alike, or they would disagree on the sign at a kink.
  VEC_INLINE Vec<T> z(const Vec<T>& centred) const { return fmadd(centred, scale, bias); }
};

// ---------------------------------------------------------------- channels_last: rows of channels

// The rows [N * spatial, C], cut into chunks that never straddle two groups. Rows so wide that a chunk would have few of them
// (a projection's output: 16,384 channels of 128 images) are cut across as well.
struct Rows {
  int64_t per_group, per_chunk, chunks_per_group, channels, width, panels, chunks;

  Rows(const Maps& m, int64_t element_bytes) {
    per_group = m.group_size();
    channels = m.channels;
    width = channels * element_bytes > kWideRow ? kPanelBytes / element_bytes : std::max<int64_t>(channels, 1);
    panels = (channels + width - 1) / width;
    per_chunk = std::max(kRows, (panels > 1 ? kPanelChunkBytes : kChunkBytes) / (width * element_bytes) / kRows * kRows);
    chunks_per_group = (per_group + per_chunk - 1) / per_chunk;
    chunks = chunks_per_group * m.groups * panels;
  }
  // Calls f(chunk) for all chunks, in parallel; a thread takes neighbouring ones in order, or in reverse order: the chunks
  // that it read last are then the first to be read again, from its cache.
  template <typename F>
  void for_chunks(F&& f) const {
    at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) f(k);
    });
  }
  template <typename F>
  void for_chunks_backwards(F&& f) const {
    at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t k = end - 1; k >= begin; --k) f(k);
    });
  }
  int64_t group(int64_t chunk) const { return chunk / panels / chunks_per_group; }
  int64_t begin(int64_t chunk) const { return group(chunk) * per_group + chunk / panels % chunks_per_group * per_chunk; }
  int64_t end(int64_t chunk) const { return std::min(begin(chunk) + per_chunk, (group(chunk) + 1) * per_group); }
  int64_t channel(int64_t chunk) const { return chunk % panels * width; }
  int64_t columns(int64_t chunk) const { return std::min(width, channels - channel(chunk)); }

  // Calls f(begin, end) for runs of channels of one panel, in parallel.
  template <typename F>
  void for_channels(F&& f) const {
    constexpr int64_t kRun = 512;  // a panel has a multiple of it
    at::parallel_for(0, (channels + kRun - 1) / kRun, 1, [&](int64_t first, int64_t last) {
      for (int64_t run = first; run < last; ++run) f(run * kRun, std::min((run + 1) * kRun, channels));
    });
  }
  // Calls f(chunk) for the chunks of a group that channel c is in, in order.
  template <typename F>
  void for_chunks_of(int64_t group, int64_t c, F&& f) const {
    const int64_t first = group * chunks_per_group * panels + c / width;
    for (int64_t k = 0; k < chunks_per_group; ++k) f(first + k * panels);
  }
};

// Calls f(first row, rows, c, count) for blocks of kRows rows and vectors of channels.
template <typename T, typename F>
inline void for_blocks(int64_t begin, int64_t end, int64_t channels, F&& f) {
  for (int64_t r = begin; r < end; r += kRows) {
    const int64_t rows = std::min(kRows, end - r);
    for_vectors<T>(channels, [&](int64_t c, auto count) { f(r, rows, c, count); });
  }
}

// ---------------------------------------------------------------- contiguous: planes of one channel

// Calls f(gc, group, c) for each channel of each group, in parallel.
template <typename T, typename F>
void for_group_channels(const Maps& m, F&& f) {
  const int64_t bytes = std::max<int64_t>(m.group_size() * sizeof(T), 1);
  at::parallel_for(0, m.groups * m.channels, std::max<int64_t>(1, kChunkBytes / bytes), [&](int64_t begin, int64_t end) {
    for (int64_t gc = begin; gc < end; ++gc) f(gc, gc / m.channels, gc % m.channels);
  });
}

// Calls f(offset of the plane) for each plane of a channel in a group.
template <typename F>
void for_planes(const Maps& m, int64_t group, int64_t c, F&& f) {
  const int64_t per_group = m.batch / m.groups;
  for (int64_t b = group * per_group; b < (group + 1) * per_group; ++b) f((b * m.channels + c) * m.spatial);
}

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
