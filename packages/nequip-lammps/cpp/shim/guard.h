// Whether the host is the LAMMPS that this plugin was compiled for. SPDX-License-Identifier: GPL-2.0-only
#pragma once
#include <string>

namespace nequip_lammps {

// A reason why the plugin must not be used in this host, or nothing.
std::string host_differs(void *lammps);

}  // namespace nequip_lammps
