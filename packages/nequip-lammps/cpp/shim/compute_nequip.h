// compute ID all nequip QUANTITY LENGTH                an output of the model, summed over atoms and processes
// compute ID all nequip/atom QUANTITY LENGTH NEWTON    one row per atom; NEWTON 1: ghosts' rows are added to their atoms
// SPDX-License-Identifier: GPL-2.0-only
#pragma once
#include <string>
#include <vector>

#include "compute.h"
#include "pair_nequip.h"

namespace nequip_lammps {

class ComputeNequip : public LAMMPS_NS::Compute {
 public:
  ComputeNequip(LAMMPS_NS::LAMMPS *, int, char **);
  ~ComputeNequip() override;
  void init() override;
  void compute_vector() override;

 private:
  std::string quantity_;
  bool rows_ = false;
};

class ComputeNequipAtom : public LAMMPS_NS::Compute {
 public:
  ComputeNequipAtom(LAMMPS_NS::LAMMPS *, int, char **);
  ~ComputeNequipAtom() override;
  void init() override;
  void compute_peratom() override;
  int pack_reverse_comm(int, int, double *) override;
  void unpack_reverse_comm(int, int *, double *) override;
  double memory_usage() override;

 private:
  double *rows() { return size_peratom_cols ? (allocated_ ? array_atom[0] : nullptr) : vector_atom; }

  std::string quantity_;
  int length_ = 0, newton_ = 0, allocated_ = 0;
};

}  // namespace nequip_lammps
