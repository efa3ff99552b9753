// The models' side, loaded when the first model is, so that LAMMPS starts no slower. SPDX-License-Identifier: GPL-2.0-only
#pragma once
#include <string>

#include "../core/nequip_core.h"

namespace nequip_lammps {

struct Core {
  decltype(&nequip_abi) abi;
  decltype(&nequip_open) open;
  decltype(&nequip_close) close;
  decltype(&nequip_get_facts) get_facts;
  decltype(&nequip_compute) compute;
  decltype(&nequip_get_times) get_times;
  decltype(&nequip_keep) keep;
  decltype(&nequip_kept) kept;
};

// Null, and a sentence in `why`, when it can not be had.
const Core *load_core(std::string &why);

}  // namespace nequip_lammps
