#include "conv.h"

namespace dcgan_fast::cpu {

void BlockMoments::merge(float* mean_out, float* var_out) const {
  const auto channels = static_cast<int64_t>(mean.size()) / std::max<int64_t>(1, static_cast<int64_t>(count.size()));
  std::vector<Moments> of_group(groups * channels);
  for (size_t block = 0; block < count.size(); ++block) {
    Moments* moments = of_group.data() + group[block] * channels;
    const int64_t at = static_cast<int64_t>(block) * channels;
    for (int64_t c = 0; c < channels; ++c) {
      moments[c].add(static_cast<double>(count[block]), mean[at + c], 0, m2[at + c]);
    }
  }
  for (int64_t i = 0; i < groups * channels; ++i) {
    mean_out[i] = static_cast<float>(of_group[i].mean);
    var_out[i] = static_cast<float>(of_group[i].m2 / of_group[i].n);
  }
}

}  // namespace dcgan_fast::cpu
