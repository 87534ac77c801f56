// Mean and variance, merged part by part.
#pragma once

namespace dcgan_fast::cpu {

// Mean and sum of squared deviations of a growing set of values (Chan, Golub, LeVeque 1979). In double: the mean of a
// hundred parts keeps the digits of one.
struct Moments {
  double n = 0, mean = 0, m2 = 0;

  // Adds `n_b` values of mean `mean_b + rest` and squared deviations `around` about mean_b.
  void add(double n_b, double mean_b, double rest, double around) {
    const double total = n + n_b, delta = mean_b + rest - mean;
    mean += delta * (n_b / total);
    m2 += around - n_b * rest * rest + delta * delta * (n * n_b / total);
    n = total;
  }
};

}  // namespace dcgan_fast::cpu
