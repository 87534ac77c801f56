// Direct convolution as products of 16-bit tiles.
//
// The rows of a product are 32 patches: blocks of neighbouring pixels of one image, all of the same size, each with its
// window of input pixels (with the zeros of the padding, and overlapping its neighbours' windows). Pixel (y, x) of 32
// patches at once is one operand of 32 rows, a tap of the kernel another pixel of the window: no im2col, the window is
// packed once, and a kernel of any size, stride and padding is a list of pairs (pixel of the window, tap).
#include "tile_conv.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

#include "epilogue.h"
#include "tasks.h"
#include "tile_blocking.h"
#include "tile_patches.h"
#include "workspace.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {
namespace {

// ---------------------------------------------------------------- down and up

// Packed weights: [output channels / 32][phase][input channels / 32][taps of the phase] B operands, after a header with the
// factor that undoes their scale. A phase is the taps that one output pixel sums over (down: all of them), so that what it
// needs lies in one piece: from beyond L2 the machine's prefetcher brings long runs only.
constexpr int64_t kHeaderBytes = 64;

class TapOrder {
 public:
  struct Place {
    int64_t before, count, index;  // taps of the phases before its own and of its own, and its place among these
  };

  TapOrder(const ConvShape& s, Direction direction) : width_(s.kernel[1]), places_(s.kernel[0] * s.kernel[1]) {
    const bool up = direction == Direction::up;
    const int64_t phases[] = {up ? s.stride[0] : 1, up ? s.stride[1] : 1};
    int64_t before = 0;
    for (int64_t phase = 0; phase < phases[0] * phases[1]; ++phase) {
      std::vector<int64_t> taps;
      for (int64_t ky = phase / phases[1]; ky < s.kernel[0]; ky += phases[0]) {
        for (int64_t kx = phase % phases[1]; kx < width_; kx += phases[1]) taps.push_back(ky * width_ + kx);
      }
      const auto count = static_cast<int64_t>(taps.size());
      for (int64_t i = 0; i < count; ++i) places_[taps[i]] = {before, count, i};
      before += count;
    }
  }
  const Place& operator()(int64_t ky, int64_t kx) const { return places_[ky * width_ + kx]; }
  int64_t taps() const { return static_cast<int64_t>(places_.size()); }

 private:
  int64_t width_;
  std::vector<Place> places_;
};

// The operands that each output pixel of a patch sums over, and the pixels in groups that meet the same weights.
struct PixelSteps {
  std::vector<int32_t> a, b;
  std::vector<int64_t> begin;               // [pixels + 1]
  std::vector<TapOrder::Place> phase;       // [pixels], of one of its taps
  std::vector<std::vector<int64_t>> groups;

  PixelSteps(const Patches& p, const WindowLayout& layout, const TapOrder& order, int64_t operand_bytes,
             int64_t largest_group)
      : begin(1) {
    for (int64_t oy = 0; oy < p.y.out; ++oy) {
      for (int64_t ox = 0; ox < p.x.out; ++ox) {
        phase.push_back({});
        for (const Tap& ty : p.y.taps[oy]) {
          for (const Tap& tx : p.x.taps[ox]) {
            phase.back() = order(ty.k, tx.k);
            a.push_back(static_cast<int32_t>(layout.at(ty.window, tx.window)));
            b.push_back(static_cast<int32_t>(phase.back().index * operand_bytes));
          }
        }
        begin.push_back(static_cast<int64_t>(a.size()));
      }
    }
    for (int64_t pixel = 0; pixel < p.out(); ++pixel) {
      const auto group = largest_group == 1 ? groups.rend()
                                            : std::find_if(groups.rbegin(), groups.rend(), [&](const auto& g) {
                                                return same_weights(g[0], pixel);
                                              });
      if (group != groups.rend() && static_cast<int64_t>(group->size()) < largest_group) {
        group->push_back(pixel);
      } else {
        groups.push_back({pixel});
      }
    }
  }

  int64_t count(int64_t pixel) const { return begin[pixel + 1] - begin[pixel]; }

 private:
  bool same_weights(int64_t p, int64_t q) const {
    return phase[p].before == phase[q].before &&
           std::equal(b.begin() + begin[p], b.begin() + begin[p + 1], b.begin() + begin[q], b.begin() + begin[q + 1]);
  }
};

constexpr int64_t kWeightsInL1 = 36 << 10;  // of 48

template <typename T>
void run(const TapOrder& order, const Patches& patches, const TileBlocking& blocking, int64_t in_channels,
         int64_t out_channels, const T* in, const char* packed_weights, T* out, const Epilogue& epilogue) {
  constexpr int64_t bytes = kOperandBytes<T>;
  const int64_t slices = ceil_div(in_channels, kBlock), panel_bytes = slices * order.taps() * bytes;
  const float weight_factor = *reinterpret_cast<const float*>(packed_weights);
  const char* const packed = packed_weights + kHeaderBytes;
  const WindowLayout layout(patches, blocking.in_panel, kParts<T>);
  const int64_t pixels = patches.out(), largest_group = pixels_at_once(layout.strip > 0, pixels, kParts<T>);
  const PixelSteps steps(patches, layout, order, bytes, largest_group);
  const int64_t chunks = ceil_div(slices * kBlock, blocking.in_panel), panels = ceil_div(out_channels, blocking.out_panel);
  BlockMoments* const moments = epilogue.moments;
  const int64_t groups = moments ? moments->groups : 1, per_group = patches.count() / groups,
                blocks_per_group = ceil_div(per_group, kBlock), blocks = groups * blocks_per_group;
  if (moments) moments->resize(blocks, out_channels);
  // between chunks all pixels' sums are kept, else one group's at a time
  const int64_t pixel_sums = kBlock * blocking.out_panel,
                sums_bytes = (chunks > 1 ? pixels : largest_group) * pixel_sums * 4;
  PoolWhole pool(epilogue.pool, patches.batch, patches.per_image(), panels);

  for_tasks(panels * blocks, [&](auto take) {
    const TileUnit unit;
    char* windows = static_cast<char*>(workspace(layout.bytes + sums_bytes));
    auto* sums = reinterpret_cast<float*>(windows + layout.bytes);
    for (int64_t task; take(task);) {
      const int64_t c0 = task / blocks * blocking.out_panel, b = task % blocks, group = b / blocks_per_group;
      const int64_t panel = std::min(blocking.out_panel, out_channels - c0);
      const int64_t first = group * per_group + b % blocks_per_group * kBlock;
      const PatchBlock block(patches, first, (group + 1) * per_group);
      Finish<T> finish(epilogue, c0, panel, out_channels, weight_factor);
      const float scale = scale_for(largest_of(block, in, in_channels));
      const auto place = [&](int64_t pixel, int64_t r) {
        T* const to = r < block.count
                          ? block.out_pixel(out, out_channels, r, pixel / patches.x.out, pixel % patches.x.out)
                          : nullptr;
        return to ? to + c0 : nullptr;
      };
      const auto prefetch_rows = [&](int64_t pixel) {  // to be there when written
        for (int64_t r = 0; r < block.count; ++r) {
          const T* const to = place(pixel, r);
          for (int64_t c = 0; to && c < panel; c += 64 / sizeof(T)) __builtin_prefetch(to + c, 1);
        }
      };
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const int64_t k0 = chunk * blocking.in_panel / kBlock, depth = std::min(blocking.in_panel / kBlock, slices - k0);
        pack_windows(block, layout, in, in_channels, k0 * kBlock, depth * kBlock, scale, windows);
        for (const auto& group_pixels : steps.groups) {
          const auto sums_of = [&](int64_t i) { return sums + (chunks > 1 ? group_pixels[i] : i) * pixel_sums; };
          const auto size = static_cast<int64_t>(group_pixels.size());
          const int64_t taps = steps.count(group_pixels[0]);
          const TapOrder::Place& phase = steps.phase[group_pixels[0]];
          const int64_t at_once =
              size > 1 ? std::clamp<int64_t>(kWeightsInL1 / std::max<int64_t>(taps * bytes, 1), 1, depth) : depth;
          for (int64_t j = 0; j < panel; j += kBlock) {
            const char* weights =
                packed + (c0 + j) / kBlock * panel_bytes + (phase.before * slices + k0 * phase.count) * bytes;
            for (int64_t k = 0; k < depth; k += at_once) {
              const bool last = chunk + 1 == chunks && j + kBlock >= panel && k + at_once >= depth;
              for (int64_t i = 0; i < size; ++i) {
                if (last) prefetch_rows(group_pixels[i]);
                const int64_t from = steps.begin[group_pixels[i]];
                const Steps list{steps.a.data() + from,        steps.b.data() + from, taps,
                                 std::min(at_once, depth - k), layout.slice,          phase.count * bytes};
                multiply<T>(windows + k * layout.slice, layout.rows, weights + k * list.b_stride, list, sums_of(i) + j,
                            blocking.out_panel, chunk + k > 0);
              }
            }
          }
          for (int64_t i = 0; chunk + 1 == chunks && i < size; ++i) {
            T* rows[kBlock];
            for (int64_t r = 0; r < kBlock; ++r) rows[r] = place(group_pixels[i], r);
            finish({sums_of(i), kBlock, panel, blocking.out_panel, 0, 1 / scale}, [&](int64_t r) { return rows[r]; });
          }
        }
      }
      pool.wrote(first, first + block.count);
      if (!moments) continue;
      const int64_t count =
          finish.statistics(moments->mean.data() + b * out_channels + c0, moments->m2.data() + b * out_channels + c0);
      if (c0 > 0) continue;  // one of the block's tasks says it for all
      moments->group[b] = group;
      moments->count[b] = count;
    }
  });
}

template <typename T>
void down(const ConvShape& s, const void* fine, const void* packed, void* coarse, const Epilogue& epilogue) {
  const TileBlocking b = tile_blocking(s, Direction::down, kParts<T>);
  const Patches patches{
      down_axis(s.fine.height, s.coarse.height, s.kernel[0], s.stride[0], s.padding[0], b.patch[0]),
      down_axis(s.fine.width, s.coarse.width, s.kernel[1], s.stride[1], s.padding[1], b.patch[1]), s.batch};
  run(TapOrder(s, Direction::down), patches, b, s.fine.channels, s.coarse.channels, static_cast<const T*>(fine),
      static_cast<const char*>(packed), static_cast<T*>(coarse), epilogue);
}

template <typename T>
void up(const ConvShape& s, const void* coarse, const void* packed, void* fine, const Epilogue& epilogue) {
  const TileBlocking b = tile_blocking(s, Direction::up, kParts<T>);
  const Patches patches{up_axis(s.fine.height, s.coarse.height, s.kernel[0], s.stride[0], s.padding[0], b.patch[0]),
                        up_axis(s.fine.width, s.coarse.width, s.kernel[1], s.stride[1], s.padding[1], b.patch[1]),
                        s.batch};
  run(TapOrder(s, Direction::up), patches, b, s.coarse.channels, s.fine.channels, static_cast<const T*>(coarse),
      static_cast<const char*>(packed), static_cast<T*>(fine), epilogue);
}

// ---------------------------------------------------------------- weights

int64_t packed_bytes(const ConvShape& s, int parts) {
  return kHeaderBytes + round_up(s.fine.channels, kBlock) * round_up(s.coarse.channels, kBlock) / (kBlock * kBlock) *
                            s.kernel[0] * s.kernel[1] * parts * kPlaneBytes;
}

template <typename T>
float largest_of_all(const T* values, int64_t count) {
  if constexpr (kScaled<T>) {
    constexpr int64_t kGrain = 1 << 16;
    return at::parallel_reduce(
        0, count, kGrain, 0.0f,
        [&](int64_t begin, int64_t end, float so_far) { return largest_of(values + begin, end - begin, so_far); },
        [](float a, float b) { return a > b || a != a ? a : b; });
  }
  return 0;
}

template <typename T>
float largest_weight(const ConvShape& s, const WeightView& w) {
  float largest = 0;
  if constexpr (kScaled<T>) {
    const auto* data = static_cast<const T*>(w.data);
    const int64_t sizes[] = {s.coarse.channels, s.fine.channels, s.kernel[0], s.kernel[1]};
    int64_t count = 1, last = 0;
    for (int i = 0; i < 4; ++i) count *= sizes[i], last += (sizes[i] - 1) * w.strides[i];
    if (last + 1 == count) return largest_of_all(data, count);  // without gaps, in whatever order
    for (int64_t i = 0; i < count; ++i) {
      const int64_t x = i % sizes[3], y = i / sizes[3] % sizes[2], fine = i / sizes[3] / sizes[2] % sizes[1],
                    coarse = i / sizes[3] / sizes[2] / sizes[1];
      largest = largest_of(data + coarse * w.strides[0] + fine * w.strides[1] + y * w.strides[2] + x * w.strides[3], 1,
                           largest);
    }
  }
  return largest;
}

template <typename T>
void pack(const ConvShape& s, Direction direction, const WeightView& w, void* packed) {
  const bool down = direction == Direction::down;
  const TapOrder order(s, direction);
  const int64_t taps = order.taps(), fine = s.fine.channels, coarse = s.coarse.channels;
  const float scale = scale_for(largest_weight<T>(s, w));
  *static_cast<float*>(packed) = 1 / scale;
  char* const operands = static_cast<char*>(packed) + kHeaderBytes;
  const int64_t in_slices = ceil_div(down ? fine : coarse, kBlock), out_slices = ceil_div(down ? coarse : fine, kBlock);
  at::parallel_for(0, out_slices * in_slices * taps, 8, [&](int64_t begin, int64_t end) {
    T gathered[kBlock][kBlock];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t tap = i % taps, slice = i / taps, in0 = slice % in_slices * kBlock, out0 = slice / in_slices * kBlock;
      const int64_t coarse0 = down ? out0 : in0, fine0 = down ? in0 : out0;
      const int64_t rows_n = std::min(kBlock, coarse - coarse0), n = std::min(kBlock, fine - fine0);
      const T* origin = static_cast<const T*>(w.data) + coarse0 * w.strides[0] + fine0 * w.strides[1] +
                        tap / s.kernel[1] * w.strides[2] + tap % s.kernel[1] * w.strides[3];
      const T* rows[kBlock] = {};  // of fine channels
      for (int64_t r = 0; r < rows_n; ++r) {
        rows[r] = origin + r * w.strides[0];
        if (w.strides[1] == 1) continue;
        for (int64_t c = 0; c < n; ++c) gathered[r][c] = rows[r][c * w.strides[1]];
        rows[r] = gathered[r];
      }
      const TapOrder::Place& place = order(tap / s.kernel[1], tap % s.kernel[1]);
      const int64_t in_panel = place.before * in_slices + slice % in_slices * place.count + place.index;
      char* operand = operands + (slice / in_slices * in_slices * taps + in_panel) * kOperandBytes<T>;
      if (down) {
        pack_transposed<T, true>(rows, n, scale, operand);
      } else {
        for (int64_t k = 0; k < kTileRows; ++k) pack_pair(rows[2 * k], rows[2 * k + 1], n, scale, operand, k);
      }
    }
  });
}

// ---------------------------------------------------------------- the weight's gradient

template <typename T>
void weight_grad(const ConvShape& s, const void* fine_map, const void* coarse_map, const MutableWeightView& w) {
  constexpr int64_t bytes = kOperandBytes<T>;
  const auto *fine = static_cast<const T*>(fine_map), *coarse = static_cast<const T*>(coarse_map);
  auto* grad = static_cast<T*>(w.data);
  const TileBlocking blocking = tile_blocking(s, Direction::weight_grad, kParts<T>);
  const int64_t coarse_panel = blocking.out_panel, fine_panel = blocking.in_panel;
  const Patches patches{
      down_axis(s.fine.height, s.coarse.height, s.kernel[0], s.stride[0], s.padding[0], blocking.patch[0]),
      down_axis(s.fine.width, s.coarse.width, s.kernel[1], s.stride[1], s.padding[1], blocking.patch[1]), s.batch};
  const Axis &y = patches.y, &x = patches.x;
  const int64_t taps = s.kernel[0] * s.kernel[1], window = patches.window(), pixels = patches.out();
  // for each tap the pixels it meets
  std::vector<std::vector<int32_t>> at_coarse(taps), at_fine(taps);
  for (int64_t oy = 0; oy < y.out; ++oy) {
    for (int64_t ox = 0; ox < x.out; ++ox) {
      for (const Tap& ty : y.taps[oy]) {
        for (const Tap& tx : x.taps[ox]) {
          const int64_t tap = ty.k * s.kernel[1] + tx.k;
          at_coarse[tap].push_back(static_cast<int32_t>((oy * x.out + ox) * bytes));
          at_fine[tap].push_back(static_cast<int32_t>((ty.window * x.window + tx.window) * bytes));
        }
      }
    }
  }
  const int64_t coarse_panels = ceil_div(s.coarse.channels, coarse_panel),
                fine_panels = ceil_div(s.fine.channels, fine_panel);
  const int64_t fine_bytes = fine_panel / kBlock * window * bytes, coarse_bytes = coarse_panel / kBlock * pixels * bytes,
                sums_bytes = taps * coarse_panel * fine_panel * 4;
  const int64_t blocks = ceil_div(patches.count(), kBlock);
  // of the whole maps: all blocks' products are summed
  const float fine_scale = scale_for(largest_of_all(fine, s.batch * s.fine.height * s.fine.width * s.fine.channels)),
              coarse_scale =
                  scale_for(largest_of_all(coarse, s.batch * s.coarse.height * s.coarse.width * s.coarse.channels)),
              fine_factor = 1 / fine_scale, coarse_factor = 1 / coarse_scale;

  for_tasks(coarse_panels * fine_panels, [&](auto take) {
    const TileUnit unit;
    char* fine_packed = static_cast<char*>(workspace(fine_bytes + coarse_bytes + sums_bytes));
    char* coarse_packed = fine_packed + fine_bytes;
    auto* sums = reinterpret_cast<float*>(coarse_packed + coarse_bytes);
    for (int64_t task; take(task);) {
      const int64_t coarse0 = task / fine_panels * coarse_panel, fine0 = task % fine_panels * fine_panel;
      const int64_t coarse_n = std::min(coarse_panel, s.coarse.channels - coarse0),
                    fine_n = std::min(fine_panel, s.fine.channels - fine0);
      for (int64_t b = 0; b < blocks; ++b) {
        const PatchBlock block(patches, b * kBlock, patches.count());
        pack_windows_as_b(block, fine, s.fine.channels, fine0, round_up(fine_n, kBlock), fine_scale, fine_packed);
        pack_pixels_transposed(block, coarse, s.coarse.channels, coarse0, round_up(coarse_n, kBlock), coarse_scale,
                               coarse_packed);
        for (int64_t tap = 0; tap < taps; ++tap) {
          const Steps list{
              at_coarse[tap].data(), at_fine[tap].data(), static_cast<int64_t>(at_coarse[tap].size()), 1, 0, 0};
          for (int64_t i = 0; i < coarse_n; i += kBlock) {
            for (int64_t j = 0; j < fine_n; j += kBlock) {
              multiply<T>(coarse_packed + i / kBlock * pixels * bytes, {}, fine_packed + j / kBlock * window * bytes, list,
                                  sums + (tap * coarse_panel + i) * fine_panel + j, fine_panel, b > 0);
            }
          }
        }
      }
      for (int64_t i = 0; i < coarse_n; ++i) {
        for (int64_t tap = 0; tap < taps; ++tap) {
          const float* from = sums + (tap * coarse_panel + i) * fine_panel;
          T* to = grad + (coarse0 + i) * w.strides[0] + fine0 * w.strides[1] + tap / s.kernel[1] * w.strides[2] +
                  tap % s.kernel[1] * w.strides[3];
          for (int64_t j = 0; j < fine_n; ++j)
            to[j * w.strides[1]] = static_cast<T>(blocks > 0 ? from[j] * fine_factor * coarse_factor : 0.0f);
        }
      }
    }
  });
}

// ---------------------------------------------------------------- by dtype

template <typename F>
void dispatch(const ConvShape& s, F&& f) {
  switch (s.dtype) {
    case at::kFloat: return f(float());
    case at::kBFloat16: return f(c10::BFloat16());
    default: return f(c10::Half());
  }
}

}  // namespace

#define TEXT_OF(name) #name
#define TEXT(macro) TEXT_OF(macro)

extern const ConvEngine tiles = {
    "tiles (" TEXT(CPU_CAPABILITY) ")",
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
    // sums of vdpbf16ps lose digits that parts of floats need
    [](const ConvShape& s, Direction) { return s.dtype == at::kBFloat16; },
#else
    [](const ConvShape&, Direction) { return true; },
#endif
    [](const ConvShape& s, Direction d) {
      double seconds = 0;
      dispatch(s, [&](auto t) { seconds = tile_blocking(s, d, kParts<decltype(t)>).seconds; });
      return seconds;
    },
    [](const ConvShape& s, Direction) {
      int64_t n = 0;
      dispatch(s, [&](auto t) { n = packed_bytes(s, kParts<decltype(t)>); });
      return n;
    },
    [](const ConvShape& s, Direction d, const WeightView& w, void* packed) {
      dispatch(s, [&](auto t) { pack<decltype(t)>(s, d, w, packed); });
    },
    [](const ConvShape& s, const void* fine, const void* packed, void* coarse, const Epilogue& e) {
      dispatch(s, [&](auto t) { down<decltype(t)>(s, fine, packed, coarse, e); });
    },
    [](const ConvShape& s, const void* coarse, const void* packed, void* fine, const Epilogue& e) {
      dispatch(s, [&](auto t) { up<decltype(t)>(s, coarse, packed, fine, e); });
    },
    [](const ConvShape& s, const void* fine, const void* coarse, const MutableWeightView& w) {
      dispatch(s, [&](auto t) { weight_grad<decltype(t)>(s, fine, coarse, w); });
    },
};

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
