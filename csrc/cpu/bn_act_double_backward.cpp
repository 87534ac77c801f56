// The double backward of batch normalisation + activation on the CPU: one pass for five sums, one for two results.
//
// With X = x - mean, r = rstd, s = weight * r, dz = grad * activation'(z), n values of a channel and group, backward
// gave
//   grad_weight = r sum(dz X),   grad_bias = sum(dz),
//   grad_input = s (dz - sum(dz) / n - r^2 X sum(dz X) / n),  out of training s dz.
// Let v, p, q be the loss's gradients of grad_input, grad_weight and grad_bias. Then that of dz is
//   u = s (v - sum(v) / n - r^2 X sum(v X) / n) + p r X + q,
// that of grad is u activation'(z), and those of weight and input follow from h, the gradient of the normalised maps:
//   h = (p - s r sum(v X) / n) dz - (s r / n) sum(dz X) v,
// sent through the normalisation as any gradient is, with the path by which r scales grad_input added. All sums over h
// are made of the five sums of the first pass, so no third pass is needed.
#include <ATen/Dispatch.h>

#include <array>

#include "bn_act.h"
#include "bn_maps.h"

namespace dcgan_fast::cpu::CPU_CAPABILITY {
namespace {

enum Sum { kDz, kDzX, kV, kVX, kVDz, kSums };

// to_grad = activation'(z) (scale v + grad_x X + grad_1); to_input = input_v v + input_dz dz + input_x X + input_1.
template <typename T>
struct Coefficients : Parameters<T> {
  using A = Acc<T>;
  std::vector<A> grad_x, grad_1, input_v, input_dz, input_x, input_1;  // [groups, C]

  Coefficients(const Maps& m, const BnActDoubleBackward& args) : Parameters<T>(m, args) {
    for (auto* v : {&grad_x, &grad_1, &input_v, &input_dz, &input_x, &input_1}) v->resize(this->scale.size());
    for (size_t gc = 0; gc < this->scale.size(); ++gc) this->scale[gc] = this->weight[gc % m.channels] * this->rstd[gc];
  }

  void finish(const BnActDoubleBackward& args, int64_t gc, int64_t c, double n, const std::array<double, kSums>& sum) {
    const auto given = [&](const void* vector) {
      return vector ? static_cast<double>(static_cast<const A*>(vector)[c]) : 0.0;
    };
    const double r = this->rstd[gc], gamma = this->weight[c], s = gamma * r, p = given(args.of_grad_weight),
                 q = given(args.of_grad_bias);
    double gx = p * r, g1 = q, iv = 0, iz = p * r, ix = 0, i1 = 0, weight = r * sum[kVDz];
    if (args.training) {
      gx -= s * r * r * sum[kVX] / n;
      g1 -= s * sum[kV] / n;
      weight = r * (sum[kVDz] - sum[kV] * sum[kDz] / n - r * r * sum[kVX] * sum[kDzX] / n);
      const double h_v = -s * r / n * sum[kDzX], h_dz = p - s * r / n * sum[kVX];
      const double h_mean = (h_v * sum[kV] + h_dz * sum[kDz]) / n;
      const double h_x_mean = r * (h_v * sum[kVX] + h_dz * sum[kDzX]) / n;  // of h times the normalised maps
      iv = r * h_v;
      iz = r * h_dz;
      ix = -r * r * h_x_mean - gamma * weight * r * r / n;
      i1 = -r * h_mean;
    }
    static_cast<A*>(args.to_weight)[gc] = static_cast<A>(weight);
    grad_x[gc] = static_cast<A>(gx);
    grad_1[gc] = static_cast<A>(g1);
    input_v[gc] = static_cast<A>(iv);
    input_dz[gc] = static_cast<A>(iz);
    input_x[gc] = static_cast<A>(ix);
    input_1[gc] = static_cast<A>(i1);
  }
};

template <typename T>
struct Pointers {
  const T *v, *g, *x;
  T *to_grad, *to_input;
  Vec<T> slope;

  explicit Pointers(const BnActDoubleBackward& args)
      : v(static_cast<const T*>(args.of_grad_input)),
        g(static_cast<const T*>(args.grad)),
        x(static_cast<const T*>(args.input)),
        to_grad(static_cast<T*>(args.to_grad)),
        to_input(static_cast<T*>(args.to_input)),
        slope(static_cast<Acc<T>>(args.negative_slope)) {}
};

// One vector's terms of the sums. Beyond `count` v and g are 0, and so is every term.
template <typename T, typename A, typename Count>
VEC_INLINE void add_terms(std::array<Vec<T>, kSums>& total, const Pointers<T>& at, int64_t i, A act,
                          const Affine<T>& affine, Count count) {
  const Vec<T> centred = load_vec(at.x + i, count) - affine.mean, v = load_vec(at.v + i, count);
  const Vec<T> dz = activate_grad(act, load_vec(at.g + i, count), affine.z(centred), at.slope);
  total[kDz] = total[kDz] + dz;
  total[kDzX] = fmadd(dz, centred, total[kDzX]);
  total[kV] = total[kV] + v;
  total[kVX] = fmadd(v, centred, total[kVX]);
  total[kVDz] = fmadd(v, dz, total[kVDz]);
}

// The coefficients of one vector, and what they make of its elements.
template <typename T, bool channels_last>
struct Apply {
  using V = Vec<T>;
  Affine<T> affine;
  V grad_x, grad_1, input_v, input_dz, input_x, input_1;

  template <typename Count>
  VEC_INLINE Apply(const Coefficients<T>& k, int64_t gc, int64_t c, Count count)
      : affine(Affine<T>::template at<channels_last>(k, gc, c, count)),
        grad_x(parameter<T, channels_last>(k.grad_x.data() + gc, count)),
        grad_1(parameter<T, channels_last>(k.grad_1.data() + gc, count)),
        input_v(parameter<T, channels_last>(k.input_v.data() + gc, count)),
        input_dz(parameter<T, channels_last>(k.input_dz.data() + gc, count)),
        input_x(parameter<T, channels_last>(k.input_x.data() + gc, count)),
        input_1(parameter<T, channels_last>(k.input_1.data() + gc, count)) {}

  template <typename A, typename Count>
  VEC_INLINE void operator()(const Pointers<T>& at, int64_t i, A act, Count count) const {
    const V centred = load_vec(at.x + i, count) - affine.mean, v = load_vec(at.v + i, count), z = affine.z(centred);
    const V dz = activate_grad(act, load_vec(at.g + i, count), z, at.slope);
    const V u = fmadd(v, affine.scale, fmadd(centred, grad_x, grad_1));
    store_vec(at.to_grad + i, activate_grad(act, u, z, at.slope), count);
    store_vec(at.to_input + i, fmadd(v, input_v, fmadd(dz, input_dz, fmadd(centred, input_x, input_1))), count);
  }
};

template <typename T, typename A>
void channels_last(const Maps& m, const BnActDoubleBackward& args, A act) {
  const Pointers<T> at(args);
  const int64_t C = m.channels;
  const Rows rows(m, sizeof(T));
  Coefficients<T> k(m, args);
  std::vector<Acc<T>> partial(2 * kSums * rows.chunks * rows.width);  // of each chunk: sums, then their rounding errors
  const auto sums_of = [&](int64_t chunk, int64_t which) {
    return partial.data() + (2 * kSums * chunk + which) * rows.width;
  };

  rows.for_chunks([&](int64_t chunk) {
    const int64_t first = rows.channel(chunk), group = rows.group(chunk);
    for_blocks<T>(
        rows.begin(chunk), rows.end(chunk), rows.columns(chunk), [&](int64_t r, int64_t n, int64_t column, auto count) {
          const int64_t c = first + column;
          const auto affine = Affine<T>::template at<true>(k, group * C + c, c, count);
          std::array<Vec<T>, kSums> total;
          total.fill(Vec<T>(Acc<T>(0)));
          for (int64_t i = r * C + c, last = i + n * C; i < last; i += C)
            add_terms<T>(total, at, i, act, affine, count);
          for (int64_t j = 0; j < kSums; ++j)
            add_compensated<T>(sums_of(chunk, j) + column, sums_of(chunk, kSums + j) + column, total[j], count);
        });
  });
  rows.for_channels([&](int64_t begin, int64_t end) {
    for (int64_t group = 0; group < m.groups; ++group) {
      std::vector<std::array<double, kSums>> sums(end - begin);
      for (auto& sum : sums) sum.fill(0);
      rows.for_chunks_of(group, begin, [&](int64_t chunk) {
        const int64_t column = begin - rows.channel(chunk);
        for (int64_t j = 0; j < kSums; ++j)
          for (int64_t i = 0; i < end - begin; ++i) sums[i][j] += sums_of(chunk, j)[column + i];
      });
      for (int64_t c = begin; c < end; ++c)
        k.finish(args, group * C + c, c, static_cast<double>(rows.per_group), sums[c - begin]);
    }
  });
  rows.for_chunks_backwards([&](int64_t chunk) {
    const int64_t first = rows.channel(chunk), group = rows.group(chunk);
    for_blocks<T>(rows.begin(chunk), rows.end(chunk), rows.columns(chunk),
                  [&](int64_t r, int64_t n, int64_t column, auto count) {
                    const int64_t c = first + column;
                    const Apply<T, true> apply(k, group * C + c, c, count);
                    for (int64_t i = r * C + c, last = i + n * C; i < last; i += C) apply(at, i, act, count);
                  });
  });
}

template <typename T, typename A>
void contiguous(const Maps& m, const BnActDoubleBackward& args, A act) {
  const Pointers<T> at(args);
  Coefficients<T> k(m, args);
  for_group_channels<T>(m, [&](int64_t gc, int64_t group, int64_t c) {
    const auto affine = Affine<T>::template at<false>(k, gc, c, All{});
    std::array<double, kSums> sums{};
    for_planes(m, group, c, [&](int64_t plane) {
      std::array<Vec<T>, kSums> total;
      total.fill(Vec<T>(Acc<T>(0)));
      for_vectors<T>(m.spatial, [&](int64_t s, auto count) { add_terms<T>(total, at, plane + s, act, affine, count); });
      for (int64_t j = 0; j < kSums; ++j) sums[j] += sum<T>(total[j]);
    });
    k.finish(args, gc, c, static_cast<double>(m.group_size()), sums);
    const Apply<T, false> apply(k, gc, c, All{});
    for_planes(m, group, c, [&](int64_t plane) {
      for_vectors<T>(m.spatial, [&](int64_t s, auto count) { apply(at, plane + s, act, count); });
    });
  });
}

void run(const Maps& m, const BnActDoubleBackward& args) {
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, m.dtype, "bn_act_double_backward", [&] {
    const auto walk = [&](auto act) {
      m.channels_last ? channels_last<scalar_t>(m, args, act) : contiguous<scalar_t>(m, args, act);
    };
    switch (args.activation) {
      case Activation::relu:
        return walk(Act<Activation::relu>());
      case Activation::leaky_relu:
        return walk(Act<Activation::leaky_relu>());
      default:
        return walk(Act<Activation::none>());
    }
  });
}

}  // namespace

extern const BnActDoubleBackwardKernels bn_act_double_backward{run};

}  // namespace dcgan_fast::cpu::CPU_CAPABILITY
