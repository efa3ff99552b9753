// Sums over processes by LAMMPS' own means, since the plugin makes no MPI call. SPDX-License-Identifier: GPL-2.0-only
#pragma once
#include <algorithm>
#include <vector>

#include "comm.h"

namespace nequip_lammps {

// The sum of each value over all processes, in the order of the processes: the same on all of them.
inline void sum_over_ranks(LAMMPS_NS::Comm *comm, double *values, int length) {
  struct Collected {
    int length;
    std::vector<double> all;
  } collected{length, std::vector<double>((size_t) comm->nprocs * length)};
  std::vector<double> mine(length + 1);
  mine[0] = comm->me;
  std::copy_n(values, length, &mine[1]);
  auto take = [](int, char *buffer, void *context) {
    auto into = static_cast<Collected *>(context);
    const auto from = reinterpret_cast<const double *>(buffer);
    std::copy_n(from + 1, into->length, &into->all[(size_t) from[0] * into->length]);
  };
  comm->ring(length + 1, sizeof(double), mine.data(), 0, take, nullptr, &collected, 1);
  std::fill_n(values, length, 0.0);
  for (int rank = 0; rank < comm->nprocs; ++rank)
    for (int k = 0; k < length; ++k) values[k] += collected.all[(size_t) rank * length + k];
}

}  // namespace nequip_lammps
