// How far ghosts must reach: asked of LAMMPS by the pair style itself. SPDX-License-Identifier: GPL-2.0-only
#pragma once

namespace LAMMPS_NS {
class LAMMPS;
}

namespace nequip_lammps {

// Ask for ghosts out to `distance` for `who`. The user's own `comm_modify cutoff`, 0 when there is none, is returned; it
// is never made smaller.
double request_ghosts(LAMMPS_NS::LAMMPS *, const void *who, double distance);
void release_ghosts(LAMMPS_NS::LAMMPS *, const void *who);

}  // namespace nequip_lammps
