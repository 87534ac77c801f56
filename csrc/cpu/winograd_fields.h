// The transform of a map's windows (winograd_plan.h: Field).
//
// Tile by tile, plane by plane, each from the 1, 2 or 4 pixels that it combines, which lie in L1 then. The planes go to L2
// at 4 cycles a line, which takes longer than loading a pixel several times.
#pragma once

#include <algorithm>
#include <vector>

#include "epilogue.h"
#include "winograd_plan.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {

using winograd::Combination;
using winograd::Field;
using winograd::kTile;
using winograd::Term;
using winograd::TileGrid;
using winograd::TileOrder;
using winograd::Window;

// Where planes go: plane p of tile t at data + p * plane + t * row.
struct PlanePlaces {
  float* data;
  int64_t plane, row;
};

template <typename T>
class FieldTransform {
 public:
  // `maps` at the first of `channels` channels; zeros: as many
  FieldTransform(const Field& field, const Grid& map, const T* maps, int64_t channels, const T* zeros)
      : window_{field.axis[0].window, field.axis[1].window},
        elements_{field.axis[0].elements, field.axis[1].elements},
        map_(map),
        maps_(maps),
        channels_(channels),
        zeros_(zeros),
        pixels_(elements_[0] * elements_[1]) {
    for (const Combination& y : field.axis[0].planes) {
      for (const Combination& x : field.axis[1].planes) planes_.push_back(combine(y, x));
    }
  }

  // The tiles of these numbers.
  void run(const TileGrid& tiles, const int64_t* tile, int64_t count, const PlanePlaces& to) {
    for (int64_t t = 0; t < count; ++t) {
      find_pixels(tile[t] / tiles.per_image(), tile[t] / tiles.size[1] % tiles.size[0], tile[t] % tiles.size[1]);
      float* plane = to.data + t * to.row;
      for (const Sum& sum : planes_) {
        make_plane(sum, plane);
        plane += to.plane;
      }
    }
  }

 private:
  // pixel[0] + y * pixel[1] + x * (pixel[2] + y * pixel[3]), or the first one or two terms of it
  struct Sum {
    int terms, pixel[4];
    float y, x;
  };

  Sum combine(const Combination& y, const Combination& x) const {
    const auto pixel = [&](int row, int column) { return row * elements_[1] + column; };
    const auto sy = static_cast<float>(y.sign), sx = static_cast<float>(x.sign);
    if (x.sign == 0) return {y.sign == 0 ? 1 : 2, {pixel(y.a, x.a), pixel(y.b, x.a), 0, 0}, sy, 0};
    if (y.sign == 0) return {2, {pixel(y.a, x.a), pixel(y.a, x.b), 0, 0}, sx, 0};
    return {4, {pixel(y.a, x.a), pixel(y.b, x.a), pixel(y.a, x.b), pixel(y.b, x.b)}, sy, sx};
  }

  void find_pixels(int64_t image, int64_t y, int64_t x) {
    const T** pixel = pixels_.data();
    for (int i = 0; i < elements_[0]; ++i) {
      const int64_t row = window_[0].pixel(y, i);
      const bool inside = window_[0].contains(row);
      const T* const first = maps_ + (image * map_.height + row) * map_.width * map_.channels;
      for (int j = 0; j < elements_[1]; ++j) {
        const int64_t column = window_[1].pixel(x, j);
        *pixel++ = inside && window_[1].contains(column) ? first + column * map_.channels : zeros_;
      }
    }
  }

  void make_plane(const Sum& sum, float* plane) const {
    const T *const p0 = pixels_[sum.pixel[0]], *const p1 = pixels_[sum.pixel[1]];
    const T *const p2 = pixels_[sum.pixel[2]], *const p3 = pixels_[sum.pixel[3]];
    const Vec<T> y(sum.y), x(sum.x);
    if (sum.terms == 1) {
      for_vectors<T>(channels_, [&](int64_t c, auto count) { store_acc<T>(plane + c, load_vec(p0 + c, count), count); });
    } else if (sum.terms == 2) {
      for_vectors<T>(channels_, [&](int64_t c, auto count) {
        store_acc<T>(plane + c, fmadd(y, load_vec(p1 + c, count), load_vec(p0 + c, count)), count);
      });
    } else {
      for_vectors<T>(channels_, [&](int64_t c, auto count) {
        const Vec<T> left = fmadd(y, load_vec(p1 + c, count), load_vec(p0 + c, count));
        const Vec<T> right = fmadd(y, load_vec(p3 + c, count), load_vec(p2 + c, count));
        store_acc<T>(plane + c, fmadd(x, right, left), count);
      });
    }
  }

  const Window window_[2];
  const int elements_[2];
  const Grid& map_;
  const T* const maps_;
  const int64_t channels_;
  const T* const zeros_;
  std::vector<const T*> pixels_;
  std::vector<Sum> planes_;
};

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
