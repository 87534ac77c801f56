// Which of the compiled variants of the CPU kernels this machine runs.
//
// Every kernel file of cpu/ is compiled once per capability, into the namespace dcgan_fast::cpu::<capability>, with
// that capability's -m flags (setup.py lists them). The choice follows PyTorch's own, so ATEN_CPU_CAPABILITY=default
// forces the generic kernels here too.
#pragma once

namespace dcgan_fast::cpu {

enum class Capability { generic, avx2, avx512 };

Capability capability();           // best compiled in and supported, decided once
const char* capability_name();     // "DEFAULT", "AVX2", "AVX512"

}  // namespace dcgan_fast::cpu
