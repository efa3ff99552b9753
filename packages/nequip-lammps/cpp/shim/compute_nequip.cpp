// SPDX-License-Identifier: GPL-2.0-only
#include "compute_nequip.h"

#include <algorithm>
#include <cstdlib>

#include "atom.h"
#include "comm.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "ranks.h"
#include "update.h"

using namespace LAMMPS_NS;

namespace nequip_lammps {
namespace {

// The pair style, alone or in hybrid.
PairNequip *find_pair(Force *force, Error *error) {
  for (const char *name : {"nequip", "allegro"})
    for (int k = 0; k < 2; ++k)
      if (auto pair = dynamic_cast<PairNequip *>(force->pair_match(name, 1, k))) return pair;
  error->all(FLERR, std::string("compute nequip and nequip/atom need pair_style nequip or allegro before them"));
}

const char *const syntax = "expected compute ID all nequip QUANTITY LENGTH, or compute ID all nequip/atom QUANTITY "
                           "LENGTH NEWTON, with LENGTH 1 or more and NEWTON 0 or 1";

}  // namespace

ComputeNequip::ComputeNequip(LAMMPS *lammps, int narg, char **arg) : Compute(lammps, narg, arg) {
  if (narg != 5 || igroup != 0 || std::atoi(arg[4]) < 1) error->all(FLERR, std::string("compute nequip: ") + syntax);
  quantity_ = arg[3];
  vector_flag = 1;
  size_vector = std::atoi(arg[4]);
  extvector = 1;
  vector = new double[size_vector];
  std::fill_n(vector, size_vector, 0.0);
  init();
}

ComputeNequip::~ComputeNequip() { delete[] vector; }

void ComputeNequip::init() {
  rows_ = find_pair(force, error)->keep(quantity_, size_vector);
}

void ComputeNequip::compute_vector() {
  invoked_vector = update->ntimestep;
  std::fill_n(vector, size_vector, 0.0);
  if (const double *kept = find_pair(force, error)->kept(quantity_)) {
    const int rows = rows_ ? atom->nlocal + atom->nghost : 1;
    for (int i = 0; i < rows; ++i)
      for (int k = 0; k < size_vector; ++k) vector[k] += kept[(size_t) size_vector * i + k];
  }
  sum_over_ranks(comm, vector, size_vector);
}

ComputeNequipAtom::ComputeNequipAtom(LAMMPS *lammps, int narg, char **arg) : Compute(lammps, narg, arg) {
  const bool right = narg == 6 && igroup == 0 && std::atoi(arg[4]) >= 1 &&
                     (std::string(arg[5]) == "0" || std::string(arg[5]) == "1");
  if (!right) error->all(FLERR, std::string("compute nequip/atom: ") + syntax);
  quantity_ = arg[3];
  length_ = std::atoi(arg[4]);
  newton_ = std::atoi(arg[5]);
  peratom_flag = 1;
  size_peratom_cols = length_ == 1 ? 0 : length_;
  comm_reverse = length_;
  init();
}

ComputeNequipAtom::~ComputeNequipAtom() {
  memory->destroy(vector_atom);
  memory->destroy(array_atom);
}

void ComputeNequipAtom::init() {
  if (!find_pair(force, error)->keep(quantity_, length_))
    error->all(FLERR, "compute nequip/atom: " + quantity_ + " has no row per atom; use compute nequip");
}

void ComputeNequipAtom::compute_peratom() {
  invoked_peratom = update->ntimestep;
  const int local = atom->nlocal, all = local + atom->nghost;
  if (all > allocated_) {
    allocated_ = atom->nmax;
    memory->destroy(vector_atom);
    memory->destroy(array_atom);
    if (size_peratom_cols) memory->create(array_atom, allocated_, length_, "nequip/atom:array");
    else memory->create(vector_atom, allocated_, "nequip/atom:vector");
  }
  const double *kept = find_pair(force, error)->kept(quantity_);
  if (!rows()) return;
  if (kept) std::copy_n(kept, (size_t) length_ * all, rows());
  else std::fill_n(rows(), (size_t) length_ * all, 0.0);
  if (newton_) comm->reverse_comm(this);
}

int ComputeNequipAtom::pack_reverse_comm(int n, int first, double *buffer) {
  std::copy_n(rows() + (size_t) length_ * first, (size_t) length_ * n, buffer);
  return length_ * n;
}

void ComputeNequipAtom::unpack_reverse_comm(int n, int *list, double *buffer) {
  for (int i = 0; i < n; ++i)
    for (int k = 0; k < length_; ++k) rows()[(size_t) length_ * list[i] + k] += buffer[(size_t) length_ * i + k];
}

double ComputeNequipAtom::memory_usage() { return sizeof(double) * (double) allocated_ * length_; }

}  // namespace nequip_lammps
