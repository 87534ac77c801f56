#include "switches.h"

namespace dcgan_fast::cpu {

Switches& switches() {
  static Switches instance;
  return instance;
}

}  // namespace dcgan_fast::cpu
