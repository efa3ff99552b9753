// SPDX-License-Identifier: GPL-2.0-only
#include "ghosts.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>

#include "comm.h"
#include "lammps.h"

namespace nequip_lammps {
namespace {

using LAMMPS_NS::LAMMPS;

// LAMMPS has one number for what the user wrote and for what we ask, and writes it into restart files. Ours is known by
// its last bits, which no number that a user writes has (but for one in 65,536).
constexpr uint64_t last_bits = 0xFFFF, our_mark = 0x4E51;

uint64_t bits(double value) {
  uint64_t out;
  std::memcpy(&out, &value, sizeof out);
  return out;
}

bool is_ours(double value) { return (bits(value) & last_bits) == our_mark; }

double marked(double value) {
  const uint64_t pattern = (bits(value * (1 + 1e-10)) & ~last_bits) | our_mark;
  double out;
  std::memcpy(&out, &pattern, sizeof out);
  return out;
}

// Several pair styles of one LAMMPS (hybrid) may ask.
using Distances = std::map<const void *, double>;

std::map<LAMMPS *, Distances> &wanted() {
  static std::map<LAMMPS *, Distances> all;
  return all;
}

double users(LAMMPS *lammps) {
  const double cutoff = lammps->comm->cutghostuser;
  return is_ours(cutoff) ? 0 : cutoff;
}

void write(LAMMPS *lammps, const Distances &distances) {
  double most = 0;
  for (const auto &[who, distance] : distances) most = std::max(most, distance);
  const double user = users(lammps);
  lammps->comm->cutghostuser = most > user ? marked(most) : user;
}

}  // namespace

double request_ghosts(LAMMPS *lammps, const void *who, double distance) {
  const double user = users(lammps);
  Distances &distances = wanted()[lammps];
  distances[who] = distance;
  write(lammps, distances);
  return user;
}

void release_ghosts(LAMMPS *lammps, const void *who) {
  auto found = wanted().find(lammps);
  if (found == wanted().end() || !found->second.erase(who)) return;
  if (lammps->comm) write(lammps, found->second);
  if (found->second.empty()) wanted().erase(found);
}

}  // namespace nequip_lammps
